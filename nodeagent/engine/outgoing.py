"""The source's end of a handoff: gathers evidence, asks `core.outgoing.next_act`, does it, until the handoff is finished or aborted.

One task per handoff, also after a restart of the agent: the journal says what was promised, the evidence what is true. Everything between FREEZE
and KILL is the guest's downtime, so nothing there waits for the disk or asks twice.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace

import structlog

from hostler.errors import FailedPrecondition, HostlerError, NotFound, Reason
from hostler.model.copy import GONE, Copy, HandoffReport, Stage
from hostler.model.domain import DomainSpec
from hostler.model.owner import OwnerRead, OwnerState
from hostler.server.clock import Clock, wall_ms
from nodeagent.core.definitions import Command, Outgoing
from nodeagent.core.observed import CopyTag, DomainView, Locks, MigrationProgress, Power
from nodeagent.core.outgoing import Act, Copying, Ending, Evidence, gone_copy, next_act
from nodeagent.core.precopy import Course, GiveUp, GoOn, Limits, Tune, next_move
from nodeagent.engine.heeding import heed, stale
from nodeagent.engine.host_state import ENDED_STAGES, HostState
from nodeagent.engine.observer import Observer
from nodeagent.ports import (
    AuthorityUnavailable,
    EventKind,
    Hypervisor,
    HypervisorRefused,
    HypervisorUnavailable,
    OwnerAuthority,
    Peer,
    PeerUnavailable,
    Tunnel,
    TunnelFailed,
    Volumes,
)

TICK_S = 0.5
"""While nothing happens, look again this often: bounds how late an abort is noticed and how old a progress figure is."""

AUTHORITY_RETRY_S = 0.2
"""Between two tries to commit while the guest is frozen: short, because the guest waits, and one small call each."""

HEAD_START_S = 0.05
"""The destination waits for the commit with a question of its own. It is told besides, but not while it resumes the guest."""

TOLD_S = 1.0
"""How long the frozen old copy outlives the commit at most, until the destination says that the guest runs there: its end keeps the host's CPU and
libvirtd busy, and on the same disks the guest waits for its resume."""

END_OF_CALL_S = 30.0
"""After the end of the source's process libvirt's call returns within seconds; past this the adapter's own deadline is broken."""

SETTLE_S = 30.0
"""After a failed call libvirt may still be ending the source: 1-2 s, 10 s for a stopped QEMU (measured), and its keepalive of 8 s before."""

WORD_LOOK_S = 0.01
"""Without locks the guest waits for a line in libvirt's record of the domain, which comes some milliseconds after the copy's arrival: a look is one
small read. Only while the call runs; afterwards a look at each TICK_S."""

UNSETTLED = (
    "The disks have no locks and the hypervisor of {node_id} does not answer, so nobody can tell whether the source's copy has ended. "
    "Make libvirtd on {node_id} answer (restarting it harms no guest), or power that node off."
)

log = structlog.get_logger()


@dataclass(slots=True)
class _Run:
    """One handoff while it runs in this process; what is not here is in the journal."""

    handoff: Outgoing
    spec: DomainSpec
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    owner: OwnerRead | None = None
    copying: Copying = Copying.NOT_BEGUN
    failed_s: float = 0.0
    copy_task: "asyncio.Task[None] | None" = None
    arrival_task: "asyncio.Task[None] | None" = None
    told_task: "asyncio.Task[None] | None" = None
    arrived: bool = False
    leaving: bool = False
    dead: bool = False
    """Found without a process while it was leaving: libvirt has ended QEMU, and takes its time to say so."""
    looked_about_s: float = 0.0
    locks: Locks | None = None
    lockless: bool = False
    seen: MigrationProgress | None = None
    course: Course | None = None
    given_up: bool = False
    ended: bool = False


