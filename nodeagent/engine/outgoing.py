"""The source's end of a handoff: asks for the evidence, asks `core.outgoing.next_act`, does it, until the handoff is finished or aborted.

One task per handoff, also after a restart of the agent: the journal says what was promised, the evidence what is true. Everything between FREEZE
and KILL is the guest's downtime, so nothing there waits for the disk or asks twice.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import replace

import structlog

from hostler.errors import FailedPrecondition, HostlerError, NotFound, Reason
from hostler.model.copy import GONE, HandoffReport, Stage
from hostler.model.owner import OwnerState
from hostler.server.clock import Clock
from nodeagent.core.definitions import Command, Outgoing
from nodeagent.core.observed import Power
from nodeagent.core.outgoing import Act, Copying, next_act
from nodeagent.core.precopy import Limits
from nodeagent.engine.heeding import heed, stale
from nodeagent.engine.host_state import ENDED_STAGES, HostState
from nodeagent.engine.observer import Observer
from nodeagent.engine.outgoing_copy import SourceCopy
from nodeagent.engine.outgoing_evidence import SourceEvidence
from nodeagent.engine.outgoing_run import TICK_S, Run
from nodeagent.ports import AuthorityUnavailable, Hypervisor, OwnerAuthority, Peer, PeerUnavailable, Tunnel, Volumes

AUTHORITY_RETRY_S = 0.2
"""Between two tries to commit while the guest is frozen: short, because the guest waits, and one small call each."""

HEAD_START_S = 0.05
"""The destination waits for the commit with a question of its own. It is told besides, but not while it resumes the guest."""

TOLD_S = 1.0
"""How long the frozen old copy outlives the commit at most, until the destination says that the guest runs there: its end keeps the host's CPU and
libvirtd busy, and on the same disks the guest waits for its resume."""

END_OF_CALL_S = 30.0
"""After the end of the source's process libvirt's call returns within seconds; past this the adapter's own deadline is broken."""

