"""Asks both ends of a migration what they know before anything begins, and has it compared. Changes nothing, so it may be asked at any time."""

from dataclasses import dataclass

from hostler.model.domain import DomainSpec
from hostler.model.migration_facts import Forecast, GuestFacts, MigrationCheck
from scheduler.core.local_disks import copy_s, local_volumes
from scheduler.core.migration_check import CopiedVolume, checks
from scheduler.core.records import VMRecord
from scheduler.core.state import ClusterState
from scheduler.ports import CopyEstimate, NodeGateway, Order

NO_GUEST = GuestFacts("", "", ())
"""Of a source whose hypervisor does not answer: the destination is asked all the same, for what does not depend on it."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What was found, and what the copy would take where that was asked for."""

    checks: tuple[MigrationCheck, ...]
    forecast: Forecast | None


async def look(
    nodes: NodeGateway, state: ClusterState, order: Order, vm: VMRecord, destination_node_id: str, estimate: CopyEstimate | None = None
) -> Looked:
    """Raises NodeUnreachable, and NotFound if the source does not have the VM."""
    domain: DomainSpec = vm.domain
    source = await nodes.migration_source(vm.owner.node_id, order, domain, estimate)
    destination = await nodes.migration_destination(destination_node_id, order, domain, source.guest or NO_GUEST)
    volumes = {state.volumes[name].record.uid: name for name in vm.volume_ids if name in state.volumes}
    copied = {volume.uid: CopiedVolume(volume.size_mib, copy_s([volume])) for volume in local_volumes(state, vm)}
    return Looked(checks(source, destination, volumes, copied), source.forecast)