class OutgoingHandoffs:
    """Handoffs from this host, by operation id. `run` owns their tasks."""

    def __init__(
        self,
        node_id: str,
        hypervisor: Hypervisor,
        volumes: Volumes,
        authority: OwnerAuthority,
        tunnel: Tunnel,
        peer: Peer,
        state: HostState,
        observer: Observer,
        clock: Clock,
    ) -> None:
        self._node_id = node_id
        self._hypervisor = hypervisor
        self._volumes = volumes
        self._authority = authority
        self._tunnel = tunnel
        self._peer = peer
        self._state = state
        self._observer = observer
        self._clock = clock
        self._runs: dict[str, _Run] = {}
        self.seen_bytes_per_s = 0
        """The fastest that a copy without a limit went from here since the agent began; 0: none was seen."""
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Resume what the journal holds, then keep the tasks of new handoffs until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                for handoff in list(self._state.outgoing.values()):
                    await self._take_up(handoff)
                await asyncio.Event().wait()
            finally:
                self._group = None

    async def _take_up(self, handoff: Outgoing) -> None:
        if handoff.stage in ENDED_STAGES:
            return
        if handoff.vm_uid in self._state.definitions:
            self._spawn(handoff, resumed=True)
            return
        # The definition goes with the finish of the handoff and with nothing else: the agent ended between the two writes.
        await self._state.keep_outgoing(replace(handoff, stage=Stage.FINISHED))

    async def start(self, command: Command, handoff: Outgoing) -> HandoffReport:
        """H2: journal the handoff and begin it. A repeat reports."""
        async with self._state.vm_lock(command.vm_uid):
            if command.operation_id not in self._state.outgoing:
                await self._begin(command, handoff)
        return await self.report(command.operation_id)

    async def _begin(self, command: Command, handoff: Outgoing) -> None:
        seen = self._state.definitions.get(command.vm_uid)
        if seen is not None and seen.epoch != command.epoch:
            raise stale(self._node_id, command, seen.epoch)
        definition = await heed(self._state, self._node_id, command)
        domain = await self._hypervisor.domain(command.vm_uid)
        if domain is None or domain.power is not Power.RUNNING:
            raise FailedPrecondition(Reason.VM_NOT_RUNNING, "The VM is not running.", "Start it, then migrate it.")
        await self._same_disks(definition.spec, handoff)
        await self._state.keep_outgoing(handoff)
        self._spawn(handoff, resumed=False)

    async def report(self, operation_id: str) -> HandoffReport:
        """This end as it is now."""
        handoff = self._state.outgoing.get(operation_id)
        if handoff is None:
            raise NotFound(Reason.HANDOFF_UNKNOWN, f"{self._node_id} knows of no such handoff.")
        run = self._runs.get(operation_id)
        return HandoffReport(
            self._node_id,
            operation_id,
            await self._copy(handoff),
            handoff.stage,
            frozen=self._hypervisor.is_frozen(handoff.vm_uid),
            error=handoff.error,
            bytes_done=handoff.bytes_done,
            bytes_total=handoff.bytes_total,
            rate_bytes_per_s=run.seen.rate_bytes_per_s if run and run.seen else 0,
            begin_ms=handoff.begin_ms,
            suspend_ms=handoff.suspend_ms,
            hypervisor_downtime_ms=handoff.hypervisor_downtime_ms,
            remaining_bytes=run.seen.remaining_bytes if run and run.seen else 0,
            dirty_bytes_per_s=run.seen.dirty_bytes_per_s if run and run.seen else 0,
            throttle_percent=handoff.throttle_percent,
            iterations=handoff.iterations,
            bandwidth_mib_s=handoff.bandwidth_mib_s,
            max_downtime_ms=handoff.max_downtime_ms,
        )

    async def tune(self, operation_id: str, limits: Limits) -> HandoffReport:
        """Other limits, from the next look on, which is now. They are not journaled here: whoever set them asks for them again if they are lost."""
        run = self._runs.get(operation_id)
        if run is not None and run.handoff.limits != limits:
            run.handoff = replace(run.handoff, bandwidth_mib_s=limits.bandwidth_mib_s, max_downtime_ms=limits.max_downtime_ms)
            self._state.note_outgoing(run.handoff)
            run.wake.set()
        return await self.report(operation_id)

    async def await_end(self, operation_id: str, timeout_s: float) -> HandoffReport:
        """The report once the handoff has ended here, or as it is after the timeout; nudges it to read the owner record now."""
        run = self._runs.get(operation_id)
        if run is not None:
            await self._read_owner(run)
            run.wake.set()
            try:
                async with asyncio.timeout(timeout_s), self._observer.waking(run.handoff.vm_uid) as waker:
                    while not run.ended:
                        waker.clear()
                        try:
                            async with asyncio.timeout(TICK_S):
                                await waker.wait()
                        except TimeoutError:
                            continue
            except TimeoutError:
                pass
        return await self.report(operation_id)

    # ---- one handoff

    def _spawn(self, handoff: Outgoing, *, resumed: bool) -> None:
        if self._group is None:
            raise RuntimeError("OutgoingHandoffs.run is not running")
        definition = self._state.definitions.get(handoff.vm_uid)
        if definition is None:
            raise RuntimeError(f"handoff {handoff.operation_id} has no definition")
        run = _Run(handoff, definition.spec)
        if resumed and handoff.stage is not Stage.PREPARED:
            # The call of the previous process is gone, and with it the tunnel: the copy cannot complete any more, or has.
            self._copy_failed(run)
            run.handoff = replace(handoff, error=handoff.error or "The agent was restarted while it copied.")
        self._runs[handoff.operation_id] = run
        self._group.create_task(self._drive(run), name=f"outgoing {handoff.operation_id}")

    async def _drive(self, run: _Run) -> None:
        operation_id, vm_uid = run.handoff.operation_id, run.handoff.vm_uid
        run.lockless = await self._lockless(run.spec, run.handoff)
        if run.lockless and run.copying is Copying.FAILED:
            run.arrival_task = self._task(self._hear_of_leaving(run), f"word on {operation_id}")
        try:
            async with self._observer.waking(vm_uid) as waker:
                run.wake = waker
                while not run.ended:
                    waker.clear()
                    try:
                        await self._step(run)
                    except HostlerError as error:
                        log.warning("handoff waits", operation=operation_id, error=str(error))
                        await _wait(waker)
        finally:
            for task in (run.copy_task, run.arrival_task, run.told_task):
                if task is not None:
                    task.cancel()
            await self._peer.leave(operation_id)
            await self._tunnel.close_outgoing(operation_id)
            self._runs.pop(operation_id, None)

    async def _step(self, run: _Run) -> None:
        if run.owner is None:
            await self._read_owner(run)
        copying = run.copying
        copy = await self._copy(run.handoff)
        settled = run.lockless and copy is Copy.SWITCHED and await self._settled(run)
        if run.copying is not copying:
            return  # the call ended while we looked: what was seen may be older than its end, so it is looked at again
        if self._ended_with_its_host(run):
            run.ended = True
            return
        frozen = self._hypervisor.is_frozen(run.handoff.vm_uid)
        act = next_act(
            run.handoff, Evidence(run.owner, copy, frozen, run.copying, run.arrived, run.locks, run.lockless, settled, run.leaving)
        )
        if act is not Act.WAIT:
            log.info("handoff", operation=run.handoff.operation_id, act=act.value, copy=copy.value, frozen=frozen)
        match act:
            case Act.WAIT:
                await self._idle(run)
            case Act.BEGIN_COPY:
                await self._begin_copy(run)
            case Act.FREEZE:
                await self._freeze(run)
            case Act.INSPECT:
                await self._inspect(run)
            case Act.COMMIT:
                await self._commit(run)
            case Act.KILL:
                await self._kill(run)
            case Act.FINISH:
                await self._finish(run)
            case Act.STOP_COPY:
                await self._hypervisor.abort_migration(run.handoff.vm_uid)
                await self._idle(run)
            case Act.THAW:
                self._hypervisor.thaw(run.handoff.vm_uid)
            case Act.RESUME:
                await self._hypervisor.resume(run.handoff.vm_uid)
            case Act.ABORTED:
                await self._end(run, Stage.ABORTED)
            case Act.FAIL:
                await self._fail(run)

    async def _freeze(self, run: _Run) -> None:
        run.locks = None
        if not self._hypervisor.freeze(run.handoff.vm_uid):
            if run.leaving:
                run.dead = True  # what is dead needs no freeze, and libvirt takes a second and more to bury it
                return
            await self._idle(run)  # it has just ended: whoever says why must be heard before the next step
        elif self._hypervisor.is_frozen(run.handoff.vm_uid):
            await self._inspect(run)  # the next thing that is asked for, and the guest stands still

    async def _inspect(self, run: _Run) -> None:
        run.locks = await self._hypervisor.locks(tuple(self._paths(run.spec)))

    def _ended_with_its_host(self, run: _Run) -> bool:
        """Whether the journal says that it is over though this run has not ended it: the host was laid down, or the VM forgotten. What is here
        now may be a guest that was started since, and what was read of its owner before is not about it."""
        kept = self._state.outgoing.get(run.handoff.operation_id)
        return kept is None or (kept.stage in ENDED_STAGES and run.handoff.stage not in ENDED_STAGES)

    async def _idle(self, run: _Run) -> None:
        """Wait for something to happen; then note the progress and read the owner record anew, since an abort comes that way. But the copy's arrival
        and what happens next do not wait for schedulers that do not answer: libvirt ends a switched-over source within seconds."""
        before = (run.arrived, run.copying)
        await _wait(run.wake)
        if (run.arrived, run.copying) != before:
            return
        now_s = self._clock.monotonic_s()
        if run.wake.is_set() and now_s - run.looked_about_s < TICK_S:
            return  # an event: of a switchover, perhaps, and then every question takes time from the guest
        run.looked_about_s = now_s
        run.wake.clear()
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(self._look_about(run), name=f"look about {run.handoff.operation_id}")
            woken = group.create_task(run.wake.wait(), name=f"woken {run.handoff.operation_id}")
            await asyncio.wait({asking, woken}, return_when=asyncio.FIRST_COMPLETED)
            asking.cancel()
            woken.cancel()

    async def _look_about(self, run: _Run) -> None:
        if run.copying is Copying.RUNNING and not run.arrived and not self._observer.seen(run.handoff.vm_uid).switched:
            await self._note_progress(run)
        await self._read_owner(run)

    async def _begin_copy(self, run: _Run) -> None:
        handoff = run.handoff
        try:
            sockets = await self._tunnel.open_outgoing(handoff.operation_id, handoff.tunnel_endpoint, handoff.destination_node_id)
        except TunnelFailed as error:
            log.warning("tunnel failed", operation=handoff.operation_id, reason=error.detail)
            run.handoff = replace(handoff, error=str(error))
            self._copy_failed(run)
            return
        mark = await self._hypervisor.record_mark(handoff.vm_uid)
        await self._keep(run, stage=Stage.COPYING, begin_ms=wall_ms(self._clock), record_mark=mark)
        run.copying, run.course = Copying.RUNNING, Course(handoff.limits)
        tag = CopyTag(handoff.vm_uid, handoff.epoch + 1, handoff.operation_id)
        paths = {disk.volume_uid: disk.path for disk in handoff.disks}
        copy = self._hypervisor.migrate(handoff.vm_uid, tag, paths, sockets, handoff.limits, handoff.copied)

        async def call() -> None:
            try:
                await copy
                run.copying = Copying.RETURNED
            except (HypervisorUnavailable, HypervisorRefused) as error:
                self._copy_failed(run)
                if not run.given_up:
                    run.handoff = replace(run.handoff, error=f"The copy did not complete: {error}")
            run.wake.set()

        run.copy_task = self._task(call(), f"copy {handoff.operation_id}")
        run.arrival_task = self._task(self._hear_of_arrival(run), f"arrival {handoff.operation_id}")

    def _copy_failed(self, run: _Run) -> None:
        run.copying, run.failed_s = Copying.FAILED, self._clock.monotonic_s()

    async def _hear_of_arrival(self, run: _Run) -> None:
        handoff = run.handoff
        while not run.ended:
            try:
                if await self._peer.await_arrival(handoff.operation_id, handoff.destination_node_id, handoff.destination_endpoint):
                    run.arrived = True
                    run.wake.set()
                    break
                await asyncio.sleep(TICK_S)
            except PeerUnavailable:
                await asyncio.sleep(TICK_S)
        if run.lockless:
            await self._hear_of_leaving(run)

    async def _hear_of_leaving(self, run: _Run) -> None:
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

    async def _commit(self, run: _Run) -> None:
        """H5iii. The outcome decides, whoever won; while nobody answers the guest stays as it is and we ask again."""
        handoff = run.handoff
        while True:
            try:
                run.owner = await self._authority.commit_handoff(handoff.vm_uid, handoff.operation_id, handoff.owner_revision)
                break
            except AuthorityUnavailable:
                await asyncio.sleep(AUTHORITY_RETRY_S)
        if run.owner.owner.state is OwnerState.COMMITTED and run.owner.owner.operation_id == handoff.operation_id:
            run.told_task = self._task(self._tell_peer(run), f"tell {handoff.operation_id}")

    async def _tell_peer(self, run: _Run) -> None:
        handoff = run.handoff
        await self._clock.sleep(HEAD_START_S)
        try:
            await self._peer.note_committed(handoff.operation_id, handoff.destination_node_id, handoff.destination_endpoint)
        except PeerUnavailable as error:
            log.info("destination not told of the commit; the scheduler will", operation=handoff.operation_id, error=str(error))

    async def _kill(self, run: _Run) -> None:
        if run.told_task is not None:
            await asyncio.wait([run.told_task], timeout=TOLD_S)
        await self._hypervisor.kill(run.handoff.vm_uid)
        if run.copy_task is not None:
            await asyncio.wait([run.copy_task], timeout=END_OF_CALL_S)
        if await self._copy(run.handoff) not in GONE:
            await _wait(run.wake)

    async def _finish(self, run: _Run) -> None:
        """The copy here is gone and another epoch holds: forget the VM, which frees its charge."""
        if run.copy_task is not None:
            await asyncio.wait([run.copy_task], timeout=END_OF_CALL_S)
        seen = self._observer.seen(run.handoff.vm_uid)
        await self._end(run, Stage.FINISHED, suspend_ms=seen.switched_ms)

    async def _end(self, run: _Run, stage: Stage, suspend_ms: int = 0) -> None:
        async with self._state.vm_lock(run.handoff.vm_uid):
            if self._ended_with_its_host(run):
                run.ended = True
                return
            if stage is Stage.FINISHED:
                await self._state.end_arrivals_of(run.handoff.vm_uid)
                await self._state.drop_definition(run.handoff.vm_uid)
            await self._keep(run, stage=stage, suspend_ms=suspend_ms or run.handoff.suspend_ms)
        run.ended = True

    async def _fail(self, run: _Run) -> None:
        """Say so, and wait for the scheduler's verdict: a failure here is evidence, not a decision."""
        if run.handoff.stage is not Stage.FAILED:
            error = run.handoff.error or f"The source's copy was not inactive at the switchover (locks {run.locks})."
            await self._keep(run, stage=Stage.FAILED, error=error)
        await self._idle(run)

    # ---- evidence

    async def _read_owner(self, run: _Run) -> None:
        try:
            read = await self._authority.owner(run.handoff.vm_uid)
        except AuthorityUnavailable:
            return
        if read is not None and (run.owner is None or read.revision >= run.owner.revision):
            run.owner = read

    async def _copy(self, handoff: Outgoing) -> Copy:
        """The copy here. From the switchover on it is judged by the events seen: libvirt may hold the domain for seconds while the guest waits."""
        seen = self._observer.seen(handoff.vm_uid)
        if seen.switched and seen.ending is None:
            run = self._runs.get(handoff.operation_id)
            return Copy.GONE_MIGRATED if run is not None and run.dead else Copy.SWITCHED
        try:
            domain = await self._hypervisor.domain(handoff.vm_uid)
            return await self._gone(handoff) if domain is None else _standing(domain)
        except HypervisorUnavailable:
            return Copy.UNKNOWN

    async def _settled(self, run: _Run) -> bool:
        """Whether libvirt is through with a copy that it left switched over. The handoff's error says what keeps it from being known."""
        if run.copying is not Copying.FAILED or self._clock.monotonic_s() - run.failed_s < SETTLE_S:
            return False
        try:
            domain = await self._hypervisor.domain(run.handoff.vm_uid)
            job = await self._hypervisor.migration_progress(run.handoff.vm_uid)
        except HypervisorUnavailable:
            run.handoff = replace(run.handoff, error=UNSETTLED.format(node_id=self._node_id))
            self._state.note_outgoing(run.handoff)
            raise
        return domain is not None and domain.power is Power.SWITCHED and job is None

    async def _gone(self, handoff: Outgoing) -> Copy:
        """Events tell how it ended to an agent that was there; to one that was away, what the hypervisor wrote down does. So it does of a process
        that died while the hypervisor was ending it."""
        run = self._runs.get(handoff.operation_id)
        told = _ending(self._observer.seen(handoff.vm_uid).ending)
        written = Ending.MIGRATED if run is not None and run.leaving else Ending.UNTOLD
        if Ending.MIGRATED not in (told, written) and handoff.record_mark:
            written = _ending(await self._hypervisor.recorded_ending(handoff.vm_uid, handoff.record_mark))
        return gone_copy(handoff, told, written, Copying.NOT_BEGUN if run is None else run.copying)

    async def _note_progress(self, run: _Run) -> None:
        try:
            progress = await self._hypervisor.migration_progress(run.handoff.vm_uid)
            if progress is None:
                return
            run.seen = progress
            if not run.handoff.bandwidth_mib_s:
                self.seen_bytes_per_s = max(self.seen_bytes_per_s, progress.rate_bytes_per_s)
            run.handoff = replace(
                run.handoff,
                bytes_done=progress.bytes_done,
                bytes_total=progress.bytes_total,
                hypervisor_downtime_ms=progress.downtime_ms,
                iterations=max(run.handoff.iterations, progress.iteration),
                throttle_percent=max(run.handoff.throttle_percent, progress.throttle_percent),
            )
            self._state.note_outgoing(run.handoff)
            await self._steer(run, progress)
        except (HypervisorUnavailable, HypervisorRefused) as error:
            log.info("the copy cannot be looked at or steered now", operation=run.handoff.operation_id, reason=error.detail)

    async def _steer(self, run: _Run, progress: MigrationProgress) -> None:
        """Change what the copy may take, or give it up: then libvirt's call fails, and what follows is what follows any failure. What was asked
        of the hypervisor in vain is asked again at the next look."""
        if run.course is None or self._observer.seen(run.handoff.vm_uid).switched:
            return
        if run.given_up:
            await self._hypervisor.abort_migration(run.handoff.vm_uid)
            return
        course, move = next_move(run.course, run.handoff.limits, progress, self._clock.monotonic_s())
        match move:
            case GoOn():
                pass
            case Tune():
                log.info("tuning the copy", operation=run.handoff.operation_id, change=repr(move), seen=repr(progress))
                await self._hypervisor.tune_migration(run.handoff.vm_uid, move)
            case GiveUp():
                log.warning("giving the copy up", operation=run.handoff.operation_id, reason=move.reason, seen=repr(progress))
                run.given_up = True
                run.handoff = replace(run.handoff, error=move.reason)
                await self._hypervisor.abort_migration(run.handoff.vm_uid)
        run.course = course

    async def _lockless(self, spec: DomainSpec, handoff: Outgoing) -> bool:
        """Whether a disk is in a pool whose locks this host cannot ask, or, unless it is copied along, that were not proved between the two nodes."""
        with_locks = {pool.pool_id for pool in await self._volumes.pools() if pool.ofd_locks}
        proved = with_locks & {*handoff.locked_pools}
        return not spec.disks or any(
            disk.pool_id not in (with_locks if disk.volume_uid in handoff.copied else proved) for disk in spec.disks
        )

    async def _same_disks(self, spec: DomainSpec, handoff: Outgoing) -> None:
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

    def _paths(self, spec: DomainSpec) -> list[str]:
        return [self._volumes.path(disk.pool_id, disk.volume_uid, disk.format) for disk in spec.disks]

    async def _keep(self, run: _Run, **changes: object) -> None:
        run.handoff = replace(run.handoff, **changes)  # type: ignore[arg-type]
        await self._state.keep_outgoing(run.handoff)

    def _task(self, work: Coroutine[object, object, None], name: str) -> "asyncio.Task[None]":
        if self._group is None:
            raise RuntimeError("OutgoingHandoffs.run is not running")
        return self._group.create_task(work, name=name)


async def _wait(waker: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(TICK_S):
            await waker.wait()
    except TimeoutError:
        return


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
