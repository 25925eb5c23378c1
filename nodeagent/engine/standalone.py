"""A standalone host at work: accepts mutations, and drives each accepted operation, one task per operation, from where the journal says it stands.

A step is: act through HostVMs (each act may be repeated), then write the next phase. Hence a restart of the agent, a retry and the first try are the
same thing. What does not answer is asked again, with growing pauses; what refuses makes the operation turn back. A VM runs under an epoch that grows
with each start: it is written, and told to the local authority, before anything is started under it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace

import structlog

from hostler.errors import HostlerError, Internal, NotFound, Reason, Unavailable
from hostler.model.domain import VolumeSpec
from hostler.model.journal import (
    ACCEPTED,
    DEFINED,
    REBOOTING,
    REMOVING,
    ROLLBACK,
    STARTING,
    STOPPING,
    VOLUMES,
    Request,
    cancelled,
    stop_error,
)
from hostler.model.node import VMStatus
from hostler.model.owner import OwnerState
from hostler.model.quantities import pool_key, total
from hostler.model.records import Kept, Observed, OperationRecord, StoredError, Verb, VMRecord, VolumeRecord
from hostler.model.wishes import NewDisk, WishedVM
from hostler.server.clock import Clock, wall_ms
from nodeagent.core import standalone as decide
from nodeagent.core import standalone_steps as steps
from nodeagent.core.definitions import Command, Definition
from nodeagent.core.ledger import Account, foreign_storage
from nodeagent.core.shown import VMView, standalone_views
from nodeagent.core.standalone import Host, HostRecords, Step
from nodeagent.core.standalone_steps import By
from nodeagent.engine.host_state import HostState
from nodeagent.engine.journal import Decide, Journal
from nodeagent.engine.observer import Observer
from nodeagent.engine.views import LOOK_S, VMViews
from nodeagent.engine.vms import HostVMs
from nodeagent.engine.watch import Ring
from nodeagent.ports import HostFacts, HypervisorUnavailable, Volumes

RETRY_FIRST_S, RETRY_MOST_S = 0.25, 5.0
"""A hypervisor that restarts is back within seconds; one that stays away is asked twelve times a minute."""

BREAKS_BEFORE_TURNING_BACK = 5
"""An exception that is no refusal is a bug or a passing fault: try again a few times, then turn back and say so."""

SWEEP_S = 600.0
"""How often old operations are looked for."""

log = structlog.get_logger()


@dataclass(slots=True)
class Run:
    """One operation being driven; what its flow works with."""

    operation_id: str
    host: "StandaloneHost"
    waiting_for: str = ""

    @property
    def records(self) -> HostRecords:
        return self.host.journal.records

    @property
    def operation(self) -> OperationRecord:
        return self.records.operations[self.operation_id].record

    @property
    def vm(self) -> VMRecord:
        return self.records.vms[self.operation.target_id].record

    @property
    def volume(self) -> VolumeRecord:
        return self.records.volumes[self.operation.target_id].record

    def own_volumes(self) -> list[VolumeRecord]:
        """The VM's own volumes that are still there."""
        return [self.records.volumes[volume_id].record for volume_id in self.vm.own_volumes if volume_id in self.records.volumes]

    def command(self) -> Command:
        """About the operation's VM, under its present epoch."""
        vm = self.vm
        return Command(self.operation_id, vm.uid, vm.owner.epoch, vm.owner.epoch)

    async def write(self, step: Callable[[HostRecords, By], Step | None]) -> None:
        """Take a step, unless the operation is not where it begins."""
        by = By(self.host.node_id, wall_ms(self.host.clock))
        await self.host.journal.write(lambda records: step(records, by))

    async def enter(
        self,
        come_from: str,
        phase: str,
        reason: str,
        change_vm: Callable[[VMRecord], VMRecord] | None = None,
        *,
        unless_cancelled: bool = False,
    ) -> None:
        await self.write(
            lambda records, by: steps.enter_phase(
                records, self.operation_id, come_from, phase, reason, by, change_vm, unless_cancelled=unless_cancelled
            )
        )

    async def finish(self, phase: str, observed: Observed, owner_state: OwnerState, error: StoredError | None = None) -> None:
        await self.write(lambda records, by: steps.finish_vm(records, self.operation_id, phase, observed, owner_state, by, error))

    async def roll_back(self, error: StoredError) -> None:
        """Enter ROLLBACK; the error of the operation stays the first one."""
        phase = self.operation.phase
        if phase == ROLLBACK:
            return
        await self.write(lambda records, by: steps.enter_phase(records, self.operation_id, phase, ROLLBACK, error.message, by, error=error))

    @property
    def first_error(self) -> StoredError:
        return self.operation.error or StoredError("Internal", Reason.INTERNAL.value, self.operation.reason)


