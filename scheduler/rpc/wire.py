"""Records -> API messages, and wishes out of API messages: the only place where the cluster's API and its records meet."""

from collections.abc import Sequence
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from hostler import errors
from hostler.api.type.v1 import node_pb2, operation_pb2, resources_pb2, vm_pb2, volume_pb2
from hostler.errors import Reason, Violation, invalid
from hostler.model.owner import OwnerState
from hostler.rpc_status import to_status
from hostler.server.internal_wire import CLASSES_BACK, SERVICE_CLASSES, ledger_to_wire, quantities_to_wire
from scheduler.core.decide_vms import can_cancel
from scheduler.core.records import (
    FlavorRecord,
    NodeRecord,
    Observed,
    OperationRecord,
    StoredError,
    VMRecord,
    VolumeRecord,
)
from scheduler.core.state import ClusterState, Kept
from scheduler.core.view import Health
from scheduler.core.vm_wishes import ExistingDisk, NewDisk, WishedNic, WishedVM

VM_STATES = {
    Observed.CREATING: vm_pb2.VM.CREATING,
    Observed.STOPPED: vm_pb2.VM.STOPPED,
    Observed.STARTING: vm_pb2.VM.STARTING,
    Observed.RUNNING: vm_pb2.VM.RUNNING,
    Observed.STOPPING: vm_pb2.VM.STOPPING,
    Observed.DELETING: vm_pb2.VM.DELETING,
    Observed.CRASHED: vm_pb2.VM.CRASHED,
}


