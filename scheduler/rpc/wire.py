"""The cluster's records -> API messages: what is told of a VM, a node, an operation by somebody who knows the nodes' health."""

from collections.abc import Iterable, Mapping

from hostler.api.cluster.v1 import vms_pb2
from hostler.api.type.v1 import node_pb2, operation_pb2, resources_pb2, vm_pb2, volume_pb2
from hostler.model.node import VMPower, VMStatus
from hostler.model.records import Priority
from hostler.server import api_wire
from hostler.server.internal_wire import CLASSES_BACK, SERVICE_CLASSES, ledger_to_wire
from scheduler.core.decide_fence import is_fenced
from scheduler.core.pool_promise import DOWNTIME_MS, PoolPromise, locks_of
from scheduler.core.reconcile import Verdict
from scheduler.core.records import FlavorRecord, NodeRecord, OperationRecord, VMRecord
from scheduler.core.state import ClusterState, Kept
from scheduler.core.view import Health
from scheduler.engine.reconciling import Result


def vm_to_wire(state: ClusterState, vm: VMRecord, revision: int) -> vm_pb2.VM:
    """A VM on a node that does not answer is shown as it was, marked stale."""
    node_id = vm.owner.node_id
    silent = bool(node_id) and state.health_of(node_id) is not Health.READY and not is_fenced(state, node_id)
    stale = f"Node {vm.owner.node_id} does not answer; this is what it said last." if silent else ""
    return api_wire.vm_to_wire(vm, str(revision), stale)


def operation_to_wire(
    state: ClusterState, operation: OperationRecord, waiting_for: str = "", progress: operation_pb2.Operation.Progress | None = None
) -> operation_pb2.Operation:
    """With the VM's present etag, if the VM that it ended with is still there."""
    vm = None
    if operation.final_vm is not None:
        kept = state.vms.get(operation.target_id)
        revision = kept.revision if kept is not None and kept.record.uid == operation.final_vm.uid else 0
        vm = vm_to_wire(state, operation.final_vm, revision)
    return api_wire.operation_to_wire(operation, vm, waiting_for, progress)


def flavor_to_wire(flavor: FlavorRecord) -> vm_pb2.Flavor:
    return vm_pb2.Flavor(
        name=f"flavors/{flavor.flavor_id}",
        vcpus=flavor.vcpus,
        memory_mib=flavor.memory_mib,
        cpu_floor_milli=flavor.cpu_floor_milli,
        service_class=SERVICE_CLASSES[flavor.service_class],
    )


def node_to_wire(state: ClusterState, kept: Kept[NodeRecord]) -> node_pb2.Node:
    """The node with its ledger as the cluster keeps it."""
    node, ledger = kept.record, state.ledgers.get(kept.record.node_id)
    health = state.health_of(node.node_id)
    reason = node.reason
    if health is Health.SILENT and not is_fenced(state, node.node_id):
        reason = "No heartbeat. Its guests may well be running."
    return node_pb2.Node(
        name=f"nodes/{node.node_id}",
        etag=str(kept.revision),
        state=node_pb2.Node.State.Value(node.state.value),
        health=node_pb2.Node.Health.Value(health.value),
        reason=reason,
        incarnation=node.incarnation,
        endpoint=node.endpoint,
        ledger=ledger_to_wire(node.total, node.reserved, node.unmanaged, ledger.record.claimed if ledger else {}),
        pools=[_pool_to_wire(state, pool.pool_id, node) for pool in node.pools],
        networks=list(node.networks),
        acceleration=node_pb2.Node.Acceleration.Value(node.acceleration or "ACCELERATION_UNSPECIFIED"),
        hypervisor=node.hypervisor,
        agent_version=node.agent_version,
        confinement=node.confinement,
        vm_count=sum(vm.record.owner.node_id == node.node_id for vm in state.vms.values()),
        unmanaged_count=node.unmanaged_count,
        stale=health is not Health.READY,
    )


