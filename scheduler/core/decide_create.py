"""Whether a VM is created, and the transaction that makes it so: placement, claim, volumes, owner and journal in one.

It reads the state and its arguments alone, so it can be asked again on a newer state when somebody else was first.
"""

from collections.abc import Mapping
from dataclasses import replace

from hostler.errors import AlreadyExists, FailedPrecondition, NotFound, Reason
from hostler.model.cost import cpu_floor_milli
from hostler.model.domain import DiskSpec, DomainSpec, NicSpec, ServiceClass
from hostler.model.owner import Owner, OwnerState
from hostler.model.wishes import ExistingDisk, NewDisk, WishedVM, volume_mib
from scheduler.core.accept import Accepted, Request, begin, charge, journal, repeat_of
from scheduler.core.claims import Adding
from scheduler.core.placement.explain import no_capacity
from scheduler.core.placement.place import NoFit, Placement, place, seed_of
from scheduler.core.placement.policy import Policy
from scheduler.core.placement.request import LocalVolume, PlacementRequest
from scheduler.core.pools import fingerprint_of, image_mib, is_shared
from scheduler.core.records import ClaimKind, ClaimRecord, Observed, Verb, VMRecord, VolumeRecord, VolumeState, node_key, vm_key, volume_key
from scheduler.core.state import ClusterState, Kept
from scheduler.core.transaction import Transaction


def create_vm(state: ClusterState, request: Request, wish: WishedVM, policy: Policy) -> Accepted:
    """Place it, claim what it costs there, and write it down. Raises AlreadyExists, NotFound, NoCapacity, FailedPrecondition."""
    if (repeat := repeat_of(state, request)) is not None:
        return Accepted(repeat, Transaction())
    if wish.vm_id in state.vms:
        raise AlreadyExists(Reason.VM_EXISTS, f"There is a VM {wish.vm_id} already.", "Choose another name, or delete that one.")
    wish = _sized(state, wish)
    asked = _placement_request(state, wish)
    answer = place(state.view(), asked, policy, seed_of(request.operation_id))
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
        .and_then(charge(state, Adding(claim, answer.shared_charged)))
        .and_then(_new_volume_records(volumes))
        .and_then(_attach(state, wish))
        .and_then(Transaction({node_key(answer.node_id): state.nodes[answer.node_id].revision}))
    )
    return Accepted(operation, transaction)


def _sized(state: ClusterState, wish: WishedVM) -> WishedVM:
    """The wish with its flavor's size, and the sizes of new volumes."""
    wish = replace(wish, disks=tuple(_sized_disk(state, index, disk) for index, disk in enumerate(wish.disks)))
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


def _sized_disk(state: ClusterState, index: int, disk: NewDisk | ExistingDisk) -> NewDisk | ExistingDisk:
    if isinstance(disk, ExistingDisk):
        return disk
    least_mib = image_mib(state, disk.pool_id, disk.image)
    return replace(disk, size_mib=volume_mib(disk.size_mib, disk.image, least_mib, f"vm.disks[{index}].new_volume.size_mib"))


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
                space = local
                if is_shared(state, disk.pool_id, f"vm.disks[{index}].new_volume.pool"):
                    space, fingerprints[disk.pool_id] = shared, fingerprint_of(state, disk.pool_id)
                space[disk.pool_id] = space.get(disk.pool_id, 0) + disk.size_mib
                if disk.image:
                    images.add((disk.pool_id, disk.image))
            case ExistingDisk():
                volume = _free_volume(state, disk.volume_id).record
                if volume.node_id:
                    pinned.append(LocalVolume(volume.volume_id, volume.pool_id, volume.node_id))
                else:
                    fingerprints[volume.pool_id] = fingerprint_of(state, volume.pool_id)
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
        move_fallback=wish.move_fallback,
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
