"""The steps of a cold migration: a VM that is off gets another owner. Nothing is copied; its volumes are where both nodes reach them.

Why no two copies can come of it: the record says STOPPED, and an agent that starts a VM reads the record after the domain exists and before it
executes. So once the source's agent has said that it has no domain of the VM, at any time after the record at `owner_revision` was written,
whatever is started there later reads STOPPED or another owner and never executes. The transaction compares that very record, so the word is about
it. The new epoch makes the source's agent refuse every older command by itself, as soon as it has been told to forget the VM.
"""

from dataclasses import replace

from hostler.model.journal import ABORTING, COMMITTED, DEFINED
from hostler.model.owner import Owner, OwnerState
from hostler.model.quantities import Quantities
from scheduler.core.accept import enter, fail, succeed
from scheduler.core.records import ClaimKind, OperationRecord, StoredError, VMRecord, claim_key, operation_key, vm_key
from scheduler.core.state import ClusterState, Kept
from scheduler.core.steps import By, in_phase, release_claim, stops
from scheduler.core.transaction import Transaction


def relocated(vm: VMRecord, node_id: str, incarnation: str, charged: Quantities) -> VMRecord:
    """A VM that is off, owned by another node under a new epoch: the one way in which an owner changes without a handoff.

    The caller has proof that the old owner runs no copy, for the very record that its transaction compares.
    """
    if vm.owner.state is not OwnerState.STOPPED:
        raise ValueError(f"{vm.vm_id} is {vm.owner.state.value}: its owner cannot be changed while it may run")
    owner = Owner(vm.owner.epoch + 1, node_id, incarnation, OwnerState.STOPPED, vm.owner.operation_id)
    return replace(vm, owner=owner, domain=replace(vm.domain, charged=charged))


def change_owner(state: ClusterState, operation_id: str, owner_revision: int, by: By) -> Transaction | None:
    """The destination owns it, if the record is the one that the source's word is about. None: it is not, or a cancel was first."""
    kept = in_phase(state, operation_id, DEFINED)
    if kept is None or kept.record.migration is None or stops(kept.record):
        return None
    vm, migration = state.vms[kept.record.target_id], kept.record.migration
    if (
        vm.revision != owner_revision
        or vm.record.owner.state is not OwnerState.STOPPED
        or vm.record.owner.node_id != migration.source_node_id
    ):
        return None
    claim = state.claims[(migration.destination_node_id, vm.record.vm_id)].record
    moved = relocated(vm.record, migration.destination_node_id, migration.destination_incarnation, claim.charged)
    operation = enter(kept.record, COMMITTED, "The destination owns it; the source forgets it.", by.driver, by.now_ms)
    operation = replace(operation, migration=replace(migration, committed_epoch=moved.owner.epoch))
    return _write(kept, operation).and_then(Transaction({vm_key(moved.vm_id): vm.revision}, {vm_key(moved.vm_id): moved}))


def abort_cold(state: ClusterState, operation_id: str, error: StoredError, by: By) -> Transaction | None:
    """It stays where it is. None: the owner has changed already."""
    kept = state.operations.get(operation_id)
    if kept is None or kept.record.done or kept.record.phase in (COMMITTED, ABORTING):
        return None
    return _write(kept, replace(enter(kept.record, ABORTING, error.message, by.driver, by.now_ms), error=error))


def finish_cold_abort(state: ClusterState, operation_id: str, by: By) -> Transaction | None:
    """The destination has forgotten it: its claim goes, and the VM is free again where it was."""
    kept = in_phase(state, operation_id, ABORTING)
    if kept is None or kept.record.migration is None or kept.record.error is None:
        return None
    vm = state.vms[kept.record.target_id]
    key = vm_key(vm.record.vm_id)
    return (
        _write(kept, fail(kept.record, kept.record.error, by.driver, by.now_ms))
        .and_then(Transaction({key: vm.revision}, {key: replace(vm.record, operation_id="")}))
        .and_then(release_claim(state, kept.record.migration.destination_node_id, vm.record.vm_id))
    )


def finish_cold(state: ClusterState, operation_id: str, by: By) -> Transaction | None:
    """The source has forgotten it: its claim goes, the destination's becomes an ordinary one."""
    kept = in_phase(state, operation_id, COMMITTED)
    if kept is None or kept.record.migration is None:
        return None
    migration, vm = kept.record.migration, state.vms[kept.record.target_id]
    after = replace(vm.record, operation_id="")
    there = claim_key(migration.destination_node_id, after.vm_id)
    claim = state.claims[(migration.destination_node_id, after.vm_id)]
    total_ms = max(0, by.now_ms - kept.record.create_ms)
    ended = replace(succeed(kept.record, by.driver, by.now_ms, vm=after), migration=replace(migration, total_ms=total_ms))
    return (
        _write(kept, ended)
        .and_then(Transaction({vm_key(after.vm_id): vm.revision}, {vm_key(after.vm_id): after}))
        .and_then(Transaction({there: claim.revision}, {there: replace(claim.record, kind=ClaimKind.RUN, operation_id="")}))
        .and_then(release_claim(state, migration.source_node_id, after.vm_id))
    )


def _write(kept: Kept[OperationRecord], operation: OperationRecord) -> Transaction:
    key = operation_key(operation.operation_id)
    return Transaction({key: kept.revision}, {key: operation})
