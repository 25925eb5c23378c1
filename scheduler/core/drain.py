"""A node is emptied: what is planned, what begins next, what follows from how a move ended, and how the drain itself ends. One VM at a time.

Every function gives one transaction that guards the drain's own record, so any replica can take over between two. A move, a stop or a start is an
ordinary operation, accepted in the very transaction that writes it down in the drain: it happens once. A VM that the drain has stopped is started
again whatever happens, also when the drain is cancelled: nobody else would.
"""

from collections.abc import Callable
from dataclasses import replace

from hostler.errors import Conflict, FailedPrecondition, HostlerError, NotFound, Reason, Unavailable
from hostler.model.journal import ACCEPTED, CLAIMING, MOVING, RELEASING
from hostler.model.owner import OwnerState
from hostler.model.records import Priority
from scheduler.core.accept import Accepted, Request, begin, enter, fail, journal, repeat_of, succeed
from scheduler.core.decide_migration import migrate_vm
from scheduler.core.decide_power import start_vm, stop_vm
from scheduler.core.holds import HOLDS_AT_ONCE, blocked, held, move_of, plan, release, short
from scheduler.core.placement.policy import Policy
from scheduler.core.records import (
    Drain,
    DrainEntry,
    DrainState,
    MoveFallback,
    NodeState,
    OperationRecord,
    OperationState,
    StoredError,
    Verb,
    VMRecord,
    node_key,
    operation_key,
)
from scheduler.core.state import ClusterState, Kept
from scheduler.core.steps import By, in_phase
from scheduler.core.transaction import Transaction
from scheduler.core.view import Health

PARALLEL = 4
"""Moves begun at once unless it is said otherwise: two that copy, and two that are ready to. More would only take VMs in hand that wait."""
PARALLEL_MOST = 64

VMS_MOST = 300
"""VMs of one drain: its record is written with each of them, and stays within 64 KiB."""

TRIES = 2
"""Live moves of one VM that may fail before it is left, or restarted if its owner permits it."""

NAMED = 5
"""VMs named in the error of a drain that is not complete; the drain has them all."""

Step = tuple[DrainEntry, Transaction]
LEFT = frozenset({DrainState.PLANNED, DrainState.MOVING})


# ---- accepting


def drain_node(
    state: ClusterState, request: Request, node_id: str, etag: str, parallel: int, policy: Policy, *, plan_only: bool = False
) -> Accepted:
    """Cordon it and write the drain down; with `plan_only` the operation says what would become of each VM, and nothing is written.

    Raises NotFound, Conflict, FailedPrecondition (fenced, drained by another operation), Unavailable for a node that does not answer.
    """
    if (repeat := repeat_of(state, request)) is not None:
        return Accepted(repeat, Transaction())
    kept = state.nodes.get(node_id)
    if kept is None:
        raise NotFound(Reason.NODE_NOT_FOUND, f"There is no node {node_id}.", "See `hostler node list`.")
    if kept.record.state is NodeState.FENCED:
        raise FailedPrecondition(
            Reason.NODE_FENCED, f"Node {node_id} is fenced.", "Nothing runs there: start its VMs, and they go elsewhere."
        )
    if etag and etag != str(kept.revision):
        raise Conflict(Reason.ETAG_MISMATCH, f"Node {node_id} changed in between.", "Read it again.")
    if other := _drain_of(state, node_id):
        raise FailedPrecondition(Reason.NODE_DRAINING, f"Node {node_id} is being drained already.", f"See `hostler op watch {other}`.")
    if state.health_of(node_id) is Health.SILENT:
        raise Unavailable(
            Reason.NODE_UNREACHABLE,
            f"Node {node_id} does not answer: nothing can be moved from it.",
            f"If it will not come back: power it off, then `hostler node fence {node_id} --confirm-powered-off`.",
        )
    operation = replace(
        begin(request, Verb.DRAIN_NODE, node_id, f"{node_id} takes no new VMs; places are being held for those it has."),
        drain=Drain(parallel or PARALLEL),
    )
    if plan_only:
        return Accepted(_planned(state, operation, policy), Transaction())
    key = node_key(node_id)
    return Accepted(
        operation, journal(operation).and_then(Transaction({key: kept.revision}, {key: replace(kept.record, state=NodeState.CORDONED)}))
    )


