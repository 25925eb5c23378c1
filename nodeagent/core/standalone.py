"""A standalone host's VMs, volumes and operations, and whether a mutation of them is accepted: records in, the next step or a refusal out.

Here the host decides what the scheduler decides in a cluster, by the same records and words. Two rules are its own: there is one host, so nothing is
placed but in a NUMA cell; and what a volume takes from a local pool is charged with the volume for as long as its record is there, while a VM's
record charges CPU and memory, so that a file which is not removed yet is never promised again.
Each decision raises a HostlerError that says no, or answers the Step that writes it down.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from hostler.errors import AlreadyExists, Conflict, FailedPrecondition, NoCapacity, NotFound, Reason, Violation
from hostler.model.cost import charge, cpu_floor_milli
from hostler.model.domain import DiskSpec, DomainSpec, NicSpec, ServiceClass
from hostler.model.journal import Request, begin, same_request, succeed
from hostler.model.owner import Owner, OwnerState
from hostler.model.quantities import Quantities, memory_key, plus, pool_key, shortfalls, total
from hostler.model.records import Kept, Observed, OperationRecord, Stop, Verb, VMRecord, VolumeRecord, VolumeState
from hostler.model.wishes import DEFAULT_GRACE_S, ExistingDisk, NewDisk, WishedVM, volume_mib
from nodeagent.core.ledger import Account, no_room
from nodeagent.core.observed import PoolView

INCARNATION = "standalone"
"""What the owner record has where a cluster counts registrations: there is nobody to register with."""


@dataclass(frozen=True, slots=True)
class HostRecords:
    """Everything a standalone host has decided, by id, at one revision. A revision is never used twice for one VM or volume."""

    revision: int = 0
    vms: Mapping[str, Kept[VMRecord]] = field(default_factory=dict)
    volumes: Mapping[str, Kept[VolumeRecord]] = field(default_factory=dict)
    operations: Mapping[str, Kept[OperationRecord]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """What is written next, all of it or nothing: an operation's entry and what it changes; None deletes. `forget` names old operations."""

    operation: OperationRecord | None = None
    vms: Mapping[str, VMRecord | None] = field(default_factory=dict)
    volumes: Mapping[str, VolumeRecord | None] = field(default_factory=dict)
    forget: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Host:
    """The host as it was looked at for a decision; `account.claimed` is what has been promised by now."""

    node_id: str
    account: Account
    pools: tuple[PoolView, ...]
    bridges: tuple[str, ...]


def after(records: HostRecords, step: Step) -> HostRecords:
    """The records with the step taken, at the next revision."""
    revision = records.revision + 1
    operations = dict(records.operations)
    if step.operation is not None:
        operations[step.operation.operation_id] = Kept(step.operation, revision)
    for operation_id in step.forget:
        operations.pop(operation_id, None)
    vms, volumes = dict(records.vms), dict(records.volumes)
    for vm_id, vm in step.vms.items():
        if vm is None:
            vms.pop(vm_id, None)
        else:
            vms[vm_id] = Kept(vm, revision)
    for volume_id, volume in step.volumes.items():
        if volume is None:
            volumes.pop(volume_id, None)
        else:
            volumes[volume_id] = Kept(volume, revision)
    return HostRecords(revision, vms, volumes, operations)


def etag(uid: str, revision: int) -> str:
    """Differs between two VMs (or volumes) of one name as well as between two states of one."""
    return f"{revision}-{uid[:8]}"


def repeat_of(records: HostRecords, request: Request) -> OperationRecord | None:
    """The operation that this very request has already made; raises FailedPrecondition if its body was another."""
    kept = records.operations.get(request.operation_id)
    return None if kept is None else same_request(kept.record, request)


def charges_without_definition(records: HostRecords, defined: Callable[[str], bool]) -> list[Quantities]:
    """What is promised and no definition carries: local volumes, and VMs that are accepted and not (or no longer) defined, by uid."""
    vms = [run_charge(kept.record.domain) for kept in records.vms.values() if not defined(kept.record.uid)]
    return vms + [volume_charge(kept.record) for kept in records.volumes.values()]


