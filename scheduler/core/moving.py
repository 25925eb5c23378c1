"""What is asked of a node that is to take a VM over from its owner, whatever the way: the same size and charge, and disks that it reaches too."""

from hostler.errors import FailedPrecondition, Reason
from hostler.model.owner import OwnerState
from scheduler.core.placement.request import PlacementRequest, Purpose
from scheduler.core.pools import fingerprint_of
from scheduler.core.records import VMRecord
from scheduler.core.state import ClusterState


def moved_request(state: ClusterState, vm: VMRecord, destination_node_id: str, why_not_there: str) -> PlacementRequest:
    """What is asked of a node that takes the VM from its owner, with what it is charged already. Raises FailedPrecondition for volumes that stay."""
    fingerprints: dict[str, str] = {}
    for volume_id in vm.volume_ids:
        volume = state.volumes[volume_id].record
        if volume.node_id:
            raise FailedPrecondition(
                Reason.NOT_MIGRATABLE,
                f"Volume {volume_id} is in pool {volume.pool_id} of {volume.node_id}, which no other node reaches.",
                "Only VMs whose volumes are all in shared pools can be moved.",
            )
        fingerprints[volume.pool_id] = fingerprint_of(state, volume.pool_id)
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
        excluded={vm.owner.node_id: why_not_there},
        acceleration="" if vm.owner.state is OwnerState.STOPPED else state.nodes[vm.owner.node_id].record.acceleration,
        stored_charge=vm.domain.charged,
    )
