"""Whither a stopped VM goes whose node is fenced: claim, owner and epoch change in the transaction that accepts its start.

Nobody has to be asked: the proof that the node is off is in its record, which the transaction compares. Should the node come back, its agent ends
every guest before it is heard, and finds another owner in the VM's record.
"""

from dataclasses import replace

from scheduler.core.accept import Accepted, charge, journal
from scheduler.core.claims import Adding
from scheduler.core.cold_steps import relocated
from scheduler.core.moving import moved_request
from scheduler.core.placement.explain import no_capacity
from scheduler.core.placement.place import NoFit, place, seed_of
from scheduler.core.placement.policy import Policy
from scheduler.core.records import ClaimKind, ClaimRecord, OperationRecord, VMRecord, node_key, vm_key
from scheduler.core.state import ClusterState, Kept
from scheduler.core.steps import release_claim
from scheduler.core.transaction import Transaction


def start_elsewhere(state: ClusterState, kept: Kept[VMRecord], operation: OperationRecord, policy: Policy) -> Accepted:
    """Raises NoCapacity with the reason for every node, FailedPrecondition when a volume is on the fenced node."""
    vm, left = kept.record, kept.record.owner.node_id
    asked = moved_request(state, vm, "", "it is fenced")
    promised = {claim.record.node_id: "a place is held for it there" for claim in state.claims_of(vm.vm_id)}
    asked = replace(asked, excluded={**promised, **asked.excluded})
    answer = place(state.view(), asked, policy, seed_of(operation.operation_id))
    if isinstance(answer, NoFit):
        raise no_capacity(asked, answer)
    operation = replace(operation, reason=f"Its node {left} is fenced; claimed on {answer.node_id}.")
    moved = replace(relocated(vm, answer.node_id, answer.incarnation, answer.charged), operation_id=operation.operation_id)
    claim = ClaimRecord(vm.vm_id, vm.uid, answer.node_id, ClaimKind.RUN, answer.charged, "")
    nodes = {node_key(node_id): state.nodes[node_id].revision for node_id in (left, answer.node_id)}
    transaction = (
        journal(operation)
        .and_then(Transaction({vm_key(vm.vm_id): kept.revision}, {vm_key(vm.vm_id): moved}))
        .and_then(charge(state, Adding(claim)))
        .and_then(release_claim(state, left, vm.vm_id))
        .and_then(Transaction(nodes))
    )
    return Accepted(operation, transaction)