def run_charge(domain: DomainSpec) -> Quantities:
    """The part of a VM's charge that its definition carries: all but its disks."""
    return {key: amount for key, amount in domain.charged.items() if not key.startswith(pool_key(""))}


def volume_charge(volume: VolumeRecord) -> Quantities:
    return {pool_key(volume.pool_id): volume.charged_mib} if volume.charged_mib else {}


# ---- CreateVM


def create_vm(records: HostRecords, host: Host, request: Request, wish: WishedVM) -> Step:
    """Claim what it costs here and write it down. Raises AlreadyExists, NotFound, FailedPrecondition, NoCapacity."""
    if wish.vm_id in records.vms:
        raise AlreadyExists(Reason.VM_EXISTS, f"There is a VM {wish.vm_id} already.", "Choose another name, or delete that one.")
    for nic in wish.nics:
        if nic.bridge not in host.bridges:
            raise NotFound(Reason.NETWORK_NOT_FOUND, f"{host.node_id} has no bridge {nic.bridge}.", "Make the bridge, or name another.")
    volumes = [_disk_volume(records, host, request, wish, index, disk) for index, disk in enumerate(wish.disks)]
    new = [volume for volume, disk in zip(volumes, wish.disks, strict=True) if isinstance(disk, NewDisk)]
    domain = _domain(host, wish, volumes, total(volume_charge(volume) for volume in new))
    short = shortfalls(domain.charged, host.account.free)
    if short:
        raise no_room(host.node_id, wish.vm_id, short)
    operation = replace(
        begin(request, Verb.CREATE_VM, wish.vm_id, f"Claimed on {host.node_id}; its volumes are being made."),
        leave_stopped=wish.leave_stopped,
    )
    vm = VMRecord(
        vm_id=wish.vm_id,
        uid=wish.uid,
        flavor_id="",
        domain=domain,
        volume_ids=tuple(volume.volume_id for volume in volumes),
        own_volumes=tuple(volume.volume_id for volume in new),
        owner=Owner(1, host.node_id, INCARNATION, OwnerState.STOPPED),
        observed=Observed.CREATING,
        create_ms=request.now_ms,
        labels=wish.labels,
        operation_id=operation.operation_id,
        move_fallback=wish.move_fallback,
    )
    return Step(operation, {vm.vm_id: vm}, {volume.volume_id: volume for volume in volumes})


def _domain(host: Host, wish: WishedVM, volumes: list[VolumeRecord], disk_charge: Quantities) -> DomainSpec:
    service_class = wish.service_class or ServiceClass.BURSTABLE
    floor_milli = cpu_floor_milli(service_class, wish.vcpus, wish.cpu_floor_milli)
    cell = emptiest_cell(host.account)
    return DomainSpec(
        vm_uid=wish.uid,
        vm_id=wish.vm_id,
        vcpus=wish.vcpus,
        cpu_floor_milli=floor_milli,
        memory_mib=wish.memory_mib,
        service_class=service_class,
        disks=tuple(DiskSpec(volume.uid, volume.pool_id, volume.format) for volume in volumes),
        nics=tuple(NicSpec(nic.bridge, nic.mac_address) for nic in wish.nics),
        charged=plus(charge(wish.vcpus, floor_milli, wish.memory_mib, cell), disk_charge),
    )


def emptiest_cell(account: Account) -> int:
    """The NUMA cell with the most free memory: if a VM fits into any cell, it fits there. Cell 0 when all are equal or none is known."""
    prefix = memory_key(0).removesuffix("0")
    cells = [int(key.removeprefix(prefix)) for key in account.total if key.startswith(prefix)]
    return min(cells, key=lambda cell: (-account.free.get(memory_key(cell), 0), cell), default=0)


def _disk_volume(
    records: HostRecords, host: Host, request: Request, wish: WishedVM, index: int, disk: NewDisk | ExistingDisk
) -> VolumeRecord:
    """The disk's volume as it will be: a new one, or an existing one that is this VM's from now on."""
    if isinstance(disk, ExistingDisk):
        return replace(_free_volume(records, disk.volume_id), vm_id=wish.vm_id)
    volume_id = f"{wish.vm_id}-disk{index}"
    volume = _new_volume(records, host, request, volume_id, disk, f"vm.disks[{index}].new_volume.pool")
    return replace(volume, vm_id=wish.vm_id)


