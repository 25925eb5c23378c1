"""The steps of operations on VMs and volumes, as transactions: what the journal, the VM and the ledger become when a step is entered or ends.

Each function answers None when the operation is not in the phase the caller thinks (somebody else moved it on): the driver then looks again. Every
transaction guards the operation and whatever it changes, so two drivers cannot both take a step.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from hostler.model.journal import ABORTING as ABORTING
from hostler.model.journal import COMMITTED as COMMITTED
from hostler.model.journal import COPYING as COPYING
from hostler.model.journal import DEFINED as DEFINED
from hostler.model.journal import DESTINATION_READY as DESTINATION_READY
from hostler.model.journal import REBOOTING as REBOOTING
from hostler.model.journal import REMOVING as REMOVING
from hostler.model.journal import RESERVED as RESERVED
from hostler.model.journal import ROLLBACK as ROLLBACK
from hostler.model.journal import STARTING as STARTING
from hostler.model.journal import STOPPING as STOPPING
from hostler.model.journal import VOLUMES as VOLUMES
from hostler.model.journal import can_cancel
from hostler.model.node import VMPower, VMStatus
from hostler.model.owner import Owner, OwnerState
from hostler.model.quantities import Quantities, plus
from scheduler.core.accept import enter, fail, succeed
from scheduler.core.claims import drop_claim
from scheduler.core.local_disks import charged_apart, left_behind, local_volumes, moved
from scheduler.core.records import (
    ClaimKind,
    Migration,
    Observed,
    OperationRecord,
    Record,
    StoredError,
    VMRecord,
    VolumeState,
    claim_key,
    ledger_key,
    operation_key,
    shared_pool_key,
    vm_key,
    volume_key,
)
from scheduler.core.state import ClusterState, Kept
from scheduler.core.transaction import Transaction

NOTHING: Quantities = {}


@dataclass(frozen=True, slots=True)
class By:
    """Who takes the step, and when (wall milliseconds, to be shown)."""

    driver: str
    now_ms: int


def in_phase(state: ClusterState, operation_id: str, phase: str) -> Kept[OperationRecord] | None:
    """The operation, if it is in that phase and not done."""
    kept = state.operations.get(operation_id)
    return kept if kept is not None and not kept.record.done and kept.record.phase == phase else None


PAST_CANCEL = frozenset({ROLLBACK, ABORTING, COMMITTED})
"""An operation that is asked to stop goes here: back, or on because the handoff is committed already."""


def stops(operation: OperationRecord) -> bool:
    """Whether it has been asked to stop, and still can."""
    return operation.cancel_requested and can_cancel(operation)


def enter_phase(
    state: ClusterState,
    operation_id: str,
    come_from: str,
    phase: str,
    reason: str,
    by: By,
    change_vm: Callable[[VMRecord], VMRecord] | None = None,
    change_migration: Callable[[Migration], Migration] | None = None,
    change_error: StoredError | None = None,
) -> Transaction | None:
    """Move on to `phase`, changing the VM with it. None also when somebody has asked it to stop: a cancel that was answered is heeded."""
    kept = in_phase(state, operation_id, come_from)
    if kept is None or (stops(kept.record) and phase not in PAST_CANCEL):
        return None
    operation = enter(kept.record, phase, reason, by.driver, by.now_ms)
    if change_migration is not None and operation.migration is not None:
        operation = replace(operation, migration=change_migration(operation.migration))
    if change_error is not None:
        operation = replace(operation, error=change_error)
    transaction = _put(operation_key(operation_id), kept.revision, operation)
    if change_vm is not None:
        vm = state.vms[kept.record.target_id]
        transaction = transaction.and_then(_put(vm_key(vm.record.vm_id), vm.revision, change_vm(vm.record)))
    return transaction


def volumes_ready(state: ClusterState, operation_id: str, sizes_mib: dict[str, int]) -> Transaction:
    """Own volumes of a VM that were made are READY, at the size that the host told."""
    transaction = Transaction()
    for volume_id, size_mib in sorted(sizes_mib.items()):
        kept = state.volumes.get(volume_id)
        if kept is not None and kept.record.state is VolumeState.CREATING:
            ready = replace(kept.record, state=VolumeState.READY, size_mib=size_mib, operation_id="")
            transaction = transaction.and_then(_put(volume_key(volume_id), kept.revision, ready))
    return transaction


def let_run(vm: VMRecord, operation_id: str) -> VMRecord:
    """The owner may run it, under a new epoch."""
    owner = replace(vm.owner, epoch=vm.owner.epoch + 1, state=OwnerState.RUNNING, operation_id=operation_id)
    return replace(vm, owner=owner, observed=Observed.STARTING, reason="")


def finish_vm(
    state: ClusterState,
    operation_id: str,
    come_from: str,
    observed: Observed,
    owner_state: OwnerState,
    by: By,
    reason: str = "",
    error: StoredError | None = None,
) -> Transaction | None:
    """The operation ends and the VM is free again. With an error: it failed, and the VM is as before or as `observed` says."""
    kept = in_phase(state, operation_id, come_from)
    if kept is None or (error is None and stops(kept.record)):
        return None
    vm = state.vms[kept.record.target_id]
    owner = replace(vm.record.owner, state=owner_state)
    after = replace(vm.record, observed=observed, owner=owner, operation_id="", reason=reason)
    ended = fail(kept.record, error, by.driver, by.now_ms) if error else succeed(kept.record, by.driver, by.now_ms, vm=after)
    return _put(operation_key(operation_id), kept.revision, ended).and_then(_put(vm_key(after.vm_id), vm.revision, after))


def finish_running(state: ClusterState, operation_id: str, come_from: str, status: VMStatus, by: By) -> Transaction | None:
    """The guest was let run, or rebooted, as was asked. `status` is its node's answer: it may have ended by itself since, and then its node runs it
    no more under this epoch. Said here, it need not wait for a report, of which those that came meanwhile counted for nothing."""
    ended = how_it_ended(status)
    if ended is None:
        return finish_vm(state, operation_id, come_from, Observed.RUNNING, OwnerState.RUNNING, by)
    return finish_vm(state, operation_id, come_from, ended[0], OwnerState.STOPPED, by, ended[1])


def how_it_ended(status: VMStatus) -> tuple[Observed, str] | None:
    """What is observed of a VM whose node says that its guest is off, and the reason; None: it is not."""
    match status.power:
        case VMPower.OFF:
            return Observed.STOPPED, status.reason or "The guest powered off."
        case VMPower.CRASHED:
            return Observed.CRASHED, status.reason
        case _:
            return None


def remove_vm(state: ClusterState, operation_id: str, come_from: str, by: By, error: StoredError | None = None) -> Transaction | None:
    """The VM, its own volumes and its claim go; other volumes are free again. Ends a DeleteVM, or (with an error) a CreateVM rolled back."""
    kept = in_phase(state, operation_id, come_from)
    if kept is None:
        return None
    vm = state.vms[kept.record.target_id]
    ended = (
        fail(kept.record, error, by.driver, by.now_ms) if error is not None else succeed(kept.record, by.driver, by.now_ms, vm=vm.record)
    )
    transaction = _put(operation_key(operation_id), kept.revision, ended)
    transaction = transaction.and_then(Transaction({vm_key(vm.record.vm_id): vm.revision}, {}, (vm_key(vm.record.vm_id),)))
    for claim in state.claims_of(vm.record.vm_id):
        transaction = transaction.and_then(release_claim(state, claim.record.node_id, vm.record.vm_id))
    return transaction.and_then(_release_volumes(state, vm.record))


def release_claim(state: ClusterState, node_id: str, vm_id: str, apart: Quantities = NOTHING) -> Transaction:
    """One claim goes, and its charge leaves the node's ledger, with what is charged there `apart` from it and goes too."""
    claim, ledger = state.claims[(node_id, vm_id)], state.ledgers[node_id]
    key = claim_key(node_id, vm_id)
    after = drop_claim(ledger.record, plus(claim.record.charged, apart))
    return Transaction({key: claim.revision, ledger_key(node_id): ledger.revision}, {ledger_key(node_id): after}, (key,))


