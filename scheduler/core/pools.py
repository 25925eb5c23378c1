"""Which file system a pool's name stands for: one name is one shared file system in the whole cluster, or each node's own directory.

The first node that reports a shared pool says which file system it is, by fingerprint. Another one under its name (a mount that is missing, a second
cluster's export) takes no part: nothing is placed on it, and its size counts for nothing. Once nothing is stored in the pool, and no node has
the old file system any more, the name may stand for a new one.
"""

from dataclasses import replace

from hostler.errors import NotFound, Reason, Violation
from hostler.model.quantities import pool_key
from scheduler.core.records import LedgerRecord, NodePool, shared_pool_key
from scheduler.core.state import ClusterState
from scheduler.core.transaction import Transaction


def is_shared(state: ClusterState, pool_id: str, field: str) -> bool:
    """Whether the pool is one file system for many nodes. Raises NotFound if no node has it."""
    if pool_id in state.shared_pools:
        return True
    if any(pool.pool_id == pool_id for kept in state.nodes.values() for pool in kept.record.pools):
        return False
    raise NotFound(
        Reason.POOL_NOT_FOUND,
        f"No node has a pool {pool_id}.",
        "See `hostler node get`.",
        violations=(Violation(field, "names no pool of any node"),),
    )


def fingerprint_of(state: ClusterState, pool_id: str) -> str:
    """The file system of a shared pool."""
    return state.shared_pools[pool_id].record.fingerprint


def image_mib(state: ClusterState, pool_id: str, image: str) -> int:
    """The image's size, the largest if nodes have different ones under its name; 0: no node has it, or none is meant."""
    pools = (pool for kept in state.nodes.values() for pool in kept.record.pools if pool.pool_id == pool_id)
    return max((pool.images.get(image, 0) for pool in pools), default=0)


def reaches(pool: NodePool, pool_id: str, fingerprint: str) -> bool:
    """Whether this pool of a node is the shared pool of that name."""
    return pool.shared and pool.pool_id == pool_id and pool.fingerprint == fingerprint


def offer(state: ClusterState, node_id: str, pool: NodePool) -> Transaction:
    """What a node's report of a shared pool changes in the pool's account."""
    key, kept = shared_pool_key(pool.pool_id), state.shared_pools.get(pool.pool_id)
    offered = {pool_key(pool.pool_id): max(0, pool.total_mib - pool.foreign_mib)}
    if kept is None:
        return Transaction({key: 0}, {key: LedgerRecord(offered, fingerprint=pool.fingerprint)})
    if pool.fingerprint != kept.record.fingerprint and (any(kept.record.claimed.values()) or _seen_elsewhere(state, node_id, pool.pool_id)):
        return Transaction()
    record = replace(kept.record, allocatable=offered, fingerprint=pool.fingerprint)
    return Transaction() if record == kept.record else Transaction({key: kept.revision}, {key: record})


def _seen_elsewhere(state: ClusterState, node_id: str, pool_id: str) -> bool:
    """Whether another node has the file system that the name stands for now."""
    fingerprint = fingerprint_of(state, pool_id)
    others = (kept.record for other, kept in state.nodes.items() if other != node_id)
    return any(reaches(pool, pool_id, fingerprint) for node in others for pool in node.pools)
