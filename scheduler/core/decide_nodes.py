"""What changes when a node says something of itself: registration, inventory, and the state of its VMs."""

from collections.abc import Iterable
from dataclasses import replace

from hostler.errors import Conflict, FailedPrecondition, NotFound, Reason
from hostler.model.node import NodeReport, PoolFacts, VMPower, VMStatus
from hostler.model.owner import OwnerState
from hostler.model.quantities import Quantities, at_least_zero, minus
from scheduler.core.pool_locks import carried_over
from scheduler.core.pools import offer
from scheduler.core.records import (
    LedgerRecord,
    NodePool,
    NodeRecord,
    NodeState,
    Observed,
    VMRecord,
    ledger_key,
    node_key,
    vm_key,
)
from scheduler.core.state import ClusterState, Kept
from scheduler.core.steps import how_it_ended
from scheduler.core.transaction import Transaction


def register(
    state: ClusterState, report: NodeReport, boot_id: str, endpoint: str, laid_down: bool = False
) -> tuple[NodeRecord, Transaction | None]:
    """The node's record now, and what has to be written for it (None: nothing). A new boot of the host is a new incarnation.

    A fenced node stays fenced until its agent has `laid_down` every guest; then it is a new incarnation, cordoned until a person looks at it.
    """
    kept = state.nodes.get(report.node_id)
    if kept is not None and kept.record.state is NodeState.FENCED:
        if not laid_down:
            return kept.record, None
        record = replace(
            kept.record,
            state=NodeState.CORDONED,
            boot_id=boot_id,
            registrations=kept.record.registrations + 1,
            endpoint=endpoint,
            pools=() if kept.record.boot_id != boot_id else kept.record.pools,
        )
    elif kept is None:
        record = NodeRecord(report.node_id, NodeState.ACTIVE, boot_id, 1, endpoint, {}, {}, {})
    elif kept.record.boot_id != boot_id:
        record = replace(kept.record, boot_id=boot_id, registrations=kept.record.registrations + 1, endpoint=endpoint, pools=())
    else:
        record = replace(kept.record, endpoint=endpoint)
    record = _with_report(record, report)
    return record, _changes(state, record)


def take_report(state: ClusterState, report: NodeReport) -> Transaction | None:
    """What an inventory changes; None: nothing, or the node is not registered."""
    kept = state.nodes.get(report.node_id)
    if kept is None or kept.record.state is NodeState.FENCED:
        return None
    return _changes(state, _with_report(kept.record, report))


def set_state(state: ClusterState, node_id: str, wanted: NodeState, etag: str) -> Transaction | None:
    """Cordon or uncordon; None: it is so already."""
    kept = state.nodes.get(node_id)
    if kept is None:
        raise NotFound(Reason.NODE_NOT_FOUND, f"There is no node {node_id}.", "See `hostler node list`.")
    if kept.record.state is wanted:
        return None
    if kept.record.state is NodeState.FENCED:
        raise FailedPrecondition(
            Reason.NODE_FENCED, f"Node {node_id} is fenced.", "Start its agent: it ends every guest that is left, and is cordoned then."
        )
    if etag and etag != str(kept.revision):
        raise Conflict(Reason.ETAG_MISMATCH, f"Node {node_id} changed in between.", "Read it again.")
    return Transaction({node_key(node_id): kept.revision}, {node_key(node_id): replace(kept.record, state=wanted)})


def take_status(state: ClusterState, node_id: str, status: VMStatus) -> Transaction | None:
    """What an owner's word on its VM changes: only under the owner's present epoch, and not while an operation has the VM in hand."""
    kept = state.vm_by_uid(status.vm_uid)
    if kept is None or kept.record.operation_id:
        return None
    vm = kept.record
    if vm.owner.node_id != node_id or vm.owner.epoch != status.epoch or not status.defined:
        return None
    now = replace(_observed(vm, status) or vm, drift=status.drift)
    if now == vm:
        return None
    return Transaction({vm_key(vm.vm_id): kept.revision}, {vm_key(vm.vm_id): now})


def _observed(vm: VMRecord, status: VMStatus) -> VMRecord | None:
    """The VM with what its owner said; an owner that says OFF may not run it again under this epoch."""
    if vm.owner.state is not OwnerState.RUNNING:
        return None
    if (ended := how_it_ended(status)) is not None:
        return replace(vm, observed=ended[0], reason=ended[1], owner=replace(vm.owner, state=OwnerState.STOPPED))
    match status.power:
        case VMPower.ON:
            return replace(vm, observed=Observed.RUNNING, reason="")
        case VMPower.PAUSED:
            return replace(vm, reason="The guest is paused by its hypervisor.")
        case _:
            return None


def _pool(pool: PoolFacts) -> NodePool:
    return NodePool(
        pool.pool_id, pool.shared, pool.fingerprint, pool.total_mib, pool.ofd_locks, pool.images, pool.foreign_mib, pool.filesystem
    )


def _with_report(record: NodeRecord, report: NodeReport) -> NodeRecord:
    return replace(
        record,
        total=report.total,
        reserved=report.reserved,
        unmanaged=report.unmanaged,
        pools=carried_over(record, tuple(_pool(pool) for pool in report.pools)),
        networks=report.networks,
        acceleration=report.acceleration or record.acceleration,
        hypervisor=report.hypervisor or record.hypervisor,
        agent_version=report.agent_version,
        confinement=report.confinement or record.confinement,
        unmanaged_count=report.unmanaged_count,
        hypervisor_down=report.hypervisor_down,
        reason=report.reason,
    )


def _changes(state: ClusterState, record: NodeRecord) -> Transaction | None:
    allocatable = at_least_zero(minus(minus(record.total, record.reserved), record.unmanaged))
    changes = _put_if_new(node_key(record.node_id), state.nodes.get(record.node_id), record)
    changes = changes.and_then(_allocatable(ledger_key(record.node_id), state.ledgers.get(record.node_id), allocatable))
    for pool in record.pools:
        if pool.shared:
            changes = changes.and_then(offer(state, record.node_id, pool))
    return changes if changes.puts else None


def _allocatable(key: str, kept: Kept[LedgerRecord] | None, allocatable: Quantities) -> Transaction:
    record = LedgerRecord(allocatable) if kept is None else replace(kept.record, allocatable=allocatable)
    return _put_if_new(key, kept, record)


def _put_if_new(key: str, kept: "Kept[NodeRecord] | Kept[LedgerRecord] | None", record: NodeRecord | LedgerRecord) -> Transaction:
    if kept is None:
        return Transaction({key: 0}, {key: record})
    return Transaction() if kept.record == record else Transaction({key: kept.revision}, {key: record})


def owned_by(state: ClusterState, node_id: str) -> Iterable[Kept[VMRecord]]:
    """VMs that the node owns or receives, by name."""
    for _, kept in sorted(state.vms.items()):
        if node_id in (kept.record.owner.node_id, kept.record.owner.destination_node_id):
            yield kept
