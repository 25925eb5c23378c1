"""What the API shows of this host's VMs, kept up to date by looking at the hypervisor, and answered in bounded time when that does not answer.

A read looks first, so that it tells what is true now. Once a look has failed, reads stop asking: they answer what was known last, marked stale, and
one loop tries until the hypervisor is back. So a hung hypervisor holds up the first readers for LOOK_S and nobody after them.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

import structlog

from hostler.model.copy import Stage
from hostler.model.node import VMStatus
from nodeagent.core.shown import VMView, held_views
from nodeagent.engine.host_state import HostState
from nodeagent.engine.observer import Observer
from nodeagent.engine.vms import HostVMs
from nodeagent.engine.watch import Ring
from nodeagent.ports import HypervisorRefused, HypervisorUnavailable

LOOK_S = 2.0
"""How long a reader waits for the hypervisor, which answers in milliseconds or is in trouble."""

LOOK_AGAIN_S = 5.0
"""Without an event, look this often all the same: one can be lost with the connection."""

RETRY_S = 0.5
"""How often a hypervisor that does not answer is asked again."""

SETTLE_S = 0.02
"""After an event, wait this long for more of them: one start makes several."""

STALE = "The hypervisor does not answer; this is what was known last."

log = structlog.get_logger()


class Source(Protocol):
    """Where the VMs come from: the host's own decisions, or what the cluster told it."""

    def noted(self) -> Mapping[str, int]:
        """Taken before a look: which state each VM was in, so that an old look does not change a newer state."""

    async def take(self, statuses: Sequence[VMStatus], noted: Mapping[str, int]) -> None:
        """What the look showed."""

    def views_now(self, stale: str) -> Mapping[str, VMView]: ...


class VMViews:
    """`ring` has every VM as it is shown, by name."""

    def __init__(self, source: Source, vms: HostVMs, observer: Observer, history: str) -> None:
        self._source = source
        self._vms = vms
        self._observer = observer
        self._down = False
        self.ring: Ring[VMView] = Ring(history, source.views_now(""))

    async def look(self) -> bool:
        """Bring `ring` up to date; False: the hypervisor does not answer, and everything in it is marked stale."""
        return False if self._down else await self._look()

    async def require(self) -> None:
        """As `look`; raises HypervisorUnavailable instead."""
        if not await self.look():
            raise HypervisorUnavailable("the last look at it failed")

    def publish(self) -> None:
        """The source has changed by itself."""
        self.ring.put_all(self._source.views_now(STALE if self._down else ""))

    async def run(self) -> None:
        """Look at every event, and now and then."""
        async with self._observer.watching() as waker:
            while True:
                waker.clear()
                answered = await self._look()
                await _wait(waker, LOOK_AGAIN_S if answered else RETRY_S)

    async def _look(self) -> bool:
        noted = self._source.noted()
        try:
            async with asyncio.timeout(LOOK_S):
                statuses = await self._vms.statuses()
        except (TimeoutError, HypervisorUnavailable, HypervisorRefused) as error:
            if not self._down:
                log.warning("the hypervisor does not answer", error=str(error))
            self._down = True
            self.publish()
            return False
        self._down = False
        try:
            async with asyncio.timeout(LOOK_S):
                await self._source.take(statuses, noted)
        except TimeoutError:
            log.warning("what was seen could not be written down in time")
        self.publish()
        return True


class HeldVMs:
    """Source in a cluster: definitions, and what was seen last of each."""

    def __init__(self, node_id: str, state: HostState) -> None:
        self._node_id = node_id
        self._state = state
        self._statuses: dict[str, VMStatus] = {}

    def noted(self) -> Mapping[str, int]:
        return {}

    async def take(self, statuses: Sequence[VMStatus], noted: Mapping[str, int]) -> None:
        self._statuses = {status.vm_uid: status for status in statuses}

    def views_now(self, stale: str) -> Mapping[str, VMView]:
        leaving = frozenset(one.vm_uid for one in self._state.outgoing.values() if one.stage not in (Stage.FINISHED, Stage.ABORTED))
        return held_views(self._node_id, self._state.definitions, self._statuses, leaving, stale)


async def _wait(waker: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await waker.wait()
            await asyncio.sleep(SETTLE_S)
    except TimeoutError:
        return