@dataclass(frozen=True, slots=True)
class Flow:
    """`step` goes forward by one phase; `turn_back` writes what follows from a refusal. Both may be repeated."""

    step: Callable[[Run], Awaitable[None]]
    turn_back: Callable[[Run, HostlerError], Awaitable[None]]


class StandaloneHost:
    """`journal` has what was decided, `views` what is shown of VMs, `operations` and `volumes` the same of those."""

    def __init__(
        self,
        node_id: str,
        journal: Journal,
        vms: HostVMs,
        volumes: Volumes,
        facts: HostFacts,
        state: HostState,
        observer: Observer,
        epochs: MutableMapping[str, int],
        clock: Clock,
        history: str,
    ) -> None:
        self.node_id = node_id
        self.journal = journal
        self.vms = vms
        self.state = state
        self.clock = clock
        self._volumes = volumes
        self._facts = facts
        self._epochs = epochs
        self._runs: dict[str, Run] = {}
        self._wake = asyncio.Event()
        state.more_charges = lambda: decide.charges_without_definition(journal.records, state.definitions.__contains__)
        self.views = VMViews(self, vms, observer, history)
        self.operations: Ring[Kept[OperationRecord]] = Ring(history, journal.records.operations)
        self.volumes: Ring[Kept[VolumeRecord]] = Ring(history, journal.records.volumes)
        journal.on_step = self._taken
        self._tell_epochs()

    # ---- mutations

    async def create_vm(self, request: Request, wish: WishedVM, validate_only: bool) -> OperationRecord:
        if (repeat := decide.repeat_of(self.journal.records, request)) is not None:
            return repeat
        looked_at = await self._look_at_host()
        return await self._accept(
            request, lambda records: decide.create_vm(records, self._with_promises(looked_at), request, wish), validate_only
        )

    async def change_vm(self, request: Request, change: Callable[[HostRecords], Step], validate_only: bool) -> OperationRecord:
        """A mutation of a VM that exists, decided on what is true of it now. Raises HypervisorUnavailable if nobody can tell."""
        if (repeat := decide.repeat_of(self.journal.records, request)) is not None:
            return repeat
        await self.views.require()
        return await self._accept(request, change, validate_only)

    async def create_volume(self, request: Request, volume_id: str, wish: NewDisk, validate_only: bool) -> OperationRecord:
        """Needs no hypervisor."""
        host = Host(self.node_id, await self._pools_account(), await self._volumes.pools(), ())
        return await self._accept(
            request, lambda records: decide.create_volume(records, self._with_promises(host), request, volume_id, wish), validate_only
        )

    async def delete_volume(self, request: Request, volume_id: str, etag: str, validate_only: bool) -> OperationRecord:
        return await self._accept(request, lambda records: decide.delete_volume(records, request, volume_id, etag), validate_only)

    async def cancel(self, operation_id: str) -> None:
        """Raises FailedPrecondition if it is too late. The operation is there: the caller has looked."""

        def asked(records: HostRecords) -> Step | None:
            operation = cancelled(records.operations[operation_id].record)
            return None if operation is None else Step(operation)

        await self.journal.write(asked)

    def waiting_for(self, operation_id: str) -> str:
        """What the operation waits for, one sentence; empty: nothing."""
        run = self._runs.get(operation_id)
        return run.waiting_for if run is not None else ""

    async def _accept(self, request: Request, change: Callable[[HostRecords], Step], validate_only: bool) -> OperationRecord:
        known: OperationRecord | None = None

        def judged(records: HostRecords) -> Step | None:
            nonlocal known
            known = decide.repeat_of(records, request)
            if known is not None:
                return None
            step = change(records)
            known = step.operation
            return None if validate_only else step

        await self.journal.write(judged)
        if known is None:
            raise RuntimeError("a mutation without an operation")
        return known

    async def _look_at_host(self) -> Host:
        """Raises HypervisorUnavailable, also when it takes too long."""
        await self.views.require()
        try:
            async with asyncio.timeout(LOOK_S):
                account = await self.vms.account()
        except TimeoutError as error:
            raise HypervisorUnavailable("the account was not to be had in time") from error
        return Host(self.node_id, account, await self._volumes.pools(), (await self._facts.totals()).bridges)

    async def _pools_account(self) -> Account:
        pools = await self._volumes.pools()
        local = {pool_key(pool.pool_id): pool.total_mib for pool in pools if not pool.shared}
        return Account(local, {}, foreign_storage(pools), {})

    def _with_promises(self, host: Host) -> Host:
        """The host as it was measured, with what has been promised by now."""
        return replace(host, account=replace(host.account, claimed=total(self.state.charges())))

    async def room(self) -> Account:
        """What the local pools have, and what is promised of it now."""
        return replace(await self._pools_account(), claimed=total(self.state.charges()))

    async def make(self, volume: VolumeRecord) -> int:
        return await self.vms.ensure_volume(_volume_spec(volume))

    async def unmake(self, volume: VolumeRecord) -> None:
        await self.vms.remove_volume(_volume_spec(volume))

    # ---- what is shown (views.Source)

    def noted(self) -> Mapping[str, int]:
        return {vm_id: kept.revision for vm_id, kept in self.journal.records.vms.items()}

    async def take(self, statuses: Sequence[VMStatus], noted: Mapping[str, int]) -> None:
        seen = {status.vm_uid: status for status in statuses}
        if steps.settle(self.journal.records, seen, noted) is not None:
            await self.journal.write(lambda records: steps.settle(records, seen, noted))

    def views_now(self, stale: str) -> Mapping[str, VMView]:
        return standalone_views(self.journal.records, stale)

    # ---- driving

    async def run(self) -> None:
        """Drive every operation that is not done, and forget old ones; for ever."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forget(), name="forget old operations")
                while True:
                    self._wake.clear()
                    for operation_id, kept in self.journal.records.operations.items():
                        if not kept.record.done and operation_id not in self._runs:
                            self._runs[operation_id] = Run(operation_id, self)
                            group.create_task(self._drive(self._runs[operation_id]), name=f"drive {operation_id}")
                    await self._wake.wait()
        finally:
            self._runs.clear()

    async def _forget(self) -> None:
        while True:
            await self.journal.write(_forgetting(wall_ms(self.clock)))
            await self.clock.sleep(SWEEP_S)

    async def _drive(self, run: Run) -> None:
        operation = run.operation
        log.info("driving", operation=run.operation_id, verb=operation.verb.value, target=operation.target_id, phase=operation.phase)
        flow, pause_s, breaks = FLOWS[operation.verb], RETRY_FIRST_S, 0
        while not run.operation.done:
            phase = run.operation.phase
            try:
                await flow.step(run)
                pause_s, breaks, run.waiting_for = RETRY_FIRST_S, 0, ""
            except Unavailable as error:
                run.waiting_for = str(error)
                log.info("operation waits", operation=run.operation_id, phase=phase, why=str(error))
                await self.clock.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_MOST_S)
            except HostlerError as error:
                log.info("refused", operation=run.operation_id, phase=phase, reason=error.reason.value, why=str(error))
                await self._turn_back(run, flow, error)
            except Exception:
                breaks += 1
                log.exception("step broke", operation=run.operation_id, phase=phase, breaks=breaks)
                await self.clock.sleep(pause_s)
                if breaks >= BREAKS_BEFORE_TURNING_BACK:
                    broken = Internal(Reason.INTERNAL, f"Something broke in phase {phase}; the agent's log has it.")
                    await self._turn_back(run, flow, broken)
                    breaks = 0
        self._runs.pop(run.operation_id, None)
        log.info("ended", operation=run.operation_id, state=run.operation.state.value)

    async def _turn_back(self, run: Run, flow: Flow, error: HostlerError) -> None:
        """What cannot turn back now is tried again for ever: it waits in the open, and other operations go on."""
        phase, later = run.operation.phase, error
        try:
            await flow.turn_back(run, error)
            if run.operation.done or run.operation.phase != phase:
                return
        except HostlerError as refusal:
            later = refusal
        except Exception:
            log.exception("turning back broke", operation=run.operation_id, phase=phase)
        run.waiting_for = str(later)
        log.warning("cannot turn back yet", operation=run.operation_id, phase=phase, why=str(later))
        await self.clock.sleep(RETRY_MOST_S)

    def _taken(self, step: Step) -> None:
        """A step has become true: tell everybody."""
        self._tell_epochs()
        records = self.journal.records
        for operation_id in (*([step.operation.operation_id] if step.operation else []), *step.forget):
            self.operations.put(operation_id, records.operations.get(operation_id))
        for volume_id in step.volumes:
            self.volumes.put(volume_id, records.volumes.get(volume_id))
        self.views.publish()
        self._wake.set()

    def _tell_epochs(self) -> None:
        """Which VM may run under which epoch: what the records say, and nothing else."""
        owners = {kept.record.uid: kept.record.owner for kept in self.journal.records.vms.values()}
        may_run = {uid: owner.epoch for uid, owner in owners.items() if owner.state is OwnerState.RUNNING}
        for uid in self._epochs.keys() - may_run.keys():
            del self._epochs[uid]
        self._epochs.update(may_run)


def _forgetting(now_ms: int) -> Decide:
    def old_ones(records: HostRecords) -> Step | None:
        old = steps.expired(records, now_ms)
        return Step(forget=old) if old else None

    return old_ones


def _volume_spec(volume: VolumeRecord) -> VolumeSpec:
    return VolumeSpec(volume.uid, volume.pool_id, volume.size_mib, volume.image, volume.format)


# ---- CreateVM: ACCEPTED -> VOLUMES -> DEFINED -> STARTING; ROLLBACK


async def _create(run: Run) -> None:
    if run.operation.cancel_requested and run.operation.phase not in (STARTING, ROLLBACK):
        await run.roll_back(stop_error(run.operation))
        return
    match run.operation.phase:
        case phase if phase == ACCEPTED:
            sizes = {volume.volume_id: await run.host.make(volume) for volume in run.own_volumes()}
            account = await run.host.room()
            await run.write(lambda records, by: steps.volumes_made(records, run.operation_id, sizes, account, by))
        case phase if phase == VOLUMES:
            await _define(run)
            await run.enter(VOLUMES, DEFINED, "Defined on this host.", unless_cancelled=True)
        case phase if phase == DEFINED and run.operation.leave_stopped:
            await run.finish(DEFINED, Observed.STOPPED, OwnerState.STOPPED)
        case phase if phase == DEFINED:
            await run.enter(DEFINED, STARTING, "Being started.", steps.let_run, unless_cancelled=True)
        case phase if phase == STARTING:
            await _start_and_finish(run)
        case phase if phase == ROLLBACK:
            await _undo(run, ROLLBACK, run.first_error)


async def _define(run: Run) -> None:
    """Its charge moves from the record to the definition: the ledger has it at every moment, once."""
    vm, command = run.vm, run.command()
    spec = replace(vm.domain, charged=decide.run_charge(vm.domain))
    if vm.uid not in run.host.state.definitions:
        await run.host.state.keep_definition(Definition(spec, command.epoch, command.operation_id))
    await run.host.vms.define(command, spec)


async def _start_and_finish(run: Run) -> None:
    await run.host.vms.start(run.command())
    await run.finish(STARTING, Observed.RUNNING, OwnerState.RUNNING)


async def _undo(run: Run, phase: str, error: StoredError | None) -> None:
    """Domain, definition, volumes, record: what is gone already stays gone."""
    await _off_and_forgotten(run)
    for volume in run.own_volumes():
        await run.host.unmake(volume)
    await run.write(lambda records, by: steps.remove_vm(records, run.operation_id, phase, by, error))


async def _off_and_forgotten(run: Run) -> None:
    try:
        await run.host.vms.stop(run.command(), 0)
        await run.host.vms.forget(run.command())
    except NotFound:
        return


async def _create_turns_back(run: Run, error: HostlerError) -> None:
    await run.roll_back(StoredError.of(error))


# ---- StartVM: ACCEPTED -> STARTING; ROLLBACK


async def _start(run: Run) -> None:
    match run.operation.phase:
        case phase if phase == ACCEPTED:
            await run.enter(ACCEPTED, STARTING, "Being started.", steps.let_run)
        case phase if phase == STARTING:
            await _define(run)
            await _start_and_finish(run)
        case phase if phase == ROLLBACK:
            await _power_off(run)
            await run.finish(ROLLBACK, Observed.STOPPED, OwnerState.STOPPED, run.first_error)


async def _power_off(run: Run) -> None:
    """A VM without a definition has no domain."""
    try:
        await run.host.vms.stop(run.command(), 0)
    except NotFound:
        return


# ---- StopVM: ACCEPTED -> STOPPING


async def _stop(run: Run) -> None:
    match run.operation.phase:
        case phase if phase == ACCEPTED:
            await run.enter(ACCEPTED, STOPPING, "Being stopped.", lambda vm: replace(vm, observed=Observed.STOPPING))
        case phase if phase == STOPPING:
            how = run.operation.stop
            await run.host.vms.stop(run.command(), 0 if how is None or how.force else how.grace_s)
            await run.finish(STOPPING, Observed.STOPPED, OwnerState.STOPPED)


async def _stays_running(run: Run, error: HostlerError) -> None:
    """What is true of it, the next look finds out."""
    await run.finish(run.operation.phase, Observed.RUNNING, run.vm.owner.state, StoredError.of(error))


# ---- RebootVM: ACCEPTED -> REBOOTING


async def _reboot(run: Run) -> None:
    match run.operation.phase:
        case phase if phase == ACCEPTED:
            await run.enter(ACCEPTED, REBOOTING, "Being rebooted.")
        case phase if phase == REBOOTING:
            how = run.operation.stop
            await run.host.vms.reboot(run.command(), how is not None and how.force)
            await run.finish(REBOOTING, Observed.RUNNING, OwnerState.RUNNING)


# ---- DeleteVM: ACCEPTED -> STOPPING -> REMOVING


async def _delete(run: Run) -> None:
    match run.operation.phase:
        case phase if phase == ACCEPTED:
            await run.enter(ACCEPTED, STOPPING, "Being stopped.", lambda vm: replace(vm, observed=Observed.DELETING))
        case phase if phase == STOPPING:
            await _off_and_forgotten(run)
            await run.enter(STOPPING, REMOVING, "Its volumes are being removed.", _may_not_run)
        case phase if phase == REMOVING:
            await _undo(run, REMOVING, None)


def _may_not_run(vm: VMRecord) -> VMRecord:
    return replace(vm, owner=replace(vm.owner, state=OwnerState.STOPPED))


async def _delete_turns_back(run: Run, error: HostlerError) -> None:
    """What was deleted stays deleted: the VM is stopped and can be deleted again."""
    await run.finish(run.operation.phase, Observed.STOPPED, run.vm.owner.state, StoredError.of(error))


# ---- volumes


async def _create_volume(run: Run) -> None:
    if run.operation.phase == ROLLBACK:
        await run.host.unmake(run.volume)
        await run.write(lambda records, by: steps.volume_removed(records, run.operation_id, ROLLBACK, by, run.first_error))
        return
    size_mib, account = await run.host.make(run.volume), await run.host.room()
    await run.write(lambda records, by: steps.volume_made(records, run.operation_id, size_mib, account, by))


async def _delete_volume(run: Run) -> None:
    if run.operation.phase == ACCEPTED:
        await run.enter(ACCEPTED, REMOVING, "Its file is being removed.")
        return
    await run.host.unmake(run.volume)
    await run.write(lambda records, by: steps.volume_removed(records, run.operation_id, REMOVING, by))


async def _volume_stays(run: Run, error: HostlerError) -> None:
    phase, why = run.operation.phase, StoredError.of(error)
    await run.write(lambda records, by: steps.volume_stays(records, run.operation_id, phase, why, by))


FLOWS: Mapping[Verb, Flow] = {
    Verb.CREATE_VM: Flow(_create, _create_turns_back),
    Verb.START_VM: Flow(_start, _create_turns_back),
    Verb.STOP_VM: Flow(_stop, _stays_running),
    Verb.REBOOT_VM: Flow(_reboot, _stays_running),
    Verb.DELETE_VM: Flow(_delete, _delete_turns_back),
    Verb.CREATE_VOLUME: Flow(_create_volume, _create_turns_back),
    Verb.DELETE_VOLUME: Flow(_delete_volume, _volume_stays),
}