def _pool_to_wire(state: ClusterState, pool_id: str, node: NodeRecord) -> volume_pb2.Pool:
    """As one node sees it."""
    pool = next(pool for pool in node.pools if pool.pool_id == pool_id)
    kept = state.shared_pools.get(pool_id) if pool.shared else state.ledgers.get(node.node_id)
    claimed = kept.record.claimed.get(f"pool_mib/{pool_id}", 0) if kept is not None else 0
    locks, reason = locks_of(pool)
    return promise_to_wire(
        PoolPromise(
            pool_id, pool.shared, (), pool.fingerprint, pool.filesystem, pool.total_mib, pool.foreign_mib, claimed, locks, reason,
            tuple(sorted(pool.images.items())),
        )
    )  # fmt: skip


def promise_to_wire(pool: PoolPromise) -> volume_pb2.Pool:
    downtime_min_ms, downtime_max_ms = DOWNTIME_MS[pool.live_move]
    return volume_pb2.Pool(
        name=f"pools/{pool.pool_id}",
        reach=volume_pb2.Pool.SHARED if pool.shared else volume_pb2.Pool.LOCAL,
        fingerprint=pool.fingerprint,
        total_mib=pool.total_mib,
        free_mib=pool.free_mib,
        lock_kind=volume_pb2.Pool.LockKind.Value(pool.locks.value),
        images=[volume_pb2.Image(name=name, size_mib=mib) for name, mib in pool.images],
        foreign_mib=pool.foreign_mib,
        claimed_mib=pool.claimed_mib,
        nodes=[f"nodes/{node_id}" for node_id in pool.node_ids],
        filesystem=pool.filesystem,
        live_move=volume_pb2.Pool.LiveMove.Value(pool.live_move.value),
        downtime_min_ms=downtime_min_ms,
        downtime_max_ms=downtime_max_ms,
        reason=pool.reason,
    )


def reconciliation_to_wire(
    vm: VMRecord, seen: Mapping[str, VMStatus | None], verdict: Verdict, results: Iterable[Result]
) -> vms_pb2.Reconciliation:
    """What was found and done; nodes that have nothing of it are left out."""
    owner = vm.owner
    copies = [
        vms_pb2.Reconciliation.Copy(
            node=f"nodes/{node_id}",
            answered=status is not None,
            defined=status is not None and status.defined,
            power=status.power.value if status is not None else "",
            epoch=status.epoch if status is not None else 0,
            owner=node_id == owner.node_id,
        )
        for node_id, status in sorted(seen.items())
        if status is None or status.defined or status.power not in (VMPower.OFF, VMPower.CRASHED) or node_id == owner.node_id
    ]
    actions = [
        vms_pb2.Reconciliation.Action(
            node=f"nodes/{result.action.node_id}",
            verb=result.action.deed.value,
            destructive=result.action.destructive,
            reason=result.why,
            state=vms_pb2.Reconciliation.Action.State.Value(result.outcome.value),
        )
        for result in results
    ]
    return vms_pb2.Reconciliation(
        vm=f"vms/{vm.vm_id}",
        record=f"{owner.node_id} owns it under epoch {owner.epoch}: {owner.state.value}.",
        copies=copies,
        actions=actions,
        consistent=not verdict.actions,
        reason=verdict.unknown,
    )


# ---- wishes


def priority_from_wire(priority: operation_pb2.Operation.Priority.ValueType) -> Priority:
    """Not said: NORMAL."""
    return Priority(operation_pb2.Operation.Priority.Name(priority)) if priority else Priority.NORMAL


def wished_flavor(flavor_id: str, flavor: vm_pb2.Flavor) -> FlavorRecord:
    service_class = flavor.service_class or resources_pb2.SERVICE_CLASS_BURSTABLE
    return FlavorRecord(flavor_id, flavor.vcpus, flavor.memory_mib, flavor.cpu_floor_milli, CLASSES_BACK[service_class])
