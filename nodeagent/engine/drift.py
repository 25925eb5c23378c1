"""Notices what somebody changed of our domains past Hostler: looks at what every domain is made of, every few seconds and at every event.

The comparison itself is `core.drift`. A VM that somebody works on (its lock is held, a handoff goes on) is left out: what Hostler itself does to
a domain half-way looks like a hand edit. A new finding counts once a second look has confirmed it. Whatever does not answer keeps what was
found last, and holds up nobody: this loop answers no request.
"""

import asyncio
from collections.abc import Mapping

import structlog

from hostler.model.copy import Stage
from hostler.server.clock import Clock
from nodeagent.core.definitions import Definition
from nodeagent.core.drift import findings
from nodeagent.core.observed import DomainShape
from nodeagent.engine.host_state import HostState
from nodeagent.engine.observer import Observer
from nodeagent.engine.vms import HostVMs
from nodeagent.ports import EventKind, Hypervisor, HypervisorRefused, HypervisorUnavailable, PoolMissing

PERIOD_S = 5.0
"""Between two looks; with the beat that carries it, a hand edit is known to the cluster within 10 s."""
PAUSE_S = 1.0
"""At least so long between two looks, however many events there are."""
CONFIRM_S = 0.3
"""Before the second look at a new finding: longer than the agent's own steps between two locks."""

Found = Mapping[str, tuple[str, ...]]
log = structlog.get_logger()


class DriftWatch:
    """Writes `vms.drift`, and wakes the inventory and the views when that changes."""

    def __init__(self, hypervisor: Hypervisor, vms: HostVMs, state: HostState, observer: Observer, clock: Clock) -> None:
        self._hypervisor = hypervisor
        self._vms = vms
        self._state = state
        self._observer = observer
        self._clock = clock

    async def run(self) -> None:
        """For ever."""
        async with self._observer.watching() as waker:
            while True:
                waker.clear()
                await self._look_if_possible()
                await self._clock.sleep(PAUSE_S)
                try:
                    async with asyncio.timeout(PERIOD_S - PAUSE_S):
                        await waker.wait()
                except TimeoutError:
                    continue

    async def _look_if_possible(self) -> None:
        try:
            await self.look()
        except (HypervisorUnavailable, HypervisorRefused) as error:
            log.info("domains were not compared with their definitions", why=error.detail)

    async def look(self) -> None:
        """One look, two where something new is found. Raises HypervisorUnavailable, HypervisorRefused; then nothing has changed."""
        before = self._comparable()
        found = await self._found(before)
        known = self._vms.drift
        if any(set(now) - set(known.get(uid, ())) for uid, now in found.items()):
            await self._clock.sleep(CONFIRM_S)
            again = await self._found(before)
            found = {uid: tuple(one for one in now if one in again.get(uid, ())) for uid, now in found.items()}
        now = {uid: found.get(uid, known.get(uid, ())) for uid in self._state.definitions}
        self._take({uid: told for uid, told in now.items() if told})

    def _take(self, now: Found) -> None:
        if now == self._vms.drift:
            return
        for uid in sorted({*now, *self._vms.drift}):
            if now.get(uid) != self._vms.drift.get(uid):
                log.warning("drift", vm_uid=uid, found=now.get(uid, ()))
        self._vms.drift = now
        self._observer.changed.set()
        self._observer.nudge()

    def _comparable(self) -> Mapping[str, Definition]:
        """VMs that nobody here works on."""
        busy = {one.vm_uid for one in self._state.outgoing.values() if one.stage not in (Stage.FINISHED, Stage.ABORTED)}
        return {
            uid: definition
            for uid, definition in self._state.definitions.items()
            if not definition.incoming and uid not in busy and not self._state.vm_lock(uid).locked()
        }

    async def _found(self, before: Mapping[str, Definition]) -> Found:
        """Findings, also none, of each VM that was comparable `before` and still is after the look."""
        shapes = await self._hypervisor.shapes()
        known = [shape for shape in shapes.values() if shape is not None]
        after = self._comparable()
        return {
            uid: self._of(definition, known)
            for uid, definition in before.items()
            if after.get(uid) is definition and not (uid in shapes and shapes[uid] is None)
        }

    def _of(self, definition: Definition, shapes: list[DomainShape]) -> tuple[str, ...]:
        try:
            paths = self._vms.disk_paths(definition.spec)
        except PoolMissing as error:
            return (f"Its disks cannot be compared: {error.detail}",)
        taken = self._observer.seen(definition.spec.vm_uid).ending is EventKind.DESTROYED
        return findings(definition, paths, shapes, power_taken=taken)
