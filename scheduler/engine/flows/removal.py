"""Where a volume's file is made and removed, and that a deletion waits for no fenced node: its file is owed instead (`core.owed`)."""

from hostler.model.domain import VolumeSpec
from scheduler.core.decide_fence import is_fenced
from scheduler.core.owed import owe
from scheduler.core.pools import fingerprint_of, reaches
from scheduler.core.records import VolumeRecord
from scheduler.core.view import Health
from scheduler.engine.driving import Run
from scheduler.ports import NodeUnreachable, Order


def volume_spec(volume: VolumeRecord) -> VolumeSpec:
    return VolumeSpec(volume.uid, volume.pool_id, volume.size_mib, volume.image, volume.format)


def node_for(run: Run, volume: VolumeRecord) -> str:
    """A node that can reach the volume's pool now: its own, or the first by id that is ready. Raises NodeUnreachable."""
    if volume.node_id:
        return volume.node_id
    fingerprint = fingerprint_of(run.state, volume.pool_id)
    for node_id, kept in sorted(run.state.nodes.items()):
        there = any(reaches(pool, volume.pool_id, fingerprint) for pool in kept.record.pools)
        if there and run.state.health_of(node_id) is Health.READY and not is_fenced(run.state, node_id):
            return node_id
    raise NodeUnreachable(f"no node that answers has pool {volume.pool_id}")


async def remove_file(run: Run, order: Order, volume: VolumeRecord, user_node_id: str = "") -> None:
    """Remove it, through the node that used it if there is one and it can still be asked."""
    if volume.node_id and is_fenced(run.state, volume.node_id):
        await run.write(lambda state: owe(state, volume.node_id, volume_spec(volume)))
        return
    user_can = user_node_id and not is_fenced(run.state, user_node_id)
    await run.nodes.remove_volume(user_node_id if user_can else node_for(run, volume), order, volume_spec(volume))