def _drain_of(state: ClusterState, node_id: str) -> str:
    """The drain that empties the node now."""
    for operation_id, kept in state.operations.items():
        if kept.record.verb is Verb.DRAIN_NODE and kept.record.target_id == node_id and not kept.record.done:
            return operation_id
    return ""


def _planned(state: ClusterState, operation: OperationRecord, policy: Policy) -> OperationRecord:
    drain = _drain(operation)
    entries = plan(state, operation.operation_id, _new(state, operation), policy).entries
    can = sum(entry.state is not DrainState.BLOCKED for entry in entries)
    reason = f"{can} of {len(entries)} VMs can be moved." if entries else "It has no VMs."
    return replace(operation, drain=replace(drain, entries=entries), reason=reason)


# ---- holding places


def claim_places(state: ClusterState, operation_id: str, policy: Policy, by: By) -> Transaction | None:
    """Places for some more of its VMs, the largest first; when all have one or cannot have one, the moves may begin."""
    kept = in_phase(state, operation_id, ACCEPTED) or in_phase(state, operation_id, CLAIMING)
    if kept is None or kept.record.cancel_requested:
        return None
    new = _new(state, kept.record)[:HOLDS_AT_ONCE]
    if not new:
        return _write(kept, _told(kept.record, MOVING, by))
    planned = plan(state, operation_id, new, policy)
    drain = _drain(kept.record)
    operation = replace(kept.record, drain=replace(drain, entries=(*drain.entries, *planned.entries)))
    return _write(kept, _told(operation, CLAIMING, by)).and_then(planned.transaction)


def _new(state: ClusterState, operation: OperationRecord) -> list[DrainEntry]:
    """VMs of the node that the drain has not looked at, or that have come back, the largest first: small ones fit into what those leave."""
    entries = _drain(operation).entries
    known = {entry.vm_id for entry in entries if entry.state is not DrainState.MOVED}
    room = VMS_MOST - len(entries)
    mine = [kept.record for kept in _vms_of(state, operation.target_id) if kept.record.vm_id not in known]
    return [
        DrainEntry(vm.vm_id, DrainState.PLANNED) for vm in sorted(mine, key=lambda vm: (-vm.domain.memory_mib, vm.vm_id))[: max(0, room)]
    ]


def _vms_of(state: ClusterState, node_id: str) -> list[Kept[VMRecord]]:
    return [kept for kept in state.vms.values() if kept.record.owner.node_id == node_id]


# ---- moving


def advance(state: ClusterState, operation_id: str, policy: Policy, by: By) -> Transaction | None:
    """The next thing to be done, if there is one: what follows from a move that has ended, a move that can begin, a VM that is new."""
    kept = in_phase(state, operation_id, MOVING)
    if kept is None or kept.record.cancel_requested or state.nodes[kept.record.target_id].record.state is not NodeState.CORDONED:
        return None
    entries = _drain(kept.record).entries
    moving = sum(entry.state is DrainState.MOVING for entry in entries)
    for index, entry in enumerate(entries):
        step: Step | None = None
        if entry.state is DrainState.MOVING:
            step = _settle(state, kept.record, index, entry, policy, by, ending=False)
        elif entry.state is DrainState.PLANNED:
            step = _go(state, kept.record, index, entry, policy, by, may_begin=moving < _drain(kept.record).parallel)
        if step is not None:
            return _write(kept, _told(_with(kept.record, index, step[0]), MOVING, by)).and_then(step[1])
    new = _new(state, kept.record)[:HOLDS_AT_ONCE]
    if not new:
        return None
    planned = plan(state, operation_id, new, policy)
    drain = _drain(kept.record)
    operation = replace(kept.record, drain=replace(drain, entries=(*drain.entries, *planned.entries)))
    return _write(kept, _told(operation, MOVING, by)).and_then(planned.transaction)


