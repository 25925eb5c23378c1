"""The one reader of hypervisor events for the engine: remembers what an event alone can tell, and wakes whoever waits for a VM.

Two facts are not to be had by looking later: that a domain ended because it had migrated away, and when the guest last ran before a switchover.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from nodeagent.ports import DomainEvent, EventKind, Hypervisor

ENDINGS = frozenset({EventKind.STOPPED, EventKind.STOPPED_MIGRATED, EventKind.DESTROYED, EventKind.CRASHED})


@dataclass(slots=True)
class Seen:
    """What events said of one VM's domain on this host since it last started here."""

    ending: EventKind | None = None
    switched: bool = False
    """Suspended by a switchover, and not resumed since."""
    switched_ms: int = 0
    arrived: bool = False
    reboots: int = 0
    events: int = 0
    """How many there were: what was looked at is as it was for as long as there are no more."""
    wakers: dict[asyncio.Event, None] = field(default_factory=dict)


class Observer:
    """Consumes the hypervisor's events for ever; `seen(vm_uid)` is what they said; `changed` is set at every event (for the inventory)."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self._hypervisor = hypervisor
        self._seen: defaultdict[str, Seen] = defaultdict(Seen)
        self.changed = asyncio.Event()
        self._watchers: dict[asyncio.Event, None] = {}

    def seen(self, vm_uid: str) -> Seen:
        return self._seen[vm_uid]

    def forget(self, vm_uid: str) -> None:
        """A new copy of the VM is about to exist here: what was said of an earlier one must not be taken for it."""
        seen = self._seen[vm_uid]
        seen.ending, seen.switched, seen.switched_ms, seen.arrived = None, False, 0, False

    @asynccontextmanager
    async def waking(self, vm_uid: str) -> AsyncIterator[asyncio.Event]:
        """An event that is set whenever something happens to the VM, or to the hypervisor as a whole."""
        waker = asyncio.Event()
        self._seen[vm_uid].wakers[waker] = None
        try:
            yield waker
        finally:
            self._seen[vm_uid].wakers.pop(waker, None)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[asyncio.Event]:
        """An event that is set whenever anything happens to any VM."""
        watcher = asyncio.Event()
        self._watchers[watcher] = None
        try:
            yield watcher
        finally:
            self._watchers.pop(watcher, None)

    def nudge(self) -> None:
        """Wake who is watching: something has changed that is no event."""
        for watcher in self._watchers:
            watcher.set()

    async def run(self) -> None:
        async for event in self._hypervisor.events():
            self._take(event)

    def _take(self, event: DomainEvent) -> None:
        self.changed.set()
        self.nudge()
        if not event.vm_uid:
            for seen in self._seen.values():
                seen.events += 1
                seen.switched = False  # a RESUMED may have been missed: from now on libvirt is asked
                _wake(seen)
            return
        seen = self._seen[event.vm_uid]
        seen.events += 1
        match event.kind:
            case EventKind.STARTED:
                seen.ending = None
            case EventKind.SWITCHED:
                seen.switched, seen.switched_ms = True, event.at_ms
            case EventKind.RESUMED:
                seen.switched = False
            case EventKind.REBOOTED:
                seen.reboots += 1
            case EventKind.ARRIVED:
                seen.arrived = True
            case kind if kind in ENDINGS:
                seen.ending = kind
        _wake(seen)


def _wake(seen: Seen) -> None:
    for waker in seen.wakers:
        waker.set()
