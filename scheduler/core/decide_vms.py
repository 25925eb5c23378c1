"""Whether a mutation of a VM is accepted, and the transaction that makes it so: claim, records, owner and journal in one.

Every function raises a HostlerError that says no, or answers Accepted. It reads the state and its arguments alone, so it can be asked again on
a newer state when somebody else was first.
"""

from collections.abc import Mapping
from dataclasses import replace

from hostler.errors import AlreadyExists, Conflict, FailedPrecondition, NotFound, Reason, Violation, invalid
from hostler.model.cost import cpu_floor_milli
from hostler.model.domain import DiskSpec, DomainSpec, NicSpec, ServiceClass
from hostler.model.journal import cancelled
from hostler.model.owner import Owner, OwnerState
from hostler.model.wishes import DEFAULT_GRACE_S, DEFAULT_VOLUME_MIB, ExistingDisk, NewDisk, WishedVM
from scheduler.core.accept import Accepted, Request, begin, journal, repeat_of
from scheduler.core.claims import Adding, DoesNotFit, LedgerRead, claim_transaction
from scheduler.core.placement.explain import no_capacity
from scheduler.core.placement.place import NoFit, Placement, place
from scheduler.core.placement.policy import Policy
from scheduler.core.placement.request import LocalVolume, PlacementRequest, Purpose
from scheduler.core.records import (
    ClaimKind,
    ClaimRecord,
    Migration,
    NodeState,
    Observed,
    OperationRecord,
    Stop,
    Verb,
    VMRecord,
    VolumeRecord,
    VolumeState,
    ledger_key,
    node_key,
    operation_key,
    shared_pool_key,
    vm_key,
    volume_key,
)
from scheduler.core.state import ClusterState, Kept
from scheduler.core.steps import RESERVED
from scheduler.core.transaction import Transaction

# ---- CreateVM


def create_vm(state: ClusterState, request: Request, wish: WishedVM, policy: Policy) -> Accepted:
    """Place it, claim what it costs there, and write it down. Raises AlreadyExists, NotFound, NoCapacity, FailedPrecondition."""
    if (repeat := repeat_of(state, request)) is not None:
        return Accepted(repeat, Transaction())
    if wish.vm_id in state.vms:
        raise AlreadyExists(Reason.VM_EXISTS, f"There is a VM {wish.vm_id} already.", "Choose another name, or delete that one.")
    wish = _sized(state, wish)
    asked = _placement_request(state, wish)
    answer = place(state.view(), asked, policy, _seed(request))
    if isinstance(answer, NoFit):
        raise no_capacity(asked, answer)
    volumes = _new_volumes(state, wish, answer.node_id, request)
    vm = _vm_record(state, wish, asked, answer, volumes, request)
    operation = replace(
        begin(request, Verb.CREATE_VM, wish.vm_id, f"Claimed on {answer.node_id}; its volumes are being made."),
        leave_stopped=wish.leave_stopped,
    )
    claim = ClaimRecord(vm.vm_id, vm.uid, answer.node_id, ClaimKind.RUN, answer.charged, operation.operation_id)
    transaction = (
        journal(operation)
        .and_then(Transaction({vm_key(vm.vm_id): 0}, {vm_key(vm.vm_id): vm}))
        .and_then(_claim(state, Adding(claim, answer.shared_charged)))
        .and_then(_new_volume_records(volumes))
        .and_then(_attach(state, wish))
        .and_then(Transaction({node_key(answer.node_id): state.nodes[answer.node_id].revision}))
    )
    return Accepted(operation, transaction)


def _sized(state: ClusterState, wish: WishedVM) -> WishedVM:
    """The wish with its flavor's size, and default sizes of volumes."""
    disks = tuple(replace(d, size_mib=d.size_mib or DEFAULT_VOLUME_MIB) if isinstance(d, NewDisk) else d for d in wish.disks)
    wish = replace(wish, disks=disks)
    if not wish.flavor_id:
        return wish
    kept = state.flavors.get(wish.flavor_id)
    if kept is None:
        raise NotFound(Reason.FLAVOR_NOT_FOUND, f"There is no flavor {wish.flavor_id}.", "See `hostler flavor list`.")
    flavor = kept.record
    return replace(
        wish,
        vcpus=flavor.vcpus,
        memory_mib=flavor.memory_mib,
        cpu_floor_milli=flavor.cpu_floor_milli,
        service_class=flavor.service_class,
    )


