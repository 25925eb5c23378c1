"""The hypervisor port on libvirt and QEMU: which call answers which question, on which connection, within which deadline.

Our domains are transient, and name = UUID = the VM's uid. Every question is asked of libvirt anew; nothing about domains is remembered here, so
a restarted agent is no special case. What must not wait for libvirt (freeze, thaw, kill, locks) goes to the kernel. A call that acts on a
domain runs in the domain's lane, a look in another, so that a look is answered while an action hangs.

With `test:///default` as the URI this serves reads, events and deadlines only: that driver has no paused start, no migration, no QEMU process.
"""

import asyncio
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import libvirt
import structlog
from lxml import etree

from hostler.model.domain import DomainSpec
from hostler.server.clock import Clock, wall_ms
from nodeagent.adapters import libvirt_domains, libvirt_errors, libvirt_migration, libvirt_reception, libvirt_record, libvirt_status
from nodeagent.adapters.acceleration import measured_acceleration
from nodeagent.adapters.image_locks import ImageLocks
from nodeagent.adapters.libvirt_calls import Calls
from nodeagent.adapters.libvirt_connections import ConnectionPool, open_connection
from nodeagent.adapters.libvirt_events import QUEUE_EVENTS, EventFeed, EventHub, start_event_thread
from nodeagent.adapters.qemu_process import QEMU_RUN_DIR, QemuProcesses
from nodeagent.core import domain_shape, domain_xml
from nodeagent.core.domain_xml import Acceleration, DomainSpecRefused
from nodeagent.ports import (
    CopyTag,
    DomainEvent,
    DomainShape,
    DomainView,
    EventKind,
    GuestFacts,
    HypervisorFacts,
    HypervisorRefused,
    HypervisorUnavailable,
    LiveMigration,
    Locks,
    MigrationProgress,
    Power,
    Reception,
    Tune,
)

log = structlog.get_logger(__name__)
T = TypeVar("T")

CALL_DEADLINE_S = 5.0
"""Above the 3 s in which a hung libvirtd is found on the connection for events, so that the cause is named rather than the deadline."""
CREATE_DEADLINE_S = 30.0
CREATE_DEADLINE_S_PER_GIB = 1.0
"""Preallocated memory is zeroed before the start returns, several GiB a second."""
DESTROY_DEADLINE_S = 5.0
"""virDomainDestroy takes 1.2-1.6 s; after this QEMU is killed without libvirt."""
REAP_DEADLINE_S = 10.0
"""libvirtd needs 1.2-1.8 s to clear up after a QEMU that has died."""
SHAPE_DEADLINE_S = 2.0
"""libvirt answers such a look from its memory within a millisecond, or holds the domain."""
SHAPES_AT_ONCE = 4
"""So that a few domains that libvirt holds leave room for the others, and the looks leave libvirtd's workers to the acts."""
CALLS_MAX = 64
LONG_CALLS_MAX = 4
"""Migrations at once."""
RECONNECT_FIRST_S, RECONNECT_LIMIT_S = 0.2, 5.0

_RECORDED_POWERS = {"running": Power.RUNNING, "paused": Power.PAUSED, "shutdown": Power.SHUTTING_DOWN, "crashed": Power.CRASHED}
"""By libvirt's word for a state, in its own record."""
_GONE = "The VM has no domain on this host."


@dataclass(frozen=True, slots=True)
class LibvirtSettings:
    """Where libvirt is. `console_dir`: serial consoles are also written to files there; empty: they are not."""

    uri: str = "qemu:///system"
    socket: str = "/run/libvirt/libvirt-sock"
    run_dir: Path = QEMU_RUN_DIR
    log_dir: Path = libvirt_record.LIBVIRT_LOG_DIR
    qemu_conf: Path = Path("/etc/libvirt/qemu.conf")
    console_dir: str = ""
    queue_events: int = QUEUE_EVENTS