log = structlog.get_logger()


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
        self._authority = authority
        self._tunnel = tunnel
        self._peer = peer
        self._state = state
        self._observer = observer
        self._clock = clock
        self._evidence = SourceEvidence(node_id, hypervisor, volumes, authority, state, observer, clock)
        self._copy = SourceCopy(hypervisor, tunnel, peer, self._evidence, state, observer, clock)
        self._runs: dict[str, Run] = {}
        self._group: asyncio.TaskGroup | None = None

    @property
    def seen_bytes_per_s(self) -> int:
        """The fastest that a copy without a limit went from here since the agent began; 0: none was seen."""
        return self._copy.seen_bytes_per_s

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
        await self._evidence.same_disks(definition.spec, handoff)
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
            await self._evidence.copy(handoff, run),
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
            run.note(self._state, bandwidth_mib_s=limits.bandwidth_mib_s, max_downtime_ms=limits.max_downtime_ms)
            run.wake.set()
        return await self.report(operation_id)

    async def await_end(self, operation_id: str, timeout_s: float) -> HandoffReport:
        """The report once the handoff has ended here, or as it is after the timeout; nudges it to read the owner record now."""
        run = self._runs.get(operation_id)
        if run is not None:
            await self._evidence.read_owner(run)
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
        run = Run(handoff, definition.spec)
        if resumed and handoff.stage is not Stage.PREPARED:
            # The call of the previous process is gone, and with it the tunnel: the copy cannot complete any more, or has.
            self._copy.failed(run, handoff.error or "The agent was restarted while it copied.")
        self._runs[handoff.operation_id] = run
        self._group.create_task(self._drive(run), name=f"outgoing {handoff.operation_id}")

    async def _drive(self, run: Run) -> None:
        operation_id, vm_uid = run.handoff.operation_id, run.handoff.vm_uid
        run.lockless = await self._evidence.lockless(run.spec, run.handoff)
        if run.lockless and run.copying is Copying.FAILED:
            run.arrival_task = self._task(self._evidence.hear_of_leaving(run), f"word on {operation_id}")
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

    async def _step(self, run: Run) -> None:
        evidence = await self._evidence.gather(run)
        if evidence is None:
            return  # looked at again
        if self._ended_with_its_host(run):
            run.ended = True
            return
        act = next_act(run.handoff, evidence)
        if act is not Act.WAIT:
            log.info("handoff", operation=run.handoff.operation_id, act=act.value, copy=evidence.copy.value, frozen=evidence.frozen)
        match act:
            case Act.WAIT:
                await self._idle(run)
            case Act.BEGIN_COPY:
                await self._copy.begin(run, self._task)
            case Act.FREEZE:
                await self._freeze(run)
            case Act.INSPECT:
                await self._evidence.inspect(run)
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

    async def _freeze(self, run: Run) -> None:
        run.locks = None
        if not self._hypervisor.freeze(run.handoff.vm_uid):
            if run.leaving:
                run.dead = True  # what is dead needs no freeze, and libvirt takes a second and more to bury it
                return
            await self._idle(run)  # it has just ended: whoever says why must be heard before the next step
        elif self._hypervisor.is_frozen(run.handoff.vm_uid):
            await self._evidence.inspect(run)  # the next thing that is asked for, and the guest stands still

    def _ended_with_its_host(self, run: Run) -> bool:
        """Whether the journal says that it is over though this run has not ended it: the host was laid down, or the VM forgotten. What is here
        now may be a guest that was started since, and what was read of its owner before is not about it."""
        kept = self._state.outgoing.get(run.handoff.operation_id)
        return kept is None or (kept.stage in ENDED_STAGES and run.handoff.stage not in ENDED_STAGES)

    async def _idle(self, run: Run) -> None:
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

    async def _look_about(self, run: Run) -> None:
        if run.copying is Copying.RUNNING and not run.arrived and not self._observer.seen(run.handoff.vm_uid).switched:
            await self._copy.look(run)
        await self._evidence.read_owner(run)

    async def _commit(self, run: Run) -> None:
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

    async def _tell_peer(self, run: Run) -> None:
        handoff = run.handoff
        await self._clock.sleep(HEAD_START_S)
        try:
            await self._peer.note_committed(handoff.operation_id, handoff.destination_node_id, handoff.destination_endpoint)
        except PeerUnavailable as error:
            log.info("destination not told of the commit; the scheduler will", operation=handoff.operation_id, error=str(error))

    async def _kill(self, run: Run) -> None:
        if run.told_task is not None:
            await asyncio.wait([run.told_task], timeout=TOLD_S)
        await self._hypervisor.kill(run.handoff.vm_uid)
        if run.copy_task is not None:
            await asyncio.wait([run.copy_task], timeout=END_OF_CALL_S)
        if await self._evidence.copy(run.handoff, run) not in GONE:
            await _wait(run.wake)

    async def _finish(self, run: Run) -> None:
        """The copy here is gone and another epoch holds: forget the VM, which frees its charge."""
        if run.copy_task is not None:
            await asyncio.wait([run.copy_task], timeout=END_OF_CALL_S)
        seen = self._observer.seen(run.handoff.vm_uid)
        await self._end(run, Stage.FINISHED, suspend_ms=seen.switched_ms)

    async def _end(self, run: Run, stage: Stage, suspend_ms: int = 0) -> None:
        async with self._state.vm_lock(run.handoff.vm_uid):
            if self._ended_with_its_host(run):
                run.ended = True
                return
            if stage is Stage.FINISHED:
                await self._state.end_arrivals_of(run.handoff.vm_uid)
                await self._state.drop_definition(run.handoff.vm_uid)
            await run.keep(self._state, stage=stage, suspend_ms=suspend_ms or run.handoff.suspend_ms)
        run.ended = True

    async def _fail(self, run: Run) -> None:
        """Say so, and wait for the scheduler's verdict: a failure here is evidence, not a decision."""
        if run.handoff.stage is not Stage.FAILED:
            error = run.handoff.error or f"The source's copy was not inactive at the switchover (locks {run.locks})."
            await run.keep(self._state, stage=Stage.FAILED, error=error)
        await self._idle(run)

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
