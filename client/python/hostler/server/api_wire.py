"""Records -> messages of the public API, and wishes out of its requests: the one place where both daemons' APIs meet their records."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from hostler.api.type.v1 import operation_pb2, vm_pb2, volume_pb2
from hostler.errors import Violation, invalid
from hostler.model.copy import DEFAULT_DOWNTIME_MS
from hostler.model.journal import Request, can_cancel
from hostler.model.owner import OwnerState
from hostler.model.records import Drain, Migration, MoveFallback, Observed, OperationRecord, Verb, VMRecord, VolumeRecord
from hostler.model.wishes import ExistingDisk, NewDisk, WishedNic, WishedVM
from hostler.rpc_status import to_status
from hostler.server.internal_wire import CLASSES_BACK, SERVICE_CLASSES, quantities_to_wire

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


def vm_to_wire(vm: VMRecord, etag: str, stale: str = "") -> vm_pb2.VM:
    """The VM as the API shows it. `stale`: one sentence why this is only what was known last; empty: it is true now."""
    return vm_pb2.VM(
        name=f"vms/{vm.vm_id}",
        uid=vm.uid,
        etag=etag,
        flavor=f"flavors/{vm.flavor_id}" if vm.flavor_id else "",
        vcpus=vm.domain.vcpus,
        memory_mib=vm.domain.memory_mib,
        cpu_floor_milli=vm.domain.cpu_floor_milli,
        service_class=SERVICE_CLASSES[vm.domain.service_class],
        disks=[vm_pb2.VM.Disk(volume=f"volumes/{volume_id}") for volume_id in vm.volume_ids],
        nics=[vm_pb2.VM.Nic(network=f"networks/{nic.bridge}", mac_address=nic.mac_address) for nic in vm.domain.nics],
        labels=vm.labels,
        state=_vm_state(vm),
        reason=vm.reason or stale,
        node=f"nodes/{vm.owner.node_id}",
        epoch=vm.owner.epoch,
        operation=f"operations/{vm.operation_id}" if vm.operation_id else "",
        charged=quantities_to_wire(vm.domain.charged),
        stale=bool(stale),
        move_fallback=vm_pb2.VM.MoveFallback.Value(vm.move_fallback.value),
        create_time=timestamp(vm.create_ms) if vm.create_ms else None,
        drift=vm.drift,
    )


def _vm_state(vm: VMRecord) -> vm_pb2.VM.State.ValueType:
    if vm.owner.state is OwnerState.FROZEN:
        return vm_pb2.VM.FROZEN
    if vm.owner.state in (OwnerState.HANDOFF, OwnerState.COMMITTED):
        return vm_pb2.VM.MIGRATING
    return VM_STATES[vm.observed]


def volume_to_wire(volume: VolumeRecord, etag: str) -> volume_pb2.Volume:
    return volume_pb2.Volume(
        name=f"volumes/{volume.volume_id}",
        uid=volume.uid,
        etag=etag,
        pool=f"pools/{volume.pool_id}",
        size_mib=volume.size_mib,
        image=volume.image,
        state=volume_pb2.Volume.State.Value(volume.state.value),
        node=f"nodes/{volume.node_id}" if volume.node_id else "",
        vm=f"vms/{volume.vm_id}" if volume.vm_id else "",
        create_time=timestamp(volume.create_ms),
    )


def collection_of(verb: Verb) -> str:
    """What operations of this verb are done to."""
    match verb:
        case Verb.CREATE_VOLUME | Verb.DELETE_VOLUME:
            return "volumes"
        case Verb.FENCE_NODE | Verb.DRAIN_NODE:
            return "nodes"
        case _:
            return "vms"


def operation_to_wire(
    operation: OperationRecord,
    vm: vm_pb2.VM | None = None,
    waiting_for: str = "",
    progress: operation_pb2.Operation.Progress | None = None,
) -> operation_pb2.Operation:
    """The operation as the API shows it; `vm` is how its `final_vm` is to be shown (the daemons know its etag and staleness)."""
    message = operation_pb2.Operation(
        name=f"operations/{operation.operation_id}",
        verb=operation.verb.value,
        target=f"{collection_of(operation.verb)}/{operation.target_id}",
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
        deadline_time=timestamp(operation.deadline_ms) if operation.deadline_ms else None,
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
                bandwidth_mib_s=operation.migration.bandwidth_mib_s,
                max_downtime_ms=0 if operation.migration.cold else _ceiling_ms(operation.migration),
                downtime_exceeded=not operation.migration.cold and operation.migration.downtime_ms > _ceiling_ms(operation.migration),
                throttle_percent=operation.migration.throttle_percent,
                iterations=operation.migration.iterations,
                cold=operation.migration.cold,
                priority=operation_pb2.Operation.Priority.Value(operation.migration.priority.value),
            )
        )
    if operation.drain is not None:
        message.drain.CopyFrom(_drain_to_wire(operation.drain))
    if operation.done:
        _result(operation, vm, message)
    return message


def _ceiling_ms(migration: Migration) -> int:
    return migration.max_downtime_ms or DEFAULT_DOWNTIME_MS


def _drain_to_wire(drain: Drain) -> operation_pb2.Operation.DrainMetadata:
    kind = operation_pb2.Operation.DrainMetadata
    return kind(
        parallel=drain.parallel,
        entries=[
            kind.Entry(
                vm=f"vms/{entry.vm_id}",
                destination_node=f"nodes/{entry.destination_node_id}" if entry.destination_node_id else "",
                state=kind.State.Value(entry.state.value),
                operation=f"operations/{entry.operation_id}" if entry.operation_id else "",
                reason=entry.reason,
                fix=entry.fix,
                restart=entry.restart,
            )
            for entry in drain.entries
        ],
    )


def _result(operation: OperationRecord, vm: vm_pb2.VM | None, message: operation_pb2.Operation) -> None:
    if operation.error is not None:
        message.error.CopyFrom(to_status(operation.error.refusal()))
    elif operation.final_vm is not None:
        message.vm.CopyFrom(vm or vm_to_wire(operation.final_vm, ""))
    elif operation.final_volume is not None:
        message.volume.CopyFrom(volume_to_wire(operation.final_volume, ""))


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
        move_fallback=MoveFallback(vm_pb2.VM.MoveFallback.Name(vm.move_fallback)) if vm.move_fallback else MoveFallback.STAY,
    )


def _wished_disk(index: int, disk: vm_pb2.VM.Disk, uid: str) -> NewDisk | ExistingDisk:
    if bool(disk.volume) == disk.HasField("new_volume"):
        raise invalid(Violation(f"vm.disks[{index}]", "give either a volume or a new_volume"))
    if disk.volume:
        return ExistingDisk(disk.volume.removeprefix("volumes/"))
    new = disk.new_volume
    return NewDisk(new.pool.removeprefix("pools/"), new.size_mib, new.image, uid)


def mac_from(uuid: str) -> str:
    """A hardware address for a card that nobody gave one: 52:54:00 is QEMU's own prefix; the rest is random."""
    digits = uuid.replace("-", "")[-6:]
    return ":".join(("52", "54", "00", digits[0:2], digits[2:4], digits[4:6]))


def request_from_wire(message: Message, principal: str, request_id: str, now_ms: int) -> Request:
    """Who asks for what; the digest is of everything but the request_id and validate_only."""
    body = type(message)()
    body.CopyFrom(message)
    for name in ("request_id", "validate_only"):
        if name in message.DESCRIPTOR.fields_by_name:
            body.ClearField(name)
    digest = hashlib.blake2b(message.DESCRIPTOR.full_name.encode() + body.SerializeToString(deterministic=True), digest_size=16).hexdigest()
    return Request(principal, request_id, digest, now_ms, getattr(message, "deadline_s", 0))