def _go(
    state: ClusterState, operation: OperationRecord, index: int, entry: DrainEntry, policy: Policy, by: By, *, may_begin: bool
) -> Step | None:
    """One that is planned: begin its next step, unless it is gone, in other hands, or has to wait."""
    vm = state.vms.get(entry.vm_id)
    if vm is None:
        return _end(state, operation, entry, DrainState.SKIPPED, "It was deleted.")
    if vm.record.owner.node_id != operation.target_id and not entry.stopped:
        return _end(state, operation, entry, DrainState.MOVED, "It was moved by somebody else.")
    if vm.record.operation_id:
        if moving := move_of(state, vm.record):
            return _end(state, operation, replace(entry, operation_id=moving), DrainState.MOVING, "")
        return None
    if vm.record.owner.state is OwnerState.FROZEN:
        return blocked(entry, f"It is frozen: {vm.record.reason}", ""), _freed(state, operation, entry)
    if not may_begin:
        return None
    place = held(state, operation.operation_id, entry)
    if place is None or not _takes_vms(state, entry.destination_node_id):
        return _replanned(state, operation, index, entry, policy, by)
    if entry.restart and vm.record.owner.state is OwnerState.RUNNING:
        return _begun(state, operation, index, entry, by, lambda asked: stop_vm(state, asked, entry.vm_id, "", 0, force=False))
    return _begun(state, operation, index, entry, by, lambda asked: migrate_vm(state, asked, entry.vm_id, "", "", 0, policy, Priority.LOW))


def _takes_vms(state: ClusterState, node_id: str) -> bool:
    kept = state.nodes.get(node_id)
    return kept is not None and kept.record.state is NodeState.ACTIVE and state.health_of(node_id) is Health.READY


def _replanned(state: ClusterState, operation: OperationRecord, index: int, entry: DrainEntry, policy: Policy, by: By) -> Step:
    """Another place, in the stead of one that is lost or that no one can go to any more."""
    place = held(state, operation.operation_id, entry)
    planned = plan(state, operation.operation_id, [entry], policy, dropping=[place] if place is not None else [])
    again = planned.entries[0]
    if again.state is DrainState.BLOCKED and entry.stopped:
        started, transaction = _started(state, operation, index, replace(entry, reason=again.reason, fix=again.fix), policy, by)
        return started, transaction.and_then(planned.transaction)
    return again, planned.transaction


def _begun(
    state: ClusterState, operation: OperationRecord, index: int, entry: DrainEntry, by: By, decide: Callable[[Request], Accepted]
) -> Step | None:
    """A child of the drain is accepted; one that is refused ends the VM's part."""
    asked = Request(operation.principal, f"{operation.operation_id}-{index}-{entry.steps}", "drain", by.now_ms)
    try:
        accepted = decide(asked)
    except Unavailable:
        return None
    except HostlerError as error:
        return _end(state, operation, replace(entry, fix=short(error.fix)), DrainState.FAILED, error.message)
    begun = replace(entry, state=DrainState.MOVING, operation_id=asked.operation_id, steps=entry.steps + 1)
    return begun, accepted.transaction


def _started(state: ClusterState, operation: OperationRecord, index: int, entry: DrainEntry, policy: Policy, by: By) -> Step:
    """What the drain has stopped is started, where it is now."""
    step = _begun(state, operation, index, entry, by, lambda asked: start_vm(state, asked, entry.vm_id, "", policy))
    if step is None:
        return _end(state, operation, entry, DrainState.FAILED, "It was stopped and could not be started again.")
    return step