def timestamp(at_ms: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(datetime.fromtimestamp(at_ms / 1000, UTC))
    return stamp


def vm_to_wire(state: ClusterState, vm: VMRecord, revision: int) -> vm_pb2.VM:
    """The VM as the API shows it. A VM on a node that does not answer is shown as it was, marked stale."""
    silent = bool(vm.owner.node_id) and state.health_of(vm.owner.node_id) is not Health.READY
    return vm_pb2.VM(
        name=f"vms/{vm.vm_id}",
        uid=vm.uid,
        etag=str(revision),
        flavor=f"flavors/{vm.flavor_id}" if vm.flavor_id else "",
        vcpus=vm.domain.vcpus,
        memory_mib=vm.domain.memory_mib,
        cpu_floor_milli=vm.domain.cpu_floor_milli,
        service_class=SERVICE_CLASSES[vm.domain.service_class],
        disks=[vm_pb2.VM.Disk(volume=f"volumes/{volume_id}") for volume_id in vm.volume_ids],
        nics=[vm_pb2.VM.Nic(network=f"networks/{nic.bridge}", mac_address=nic.mac_address) for nic in vm.domain.nics],
        labels=vm.labels,
        state=_vm_state(vm),
        reason=vm.reason or (f"Node {vm.owner.node_id} does not answer; this is what it said last." if silent else ""),
        node=f"nodes/{vm.owner.node_id}",
        epoch=vm.owner.epoch,
        operation=f"operations/{vm.operation_id}" if vm.operation_id else "",
        charged=quantities_to_wire(vm.domain.charged),
        stale=silent,
        create_time=timestamp(vm.create_ms),
    )


def _vm_state(vm: VMRecord) -> vm_pb2.VM.State.ValueType:
    if vm.owner.state is OwnerState.FROZEN:
        return vm_pb2.VM.FROZEN
    if vm.owner.state in (OwnerState.HANDOFF, OwnerState.COMMITTED):
        return vm_pb2.VM.MIGRATING
    return VM_STATES[vm.observed]


def volume_to_wire(volume: VolumeRecord, revision: int) -> volume_pb2.Volume:
    return volume_pb2.Volume(
        name=f"volumes/{volume.volume_id}",
        uid=volume.uid,
        etag=str(revision),
        pool=f"pools/{volume.pool_id}",
        size_mib=volume.size_mib,
        image=volume.image,
        state=volume_pb2.Volume.State.Value(volume.state.value),
        node=f"nodes/{volume.node_id}" if volume.node_id else "",
        vm=f"vms/{volume.vm_id}" if volume.vm_id else "",
        create_time=timestamp(volume.create_ms),
    )


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
    if health is Health.SILENT:
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
    pool = next(pool for pool in node.pools if pool.pool_id == pool_id)
    kept = state.shared_pools.get(pool_id) if pool.shared else state.ledgers.get(node.node_id)
    claimed = kept.record.claimed.get(f"pool_mib/{pool_id}", 0) if kept is not None else 0
    return volume_pb2.Pool(
        name=f"pools/{pool_id}",
        reach=volume_pb2.Pool.SHARED if pool.shared else volume_pb2.Pool.LOCAL,
        fingerprint=pool.fingerprint,
        total_mib=pool.total_mib,
        free_mib=max(0, pool.total_mib - claimed),
        lock_kind=volume_pb2.Pool.OFD if pool.ofd_locks else volume_pb2.Pool.NONE,
        images=list(pool.images),
    )


def operation_to_wire(
    state: ClusterState, operation: OperationRecord, waiting_for: str = "", progress: operation_pb2.Operation.Progress | None = None
) -> operation_pb2.Operation:
    collection = "volumes" if operation.verb.value.endswith("Volume") else "vms"
    message = operation_pb2.Operation(
        name=f"operations/{operation.operation_id}",
        verb=operation.verb.value,
        target=f"{collection}/{operation.target_id}",
        state=operation_pb2.Operation.State.Value(operation.state.value),
        phase=operation.phase,
        reason=waiting_for or operation.reason,
        phases=[
            operation_pb2.Operation.PhaseEntry(phase=p.phase, enter_time=timestamp(p.enter_ms), driver=p.driver) for p in operation.phases
        ],
        progress=progress,
        cancellable=not operation.done and can_cancel(operation),
        done=operation.done,
        principal=operation.principal,
        request_id=operation.request_id,
        create_time=timestamp(operation.create_ms),
        update_time=timestamp(operation.update_ms),
    )
    if operation.migration is not None:
        message.migration.CopyFrom(
            operation_pb2.Operation.MigrationMetadata(
                source_node=f"nodes/{operation.migration.source_node_id}",
                destination_node=f"nodes/{operation.migration.destination_node_id}",
                bytes_transferred=operation.migration.bytes_transferred,
                total_ms=operation.migration.total_ms,
                downtime_ms=operation.migration.downtime_ms,
                committed_epoch=operation.migration.committed_epoch,
            )
        )
    if operation.done:
        _result(state, operation, message)
    return message


def _result(state: ClusterState, operation: OperationRecord, message: operation_pb2.Operation) -> None:
    if operation.error is not None:
        message.error.CopyFrom(to_status(_error(operation.error)))
    elif operation.final_vm is not None:
        kept = state.vms.get(operation.target_id)
        revision = kept.revision if kept is not None and kept.record.uid == operation.final_vm.uid else 0
        message.vm.CopyFrom(vm_to_wire(state, operation.final_vm, revision))
    elif operation.final_volume is not None:
        message.volume.CopyFrom(volume_to_wire(operation.final_volume, 0))


def _error(stored: StoredError) -> errors.HostlerError:
    kind = getattr(errors, stored.kind, errors.Internal)
    error = kind(Reason(stored.reason), stored.message, stored.fix)
    if not isinstance(error, errors.HostlerError):
        raise TypeError(f"{stored.kind} is no refusal")
    return error


# ---- wishes


def wished_vm(vm_id: str, vm: vm_pb2.VM, only_node_id: str, leave_stopped: bool, uids: Sequence[str], macs: Sequence[str]) -> WishedVM:
    """What is wished, in the core's words. `uids`: one for the VM and one for each disk; `macs`: one for each card."""
    return WishedVM(
        vm_id=vm_id,
        uid=uids[0],
        flavor_id=vm.flavor.removeprefix("flavors/"),
        vcpus=vm.vcpus,
        memory_mib=vm.memory_mib,
        cpu_floor_milli=vm.cpu_floor_milli,
        service_class=CLASSES_BACK.get(vm.service_class),
        disks=tuple(_wished_disk(index, disk, uids[index + 1]) for index, disk in enumerate(vm.disks)),
        nics=tuple(
            WishedNic(nic.network.removeprefix("networks/"), (nic.mac_address or macs[index]).lower()) for index, nic in enumerate(vm.nics)
        ),
        labels=dict(vm.labels),
        only_node_id=only_node_id,
        leave_stopped=leave_stopped,
    )


def _wished_disk(index: int, disk: vm_pb2.VM.Disk, uid: str) -> NewDisk | ExistingDisk:
    if bool(disk.volume) == disk.HasField("new_volume"):
        raise invalid(Violation(f"vm.disks[{index}]", "give either a volume or a new_volume"))
    if disk.volume:
        return ExistingDisk(disk.volume.removeprefix("volumes/"))
    new = disk.new_volume
    return NewDisk(new.pool.removeprefix("pools/"), new.size_mib, new.image, uid)


def wished_flavor(flavor_id: str, flavor: vm_pb2.Flavor) -> FlavorRecord:
    service_class = flavor.service_class or resources_pb2.SERVICE_CLASS_BURSTABLE
    return FlavorRecord(flavor_id, flavor.vcpus, flavor.memory_mib, flavor.cpu_floor_milli, CLASSES_BACK[service_class])