def _free_volume(records: HostRecords, volume_id: str) -> VolumeRecord:
    volume = _volume(records, volume_id, "").record
    if volume.vm_id:
        raise FailedPrecondition(Reason.VOLUME_IN_USE, f"Volume {volume_id} is used by VM {volume.vm_id}.", "A volume has one VM at most.")
    if volume.state is not VolumeState.READY:
        raise FailedPrecondition(Reason.VOLUME_IN_USE, f"Volume {volume_id} is {volume.state.value.lower()}.", "Wait for its operation.")
    return volume


def _new_volume(records: HostRecords, host: Host, request: Request, volume_id: str, wish: NewDisk, field_name: str) -> VolumeRecord:
    """A volume to be made; charged to its pool if the pool is this host's alone (nobody here knows what others take from a shared one)."""
    if volume_id in records.volumes:
        raise AlreadyExists(Reason.VOLUME_EXISTS, f"There is a volume {volume_id} already.", "Choose another name, or delete that one.")
    pool = next((pool for pool in host.pools if pool.pool_id == wish.pool_id), None)
    if pool is None:
        violation = Violation(field_name, "names no pool of this host")
        raise NotFound(Reason.POOL_NOT_FOUND, f"{host.node_id} has no pool {wish.pool_id}.", "See `hostler node get`.", (violation,))
    if wish.image and wish.image not in pool.images:
        raise NotFound(Reason.IMAGE_NOT_FOUND, f"Pool {wish.pool_id} has no image {wish.image}.", "See `hostler node get`.")
    size_mib = volume_mib(wish.size_mib, wish.image, pool.images.get(wish.image, 0), f"{field_name.rpartition('.')[0]}.size_mib")
    return VolumeRecord(
        volume_id=volume_id,
        uid=wish.uid,
        pool_id=wish.pool_id,
        node_id="" if pool.shared else host.node_id,
        size_mib=size_mib,
        format="qcow2",
        image=wish.image,
        state=VolumeState.CREATING,
        create_ms=request.now_ms,
        charged_mib=0 if pool.shared else size_mib,
        operation_id=request.operation_id,
    )


# ---- Start, Stop, Reboot, Delete


def start_vm(records: HostRecords, request: Request, vm_id: str, given_etag: str) -> Step:
    """A running one is left alone: the operation is done as it is accepted. Raises NotFound, FailedPrecondition (busy), Conflict (etag)."""
    vm = _idle_vm(records, vm_id, given_etag)
    operation = begin(request, Verb.START_VM, vm_id, "Accepted.")
    return _left_alone(operation, vm) if vm.observed is Observed.RUNNING else _take_in_hand(vm, operation)


def stop_vm(records: HostRecords, request: Request, vm_id: str, given_etag: str, grace_s: int, force: bool) -> Step:
    """As start_vm; one that does not run is left alone."""
    vm = _idle_vm(records, vm_id, given_etag)
    operation = replace(begin(request, Verb.STOP_VM, vm_id, "Accepted."), stop=Stop(grace_s or DEFAULT_GRACE_S, force))
    return _left_alone(operation, vm) if vm.observed is not Observed.RUNNING else _take_in_hand(vm, operation)


def reboot_vm(records: HostRecords, request: Request, vm_id: str, given_etag: str, force: bool) -> Step:
    vm = _idle_vm(records, vm_id, given_etag)
    if vm.observed is not Observed.RUNNING:
        raise FailedPrecondition(Reason.VM_NOT_RUNNING, f"VM {vm_id} is not running.", "Start it.")
    return _take_in_hand(vm, replace(begin(request, Verb.REBOOT_VM, vm_id, "Accepted."), stop=Stop(0, force)))