def _release_volumes(state: ClusterState, vm: VMRecord) -> Transaction:
    transaction = Transaction()
    freed: dict[str, int] = {}
    for volume_id in vm.volume_ids:
        kept = state.volumes.get(volume_id)
        if kept is None:
            continue
        key = volume_key(volume_id)
        if volume_id in vm.own_volumes:
            transaction = transaction.and_then(Transaction({key: kept.revision}, {}, (key,)))
            if not kept.record.node_id:
                freed[kept.record.pool_id] = freed.get(kept.record.pool_id, 0) + kept.record.charged_mib
        else:
            transaction = transaction.and_then(_put(key, kept.revision, replace(kept.record, vm_id="")))
    for pool_id, mib in sorted(freed.items()):
        transaction = transaction.and_then(release_pool(state, pool_id, mib))
    return transaction


def release_pool(state: ClusterState, pool_id: str, mib: int) -> Transaction:
    """Space goes back to a shared pool."""
    kept = state.shared_pools[pool_id]
    return _put(shared_pool_key(pool_id), kept.revision, drop_claim(kept.record, {f"pool_mib/{pool_id}": mib}))


# ---- migration


def commit_handoff(state: ClusterState, vm_uid: str, operation_id: str, owner_revision: int) -> Transaction | None:
    """H5iii: the destination becomes the owner under a new epoch, if the record is the one the source read before it inspected its copy.

    None: it is not; whoever asked looks at the record, which says who won.
    """
    kept = state.vm_by_uid(vm_uid)
    if kept is None or kept.revision != owner_revision:
        return None
    owner = kept.record.owner
    if owner.state is not OwnerState.HANDOFF or owner.operation_id != operation_id:
        return None
    committed = Owner(owner.epoch + 1, owner.destination_node_id, owner.destination_incarnation, OwnerState.COMMITTED, operation_id)
    return _put(vm_key(kept.record.vm_id), kept.revision, replace(kept.record, owner=committed))


