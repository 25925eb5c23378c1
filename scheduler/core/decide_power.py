"""Whether a VM is started, stopped, rebooted or deleted, and whether an operation is asked to stop: the checks, and the first entry of the journal.

Every function raises a HostlerError that says no, or answers Accepted. A VM has one operation at a time; an etag that is out of date is refused,
but not by what is so already: that can be asked as often as one likes.
"""

from dataclasses import replace

from hostler.errors import Conflict, FailedPrecondition, NotFound, Reason, Unavailable
from hostler.model.journal import cancelled, expired
from hostler.model.owner import OwnerState
from hostler.model.wishes import DEFAULT_GRACE_S
from scheduler.core.accept import Accepted, Request, begin, journal, repeat_of, succeed
from scheduler.core.decide_fence import is_fenced
from scheduler.core.placement.policy import Policy
from scheduler.core.records import OperationRecord, Stop, Verb, VMRecord, operation_key, vm_key
from scheduler.core.relocate import start_elsewhere
from scheduler.core.state import ClusterState, Kept
from scheduler.core.transaction import Transaction
from scheduler.core.view import Health

EXPIRE_AT_ONCE = 50
"""Operations asked to stop in one transaction: well under what the store takes."""


def start_vm(state: ClusterState, request: Request, vm_id: str, etag: str, policy: Policy) -> Accepted:
    """One that runs is left alone: the operation is done as it is accepted. One whose node is fenced is started elsewhere. Raises NotFound,
    FailedPrecondition (busy, frozen), Conflict (etag), Unavailable when it should run on a node that does not answer.
    """
    if (repeat := repeat_of(state, request)) is not None:
        return Accepted(repeat, Transaction())
    kept = idle_vm(state, vm_id)
    operation = begin(request, Verb.START_VM, vm_id, "Accepted.")
    if kept.record.owner.state is OwnerState.RUNNING:
        _check_heard(state, kept.record)
        return _left_alone(kept, operation, "It was running already.")
    check_etag(kept, etag)
    if is_fenced(state, kept.record.owner.node_id):
        return start_elsewhere(state, kept, operation, policy)
    return _take_in_hand(kept, operation)


def stop_vm(state: ClusterState, request: Request, vm_id: str, etag: str, grace_s: int, force: bool) -> Accepted:
    """As start_vm; one that is off is left alone."""
    if (repeat := repeat_of(state, request)) is not None:
        return Accepted(repeat, Transaction())
    kept = idle_vm(state, vm_id)
    operation = replace(begin(request, Verb.STOP_VM, vm_id, "Accepted."), stop=Stop(grace_s or DEFAULT_GRACE_S, force))
    if kept.record.owner.state is OwnerState.STOPPED:
        return _left_alone(kept, operation, "It was off already.")
    check_etag(kept, etag)
    return _take_in_hand(kept, operation)


def reboot_vm(state: ClusterState, request: Request, vm_id: str, etag: str, force: bool) -> Accepted:
    if (repeat := repeat_of(state, request)) is not None:
        return Accepted(repeat, Transaction())
    kept = running(idle_vm(state, vm_id))
    check_etag(kept, etag)
    return _take_in_hand(kept, replace(begin(request, Verb.REBOOT_VM, vm_id, "Accepted."), stop=Stop(0, force)))


def delete_vm(state: ClusterState, request: Request, vm_id: str, etag: str, force: bool) -> Accepted:
    """A running VM is deleted only by force."""
    if (repeat := repeat_of(state, request)) is not None:
        return Accepted(repeat, Transaction())
    kept = idle_vm(state, vm_id)
    check_etag(kept, etag)
    if kept.record.owner.state is OwnerState.RUNNING and not force:
        raise FailedPrecondition(Reason.VM_RUNNING, f"VM {vm_id} is running.", "Stop it first, or delete it with force.")
    return _take_in_hand(kept, replace(begin(request, Verb.DELETE_VM, vm_id, "Accepted."), stop=Stop(0, force)))