def _settle(
    state: ClusterState, operation: OperationRecord, index: int, entry: DrainEntry, policy: Policy, by: By, *, ending: bool
) -> Step | None:
    """What follows from the step that has ended; `ending`: the drain begins nothing new, but starts what it has stopped."""
    kept = state.operations.get(entry.operation_id)
    if kept is not None and not kept.record.done:
        return None
    vm = state.vms.get(entry.vm_id)
    if vm is None or kept is None:
        return _end(
            state,
            operation,
            entry,
            DrainState.SKIPPED,
            "It was deleted." if vm is None else "What became of its move is not known any more.",
        )
    done, good = kept.record, kept.record.state is OperationState.SUCCEEDED
    why, fix = (done.error.message, done.error.fix) if done.error is not None else ("", "")
    if vm.record.operation_id and entry.stopped:
        return None
    match done.verb:
        case Verb.STOP_VM if good:
            return replace(entry, stopped=True, state=DrainState.PLANNED), Transaction()
        case Verb.STOP_VM:
            return _end(state, operation, replace(entry, fix=short(fix)), DrainState.FAILED, why)
        case Verb.START_VM if not good:
            hint = f"`hostler vm start {entry.vm_id}`"
            return _end(
                state, operation, replace(entry, fix=hint), DrainState.FAILED, f"It was stopped and could not be started again: {why}"
            )
        case Verb.START_VM:
            there = vm.record.owner.node_id != operation.target_id
            return _end(state, operation, entry, DrainState.MOVED if there else DrainState.FAILED, "" if there else entry.reason)
        case _ if entry.stopped:
            return _started(state, operation, index, replace(entry, reason=short(why), fix=short(fix)), policy, by)
        case _ if good:
            return _end(state, operation, entry, DrainState.MOVED, "")
        case _ if done.state is OperationState.CANCELLED:
            return _end(state, operation, entry, DrainState.SKIPPED, "Its move was cancelled.")
    failed = replace(entry, tries=entry.tries + 1, reason=short(why), fix=short(fix))
    restarts = vm.record.move_fallback is MoveFallback.RESTART and not entry.restart and vm.record.owner.state is OwnerState.RUNNING
    if ending or (failed.tries >= TRIES and not restarts):
        return _end(state, operation, failed, DrainState.FAILED, why)
    return _replanned(state, operation, index, replace(failed, restart=failed.tries >= TRIES), policy, by)


def _end(state: ClusterState, operation: OperationRecord, entry: DrainEntry, to: DrainState, reason: str) -> Step:
    """The entry in its new state; its place, if it has one still, is given back."""
    return replace(entry, state=to, reason=short(reason)), _freed(state, operation, entry)


def _freed(state: ClusterState, operation: OperationRecord, entry: DrainEntry) -> Transaction:
    place = held(state, operation.operation_id, entry)
    return Transaction() if place is None else release(state, [place])


# ---- ending


def stop_drain(state: ClusterState, operation_id: str, error: StoredError, by: By) -> Transaction | None:
    """No move begins from here on; those that have begun go on to their end."""
    kept = state.operations.get(operation_id)
    if kept is None or kept.record.done or kept.record.phase == RELEASING:
        return None
    return _write(kept, replace(_told(kept.record, RELEASING, by), error=error))


def release_places(state: ClusterState, operation_id: str, policy: Policy, by: By) -> Transaction | None:
    """In a drain that ends: places that nobody will take are given back, and what follows from moves that have ended is written down."""
    kept = in_phase(state, operation_id, RELEASING)
    if kept is None:
        return None
    entries = _drain(kept.record).entries
    unused = [index for index, entry in enumerate(entries) if entry.state is DrainState.PLANNED and not entry.stopped][:HOLDS_AT_ONCE]
    if unused:
        places = [place for index in unused if (place := held(state, operation_id, entries[index])) is not None]
        operation = kept.record
        for index in unused:
            skipped = replace(entries[index], state=DrainState.SKIPPED, reason="The drain ended before its turn.", fix="")
            operation = _with(operation, index, skipped)
        return _write(kept, _told(operation, RELEASING, by)).and_then(release(state, places))
    for index, entry in enumerate(entries):
        step: Step | None = None
        if entry.state is DrainState.MOVING:
            step = _settle(state, kept.record, index, entry, policy, by, ending=True)
        elif held(state, operation_id, entry) is not None:
            step = entry, _freed(state, kept.record, entry)
        elif entry.state is DrainState.PLANNED:
            step = _started(state, kept.record, index, entry, policy, by)
        if step is not None:
            return _write(kept, _told(_with(kept.record, index, step[0]), RELEASING, by)).and_then(step[1])
    return None


