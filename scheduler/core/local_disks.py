"""A VM's disks in a local pool, which are copied along when it moves while it runs: which they are, and whose the files are afterwards.

The copy that the source's guest has written to is the volume until the handoff is committed, the destination's from then on. The volume's record
names its node anew in the transaction that ends the handoff, and the same one owes the removal of the file that was left behind: a file is never
removed before, and never forgotten. Space that is charged for a volume apart from its VM's claim is, while it moves, part of the claim at the
destination. A VM that is off is not moved: only a running one has a hypervisor that copies its disks.
"""

from collections.abc import Iterable
from dataclasses import replace

from hostler.model.domain import VolumeSpec
from hostler.model.quantities import Quantities, plus, pool_key
from scheduler.core.owed import owe
from scheduler.core.records import VMRecord, VolumeRecord, volume_key
from scheduler.core.state import ClusterState
from scheduler.core.transaction import Transaction

LEAST_MIB_S = 20
"""A copy of a disk that is slower than a fifth of a 1 Gbit/s link is not waited for."""


def local_volumes(state: ClusterState, vm: VMRecord) -> tuple[VolumeRecord, ...]:
    """Those of its volumes that are on its node alone, in the order of its disks."""
    volumes = (state.volumes[volume_id].record for volume_id in vm.volume_ids)
    return tuple(volume for volume in volumes if volume.node_id)


def empty_file(volume: VolumeRecord) -> VolumeSpec:
    """What the destination makes for the copy to fill."""
    return VolumeSpec(volume.uid, volume.pool_id, volume.size_mib, "", volume.format)


def charged_apart(volumes: Iterable[VolumeRecord]) -> Quantities:
    """What these volumes are charged that is no part of their VM's claim."""
    charged: dict[str, int] = {}
    for volume in volumes:
        if volume.charged_mib:
            charged = plus(charged, {pool_key(volume.pool_id): volume.charged_mib})
    return charged


def copy_s(volumes: Iterable[VolumeRecord]) -> float:
    """The longest that copying them may take."""
    return sum(volume.size_mib for volume in volumes) / LEAST_MIB_S


def owing(state: ClusterState, volumes: Iterable[VolumeRecord]) -> dict[str, str]:
    """Nodes that have an old file of one of these volumes, which is to be removed there, and why that is in the way."""
    names = {volume.uid: volume.volume_id for volume in volumes}
    return {node_id: f"an old file of {names[uid]} is to be removed there first" for node_id, uid in state.owed if uid in names}


def moved(state: ClusterState, vm: VMRecord, left_node_id: str, node_id: str) -> Transaction:
    """Its local volumes are on `node_id`; their files on `left_node_id` are owed. Changes no ledger."""
    transaction = Transaction()
    for volume in local_volumes(state, vm):
        key = volume_key(volume.volume_id)
        transaction = transaction.and_then(
            Transaction({key: state.volumes[volume.volume_id].revision}, {key: replace(volume, node_id=node_id)})
        )
    return transaction.and_then(left_behind(state, vm, left_node_id))


def left_behind(state: ClusterState, vm: VMRecord, node_id: str) -> Transaction:
    """Files of its local volumes that a copy leaves on a node which is not theirs are owed."""
    transaction = Transaction()
    for volume in local_volumes(state, vm):
        transaction = transaction.and_then(owe(state, node_id, empty_file(volume)) or Transaction())
    return transaction
