"""Whether a node is fenced: the one question about fencing that others than its own decisions (`decide_fence`) ask."""

from scheduler.core.records import NodeState
from scheduler.core.state import ClusterState


def is_fenced(state: ClusterState, node_id: str) -> bool:
    kept = state.nodes.get(node_id)
    return kept is not None and kept.record.state is NodeState.FENCED
