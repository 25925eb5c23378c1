"""Whether a VM is migrated and whither, and H0 of the handoff: the destination is charged too, and the owner record is marked.

One that is off moves cold: its owner record stays as it is, STOPPED, until the source's agent has said that it runs no copy.
"""

from dataclasses import dataclass, replace

from hostler.errors import FailedPrecondition, NotFound, Reason
from hostler.model.owner import Owner, OwnerState
from hostler.model.records import Priority
from scheduler.core.accept import Accepted, Request, begin, charge, journal, repeat_of
from scheduler.core.claims import Adding
from scheduler.core.decide_power import check_etag, idle_vm
from scheduler.core.holds import hold_of
from scheduler.core.local_disks import local_volumes, owing
from scheduler.core.moving import moved_request
from scheduler.core.placement.explain import no_capacity
from scheduler.core.placement.place import NoFit, place, seed_of
from scheduler.core.placement.policy import Policy
from scheduler.core.records import ClaimKind, ClaimRecord, Migration, NodeState, Verb, VMRecord, claim_key, node_key, operation_key, vm_key
from scheduler.core.state import ClusterState
from scheduler.core.steps import COPYING, DESTINATION_READY, RESERVED
from scheduler.core.transaction import Transaction

TUNABLE = frozenset({RESERVED, DESTINATION_READY, COPYING})
"""Phases in which another limit still changes something."""


@dataclass(frozen=True, slots=True)
class LimitsChange:
    """What a copy may take from now on; None: as it is. `bandwidth_mib_s` 0: no limit; `max_downtime_ms` 0: the default."""

    bandwidth_mib_s: int | None
    max_downtime_ms: int | None


def tune_migration(state: ClusterState, operation_id: str, change: LimitsChange) -> Transaction | None:
    """Other limits for a migration that has not ended its copy; None: it has them already. Raises NotFound, FailedPrecondition."""
    kept = state.operations.get(operation_id)
    if kept is None:
        raise NotFound(Reason.OPERATION_NOT_FOUND, "There is no such operation.", "See `hostler op list`.")
    operation, migration = kept.record, kept.record.migration
    if migration is None or migration.cold:
        raise FailedPrecondition(Reason.NOT_TUNABLE, "This operation copies no memory.", "Only a live migration has limits.")
    if operation.done or operation.phase not in TUNABLE:
        raise FailedPrecondition(Reason.NOT_TUNABLE, "The copy has ended: its limits change nothing any more.")
    changed = replace(
        migration,
        bandwidth_mib_s=migration.bandwidth_mib_s if change.bandwidth_mib_s is None else change.bandwidth_mib_s,
        max_downtime_ms=migration.max_downtime_ms if change.max_downtime_ms is None else change.max_downtime_ms,
    )
    key = operation_key(operation_id)
    return None if changed == migration else Transaction({key: kept.revision}, {key: replace(operation, migration=changed)})


def migrate_vm(
    state: ClusterState,
    request: Request,
    vm_id: str,
    etag: str,
    destination_node_id: str,
    bandwidth_mib_s: int,
    policy: Policy,
    priority: Priority = Priority.NORMAL,
    max_downtime_ms: int = 0,
) -> Accepted:
    """Charge the destination too; H0 of a VM that runs: mark the owner record. Raises as start_vm, and NoCapacity with the reason for every node."""
    if (repeat := repeat_of(state, request)) is not None:
        return Accepted(repeat, Transaction())
    kept = idle_vm(state, vm_id)
    check_etag(kept, etag)
    vm = kept.record
    cold = vm.owner.state is OwnerState.STOPPED
    _check_destination(state, vm, destination_node_id)
    node_id, claim = _place_or_hold(state, vm, destination_node_id, request.operation_id, policy)
    incarnation = state.nodes[node_id].record.incarnation
    migration = Migration(vm.owner.node_id, node_id, incarnation, bandwidth_mib_s, vm.owner.epoch, cold=cold)
    migration = replace(migration, priority=priority, named=bool(destination_node_id), max_downtime_ms=max_downtime_ms)
    accepted = begin(request, Verb.MIGRATE_VM, vm_id, f"Claimed on {node_id}.")
    operation = replace(accepted, phase=RESERVED, phases=(replace(accepted.phases[0], phase=RESERVED),), migration=migration)
    owner = vm.owner if cold else _in_handoff(vm.owner, operation.operation_id, node_id, incarnation)
    held = replace(vm, owner=owner, operation_id=operation.operation_id)
    transaction = (
        journal(operation)
        .and_then(Transaction({vm_key(vm_id): kept.revision}, {vm_key(vm_id): held}))
        .and_then(claim)
        .and_then(Transaction({node_key(node_id): state.nodes[node_id].revision}))
    )
    return Accepted(operation, transaction)


def _place_or_hold(
    state: ClusterState, vm: VMRecord, destination_node_id: str, operation_id: str, policy: Policy
) -> tuple[str, Transaction]:
    """Where it goes, and its claim there: the place that a drain of its node holds for it, else one that is found now and charged."""
    hold = hold_of(state, vm)
    if (
        hold is not None
        and destination_node_id in ("", hold.record.node_id)
        and hold.record.node_id not in owing(state, local_volumes(state, vm))
    ):
        key = claim_key(hold.record.node_id, vm.vm_id)
        taken = replace(hold.record, kind=ClaimKind.MIGRATE_IN, operation_id=operation_id)
        return hold.record.node_id, Transaction({key: hold.revision}, {key: taken})
    why_not_there = "it is there now" if vm.owner.state is OwnerState.STOPPED else "it runs there now"
    asked = moved_request(state, vm, destination_node_id, why_not_there)
    answer = place(state.view(), asked, policy, seed_of(operation_id))
    if isinstance(answer, NoFit):
        raise no_capacity(asked, answer)
    claim = ClaimRecord(vm.vm_id, vm.uid, answer.node_id, ClaimKind.MIGRATE_IN, answer.charged, operation_id)
    return answer.node_id, charge(state, Adding(claim))


def _in_handoff(owner: Owner, operation_id: str, node_id: str, incarnation: str) -> Owner:
    """The source may go on running it, and the destination may receive a paused copy."""
    return replace(
        owner,
        state=OwnerState.HANDOFF,
        operation_id=operation_id,
        destination_node_id=node_id,
        destination_incarnation=incarnation,
    )


def _check_destination(state: ClusterState, vm: VMRecord, destination_node_id: str) -> None:
    if not destination_node_id:
        return
    if destination_node_id == vm.owner.node_id:
        raise FailedPrecondition(Reason.SAME_NODE, f"VM {vm.vm_id} is on {destination_node_id} already.", "Name another node, or none.")
    kept = state.nodes.get(destination_node_id)
    if kept is None:
        raise NotFound(Reason.NODE_NOT_FOUND, f"There is no node {destination_node_id}.", "See `hostler node list`.")
    if kept.record.state is not NodeState.ACTIVE:
        raise FailedPrecondition(
            Reason.NODE_NOT_ACTIVE, f"Node {destination_node_id} takes no VMs now.", f"`hostler node uncordon {destination_node_id}`"
        )
