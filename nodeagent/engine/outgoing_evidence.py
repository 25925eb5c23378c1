"""What the source of a handoff knows: the owner record, its own copy, its locks, and libvirt's word on how the copy ended.

Looks and notes, and changes nothing on the host. What it means is `core.outgoing`'s decision.
"""

import asyncio

from hostler.errors import FailedPrecondition, Reason
from hostler.model.copy import Copy
from hostler.model.domain import DomainSpec
from hostler.server.clock import Clock
from nodeagent.core.definitions import Outgoing
from nodeagent.core.observed import DomainView, Power
from nodeagent.core.outgoing import Copying, Ending, Evidence, gone_copy
from nodeagent.engine.host_state import HostState
from nodeagent.engine.observer import Observer
from nodeagent.engine.outgoing_run import TICK_S, Run
from nodeagent.ports import AuthorityUnavailable, EventKind, Hypervisor, HypervisorUnavailable, OwnerAuthority, Volumes

SETTLE_S = 30.0
"""After a failed call libvirt may still be ending the source: 1-2 s, 10 s for a stopped QEMU (measured), and its keepalive of 8 s before."""

WORD_LOOK_S = 0.01
"""Without locks the guest waits for a line in libvirt's record of the domain, which comes some milliseconds after the copy's arrival: a look is one
small read. Only while the call runs; afterwards a look at each TICK_S."""

UNSETTLED = (
    "The disks have no locks and the hypervisor of {node_id} does not answer, so nobody can tell whether the source's copy has ended. "
    "Make libvirtd on {node_id} answer (restarting it harms no guest), or power that node off."
)


class SourceEvidence:
    """Of every handoff from this host."""

    def __init__(
        self,
        node_id: str,
        hypervisor: Hypervisor,
        volumes: Volumes,
        authority: OwnerAuthority,
        state: HostState,
        observer: Observer,
        clock: Clock,
    ) -> None:
        self._node_id = node_id
        self._hypervisor = hypervisor
        self._volumes = volumes
        self._authority = authority
        self._state = state
        self._observer = observer
        self._clock = clock

    async def gather(self, run: Run) -> Evidence | None:
        """All of it, as one moment's. None: the copy's call ended while we looked, so what was seen may be older than its end."""
        if run.owner is None:
            await self.read_owner(run)
        copying = run.copying
        copy = await self.copy(run.handoff, run)
        settled = run.lockless and copy is Copy.SWITCHED and await self._settled(run)
        if run.copying is not copying:
            return None
        frozen = self._hypervisor.is_frozen(run.handoff.vm_uid)
        return Evidence(run.owner, copy, frozen, run.copying, run.arrived, run.locks, run.lockless, settled, run.leaving)

    async def read_owner(self, run: Run) -> None:
        """Anew, and never an older one than is known."""
        try:
            read = await self._authority.owner(run.handoff.vm_uid)
        except AuthorityUnavailable:
            return
        if read is not None and (run.owner is None or read.revision >= run.owner.revision):
            run.owner = read

    async def copy(self, handoff: Outgoing, run: Run | None) -> Copy:
        """The copy here. From the switchover on it is judged by the events seen: libvirt may hold the domain for seconds while the guest waits."""
        seen = self._observer.seen(handoff.vm_uid)
        if seen.switched and seen.ending is None:
            return Copy.GONE_MIGRATED if run is not None and run.dead else Copy.SWITCHED
        try:
            domain = await self._hypervisor.domain(handoff.vm_uid)
            return await self._gone(handoff, run) if domain is None else _standing(domain)
        except HypervisorUnavailable:
            return Copy.UNKNOWN

    async def inspect(self, run: Run) -> None:
        """The locks of the frozen copy's disks."""
        paths = tuple(self._volumes.path(disk.pool_id, disk.volume_uid, disk.format) for disk in run.spec.disks)
        run.locks = await self._hypervisor.locks(paths)

    async def hear_of_leaving(self, run: Run) -> None:
        """Until libvirt has written down that it ends the source because it migrated away."""
        while not run.leaving:
            try:
                written = await self._hypervisor.recorded_ending(run.handoff.vm_uid, run.handoff.record_mark)
            except HypervisorUnavailable:
                written = None
            if _ending(written) is Ending.MIGRATED:
                run.leaving = True
                run.wake.set()
            else:
                await asyncio.sleep(WORD_LOOK_S if run.copying is Copying.RUNNING else TICK_S)

    async def lockless(self, spec: DomainSpec, handoff: Outgoing) -> bool:
        """Whether a disk is in a pool whose locks this host cannot ask, or, unless it is copied along, that were not proved between the two nodes."""
        with_locks = {pool.pool_id for pool in await self._volumes.pools() if pool.ofd_locks}
        proved = with_locks & {*handoff.locked_pools}
        return not spec.disks or any(
            disk.pool_id not in (with_locks if disk.volume_uid in handoff.copied else proved) for disk in spec.disks
        )

    async def same_disks(self, spec: DomainSpec, handoff: Outgoing) -> None:
        """Raises FailedPrecondition if a disk that both hosts are to share is another file there."""
        there = {disk.volume_uid: disk.identity for disk in handoff.disks}
        local = {pool.pool_id for pool in await self._volumes.pools() if not pool.shared}
        for disk in spec.disks:
            if there.get(disk.volume_uid) == "" and disk.pool_id in local:
                continue
            here = await self._volumes.identity(disk.pool_id, disk.volume_uid, disk.format)
            if there.get(disk.volume_uid) != here:
                raise FailedPrecondition(
                    Reason.NOT_MIGRATABLE,
                    f"Volume {disk.volume_uid} in pool {disk.pool_id} is not the same file on both nodes.",
                    "Mount the same file system under that pool on both nodes.",
                )

    async def _settled(self, run: Run) -> bool:
        """Whether libvirt is through with a copy that it left switched over. The handoff's error says what keeps it from being known."""
        if run.copying is not Copying.FAILED or self._clock.monotonic_s() - run.failed_s < SETTLE_S:
            return False
        try:
            domain = await self._hypervisor.domain(run.handoff.vm_uid)
            job = await self._hypervisor.migration_progress(run.handoff.vm_uid)
        except HypervisorUnavailable:
            run.note(self._state, error=UNSETTLED.format(node_id=self._node_id))
            raise
        return domain is not None and domain.power is Power.SWITCHED and job is None

    async def _gone(self, handoff: Outgoing, run: Run | None) -> Copy:
        """Events tell how it ended to an agent that was there; to one that was away, what the hypervisor wrote down does. So it does of a process
        that died while the hypervisor was ending it."""
        told = _ending(self._observer.seen(handoff.vm_uid).ending)
        written = Ending.MIGRATED if run is not None and run.leaving else Ending.UNTOLD
        if Ending.MIGRATED not in (told, written) and handoff.record_mark:
            written = _ending(await self._hypervisor.recorded_ending(handoff.vm_uid, handoff.record_mark))
        return gone_copy(handoff, told, written, Copying.NOT_BEGUN if run is None else run.copying)


def _standing(domain: DomainView) -> Copy:
    match domain.power:
        case Power.RUNNING | Power.SHUTTING_DOWN:
            return Copy.RUNNING
        case Power.SWITCHED:
            return Copy.SWITCHED
        case _:
            return Copy.PAUSED


def _ending(said: EventKind | None) -> Ending:
    match said:
        case None:
            return Ending.UNTOLD
        case EventKind.STOPPED_MIGRATED:
            return Ending.MIGRATED
        case _:
            return Ending.OTHERWISE