class LibvirtHypervisor:
    """`Hypervisor` on one libvirtd, to be used inside `connected()`."""

    def __init__(self, settings: LibvirtSettings, clock: Clock, acceleration: Acceleration | None = None) -> None:
        """`acceleration`: as measured already; None: it is measured when it is first needed, which takes seconds."""
        start_event_thread()
        self._settings = settings
        self._clock = clock
        self._processes = QemuProcesses(settings.run_dir)
        self._locks = ImageLocks()
        self._calls = Calls(CALLS_MAX)
        self._long_calls = Calls(LONG_CALLS_MAX)
        self._pool = ConnectionPool(settings.uri)
        self._hub = EventHub(lambda: wall_ms(clock), settings.queue_events)
        self._acceleration = acceleration
        self._measuring = asyncio.Lock()

    # -- the connection that events come on --------------------------------------------------------------------

    @asynccontextmanager
    async def connected(self) -> AsyncIterator["LibvirtHypervisor"]:
        """Inside, events flow whenever libvirt can be reached; where it cannot at the start, CONNECTION_BACK says when."""
        lost = asyncio.Event()
        feed = await self._listen_if_possible(lost)
        # Not a TaskGroup: an error of what happens inside is not ours to wrap.
        keeper = asyncio.get_running_loop().create_task(self._keep(feed, lost), name="libvirt connection")
        try:
            yield self
        finally:
            keeper.cancel()
            await asyncio.wait([keeper])
            self.close()
        if not keeper.cancelled():
            keeper.result()

    def close(self) -> None:
        """Close the connections; calls that hang keep theirs until they return."""
        self._pool.close()

    async def _keep(self, feed: EventFeed | None, lost: asyncio.Event) -> None:
        try:
            while True:
                if feed is None:
                    feed = await self._listen_again(lost)
                    self._hub.publish(EventKind.CONNECTION_BACK)
                await lost.wait()
                self._hub.publish(EventKind.CONNECTION_LOST)
                for calls in (self._calls, self._long_calls):
                    calls.give_up("libvirt does not answer")
                await self._close_feed(feed)
                feed = None
                lost.clear()
        finally:
            if feed is not None:
                await self._close_feed(feed)

    async def _close_feed(self, feed: EventFeed) -> None:
        try:
            await asyncio.shield(self._calls.run("close events", CALL_DEADLINE_S, feed.close))
        except HypervisorUnavailable as err:
            log.warning("libvirt's event connection does not close; left behind", reason=err.detail)

    async def _listen_again(self, lost: asyncio.Event) -> EventFeed:
        pause_s = RECONNECT_FIRST_S
        while (feed := await self._listen_if_possible(lost)) is None:
            await self._clock.sleep(pause_s)
            pause_s = min(pause_s * 2, RECONNECT_LIMIT_S)
        return feed

    async def _listen_if_possible(self, lost: asyncio.Event) -> EventFeed | None:
        try:
            return await self._listen(lost)
        except HypervisorUnavailable as err:
            log.warning("libvirt cannot be reached", reason=err.detail)
            return None

    async def _listen(self, lost: asyncio.Event) -> EventFeed:
        loop = asyncio.get_running_loop()

        def tell() -> None:
            try:
                loop.call_soon_threadsafe(lost.set)
            except RuntimeError:
                return  # the loop is closed

        def listen() -> EventFeed:
            connection = open_connection(self._settings.uri)
            try:
                return EventFeed(connection, self._hub, self._arriving(connection), tell)
            except libvirt.libvirtError as err:
                connection.close()
                raise HypervisorUnavailable("libvirt was lost again") from err

        return await self._calls.run("listen", CALL_DEADLINE_S, listen, late=EventFeed.close)

    def _arriving(self, connection: libvirt.virConnect) -> list[str]:
        names = [domain.name() for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_PAUSED)]
        return [name for name in names if libvirt_status.is_incoming(self._settings.run_dir, name)]

    def events(self) -> AsyncGenerator[DomainEvent, None]:
        return self._hub.subscribe()

    # -- looking -----------------------------------------------------------------------------------------------

    async def facts(self) -> HypervisorFacts:
        accelerated = await self._measured()

        def ask(connection: libvirt.virConnect) -> tuple[int, str, int, str]:
            return connection.getLibVersion(), connection.getType(), connection.getVersion(), connection.getCapabilities()

        ours, kind, theirs, capabilities = await self._look("facts", ask)
        confinement = _confinement(capabilities, self._settings.qemu_conf)
        description = f"libvirt {_version(ours)}, {kind} {_version(theirs)}"
        return HypervisorFacts(description, accelerated.value, confinement, ours, theirs)

    async def _measured(self) -> Acceleration:
        async with self._measuring:
            if self._acceleration is None:
                self._acceleration = await measured_acceleration()
            return self._acceleration

    async def domains(self) -> tuple[DomainView, ...]:
        def ask(connection: libvirt.virConnect) -> tuple[DomainView, ...]:
            found = (self._view(domain) for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE))
            return tuple(view for view in found if view is not None)

        return await self._look("domains", ask)

    async def domain(self, vm_uid: str) -> DomainView | None:
        def ask(connection: libvirt.virConnect) -> DomainView | None:
            domain = libvirt_domains.lookup(connection, vm_uid)
            view = None if domain is None else self._view(domain)
            return view if view is not None and view.tag is not None else None

        if self._processes.is_frozen(vm_uid) and (view := self._recorded_view(vm_uid)) is not None:
            return view
        return await self._look(f"domain {vm_uid}", ask)

    def _recorded_view(self, vm_uid: str) -> DomainView | None:
        """Of a frozen domain, which libvirtd may hold: as libvirtd wrote it down. None: not known."""
        status = libvirt_status.read_status(self._settings.run_dir, vm_uid)
        power = None if status is None else _RECORDED_POWERS.get(status.state)
        if status is None or power is None:
            return None
        power = Power.INCOMING if status.incoming else Power.SWITCHED if status.switched else power
        tag = domain_xml.parse_tag(status.domain)
        if tag is None:
            return None
        vcpus, memory_mib = domain_xml.parse_size(status.domain)
        return DomainView(vm_uid, vm_uid, power, tag, vcpus, memory_mib, self._processes.pid(vm_uid))

    def _view(self, domain: libvirt.virDomain) -> DomainView | None:
        """None: it ended between two calls. That the process is dead already is no reason to say so: libvirt holds the domain until it has
        said why it ended, and a source that migrated away must not look like one that crashed."""
        name, uuid = domain.name(), domain.UUIDString()
        try:
            xml = domain.XMLDesc()
            state, reason = domain.state()
        except libvirt.libvirtError as err:
            if libvirt_errors.is_absent(err):
                return None
            raise
        power = libvirt_migration.power_of(state, reason, libvirt_status.is_incoming(self._settings.run_dir, name))
        if power is None:
            return None
        vcpus, memory_mib = domain_xml.parse_size(xml)
        return DomainView(name, uuid, power, domain_xml.parse_tag(xml), vcpus, memory_mib, self._processes.pid(name))

    async def shapes(self) -> Mapping[str, DomainShape | None]:
        """Each domain in a lane of its own, a few at once: libvirt locks a domain that it is ending for up to 12 s."""

        def names(connection: libvirt.virConnect) -> list[str]:
            return [domain.UUIDString() for domain in connection.listAllDomains(0)]

        listed = await self._look("every domain", names)
        found: dict[str, DomainShape | None] = {}
        slots = asyncio.Semaphore(SHAPES_AT_ONCE)

        async def look(uuid: str) -> None:
            async with slots:
                try:
                    shape = await self._shape(uuid)
                except (HypervisorUnavailable, HypervisorRefused, ValueError):
                    found[uuid] = None
                else:
                    found.update({} if shape is None else {uuid: shape})

        async with asyncio.TaskGroup() as group:
            for uuid in listed:
                group.create_task(look(uuid), name=f"shape of {uuid}")
        return found

    async def _shape(self, uuid: str) -> DomainShape | None:
        """None: it ended meanwhile."""
        lane = f"shape of {uuid}"
        if self._calls.lane_taken(lane):
            raise HypervisorUnavailable(f"an earlier look still waits ({lane})")

        def ask(connection: libvirt.virConnect) -> DomainShape | None:
            try:
                domain = connection.lookupByUUIDString(uuid)
                state, reason = domain.state()
                active = libvirt_migration.power_of(state, reason, is_incoming=False) is not None
                return domain_shape.parse_shape(
                    domain.XMLDesc(),
                    active=active,
                    suspended=(state, reason) == (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER),
                    persistent=bool(domain.isPersistent()),
                    autostart=bool(domain.autostart()),
                )
            except libvirt.libvirtError as err:
                if libvirt_errors.is_absent(err):
                    return None
                raise

        return await self._calls.run(lane, SHAPE_DEADLINE_S, lambda: self._pool.call(lane, ask))

    # -- acting ------------------------------------------------------------------------------------------------

    async def create_paused(self, spec: DomainSpec, tag: CopyTag, disk_paths: Mapping[str, str]) -> DomainView:
        accelerated = await self._measured()
        console_log = f"{self._settings.console_dir}/{spec.vm_uid}.log" if self._settings.console_dir else ""
        try:
            xml = domain_xml.domain_xml(spec, tag, disk_paths, accelerated, console_log)
        except DomainSpecRefused as err:
            raise HypervisorRefused(str(err)) from err

        def create(connection: libvirt.virConnect) -> DomainView:
            if libvirt_domains.lookup(connection, spec.vm_uid) is not None:
                raise HypervisorRefused("The VM has a domain on this host already.")
            view = self._view(connection.createXML(xml, libvirt.VIR_DOMAIN_START_PAUSED | libvirt.VIR_DOMAIN_START_VALIDATE))
            if view is None:
                raise HypervisorRefused("The domain ended as soon as it was made.")
            return view

        deadline_s = CREATE_DEADLINE_S + CREATE_DEADLINE_S_PER_GIB * spec.memory_mib / 1024
        return await self._act("create", spec.vm_uid, create, deadline_s)

    async def resume(self, vm_uid: str) -> None:
        def resume(domain: libvirt.virDomain) -> None:
            try:
                domain.resume()
            except libvirt.libvirtError as err:  # asked first, its state would cost a guest that stands still a round trip
                if domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING:
                    return
                if not (libvirt_errors.is_denied(err) and self._own_images(vm_uid, domain)):
                    raise
                domain.resume()

        await self._act_on("resume", vm_uid, resume)

    def _own_images(self, vm_uid: str, domain: libvirt.virDomain) -> bool:
        """A source's libvirt that took the end of a migrated guest for a crash has given its shared images back to root; they are this QEMU's now."""
        paths = domain_shape.disk_sources(domain.XMLDesc())
        log.warning("the VM's QEMU may not open its images; they are made its own", vm_uid=vm_uid, images=paths)
        try:
            return self._processes.own(vm_uid, map(self._reached, paths))
        except OSError as err:
            log.warning("the VM's images cannot be made its own", vm_uid=vm_uid, reason=err.strerror)
            return False

    def _reached(self, image: str) -> str:
        """Where this process finds what the host calls so: there."""
        return image

    async def press_power_button(self, vm_uid: str) -> None:
        await self._act_on("power button", vm_uid, lambda domain: domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN))

    async def reboot(self, vm_uid: str) -> None:
        await self._act_on("reboot", vm_uid, lambda domain: domain.reboot(libvirt.VIR_DOMAIN_REBOOT_ACPI_POWER_BTN))

    async def reset(self, vm_uid: str) -> None:
        await self._act_on("reset", vm_uid, lambda domain: domain.reset())

    async def destroy(self, vm_uid: str) -> None:
        """libvirt's own way first, which lets QEMU flush; by signal at once where QEMU is stopped, because libvirt would wait 12 s for it."""
        if self._processes.pid(vm_uid) or await self.domain(vm_uid) is not None:
            self._hub.expect_end(vm_uid)
        await self._destroy(vm_uid)
        self._hub.end_seen(vm_uid)

    async def _destroy(self, vm_uid: str) -> None:
        if not self._processes.is_frozen(vm_uid):
            try:
                await self._act("destroy", vm_uid, lambda connection: libvirt_domains.destroy(connection, vm_uid), DESTROY_DEADLINE_S)
                return
            except (HypervisorRefused, HypervisorUnavailable) as err:
                log.warning("destroying through libvirt failed; killing", vm_uid=vm_uid, reason=err.detail)
        await self._processes.kill(vm_uid)
        await self._act("reap", vm_uid, lambda connection: libvirt_domains.destroy(connection, vm_uid), REAP_DEADLINE_S)

    # -- past libvirt ------------------------------------------------------------------------------------------

    def freeze(self, vm_uid: str) -> bool:
        return self._processes.freeze(vm_uid)

    def thaw(self, vm_uid: str) -> bool:
        return self._processes.signal(vm_uid, signal.SIGCONT)

    def is_frozen(self, vm_uid: str) -> bool:
        return self._processes.is_frozen(vm_uid)

    async def kill(self, vm_uid: str) -> None:
        await self._processes.kill(vm_uid)

    async def locks(self, disk_paths: tuple[str, ...]) -> Locks:
        return await self._locks.ask(disk_paths)

    # -- migration ---------------------------------------------------------------------------------------------

    async def migrate(self, migration: LiveMigration) -> None:
        def migrate(connection: libvirt.virConnect) -> None:
            domain = libvirt_domains.ours(connection, migration.tag.vm_uid)
            if domain is None:
                raise HypervisorRefused(_GONE)
            libvirt_migration.migrate(domain, migration)

        lane = f"migrate {migration.tag.vm_uid}"
        if self._long_calls.lane_taken(lane):
            raise HypervisorRefused("The VM is being migrated already.")
        if self._long_calls.running >= LONG_CALLS_MAX:
            raise HypervisorRefused(f"The host has {LONG_CALLS_MAX} outgoing migrations already.")
        await self._long_calls.run(lane, None, lambda: self._pool.call(lane, migrate))

    async def abort_migration(self, vm_uid: str) -> None:
        def abort(connection: libvirt.virConnect) -> None:
            domain = libvirt_domains.ours(connection, vm_uid)
            if domain is not None:
                libvirt_migration.abort(domain)

        await self._ask("abort", vm_uid, abort)

    async def tune_migration(self, vm_uid: str, change: Tune) -> None:
        def tune(connection: libvirt.virConnect) -> None:
            domain = libvirt_domains.ours(connection, vm_uid)
            if domain is None:
                raise HypervisorRefused(libvirt_migration.NOT_MIGRATED)
            libvirt_migration.tune(domain, change)

        await self._ask("tune", vm_uid, tune)

    async def migration_progress(self, vm_uid: str) -> MigrationProgress | None:
        def ask(connection: libvirt.virConnect) -> MigrationProgress | None:
            domain = libvirt_domains.ours(connection, vm_uid)
            return None if domain is None else libvirt_migration.progress(domain)

        return await self._ask("progress", vm_uid, ask)

    async def received_bytes(self, vm_uid: str) -> int:
        def ask(connection: libvirt.virConnect) -> int:
            domain = libvirt_domains.ours(connection, vm_uid)
            return 0 if domain is None else libvirt_migration.received_bytes(domain)

        return await self._look(f"received {vm_uid}", ask)

    async def guest_facts(self, vm_uid: str) -> GuestFacts | None:
        def ask(connection: libvirt.virConnect) -> GuestFacts | None:
            domain = libvirt_domains.ours(connection, vm_uid)
            return None if domain is None else domain_xml.parse_guest(domain.XMLDesc())

        return await self._look(f"guest {vm_uid}", ask)

    async def reception(self, guest: GuestFacts) -> Reception:
        kind = "kvm" if await self._measured() is Acceleration.KVM else "qemu"
        return await self._look("reception", lambda connection: libvirt_reception.reception(connection, kind, guest))

    async def dirty_rate(self, vm_uid: str) -> int | None:
        def start(connection: libvirt.virConnect) -> None:
            domain = libvirt_domains.ours(connection, vm_uid)
            if domain is None:
                raise HypervisorRefused(_GONE)
            domain.startDirtyRateCalc(libvirt_reception.DIRTY_RATE_S, 0)

        def ask(connection: libvirt.virConnect) -> int | None:
            domain = libvirt_domains.ours(connection, vm_uid)
            return None if domain is None else libvirt_reception.dirty_rate(connection, domain)

        await self._ask("dirty rate", vm_uid, start)
        for _ in range(libvirt_reception.DIRTY_RATE_LOOKS):
            await self._clock.sleep(libvirt_reception.DIRTY_RATE_S / 4)
            if (rate := await self._ask("dirty rate", vm_uid, ask)) is not None:
                return rate
        return None

    async def record_mark(self, vm_uid: str) -> str:
        return await self._read_record(vm_uid, lambda: libvirt_record.mark(self._settings.log_dir, vm_uid)) or ""

    async def recorded_ending(self, vm_uid: str, mark: str) -> EventKind | None:
        return await self._read_record(vm_uid, lambda: libvirt_record.ending(self._settings.log_dir, vm_uid, mark))

    async def _read_record(self, vm_uid: str, read: Callable[[], T]) -> T | None:
        """None: it cannot be read, which is not worth waiting for; a record that is not to be had proves nothing."""
        try:
            return await self._calls.run(f"record of {vm_uid}", CALL_DEADLINE_S, read)
        except OSError as err:
            log.warning("libvirt's log of the domain cannot be read", vm_uid=vm_uid, reason=err.strerror)
            return None

    def libvirt_socket(self) -> str:
        return self._settings.socket

    # -- lanes -------------------------------------------------------------------------------------------------

    async def _look(self, what: str, ask: Callable[[libvirt.virConnect], T]) -> T:
        """A question that libvirt answers from its own memory."""
        return await self._calls.run(what, CALL_DEADLINE_S, lambda: self._pool.call(what, ask))

    async def _ask(self, what: str, vm_uid: str, ask: Callable[[libvirt.virConnect], T]) -> T:
        """A question about a migration, which waits for QEMU."""
        return await self._calls.run(f"job of {vm_uid}", CALL_DEADLINE_S, lambda: self._pool.call(what, ask))

    async def _act(self, what: str, vm_uid: str, act: Callable[[libvirt.virConnect], T], deadline_s: float = CALL_DEADLINE_S) -> T:
        return await self._calls.run(vm_uid, deadline_s, lambda: self._pool.call(f"{what} {vm_uid}", act))

    async def _act_on(self, what: str, vm_uid: str, act: Callable[[libvirt.virDomain], object]) -> None:
        def on_domain(connection: libvirt.virConnect) -> None:
            domain = libvirt_domains.ours(connection, vm_uid)
            if domain is None:
                raise HypervisorRefused(_GONE)
            act(domain)

        await self._act(what, vm_uid, on_domain)


def _version(number: int) -> str:
    """libvirt's 9000001 is 9.0.1."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def _confinement(capabilities: str, qemu_conf: Path) -> str:
    """What keeps a guest's QEMU in: libvirt's security models on this host, and seccomp unless the configuration turns it off."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    models = [model.text or "" for model in etree.fromstring(capabilities.encode(), parser).iterfind("host/secmodel/model")]
    kept = [model for model in models if model != "none"]
    return ",".join([*kept, *(["seccomp"] if _seccomp(qemu_conf) else [])])


def _seccomp(qemu_conf: Path) -> bool:
    """libvirt's default is on."""
    try:
        lines = qemu_conf.read_text().splitlines()
    except FileNotFoundError:
        return True
    values = [line.partition("=")[2].strip() for line in lines if line.partition("=")[0].strip() == "seccomp_sandbox"]
    return not values or values[-1] != "0"
