"""What is asked of a node that is to take a VM over from its owner, whatever the way: the same size and charge, and disks that it reaches too.

A running VM takes its local disks along: then the node is asked for a local pool of the same name, with room for them.
"""

from hostler.errors import FailedPrecondition, Reason
from hostler.model.owner import OwnerState
from hostler.model.quantities import pool_key
from scheduler.core.local_disks import charged_apart, local_volumes, owing
from scheduler.core.placement.request import PlacementRequest, Purpose
from scheduler.core.pools import fingerprint_of
from scheduler.core.records import VMRecord
from scheduler.core.state import ClusterState


def moved_request(state: ClusterState, vm: VMRecord, destination_node_id: str, why_not_there: str) -> PlacementRequest:
    """What is asked of a node that takes the VM from its owner, with what it is charged already. Raises FailedPrecondition for volumes that stay."""
    local = local_volumes(state, vm)
    if local and vm.owner.state is OwnerState.STOPPED:
        stays = local[0]
        raise FailedPrecondition(
            Reason.NOT_MIGRATABLE,
            f"Volume {stays.volume_id} is in pool {stays.pool_id} of {stays.node_id}, which no other node reaches, and the VM is off.",
            "A VM takes its local disks along only while it runs.",
        )
    fingerprints: dict[str, str] = {}
    for volume_id in vm.volume_ids:
        volume = state.volumes[volume_id].record
        if not volume.node_id:
            fingerprints[volume.pool_id] = fingerprint_of(state, volume.pool_id)
    apart = charged_apart(local)
    return PlacementRequest(
        vm_id=vm.vm_id,
        vcpus=vm.domain.vcpus,
        memory_mib=vm.domain.memory_mib,
        service_class=vm.domain.service_class,
        cpu_floor_milli=vm.domain.cpu_floor_milli,
        purpose=Purpose.MIGRATE,
        local_mib={volume.pool_id: apart.get(pool_key(volume.pool_id), 0) for volume in local},
        fingerprints=fingerprints,
        networks=tuple(sorted({nic.bridge for nic in vm.domain.nics})),
        only_node_id=destination_node_id,
        excluded={**owing(state, local), vm.owner.node_id: why_not_there},
        acceleration="" if vm.owner.state is OwnerState.STOPPED else state.nodes[vm.owner.node_id].record.acceleration,
        stored_charge=vm.domain.charged,
    )