def _left_alone(kept: Kept[VMRecord], operation: OperationRecord, why: str) -> Accepted:
    """Nothing is to be done, and that is written down: a repeat gets the same answer."""
    done = replace(succeed(operation, "", operation.create_ms, vm=kept.record), reason=why)
    return Accepted(done, journal(done).and_then(Transaction({vm_key(kept.record.vm_id): kept.revision})))


def _take_in_hand(kept: Kept[VMRecord], operation: OperationRecord) -> Accepted:
    key = vm_key(kept.record.vm_id)
    held = replace(kept.record, operation_id=operation.operation_id)
    return Accepted(operation, journal(operation).and_then(Transaction({key: kept.revision}, {key: held})))


def idle_vm(state: ClusterState, vm_id: str) -> Kept[VMRecord]:
    """The VM, which no operation has in hand and nothing forbids to change."""
    kept = state.vms.get(vm_id)
    if kept is None:
        raise NotFound(Reason.VM_NOT_FOUND, f"There is no VM {vm_id}.", "See `hostler vm list`.")
    vm = kept.record
    if vm.operation_id:
        verb = state.operations[vm.operation_id].record.verb.value if vm.operation_id in state.operations else "another operation"
        raise FailedPrecondition(
            Reason.VM_BUSY,
            f"VM {vm_id} is in the hands of {verb} ({vm.operation_id}).",
            f"Wait for it: `hostler op watch {vm.operation_id}`.",
        )
    if vm.owner.state is OwnerState.FROZEN:
        raise FailedPrecondition(Reason.VM_FROZEN, f"VM {vm_id} is frozen: {vm.reason}")
    return kept


def running(kept: Kept[VMRecord]) -> Kept[VMRecord]:
    """The VM, if its owner may run it."""
    vm = kept.record
    if vm.owner.state is not OwnerState.RUNNING:
        raise FailedPrecondition(Reason.VM_NOT_RUNNING, f"VM {vm.vm_id} is not running.", f"Start it: `hostler vm start {vm.vm_id}`.")
    return kept


def check_etag(kept: Kept[VMRecord], etag: str) -> None:
    """Empty: whatever it is now. Raises Conflict."""
    if etag and etag != str(kept.revision):
        raise Conflict(Reason.ETAG_MISMATCH, f"VM {kept.record.vm_id} changed in between.", "Read it again.")


def _check_heard(state: ClusterState, vm: VMRecord) -> None:
    """Nobody may be told that a VM runs by a cluster that does not know."""
    node_id = vm.owner.node_id
    if state.health_of(node_id) is not Health.READY:
        raise Unavailable(
            Reason.NODE_UNREACHABLE,
            f"VM {vm.vm_id} is {node_id}'s, which does not answer: whether it runs is not known.",
            f"See `hostler node get {node_id}`.",
        )


def expire(state: ClusterState, now_ms: int) -> Transaction | None:
    """Ask the operations whose deadline is past to stop; None: there is none. A few at a time: what is left is due at the next look too."""
    due = [
        (kept.revision, asked)
        for _, kept in sorted(state.operations.items())
        if kept.record.deadline_ms and (asked := expired(kept.record, now_ms)) is not None
    ][:EXPIRE_AT_ONCE]
    if not due:
        return None
    keys = [operation_key(asked.operation_id) for _, asked in due]
    return Transaction(
        dict(zip(keys, (revision for revision, _ in due), strict=True)), dict(zip(keys, (asked for _, asked in due), strict=True))
    )


def cancel(state: ClusterState, operation_id: str) -> Transaction | None:
    """Ask it to stop; None: it was asked already. Raises NotFound, FailedPrecondition."""
    kept = state.operations.get(operation_id)
    if kept is None:
        raise NotFound(Reason.OPERATION_NOT_FOUND, "There is no such operation.", "See `hostler op list`.")
    asked = cancelled(kept.record)
    key = operation_key(operation_id)
    return None if asked is None else Transaction({key: kept.revision}, {key: asked})