def _placement_request(state: ClusterState, wish: WishedVM) -> PlacementRequest:
    service_class = wish.service_class or ServiceClass.BURSTABLE
    shared: dict[str, int] = {}
    local: dict[str, int] = {}
    images: set[tuple[str, str]] = set()
    fingerprints: dict[str, str] = {}
    pinned: list[LocalVolume] = []
    for index, disk in enumerate(wish.disks):
        match disk:
            case NewDisk():
                space = shared if is_shared(state, disk.pool_id, f"vm.disks[{index}].new_volume.pool") else local
                space[disk.pool_id] = space.get(disk.pool_id, 0) + disk.size_mib
                if disk.image:
                    images.add((disk.pool_id, disk.image))
            case ExistingDisk():
                volume = _free_volume(state, disk.volume_id).record
                if volume.node_id:
                    pinned.append(LocalVolume(volume.volume_id, volume.pool_id, volume.node_id))
                else:
                    fingerprints[volume.pool_id] = ""
    return PlacementRequest(
        vm_id=wish.vm_id,
        vcpus=wish.vcpus,
        memory_mib=wish.memory_mib,
        service_class=service_class,
        cpu_floor_milli=wish.cpu_floor_milli,
        local_mib=local,
        shared_mib=shared,
        fingerprints=fingerprints,
        local_volumes=tuple(pinned),
        images=tuple(sorted(images)),
        networks=tuple(sorted({nic.bridge for nic in wish.nics})),
        only_node_id=wish.only_node_id,
    )


def is_shared(state: ClusterState, pool_id: str, field: str) -> bool:
    """Whether the pool is one file system for many nodes. Raises NotFound if no node has it."""
    for kept in state.nodes.values():
        for pool in kept.record.pools:
            if pool.pool_id == pool_id:
                return pool.shared
    raise NotFound(
        Reason.POOL_NOT_FOUND,
        f"No node has a pool {pool_id}.",
        "See `hostler node get`.",
        violations=(Violation(field, "names no pool of any node"),),
    )


def _free_volume(state: ClusterState, volume_id: str) -> Kept[VolumeRecord]:
    kept = state.volumes.get(volume_id)
    if kept is None:
        raise NotFound(Reason.VOLUME_NOT_FOUND, f"There is no volume {volume_id}.", "See `hostler volume list`.")
    if kept.record.vm_id:
        raise FailedPrecondition(
            Reason.VOLUME_IN_USE, f"Volume {volume_id} is used by VM {kept.record.vm_id}.", "A volume has one VM at most."
        )
    if kept.record.state is not VolumeState.READY:
        raise FailedPrecondition(
            Reason.VOLUME_IN_USE, f"Volume {volume_id} is {kept.record.state.value.lower()}.", "Wait for its operation."
        )
    return kept


def _new_volumes(state: ClusterState, wish: WishedVM, node_id: str, request: Request) -> Mapping[int, VolumeRecord]:
    """Records of the volumes to be made, by the disk's index."""
    records = {}
    for index, disk in enumerate(wish.disks):
        if not isinstance(disk, NewDisk):
            continue
        volume_id = f"{wish.vm_id}-disk{index}"
        if volume_id in state.volumes:
            raise AlreadyExists(
                Reason.VOLUME_EXISTS, f"There is a volume {volume_id} already.", "Delete it, or choose another name for the VM."
            )
        shared = is_shared(state, disk.pool_id, "vm.disks")
        records[index] = VolumeRecord(
            volume_id=volume_id,
            uid=disk.uid,
            pool_id=disk.pool_id,
            node_id="" if shared else node_id,
            size_mib=disk.size_mib,
            format="qcow2",
            image=disk.image,
            state=VolumeState.CREATING,
            create_ms=request.now_ms,
            charged_mib=disk.size_mib if shared else 0,
            vm_id=wish.vm_id,
            operation_id=request.operation_id,
        )
    return records


def _vm_record(
    state: ClusterState,
    wish: WishedVM,
    asked: PlacementRequest,
    placement: Placement,
    new: Mapping[int, VolumeRecord],
    request: Request,
) -> VMRecord:
    volumes = [new[index] if isinstance(disk, NewDisk) else state.volumes[disk.volume_id].record for index, disk in enumerate(wish.disks)]
    domain = DomainSpec(
        vm_uid=wish.uid,
        vm_id=wish.vm_id,
        vcpus=asked.vcpus,
        cpu_floor_milli=cpu_floor_milli(asked.service_class, asked.vcpus, asked.cpu_floor_milli),
        memory_mib=asked.memory_mib,
        service_class=asked.service_class,
        disks=tuple(DiskSpec(volume.uid, volume.pool_id, volume.format) for volume in volumes),
        nics=tuple(NicSpec(nic.bridge, nic.mac_address) for nic in wish.nics),
        charged=placement.charged,
    )
    return VMRecord(
        vm_id=wish.vm_id,
        uid=wish.uid,
        flavor_id=wish.flavor_id,
        domain=domain,
        volume_ids=tuple(volume.volume_id for volume in volumes),
        own_volumes=tuple(volume.volume_id for volume in new.values()),
        owner=Owner(1, placement.node_id, placement.incarnation, OwnerState.STOPPED),
        observed=Observed.CREATING,
        create_ms=request.now_ms,
        labels=wish.labels,
        operation_id=request.operation_id,
    )


