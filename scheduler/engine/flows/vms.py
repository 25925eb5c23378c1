"""CreateVM, StartVM, StopVM, RebootVM, DeleteVM: what is done in each phase, and how each turns back."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from hostler.errors import HostlerError, NotFound
from hostler.model.journal import stop_error
from hostler.model.owner import OwnerState
from scheduler.core.records import Observed, StoredError, VMRecord
from scheduler.core.steps import (
    DEFINED,
    REBOOTING,
    REMOVING,
    ROLLBACK,
    STARTING,
    STOPPING,
    VOLUMES,
    enter_phase,
    finish_running,
    finish_vm,
    let_run,
    remove_vm,
    volumes_ready,
)
from scheduler.engine.driving import Run, Verbs
from scheduler.engine.flows.removal import remove_file, volume_spec

VMChange = Callable[[VMRecord], VMRecord]


# ---- CreateVM: ACCEPTED -> VOLUMES -> DEFINED -> STARTING; ROLLBACK


async def create(run: Run) -> None:
    if run.operation.cancel_requested and run.operation.phase not in (STARTING, ROLLBACK):
        await _begin_rollback(run, stop_error(run.operation))
        return
    match run.operation.phase:
        case "ACCEPTED":
            await _make_volumes(run)
        case phase if phase == VOLUMES:
            await run.nodes.define(run.vm.record.owner.node_id, run.order(), run.vm.record.domain)
            await _enter(run, VOLUMES, DEFINED, "Defined on its node.")
        case phase if phase == DEFINED:
            await _start_or_leave(run)
        case phase if phase == STARTING:
            await _start(run, STARTING)
        case phase if phase == ROLLBACK:
            await _roll_back(run)


async def _make_volumes(run: Run) -> None:
    vm, sizes = run.vm.record, {}
    for volume_id in vm.own_volumes:
        volume = run.state.volumes[volume_id].record
        sizes[volume_id] = await run.nodes.ensure_volume(vm.owner.node_id, run.order(), volume_spec(volume))
    by = run.by()
    await run.write(
        lambda state: (
            step.and_then(volumes_ready(state, run.operation_id, sizes))
            if (step := enter_phase(state, run.operation_id, "ACCEPTED", VOLUMES, "Its volumes are made.", by)) is not None
            else None
        )
    )


async def _start_or_leave(run: Run) -> None:
    by = run.by()
    if run.operation.leave_stopped:
        await run.write(lambda state: finish_vm(state, run.operation_id, DEFINED, Observed.STOPPED, OwnerState.STOPPED, by))
        return
    await run.write(
        lambda state: enter_phase(
            state, run.operation_id, DEFINED, STARTING, "Being started.", by, lambda vm: let_run(vm, run.operation_id)
        )
    )


async def _start(run: Run, phase: str) -> None:
    status = await run.nodes.start(run.vm.record.owner.node_id, run.order())
    by = run.by()
    await run.write(lambda state: finish_running(state, run.operation_id, phase, status, by))


async def _roll_back(run: Run) -> None:
    """Undo on the node whatever was done there, then in the store; the error of the operation stays the first one."""
    vm = run.vm.record
    await _off(run)
    await _forgotten(run)
    for volume_id in vm.own_volumes:
        if volume_id in run.state.volumes:
            await remove_file(run, run.order(), run.state.volumes[volume_id].record, vm.owner.node_id)
    by, error = run.by(), run.operation.error or StoredError("Internal", "INTERNAL", run.operation.reason)
    await run.write(lambda state: remove_vm(state, run.operation_id, ROLLBACK, by, error))


async def turn_back_create(run: Run, error: HostlerError) -> None:
    await _begin_rollback(run, StoredError.of(error))


async def _begin_rollback(run: Run, error: StoredError) -> None:
    by, phase = run.by(), run.operation.phase
    if phase == ROLLBACK:
        return
    await run.write(lambda state: enter_phase(state, run.operation_id, phase, ROLLBACK, error.message, by, change_error=error))


# ---- StartVM: ACCEPTED -> STARTING; ROLLBACK. It is defined again: its node may be another one now, or have lost its files


async def start(run: Run) -> None:
    match run.operation.phase:
        case "ACCEPTED":
            await run.nodes.define(run.vm.record.owner.node_id, run.order(), run.vm.record.domain)
            by = run.by()
            await run.write(
                lambda state: enter_phase(
                    state, run.operation_id, "ACCEPTED", STARTING, "Being started.", by, lambda vm: let_run(vm, run.operation_id)
                )
            )
        case phase if phase == STARTING:
            await _start(run, STARTING)
        case phase if phase == ROLLBACK:
            with suppress(NotFound):  # a host that lost its files runs nothing of it
                await run.nodes.stop(run.vm.record.owner.node_id, run.order(), 0)
            await _fail(run, ROLLBACK, Observed.STOPPED, OwnerState.STOPPED)


async def turn_back_start(run: Run, error: HostlerError) -> None:
    if run.operation.phase == "ACCEPTED":
        await _fail(run, "ACCEPTED", Observed.STOPPED, OwnerState.STOPPED, StoredError.of(error))
    else:
        await _begin_rollback(run, StoredError.of(error))


# ---- StopVM: ACCEPTED -> STOPPING


async def stop(run: Run) -> None:
    match run.operation.phase:
        case "ACCEPTED":
            await _enter(run, "ACCEPTED", STOPPING, "Being stopped.", lambda vm: _observed(vm, Observed.STOPPING))
        case phase if phase == STOPPING:
            how = run.operation.stop
            await run.nodes.stop(run.vm.record.owner.node_id, run.order(), 0 if how is None or how.force else how.grace_s)
            by = run.by()
            await run.write(lambda state: finish_vm(state, run.operation_id, STOPPING, Observed.STOPPED, OwnerState.STOPPED, by))


async def turn_back_stop(run: Run, error: HostlerError) -> None:
    """A refused stop leaves the VM as its node says it is."""
    phase = run.operation.phase
    await _fail(run, phase, Observed.RUNNING, run.vm.record.owner.state, StoredError.of(error))


# ---- RebootVM: ACCEPTED -> REBOOTING


async def reboot(run: Run) -> None:
    match run.operation.phase:
        case "ACCEPTED":
            await _enter(run, "ACCEPTED", REBOOTING, "Being rebooted.")
        case phase if phase == REBOOTING:
            how = run.operation.stop
            status = await run.nodes.reboot(run.vm.record.owner.node_id, run.order(), how is not None and how.force)
            by = run.by()
            await run.write(lambda state: finish_running(state, run.operation_id, REBOOTING, status, by))


# ---- DeleteVM: ACCEPTED -> STOPPING -> REMOVING


async def delete(run: Run) -> None:
    match run.operation.phase:
        case "ACCEPTED":
            await _enter(run, "ACCEPTED", STOPPING, "Being stopped.", lambda vm: _observed(vm, Observed.DELETING))
        case phase if phase == STOPPING:
            await _off(run)
            await _enter(run, STOPPING, REMOVING, "Its volumes are being removed.", _may_not_run)
        case phase if phase == REMOVING:
            vm = run.vm.record
            await _forgotten(run)  # in the step that removes the record: a fenced node that is back in between takes the VM for its own
            for volume_id in vm.own_volumes:
                if volume_id in run.state.volumes:
                    await remove_file(run, run.order(), run.state.volumes[volume_id].record, vm.owner.node_id)
            by = run.by()
            await run.write(lambda state: remove_vm(state, run.operation_id, REMOVING, by))


async def turn_back_delete(run: Run, error: HostlerError) -> None:
    """What was deleted stays deleted: the VM is stopped and can be deleted again."""
    await _fail(run, run.operation.phase, Observed.STOPPED, run.vm.record.owner.state, StoredError.of(error))


async def _off(run: Run) -> None:
    with suppress(NotFound):
        await run.nodes.stop(run.vm.record.owner.node_id, run.order(), 0)


async def _forgotten(run: Run) -> None:
    with suppress(NotFound):
        await run.nodes.forget(run.vm.record.owner.node_id, run.order())


async def _enter(run: Run, come_from: str, phase: str, reason: str, change_vm: VMChange | None = None) -> None:
    by = run.by()
    await run.write(lambda state: enter_phase(state, run.operation_id, come_from, phase, reason, by, change_vm))


async def _fail(run: Run, phase: str, observed: Observed, owner_state: OwnerState, error: StoredError | None = None) -> None:
    by = run.by()
    why = error or run.operation.error or StoredError("Internal", "INTERNAL", run.operation.reason)
    await run.write(lambda state: finish_vm(state, run.operation_id, phase, observed, owner_state, by, error=why))


def _observed(vm: VMRecord, observed: Observed) -> VMRecord:
    return replace(vm, observed=observed)


def _may_not_run(vm: VMRecord) -> VMRecord:
    return replace(vm, owner=replace(vm.owner, state=OwnerState.STOPPED))


CREATE = Verbs(create, turn_back_create)
START = Verbs(start, turn_back_start)
STOP = Verbs(stop, turn_back_stop)
REBOOT = Verbs(reboot, turn_back_stop)
DELETE = Verbs(delete, turn_back_delete)
