"""The destination's end of a handoff: prepare (H1), notice the arrival (H3), resume after the commit (H6), or destroy the copy.

A copy that arrived is resumed only if the owner record, read then, says COMMITTED to this node by the very operation that made the copy. A message
that says "committed" makes us look; it proves nothing.

Files for disks that are copied along are made here, after the journal says so and only where there is none: what lies there already is not ours to
write over. An abort removes them, once the owner record, read then, names another node: what is the VM's own disk is never removed as a copy.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import replace

import structlog

from hostler.errors import Conflict, FailedPrecondition, HostlerError, NotFound, Reason
from hostler.model.copy import Copy, HandoffReport, Stage
from hostler.model.domain import DomainSpec, VolumeSpec
from hostler.model.owner import OwnerRead, OwnerState, may_resume_arrival
from hostler.server.clock import Clock, wall_ms
from nodeagent.core.definitions import Command, Definition, DiskTarget, Incoming
from nodeagent.core.observed import DomainView, Power
from nodeagent.engine.heeding import heard, not_buried, stale
from nodeagent.engine.host_state import HostState
from nodeagent.engine.observer import Observer
from nodeagent.engine.vms import LOOK_AGAIN_S, HostVMs
from nodeagent.ports import (
    AuthorityUnavailable,
    HostFacts,
    Hypervisor,
    HypervisorRefused,
    HypervisorUnavailable,
    OwnerAuthority,
    PoolMissing,
    Tunnel,
    Volumes,
)

ARRIVAL_WAIT_S = 600.0
"""An AwaitArrival call is answered after this at the latest; the source asks again. Bounds a call that nobody listens to any more."""


ASK_AGAIN_S = 0.5
"""Between two questions for a commit when no scheduler answers; whoever commits tells us besides."""

log = structlog.get_logger()


class IncomingHandoffs:
    """Handoffs to this host, by operation id. `run` owns the tasks that wait for their commits."""

    def __init__(
        self,
        node_id: str,
        hypervisor: Hypervisor,
        volumes: Volumes,
        facts: HostFacts,
        authority: OwnerAuthority,
        tunnel: Tunnel,
        state: HostState,
        observer: Observer,
        vms: HostVMs,
        clock: Clock,
    ) -> None:
        self._node_id = node_id
        self._hypervisor = hypervisor
        self._volumes = volumes
        self._facts = facts
        self._authority = authority
        self._tunnel = tunnel
        self._state = state
        self._observer = observer
        self._vms = vms
        self._clock = clock
        self._waiting: dict[str, asyncio.Task[None]] = {}
        self._looked: dict[str, int] = {}
        """By operation: of an arrived copy that was looked at, how many events had been heard of its VM by then."""
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Keep the tasks, until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                await asyncio.Event().wait()
            finally:
                self._group = None

    async def prepare(
        self, command: Command, spec: DomainSpec, source_node_id: str, copied: tuple[VolumeSpec, ...] = ()
    ) -> tuple[str, tuple[DiskTarget, ...]]:
        """Charge this host, check that disks and bridges are here, make empty files for the volumes in `copied`, open the tunnel for that source
        alone; its endpoint, and the disks."""
        async with self._state.vm_lock(spec.vm_uid):
            heard(self._state, self._node_id)
            known = self._state.incoming.get(command.operation_id)
            if known is not None and known.stage is not Stage.PREPARED:
                raise FailedPrecondition(Reason.NOT_MIGRATABLE, f"This handoff has ended on {self._node_id}: {known.stage.value.lower()}.")
            disks = await self._check(command, spec, frozenset(volume.volume_uid for volume in copied))
            if known is None:
                not_buried(self._state, self._node_id, command)
                await self._clear_leftover(command)
                for volume in copied:
                    await self._nothing_there(volume)
                arriving = Definition(spec, command.epoch, command.operation_id, incoming=True, order_revision=command.order_revision)
                await self._vms.admit(arriving)
                self._observer.forget(spec.vm_uid)
                prepared = Incoming(command.operation_id, spec.vm_uid, source_node_id, command.epoch, Stage.PREPARED, copied=copied)
                await self._state.keep_incoming(prepared)
            for volume in copied:
                await self._volumes.readmit(volume)
                await self._volumes.ensure(volume)
            return await self._tunnel.open_incoming(command.operation_id, source_node_id), disks

    async def _nothing_there(self, volume: VolumeSpec) -> None:
        """Raises FailedPrecondition if there is a file of the volume. PoolMissing says that of the pool too; making the file tells which it was."""
        try:
            await self._volumes.identity(volume.pool_id, volume.volume_uid, volume.format)
        except PoolMissing:
            return
        raise FailedPrecondition(
            Reason.NOT_MIGRATABLE,
            f"Pool {volume.pool_id} of {self._node_id} has a file of volume {volume.volume_uid} already.",
            f"If no VM needs it, remove it from the pool's directory on {self._node_id}.",
        )

    async def _check(self, command: Command, spec: DomainSpec, copied: frozenset[str]) -> tuple[DiskTarget, ...]:
        definition = self._state.definitions.get(spec.vm_uid)
        if definition is not None and definition.epoch > command.epoch:
            raise stale(self._node_id, command, definition.epoch)
        bridges = set((await self._facts.totals()).bridges)
        for nic in spec.nics:
            if nic.bridge not in bridges:
                raise FailedPrecondition(Reason.NOT_MIGRATABLE, f"{self._node_id} has no bridge {nic.bridge}.")
        return tuple(
            [
                DiskTarget(
                    disk.volume_uid,
                    "" if disk.volume_uid in copied else await self._volumes.identity(disk.pool_id, disk.volume_uid, disk.format),
                    self._volumes.path(disk.pool_id, disk.volume_uid, disk.format),
                )
                for disk in spec.disks
            ]
        )

    async def _clear_leftover(self, command: Command) -> None:
        """A domain of this VM that a previous, ended handoff left here is destroyed; one that this host owns is not ours to touch."""
        domain = await self._hypervisor.domain(command.vm_uid)
        if domain is None:
            return
        definition = self._state.definitions.get(command.vm_uid)
        if domain.power is Power.RUNNING or (definition is not None and not definition.incoming):
            raise FailedPrecondition(Reason.NOT_MIGRATABLE, f"{self._node_id} already has a copy of this VM.")
        await self._hypervisor.destroy(command.vm_uid)

    async def await_arrival(self, operation_id: str) -> bool:
        """True once the copy is complete and paused here, False if this end has ended."""
        handoff = self._get(operation_id)
        self._wait_for_commit(handoff)
        try:
            async with asyncio.timeout(ARRIVAL_WAIT_S), self._observer.waking(handoff.vm_uid) as waker:
                while True:
                    waker.clear()
                    if self._get(operation_id).stage is not Stage.PREPARED:
                        return self._get(operation_id).stage is Stage.FINISHED
                    if self._observer.seen(handoff.vm_uid).arrived:
                        log.info("handoff", operation=operation_id, act="ARRIVED")
                        self._task(self._look_early(handoff), f"arrival {operation_id}")
                        return True
                    try:
                        async with asyncio.timeout(LOOK_AGAIN_S):
                            await waker.wait()
                    except TimeoutError:
                        if await self._copy(handoff) is Copy.ARRIVED:
                            return True
        except TimeoutError:
            return False

    async def _look_early(self, handoff: Incoming) -> None:
        """While the source looks at its own copy; what is seen holds until the next event."""
        events = self._observer.seen(handoff.vm_uid).events
        if await self._copy(handoff) is Copy.ARRIVED:
            self._looked[handoff.operation_id] = events

    def _wait_for_commit(self, handoff: Incoming) -> None:
        if handoff.stage is not Stage.PREPARED or handoff.operation_id in self._waiting:
            return
        task = self._task(self._resume_when_committed(handoff), f"commit {handoff.operation_id}")
        self._waiting[handoff.operation_id] = task
        task.add_done_callback(lambda _: self._waiting.pop(handoff.operation_id, None))

    async def _resume_when_committed(self, handoff: Incoming) -> None:
        """H6 without being told: the question for the record is with a scheduler before the commit, and answered with it."""
        while self._prepared(handoff.operation_id):
            try:
                read = await self._authority.await_commit(handoff.vm_uid, handoff.operation_id)
            except AuthorityUnavailable:
                await self._clock.sleep(ASK_AGAIN_S)
                continue
            if read is None or (read.owner.state, read.owner.operation_id) != (OwnerState.HANDOFF, handoff.operation_id):
                await self._resume_as_read(handoff.operation_id, read)
                return

    async def _resume_as_read(self, operation_id: str, read: OwnerRead | None) -> None:
        """What follows a read at once. A read that would have to wait for its turn is not acted on: whoever has the turn reads anew."""
        handoff = self._state.incoming.get(operation_id)
        if handoff is None:
            return
        lock = self._state.vm_lock(handoff.vm_uid)
        if read is None or not self._state.heard or lock.locked() or not may_resume_arrival(read.owner, self._node_id, operation_id):
            return
        try:
            async with lock:
                if self._prepared(operation_id):
                    await self._resume(handoff, read.owner.epoch)
        except HostlerError as error:
            log.info("a committed copy was not resumed at once; the scheduler asks for it", operation=operation_id, error=str(error))

    async def resume_if_committed(self, operation_id: str) -> HandoffReport:
        """H6. Raises Conflict if the owner record does not say that this node may resume this copy."""
        handoff = self._get(operation_id)
        async with self._state.vm_lock(handoff.vm_uid):
            heard(self._state, self._node_id)
            handoff = self._get(operation_id)
            if handoff.stage is Stage.PREPARED:
                read = await self._authority.owner(handoff.vm_uid)
                if read is None or not may_resume_arrival(read.owner, self._node_id, operation_id):
                    raise Conflict(Reason.EPOCH_STALE, f"The owner record does not let {self._node_id} resume this copy.")
                await self._resume(handoff, read.owner.epoch)
        return await self.report(operation_id)

    async def _resume(self, handoff: Incoming, epoch: int) -> None:
        untouched = self._looked.pop(handoff.operation_id, None) == self._observer.seen(handoff.vm_uid).events
        match Copy.ARRIVED if untouched else await self._copy(handoff):
            case Copy.ARRIVED:
                log.info("handoff", operation=handoff.operation_id, act="RESUME")
                await self._hypervisor.resume(handoff.vm_uid)
                log.info("handoff", operation=handoff.operation_id, act="RESUMED")
            case Copy.RUNNING:
                pass
            case other:
                raise FailedPrecondition(
                    Reason.MIGRATION_FAILED, f"The copy on {self._node_id} is {other.value.lower()}, there is nothing to resume."
                )
        resume_ms = wall_ms(self._clock)
        definition = self._state.definitions[handoff.vm_uid]
        await self._state.keep_definition(replace(definition, epoch=epoch, incoming=False))
        received = await self._received(handoff)
        await self._state.keep_incoming(replace(handoff, stage=Stage.FINISHED, resume_ms=resume_ms, received_bytes=received))

    async def _received(self, handoff: Incoming) -> int:
        """A figure for people: not worth a failure."""
        try:
            return await self._hypervisor.received_bytes(handoff.vm_uid)
        except (HypervisorUnavailable, HypervisorRefused) as error:
            log.info("what the copy took is not known", operation=handoff.operation_id, reason=error.detail)
            return 0

    async def close(self, operation_id: str) -> None:
        """The source is done too: nothing more comes through the tunnel."""
        await self._tunnel.close_incoming(operation_id)

    async def abort(self, command: Command) -> HandoffReport:
        """Destroy the copy this operation made, and the files it filled, close the tunnel, free the charge; refused if the record says that it was
        committed to us.

        An abort of what is not known here is written down too: its PrepareIncoming may still be on the way, and would charge this host for ever. Or
        it has charged it, and the agent died before it wrote down the handoff.
        """
        async with self._state.vm_lock(command.vm_uid):
            handoff = self._state.incoming.get(command.operation_id)
            if handoff is None:
                half = self._state.definitions.get(command.vm_uid)
                if half is not None and half.incoming and half.operation_id == command.operation_id:
                    await self._state.drop_definition(command.vm_uid)
                await self._state.keep_incoming(Incoming(command.operation_id, command.vm_uid, "", command.epoch, Stage.ABORTED))
            elif handoff.stage is Stage.PREPARED:
                read = await self._authority.owner(handoff.vm_uid)
                if read is not None and may_resume_arrival(read.owner, self._node_id, command.operation_id):
                    raise Conflict(Reason.EPOCH_STALE, f"The handoff was committed to {self._node_id}; it can only go forward.")
                await self._tunnel.close_incoming(command.operation_id)
                domain = await self._hypervisor.domain(handoff.vm_uid)
                if domain is not None and _made_by(domain, command.operation_id):
                    await self._hypervisor.destroy(handoff.vm_uid)
                await self._remove_copied(handoff, read)
                await self._state.drop_definition(handoff.vm_uid)
                await self._state.keep_incoming(replace(handoff, stage=Stage.ABORTED))
            elif handoff.stage is Stage.ABORTED and handoff.copied and handoff.vm_uid not in self._state.definitions:
                await self._remove_copied(handoff, await self._authority.owner(handoff.vm_uid))  # ended here before the abort came
        return await self.report(command.operation_id)

    async def _remove_copied(self, handoff: Incoming, read: OwnerRead | None) -> None:
        """The VM is another node's, and so are its disks: what the copy filled here is worth nothing."""
        if read is None or read.owner.node_id == self._node_id:
            return
        for volume in handoff.copied:
            await self._volumes.remove(volume)

    async def report(self, operation_id: str) -> HandoffReport:
        """This end as it is now."""
        handoff = self._get(operation_id)
        copy = await self._copy(handoff)
        return HandoffReport(
            self._node_id, operation_id, copy, handoff.stage, bytes_done=handoff.received_bytes, resume_ms=handoff.resume_ms
        )

    async def _copy(self, handoff: Incoming) -> Copy:
        try:
            domain = await self._hypervisor.domain(handoff.vm_uid)
        except HypervisorUnavailable:
            return Copy.UNKNOWN
        if domain is None or not _made_by(domain, handoff.operation_id):
            return Copy.ABSENT
        match domain.power:
            case Power.INCOMING:
                return Copy.INCOMING
            case Power.PAUSED if handoff.stage is Stage.PREPARED:
                return Copy.ARRIVED
            case Power.RUNNING:
                return Copy.RUNNING
            case _:
                return Copy.PAUSED

    def _prepared(self, operation_id: str) -> bool:
        handoff = self._state.incoming.get(operation_id)
        return handoff is not None and handoff.stage is Stage.PREPARED

    def _task(self, work: Coroutine[object, object, None], name: str) -> "asyncio.Task[None]":
        if self._group is None:
            raise RuntimeError("IncomingHandoffs.run is not running")
        return self._group.create_task(work, name=name)

    def _get(self, operation_id: str) -> Incoming:
        handoff = self._state.incoming.get(operation_id)
        if handoff is None:
            raise NotFound(Reason.HANDOFF_UNKNOWN, f"{self._node_id} knows of no such handoff.")
        return handoff


def _made_by(domain: DomainView, operation_id: str) -> bool:
    return domain.tag is not None and domain.tag.operation_id == operation_id