def delete_vm(records: HostRecords, request: Request, vm_id: str, given_etag: str, force: bool) -> Step:
    """A running VM is deleted only by force."""
    vm = _idle_vm(records, vm_id, given_etag)
    if vm.observed is Observed.RUNNING and not force:
        raise FailedPrecondition(Reason.VM_RUNNING, f"VM {vm_id} is running.", "Stop it first, or delete it with force.")
    return _take_in_hand(vm, replace(begin(request, Verb.DELETE_VM, vm_id, "Accepted."), stop=Stop(0, force)))


def _take_in_hand(vm: VMRecord, operation: OperationRecord) -> Step:
    return Step(operation, {vm.vm_id: replace(vm, operation_id=operation.operation_id)})


def _left_alone(operation: OperationRecord, vm: VMRecord) -> Step:
    return Step(succeed(operation, vm.owner.node_id, operation.create_ms, vm=vm))


def _idle_vm(records: HostRecords, vm_id: str, given_etag: str) -> VMRecord:
    """The VM, which no operation has in hand."""
    kept = records.vms.get(vm_id)
    if kept is None:
        raise NotFound(Reason.VM_NOT_FOUND, f"There is no VM {vm_id} on this host.", "See `ListVMs`.")
    vm = kept.record
    if given_etag and given_etag != etag(vm.uid, kept.revision):
        raise Conflict(Reason.ETAG_MISMATCH, f"VM {vm_id} changed in between.", "Read it again.")
    if vm.operation_id:
        verb = records.operations[vm.operation_id].record.verb.value
        raise FailedPrecondition(
            Reason.VM_BUSY,
            f"VM {vm_id} is in the hands of {verb} ({vm.operation_id}).",
            f"Wait for it: `WaitOperation` operations/{vm.operation_id}.",
        )
    return vm


# ---- volumes


def create_volume(records: HostRecords, host: Host, request: Request, volume_id: str, wish: NewDisk) -> Step:
    """Charge its space to its pool and write it down. Raises AlreadyExists, NotFound, NoCapacity."""
    volume = _new_volume(records, host, request, volume_id, wish, "volume.pool")
    refuse_full_pool(volume_charge(volume), host.account)
    return Step(begin(request, Verb.CREATE_VOLUME, volume_id, "Its file is being made."), volumes={volume_id: volume})


def refuse_full_pool(needed: Quantities, account: Account) -> None:
    """Raises NoCapacity with the figures if a pool has not so much left."""
    for short in shortfalls(needed, account.free):
        pool_id = short.key.removeprefix(pool_key(""))
        raise NoCapacity(
            Reason.POOL_CAPACITY_EXCEEDED,
            f"Pool {pool_id} is short by {short.missing} MiB (needs {short.needed}, free {short.free}).",
            f"size_mib of {short.free} or less would fit." if short.free > 0 else "Delete volumes in it, or use another pool.",
            violations=(Violation(f"pools/{pool_id}", f"{short.key} short by {short.missing}"),),
        )


def delete_volume(records: HostRecords, request: Request, volume_id: str, given_etag: str) -> Step:
    """Raises NotFound, FailedPrecondition (in use), Conflict (etag)."""
    volume = _volume(records, volume_id, given_etag).record
    if volume.vm_id:
        raise FailedPrecondition(Reason.VOLUME_IN_USE, f"Volume {volume_id} is used by VM {volume.vm_id}.", "Delete that VM first.")
    if volume.operation_id:
        raise FailedPrecondition(Reason.VOLUME_IN_USE, f"Volume {volume_id} is in the hands of {volume.operation_id}.", "Wait for it.")
    operation = begin(request, Verb.DELETE_VOLUME, volume_id, "Accepted.")
    held = replace(volume, state=VolumeState.DELETING, operation_id=operation.operation_id)
    return Step(operation, volumes={volume_id: held})


def _volume(records: HostRecords, volume_id: str, given_etag: str) -> Kept[VolumeRecord]:
    kept = records.volumes.get(volume_id)
    if kept is None:
        raise NotFound(Reason.VOLUME_NOT_FOUND, f"There is no volume {volume_id} on this host.", "See `ListVolumes`.")
    if given_etag and given_etag != etag(kept.record.uid, kept.revision):
        raise Conflict(Reason.ETAG_MISMATCH, f"Volume {volume_id} changed in between.", "Read it again.")
    return kept
