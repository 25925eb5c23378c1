"""Refuses nodes that lack a pool the VM needs, or that have something else under its name.

A shared pool of the same name with another fingerprint is another file system: the VM would start without its disks, or with somebody else's.
"""

from collections.abc import Hashable, Iterator

from scheduler.core.placement.fleet import Fleet, Mask, all_of, fingerprint_fact, pool_fact, shared_fact
from scheduler.core.placement.reject import Reject, Rule
from scheduler.core.placement.request import PlacementRequest
from scheduler.core.records import NodePool
from scheduler.core.view import NodeView


def pools(view: NodeView, request: PlacementRequest) -> Reject | None:
    there = {pool.pool_id: pool for pool in view.node.pools}
    wrong = [fault for pool_id in request.pool_ids if (fault := _fault(pool_id, there.get(pool_id), request))]
    return Reject(view.node.node_id, Rule.POOL, ", ".join(wrong)) if wrong else None


def _fault(pool_id: str, pool: NodePool | None, request: PlacementRequest) -> str:
    if pool is None:
        return f"no pool {pool_id}"
    if pool.shared and pool_id in request.local_pool_ids:
        return f"pool {pool_id} is shared there, not local"
    if not pool.shared and pool_id in request.shared_mib:
        return f"pool {pool_id} is local there, not shared"
    fingerprint = request.fingerprints.get(pool_id, "")
    if fingerprint and pool.fingerprint != fingerprint:
        return f"pool {pool_id} is another file system there"
    return ""


def with_pools(nodes: Fleet, request: PlacementRequest) -> Mask | None:
    return all_of(mask for pool_id in request.pool_ids for mask in _needs(nodes, pool_id, request))


def pools_asked(request: PlacementRequest) -> Hashable:
    return (tuple(request.local_mib), tuple(request.shared_mib), tuple(request.fingerprints.items()), request.local_volumes, request.images)


def _needs(nodes: Fleet, pool_id: str, request: PlacementRequest) -> Iterator[Mask]:
    yield nodes.having(pool_fact(pool_id))
    if pool_id in request.local_pool_ids:
        yield ~nodes.having(shared_fact(pool_id))
    if pool_id in request.shared_mib:
        yield nodes.having(shared_fact(pool_id))
    if fingerprint := request.fingerprints.get(pool_id, ""):
        yield nodes.having(fingerprint_fact(pool_id, fingerprint))