def _new_volume_records(volumes: Mapping[int, VolumeRecord]) -> Transaction:
    keys = {volume_key(volume.volume_id): volume for volume in volumes.values()}
    return Transaction(dict.fromkeys(keys, 0), keys)


def _attach(state: ClusterState, wish: WishedVM) -> Transaction:
    transaction = Transaction()
    for disk in wish.disks:
        if isinstance(disk, ExistingDisk):
            kept = _free_volume(state, disk.volume_id)
            key = volume_key(disk.volume_id)
            transaction = transaction.and_then(Transaction({key: kept.revision}, {key: replace(kept.record, vm_id=wish.vm_id)}))
    return transaction


def _claim(state: ClusterState, adding: Adding) -> Transaction:
    """The claim's part of the transaction. A placement was made on this very state, so that it does not fit is a defect."""
    reads = {ledger_key(node_id): LedgerRead(kept.record, kept.revision) for node_id, kept in state.ledgers.items()}
    reads |= {shared_pool_key(pool_id): LedgerRead(kept.record, kept.revision) for pool_id, kept in state.shared_pools.items()}
    answer = claim_transaction(reads, adding=(adding,))
    if isinstance(answer, DoesNotFit):
        raise RuntimeError(f"a placement does not fit: {answer.key} {answer.shortfalls}")
    return answer


def _seed(request: Request) -> int:
    return int.from_bytes(request.operation_id.encode()[:8], "big")


# ---- Start, Stop, Reboot, Delete


def start_vm(state: ClusterState, request: Request, vm_id: str, etag: str) -> Accepted:
    """Raises NotFound, FailedPrecondition (busy, frozen), Conflict (etag)."""
    if (repeat := repeat_of(state, request)) is not None:
        return Accepted(repeat, Transaction())
    kept = _idle_vm(state, vm_id, etag)
    if kept.record.owner.state is OwnerState.RUNNING:
        raise FailedPrecondition(Reason.VM_RUNNING, f"VM {vm_id} is running already.", "Nothing needs to be done.")
    return _take_in_hand(kept, begin(request, Verb.START_VM, vm_id, "Accepted."))


def stop_vm(state: ClusterState, request: Request, vm_id: str, etag: str, grace_s: int, force: bool) -> Accepted:
    """As start_vm; a VM that is off already is refused."""
    if (repeat := repeat_of(state, request)) is not None:
        return Accepted(repeat, Transaction())
    kept = _running_vm(state, vm_id, etag)
    return _take_in_hand(kept, replace(begin(request, Verb.STOP_VM, vm_id, "Accepted."), stop=Stop(grace_s or DEFAULT_GRACE_S, force)))


def reboot_vm(state: ClusterState, request: Request, vm_id: str, etag: str, force: bool) -> Accepted:
    if (repeat := repeat_of(state, request)) is not None:
        return Accepted(repeat, Transaction())
    kept = _running_vm(state, vm_id, etag)
    return _take_in_hand(kept, replace(begin(request, Verb.REBOOT_VM, vm_id, "Accepted."), stop=Stop(0, force)))


def delete_vm(state: ClusterState, request: Request, vm_id: str, etag: str, force: bool) -> Accepted:
    """A running VM is deleted only by force."""
    if (repeat := repeat_of(state, request)) is not None:
        return Accepted(repeat, Transaction())
    kept = _idle_vm(state, vm_id, etag)
    if kept.record.owner.state is OwnerState.RUNNING and not force:
        raise FailedPrecondition(Reason.VM_RUNNING, f"VM {vm_id} is running.", "Stop it first, or delete it with force.")
    return _take_in_hand(kept, replace(begin(request, Verb.DELETE_VM, vm_id, "Accepted."), stop=Stop(0, force)))


def _take_in_hand(kept: Kept[VMRecord], operation: OperationRecord) -> Accepted:
    key = vm_key(kept.record.vm_id)
    held = replace(kept.record, operation_id=operation.operation_id)
    return Accepted(operation, journal(operation).and_then(Transaction({key: kept.revision}, {key: held})))


def _idle_vm(state: ClusterState, vm_id: str, etag: str) -> Kept[VMRecord]:
    """The VM, which no operation has in hand and nothing forbids to change."""
    kept = state.vms.get(vm_id)
    if kept is None:
        raise NotFound(Reason.VM_NOT_FOUND, f"There is no VM {vm_id}.", "See `hostler vm list`.")
    vm = kept.record
    if etag and etag != str(kept.revision):
        raise Conflict(Reason.ETAG_MISMATCH, f"VM {vm_id} changed in between.", "Read it again.")
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


