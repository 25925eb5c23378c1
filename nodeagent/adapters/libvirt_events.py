"""libvirt's domain events as a stream for asyncio, from one thread for the whole process.

libvirt has one event implementation per process, which must be registered before the first connection is opened; libvirt's own default one
runs in a thread here and serves every loop that ever asks (libvirtaio binds to the first loop and goes silent on the second). Events are handed
over by `call_soon_threadsafe` to bounded queues, one for each reader; a reader that falls behind loses the events and is told to look again.
What only the order of events can tell is kept here: that a suspension is an arrival.
"""

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from enum import Enum, auto
from typing import Any

import libvirt
import structlog

from nodeagent.ports import DomainEvent, EventKind

log = structlog.get_logger(__name__)

QUEUE_EVENTS = 1024
"""A reader's backlog; at 48 bytes an event nobody notices, and a reader that is this late had better look again."""
KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT = 1, 2
"""A hung libvirtd is found within 3 s."""
TICK_MS = 1000
"""libvirt's poll must have something to wait for before the first connection exists."""

_STOPPED_KINDS = {
    libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: EventKind.DESTROYED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED: EventKind.STOPPED_MIGRATED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED: EventKind.CRASHED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED: EventKind.CRASHED,
}


class _EventThread:
    """The process's one libvirt event thread; started once, ends with the process."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._started = False

    def start(self) -> None:
        with self._guard:
            if self._started:
                return
            libvirt.registerErrorHandler(_no_stderr, None)
            libvirt.virEventRegisterDefaultImpl()
            libvirt.virEventAddTimeout(TICK_MS, _tick, None)
            threading.Thread(target=_pump, name="libvirt events", daemon=True).start()
            self._started = True


def _pump() -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError as err:
            log.error("libvirt's event loop failed once", exc_info=err)


def _tick(_timer: int, _opaque: object) -> None:
    return None


def _no_stderr(_context: object, _error: object) -> None:
    """libvirt prints every error to stderr by default; errors reach us as exceptions."""


_thread = _EventThread()


def start_event_thread() -> None:
    """To be called before any connection is opened; again is harmless."""
    _thread.start()


class Subscription(AsyncGenerator[DomainEvent, None]):
    """One reader's events, from its making on (a generator function would begin at the first `anext`). Dropped when nobody holds it."""

    def __init__(self, drop: Callable[["Subscription"], None], now_ms: Callable[[], int], limit: int) -> None:
        self._limit = limit
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._queue: deque[DomainEvent] = deque()
        self._woken = asyncio.Event()
        self._drop = drop
        self._now_ms = now_ms

    def offer(self, event: DomainEvent) -> bool:
        """From any thread; False: the reader's loop is closed."""
        try:
            self._loop.call_soon_threadsafe(self._put, event)
        except RuntimeError:
            return False
        return True

    def _put(self, event: DomainEvent) -> None:
        if len(self._queue) >= self._limit:
            self._queue.clear()
            event = DomainEvent(EventKind.CONNECTION_BACK, "", self._now_ms())
        self._queue.append(event)
        self._woken.set()

    async def asend(self, value: None) -> DomainEvent:
        while not self._queue:
            if self._closed:
                raise StopAsyncIteration
            self._woken.clear()
            await self._woken.wait()
        return self._queue.popleft()

    async def athrow(self, *_thrown: Any) -> DomainEvent:  # noqa: ANN401  three old shapes of one call
        self._drop(self)
        self._closed = True
        self._woken.set()
        raise StopAsyncIteration


class _End(Enum):
    """Of a domain that we destroy: not told yet, or told by us before libvirt did."""

    EXPECTED = auto()
    TOLD = auto()


class EventHub:
    """Fan-out of one hypervisor's events to readers that may be `limit` behind. `now_ms` is the wall clock, called in libvirt's thread."""

    def __init__(self, now_ms: Callable[[], int], limit: int = QUEUE_EVENTS) -> None:
        self._limit = limit
        self._now_ms = now_ms
        self._guard = threading.Lock()
        self._readers: weakref.WeakSet[Subscription] = weakref.WeakSet()
        self._ends: dict[str, _End] = {}

    def expect_end(self, vm_uid: str) -> None:
        """We are about to take its power: its end is no crash, though libvirt often says so when it hears of the death first."""
        with self._guard:
            self._ends[vm_uid] = _End.EXPECTED

    def end_seen(self, vm_uid: str) -> None:
        """It is gone. libvirt says nothing about a domain that ends while a restarted libvirtd finds it again, so we say it if nobody has."""
        with self._guard:
            untold = self._ends.get(vm_uid) is _End.EXPECTED
            if untold:
                self._ends[vm_uid] = _End.TOLD
        if untold:
            self.publish(EventKind.STOPPED, vm_uid)

    def forget_end(self, vm_uid: str) -> None:
        """It lives, or lives again."""
        with self._guard:
            self._ends.pop(vm_uid, None)

    def judged_end(self, vm_uid: str, said: EventKind) -> EventKind | None:
        """What libvirt's word about an end means; None: readers have been told."""
        with self._guard:
            end = self._ends.pop(vm_uid, None)
        if end is _End.TOLD:
            return None
        return EventKind.STOPPED if end is _End.EXPECTED and said in (EventKind.CRASHED, EventKind.DESTROYED) else said

    def subscribe(self) -> Subscription:
        reader = Subscription(self._leave, self._now_ms, self._limit)
        with self._guard:
            self._readers.add(reader)
        return reader

    def publish(self, kind: EventKind, vm_uid: str = "") -> None:
        """From any thread."""
        event = DomainEvent(kind, vm_uid, self._now_ms())
        with self._guard:
            readers = list(self._readers)
        for reader in readers:
            if not reader.offer(event):
                self._leave(reader)

    def _leave(self, reader: Subscription) -> None:
        with self._guard:
            self._readers.discard(reader)