def abort_handoff(state: ClusterState, operation_id: str, come_from: str, error: StoredError, by: By) -> Transaction | None:
    """The source goes on under its own epoch; from here on a commit cannot happen. None also when it has happened already."""
    kept = in_phase(state, operation_id, come_from)
    if kept is None:
        return None
    vm = state.vms[kept.record.target_id]
    owner = vm.record.owner
    if owner.state is not OwnerState.HANDOFF or owner.operation_id != operation_id:
        return None
    back = replace(owner, state=OwnerState.RUNNING, destination_node_id="", destination_incarnation="")
    operation = replace(enter(kept.record, ABORTING, error.message, by.driver, by.now_ms), error=error)
    return _put(operation_key(operation_id), kept.revision, operation).and_then(
        _put(vm_key(vm.record.vm_id), vm.revision, replace(vm.record, owner=back))
    )


def finish_abort(state: ClusterState, operation_id: str, source_lives: bool, by: By, *, unasked: bool = False) -> Transaction | None:
    """Both ends are clean: the destination's claim goes, the VM is free again, where it was. `unasked`: the destination is fenced, and what the
    copy has left on it is owed."""
    kept = in_phase(state, operation_id, ABORTING)
    if kept is None or kept.record.migration is None or kept.record.error is None:
        return None
    vm = state.vms[kept.record.target_id]
    after = replace(vm.record, operation_id="")
    if not source_lives:
        owner = replace(vm.record.owner, state=OwnerState.STOPPED)
        reason = "Its process on the source ended during a migration that had not been committed."
        after = replace(after, observed=Observed.CRASHED, owner=owner, reason=reason)
    ended = fail(kept.record, kept.record.error, by.driver, by.now_ms)
    return (
        _put(operation_key(operation_id), kept.revision, ended)
        .and_then(_put(vm_key(after.vm_id), vm.revision, after))
        .and_then(release_claim(state, kept.record.migration.destination_node_id, after.vm_id))
        .and_then(left_behind(state, after, kept.record.migration.destination_node_id) if unasked else Transaction())
    )


def finish_migration(state: ClusterState, operation_id: str, figures: Migration, by: By) -> Transaction | None:
    """H7: it runs on the destination, the source is clean: the source's claim goes, the destination's becomes an ordinary one."""
    kept = in_phase(state, operation_id, COMMITTED)
    if kept is None or kept.record.migration is None:
        return None
    vm = state.vms[kept.record.target_id]
    after = replace(vm.record, owner=replace(vm.record.owner, state=OwnerState.RUNNING), operation_id="", observed=Observed.RUNNING)
    ended = replace(succeed(kept.record, by.driver, by.now_ms, vm=after), migration=figures)
    return (
        _put(operation_key(operation_id), kept.revision, ended)
        .and_then(_put(vm_key(after.vm_id), vm.revision, after))
        .and_then(_settled(state, after, figures))
    )


def _settled(state: ClusterState, vm: VMRecord, migration: Migration) -> Transaction:
    """After a commit: the claim at the destination is an ordinary one, the source's goes, and the local disks are the destination's."""
    apart = charged_apart(local_volumes(state, vm))
    claim = state.claims[(migration.destination_node_id, vm.vm_id)]
    charged = {key: amount - apart.get(key, 0) for key, amount in claim.record.charged.items()}
    settled = replace(claim.record, kind=ClaimKind.RUN, operation_id="", charged=charged)
    return (
        _put(claim_key(migration.destination_node_id, vm.vm_id), claim.revision, settled)
        .and_then(release_claim(state, migration.source_node_id, vm.vm_id, apart))
        .and_then(moved(state, vm, migration.source_node_id, migration.destination_node_id))
    )


def finish_lost(state: ClusterState, operation_id: str, error: StoredError, by: By) -> Transaction | None:
    """The copy was lost after the commit (the destination was restarted) and the source's is dead: nothing runs anywhere, and that is certain.

    The VM stays with its new owner, stopped; its memory is lost, its disks are not.
    """
    kept = in_phase(state, operation_id, COMMITTED)
    if kept is None or kept.record.migration is None:
        return None
    migration, vm = kept.record.migration, state.vms[kept.record.target_id]
    owner = replace(vm.record.owner, state=OwnerState.STOPPED)
    after = replace(vm.record, owner=owner, operation_id="", observed=Observed.CRASHED, reason=error.message)
    return (
        _put(operation_key(operation_id), kept.revision, fail(kept.record, error, by.driver, by.now_ms))
        .and_then(_put(vm_key(after.vm_id), vm.revision, after))
        .and_then(_settled(state, after, migration))
    )


def _put(key: str, revision: int, record: Record) -> Transaction:
    return Transaction({key: revision}, {key: record})