def _running_vm(state: ClusterState, vm_id: str, etag: str) -> Kept[VMRecord]:
    kept = _idle_vm(state, vm_id, etag)
    if kept.record.owner.state is not OwnerState.RUNNING:
        raise FailedPrecondition(Reason.VM_NOT_RUNNING, f"VM {vm_id} is not running.", f"Start it: `hostler vm start {vm_id}`.")
    return kept


# ---- MigrateVM


def migrate_vm(
    state: ClusterState, request: Request, vm_id: str, etag: str, destination_node_id: str, bandwidth_mib_s: int, policy: Policy
) -> Accepted:
    """H0: charge the destination too, and mark the owner record. Raises as start_vm, and NoCapacity with the reason for every node."""
    if (repeat := repeat_of(state, request)) is not None:
        return Accepted(repeat, Transaction())
    kept = _running_vm(state, vm_id, etag)
    vm = kept.record
    _check_destination(state, vm, destination_node_id)
    asked = _migration_request(state, vm, destination_node_id)
    answer = place(state.view(), asked, policy, _seed(request))
    if isinstance(answer, NoFit):
        raise no_capacity(asked, answer)
    migration = Migration(vm.owner.node_id, answer.node_id, answer.incarnation, bandwidth_mib_s, vm.owner.epoch)
    accepted = begin(request, Verb.MIGRATE_VM, vm_id, f"Claimed on {answer.node_id}.")
    operation = replace(accepted, phase=RESERVED, phases=(replace(accepted.phases[0], phase=RESERVED),), migration=migration)
    claim = ClaimRecord(vm_id, vm.uid, answer.node_id, ClaimKind.MIGRATE_IN, answer.charged, operation.operation_id)
    owner = replace(
        vm.owner,
        state=OwnerState.HANDOFF,
        operation_id=operation.operation_id,
        destination_node_id=answer.node_id,
        destination_incarnation=answer.incarnation,
    )
    held = replace(vm, owner=owner, operation_id=operation.operation_id)
    transaction = (
        journal(operation)
        .and_then(Transaction({vm_key(vm_id): kept.revision}, {vm_key(vm_id): held}))
        .and_then(_claim(state, Adding(claim, {})))
        .and_then(Transaction({node_key(answer.node_id): state.nodes[answer.node_id].revision}))
    )
    return Accepted(operation, transaction)


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


def _migration_request(state: ClusterState, vm: VMRecord, destination_node_id: str) -> PlacementRequest:
    fingerprints: dict[str, str] = {}
    source = state.nodes[vm.owner.node_id].record
    prints = {pool.pool_id: pool.fingerprint for pool in source.pools}
    for volume_id in vm.volume_ids:
        volume = state.volumes[volume_id].record
        if volume.node_id:
            raise FailedPrecondition(
                Reason.NOT_MIGRATABLE,
                f"Volume {volume_id} is in pool {volume.pool_id} of {volume.node_id}, which no other node reaches.",
                "Only VMs whose volumes are all in shared pools can be moved.",
            )
        fingerprints[volume.pool_id] = prints.get(volume.pool_id, "")
    return PlacementRequest(
        vm_id=vm.vm_id,
        vcpus=vm.domain.vcpus,
        memory_mib=vm.domain.memory_mib,
        service_class=vm.domain.service_class,
        cpu_floor_milli=vm.domain.cpu_floor_milli,
        purpose=Purpose.MIGRATE,
        fingerprints=fingerprints,
        networks=tuple(sorted({nic.bridge for nic in vm.domain.nics})),
        only_node_id=destination_node_id,
        excluded={vm.owner.node_id: "it runs there now"},
        acceleration=source.acceleration,
        stored_charge=vm.domain.charged,
    )


# ---- CancelOperation


def cancel(state: ClusterState, operation_id: str) -> Transaction | None:
    """Ask it to stop; None: it was asked already. Raises NotFound, FailedPrecondition."""
    kept = state.operations.get(operation_id)
    if kept is None:
        raise NotFound(Reason.OPERATION_NOT_FOUND, "There is no such operation.", "See `hostler op list`.")
    asked = cancelled(kept.record)
    key = operation_key(operation_id)
    return None if asked is None else Transaction({key: kept.revision}, {key: asked})


def check_size(wish: WishedVM) -> None:
    """Either a flavor, or a size. Raises InvalidRequest."""
    sized = bool(wish.vcpus or wish.memory_mib)
    if wish.flavor_id and sized:
        raise invalid(Violation("vm.flavor", "a flavor was given together with vcpus or memory_mib; give one of the two"))
    if not wish.flavor_id and not (wish.vcpus and wish.memory_mib):
        raise invalid(Violation("vm.memory_mib", "give a flavor, or both vcpus and memory_mib"))
