"""Whether a node is fenced, and what is true once it is: a person has proved that it is off, so nothing of it runs.

Silence proves nothing (docs/handoff.md), so this is the one way to go on without a node that does not come back. The node's record says FENCED,
under a guard; from then on nobody waits for it: what it would be asked is answered by what the proof implies (`engine.fenced_nodes`), operations
end or turn back by themselves, and VMs that it ran are stopped, free to be started elsewhere if their volumes are. Should the proof have been
wrong, the node's agent is heard again only after it has ended every guest (`decide_nodes.register`).
"""

from collections.abc import Mapping
from dataclasses import replace

from hostler.errors import Conflict, FailedPrecondition, NotFound, Reason
from hostler.model.journal import ACCEPTED
from hostler.model.owner import OwnerState
from scheduler.core.accept import Accepted, Request, begin, journal, repeat_of, succeed
from scheduler.core.fenced import is_fenced as is_fenced
from scheduler.core.records import NodeState, Observed, Verb, VMRecord, node_key, operation_key, vm_key
from scheduler.core.state import ClusterState, Kept
from scheduler.core.steps import By, in_phase
from scheduler.core.transaction import Transaction
from scheduler.core.view import Health

BATCH = 50
"""VMs stopped in one transaction: half of what the store takes."""


def fence_node(state: ClusterState, request: Request, node_id: str, etag: str) -> Accepted:
    """One that is fenced is left alone. Raises NotFound, Conflict (etag), FailedPrecondition for a node that answers."""
    if (repeat := repeat_of(state, request)) is not None:
        return Accepted(repeat, Transaction())
    kept = state.nodes.get(node_id)
    if kept is None:
        raise NotFound(Reason.NODE_NOT_FOUND, f"There is no node {node_id}.", "See `hostler node list`.")
    operation = begin(request, Verb.FENCE_NODE, node_id, f"{node_id} is taken for off; its VMs are being stopped in the records.")
    if kept.record.state is NodeState.FENCED:
        done = replace(succeed(operation, "", operation.create_ms), reason="It was fenced already.")
        return Accepted(done, journal(done).and_then(Transaction({node_key(node_id): kept.revision})))
    if state.health_of(node_id) is not Health.SILENT:
        raise FailedPrecondition(
            Reason.NODE_ANSWERS,
            f"Node {node_id} answers, so it is not off.",
            f"To empty it: `hostler node cordon {node_id}`, then move its VMs. To fence it: power it off, and wait until it is SILENT.",
        )
    if etag and etag != str(kept.revision):
        raise Conflict(Reason.ETAG_MISMATCH, f"Node {node_id} changed in between.", "Read it again.")
    key = node_key(node_id)
    fenced = replace(kept.record, state=NodeState.FENCED, reason="Fenced: a person confirmed that it is powered off.")
    return Accepted(operation, journal(operation).and_then(Transaction({key: kept.revision}, {key: fenced})))


def while_fenced(state: ClusterState, proofs: Mapping[str, int], transaction: Transaction | None) -> Transaction | None:
    """`transaction`, guarded by the proofs that it rests on: node id -> revision of the node's record when it was fenced. None: a proof is void."""
    if transaction is None or any(node_id not in state.nodes or state.nodes[node_id].revision != seen for node_id, seen in proofs.items()):
        return None
    return transaction.and_then(Transaction({node_key(node_id): seen for node_id, seen in proofs.items()}))


def way_out(state: ClusterState, node_id: str) -> str:
    """What ends the wait for this node, as a sentence; empty if it is heard, and so will answer by itself."""
    if node_id not in state.nodes or state.health_of(node_id) is not Health.SILENT:
        return ""
    fence = f"`hostler node fence {node_id} --confirm-powered-off`"
    return f"{node_id} is not heard. Make its agent answer; if the host is powered off for good: {fence}."


def not_stopped(state: ClusterState, node_id: str) -> list[Kept[VMRecord]]:
    """VMs of the node that the records do not call stopped, by name."""
    mine = (kept for _, kept in sorted(state.vms.items()) if kept.record.owner.node_id == node_id)
    return [kept for kept in mine if kept.record.owner.state is not OwnerState.STOPPED]


def stop_vms(state: ClusterState, operation_id: str) -> Transaction | None:
    """Some of the node's VMs that no operation has in hand are stopped; None: there is none left (what others have in hand, they end).

    None also once the node is fenced no longer: what runs there now was started since, and what ran before, its agent has ended and reports.
    """
    kept = in_phase(state, operation_id, ACCEPTED)
    if kept is None:
        return None
    if not is_fenced(state, kept.record.target_id):
        return None
    free = [vm for vm in not_stopped(state, kept.record.target_id) if not vm.record.operation_id][:BATCH]
    node = node_key(kept.record.target_id)
    transaction = Transaction({operation_key(operation_id): kept.revision, node: state.nodes[kept.record.target_id].revision})
    for vm in free:
        owner = replace(vm.record.owner, state=OwnerState.STOPPED)
        reason = f"Its node {kept.record.target_id} was fenced: a person confirmed that it is powered off."
        key = vm_key(vm.record.vm_id)
        stopped = replace(vm.record, owner=owner, observed=Observed.CRASHED, reason=reason)
        transaction = transaction.and_then(Transaction({key: vm.revision}, {key: stopped}))
    return transaction if free else None


def finish_fence(state: ClusterState, operation_id: str, by: By) -> Transaction | None:
    """Every VM of the node is stopped in the records, or the node has laid down its guests itself and is back."""
    kept = in_phase(state, operation_id, ACCEPTED)
    if kept is None or (is_fenced(state, kept.record.target_id) and not_stopped(state, kept.record.target_id)):
        return None
    key = operation_key(operation_id)
    return Transaction({key: kept.revision}, {key: succeed(kept.record, by.driver, by.now_ms)})
