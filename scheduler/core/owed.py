"""Files that a node still has and nobody needs: of volumes deleted while it was fenced, or copied to another node. Written down in
the transaction that makes them useless, removed when the node can be asked.

So nothing waits for a node that is off, and no file is ever removed by inference: only what is written here.
"""

from hostler.model.domain import VolumeSpec
from scheduler.core.fenced import is_fenced
from scheduler.core.records import OwedRemoval, owed_key
from scheduler.core.state import ClusterState
from scheduler.core.transaction import Transaction


def owe(state: ClusterState, node_id: str, volume: VolumeSpec) -> Transaction | None:
    """None: it is owed already."""
    if (node_id, volume.volume_uid) in state.owed:
        return None
    key = owed_key(node_id, volume.volume_uid)
    return Transaction({key: 0}, {key: OwedRemoval(node_id, volume)})


def due(state: ClusterState) -> list[OwedRemoval]:
    """What can be asked for now: of nodes that are fenced no longer."""
    return [kept.record for _, kept in sorted(state.owed.items()) if not is_fenced(state, kept.record.node_id)]


def paid(state: ClusterState, removal: OwedRemoval) -> Transaction | None:
    kept = state.owed.get((removal.node_id, removal.volume.volume_uid))
    if kept is None:
        return None
    key = owed_key(removal.node_id, removal.volume.volume_uid)
    return Transaction({key: kept.revision}, {}, (key,))