class EventFeed:
    """Listens on one open connection until `close` or until the connection dies, when `lost` is called (in libvirt's thread).

    libvirtd is pinged here and nowhere else, and only while nothing is called on the connection (see `libvirt_connections`).
    """

    def __init__(self, connection: libvirt.virConnect, hub: EventHub, arriving: Iterable[str], lost: Callable[[], None]) -> None:
        """`arriving`: uids of the domains that are destinations of migrations now."""
        self._connection = connection
        self._hub = hub
        self._arriving = set(arriving)
        self._lost = lost
        self._callbacks = [
            connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_lifecycle, None),
            connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, self._on_reboot, None),
        ]
        connection.registerCloseCallback(self._on_close, None)
        self._keep_alive(KEEPALIVE_INTERVAL_S)

    def close(self) -> None:
        """Deregister, then close: the other order leaks the connection. Blocks."""
        try:
            self._keep_alive(0)
            self._connection.unregisterCloseCallback()
            for callback in self._callbacks:
                self._connection.domainEventDeregisterAny(callback)
        except libvirt.libvirtError as err:
            log.info("libvirt's connection was dead when it was closed", code=err.get_error_code())
        self._connection.close()

    def _keep_alive(self, interval_s: int) -> None:
        """0: no more."""
        if not self._connection.getURI().startswith("test:"):  # in process, where there is nothing to keep alive
            self._connection.setKeepAlive(interval_s, KEEPALIVE_COUNT)

    def _on_lifecycle(self, _connection: object, domain: libvirt.virDomain, event: int, detail: int, _opaque: object) -> None:
        name, uuid = domain.name(), domain.UUIDString()
        if name != uuid:
            return  # not ours: our domains are named after their UUID
        kind = self._kind(uuid, event, detail)
        if kind is not None:
            self._hub.publish(kind, uuid)

    def _on_reboot(self, _connection: object, domain: libvirt.virDomain, _opaque: object) -> None:
        if domain.name() == domain.UUIDString():
            self._hub.publish(EventKind.REBOOTED, domain.UUIDString())

    def _kind(self, uuid: str, event: int, detail: int) -> EventKind | None:
        match event:
            case libvirt.VIR_DOMAIN_EVENT_STARTED:
                self._note_arriving(uuid, detail == libvirt.VIR_DOMAIN_EVENT_STARTED_MIGRATED)
                self._hub.forget_end(uuid)
                return EventKind.STARTED
            case libvirt.VIR_DOMAIN_EVENT_SUSPENDED if detail == libvirt.VIR_DOMAIN_EVENT_SUSPENDED_MIGRATED:
                return EventKind.SWITCHED
            case libvirt.VIR_DOMAIN_EVENT_SUSPENDED if uuid in self._arriving:
                self._note_arriving(uuid, False)
                return EventKind.ARRIVED
            case libvirt.VIR_DOMAIN_EVENT_SUSPENDED | libvirt.VIR_DOMAIN_EVENT_PMSUSPENDED:
                return EventKind.SUSPENDED
            case libvirt.VIR_DOMAIN_EVENT_RESUMED:
                self._note_arriving(uuid, False)
                return EventKind.RESUMED
            case libvirt.VIR_DOMAIN_EVENT_STOPPED:
                self._note_arriving(uuid, False)
                return self._hub.judged_end(uuid, _STOPPED_KINDS.get(detail, EventKind.STOPPED))
            case libvirt.VIR_DOMAIN_EVENT_CRASHED:
                return EventKind.CRASHED
            case _:
                return None  # defined, undefined, shutting down: nothing that the port names

    def _note_arriving(self, uuid: str, arriving: bool) -> None:
        if arriving:
            self._arriving.add(uuid)
        else:
            self._arriving.discard(uuid)

    def _on_close(self, _connection: object, reason: int, _opaque: object) -> None:
        log.warning("libvirt's connection is lost", reason=reason)
        self._lost()