def finish_drain(state: ClusterState, operation_id: str, by: By) -> Transaction | None:
    """It ends when nothing is left to be done: SUCCEEDED if the node is empty, else with what is left. None: not yet."""
    kept = in_phase(state, operation_id, MOVING) or in_phase(state, operation_id, RELEASING)
    if kept is None or any(entry.state in LEFT for entry in _drain(kept.record).entries):
        return None
    operation = kept.record
    if operation.phase == MOVING and (arriving(state, operation.target_id) or _new(state, operation)):
        return None
    left = sorted(one.record.vm_id for one in _vms_of(state, operation.target_id))
    if not left:
        return _write(kept, replace(succeed(operation, by.driver, by.now_ms), error=None, reason=progress_of(operation)))
    return _write(kept, fail(operation, _incomplete(operation, left), by.driver, by.now_ms))


def arriving(state: ClusterState, node_id: str) -> list[str]:
    """VMs on their way to the node, by moves that were accepted before it was cordoned."""
    moves = (kept.record for kept in state.operations.values() if kept.record.migration is not None and not kept.record.done)
    return sorted(one.target_id for one in moves if one.migration is not None and one.migration.destination_node_id == node_id)


def _incomplete(operation: OperationRecord, left: list[str]) -> StoredError:
    entries = {entry.vm_id: entry for entry in _drain(operation).entries}
    told = [(vm_id, entries[vm_id].reason.rstrip(".") if vm_id in entries else "more than one drain looks at") for vm_id in left]
    names = "; ".join(f"{vm_id}: {why}" for vm_id, why in told[:NAMED]) + (f"; and {len(left) - NAMED} more" if left[NAMED:] else "")
    are = "VM is" if len(left) == 1 else "VMs are"
    message = f"{len(left)} {are} still on {operation.target_id}, which stays cordoned. {names}."
    if operation.error is not None:
        message = f"{operation.error.message} {message}"
    first = next((entries[vm_id].fix for vm_id in left if vm_id in entries and entries[vm_id].fix), "")
    fix = operation.error.fix if operation.error is not None and operation.error.fix else first
    kind = operation.error or StoredError("FailedPrecondition", Reason.DRAIN_INCOMPLETE.value, "")
    violations = tuple((f"vms/{vm_id}", f"{why}.") for vm_id, why in told)
    return replace(kind, message=message, fix=fix or f"Drain it again: `hostler node drain {operation.target_id}`.", violations=violations)


# ---- the record


def progress_of(operation: OperationRecord) -> str:
    """ "3 of 10 moved, 2 moving, 1 blocked." """
    entries = _drain(operation).entries
    counts = {state: sum(entry.state is state for entry in entries) for state in DrainState}
    parts = [f"{counts[DrainState.MOVED]} of {len(entries)} moved"]
    others = (DrainState.MOVING, DrainState.BLOCKED, DrainState.FAILED, DrainState.SKIPPED)
    return ", ".join([*parts, *(f"{counts[state]} {state.value.lower()}" for state in others if counts[state])]) + "."


def _told(operation: OperationRecord, phase: str, by: By) -> OperationRecord:
    drain = _drain(operation)
    reason = f"Places are held for {len(drain.entries)} VMs so far." if phase == CLAIMING else progress_of(operation)
    return enter(operation, phase, reason, by.driver, by.now_ms)


def _with(operation: OperationRecord, index: int, entry: DrainEntry) -> OperationRecord:
    drain = _drain(operation)
    return replace(operation, drain=replace(drain, entries=(*drain.entries[:index], entry, *drain.entries[index + 1 :])))


def _drain(operation: OperationRecord) -> Drain:
    if operation.drain is None:
        raise RuntimeError("a DrainNode operation has no drain")
    return operation.drain


def _write(kept: Kept[OperationRecord], operation: OperationRecord) -> Transaction:
    key = operation_key(operation.operation_id)
    return Transaction({key: kept.revision}, {key: operation})
