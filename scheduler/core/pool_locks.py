"""Whether the locks of a shared pool exclude between nodes: what was found, who is to be probed next, and between whom locks may be relied on.

One node cannot tell: a lock that is seen on it may stay on it (NFS with `nolock`, a cluster file system without its lock manager). So a byte is
locked on one node and tried on another, both ways, and the holder is killed. A node is proved with one other that is proved or becomes so with it,
which says for the rest as well that the locks are the file system's; one that fails against a proved node is at fault itself. The word holds for
one boot of the host: another mount needs another probe. Until then, and after a failure, a handoff waits for the hypervisor's word instead.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from scheduler.core.pools import reaches
from scheduler.core.records import LocksAcross, NodePool, NodeRecord, node_key
from scheduler.core.state import ClusterState
from scheduler.core.transaction import Transaction
from scheduler.core.view import Health


@dataclass(frozen=True, slots=True)
class Probe:
    """To find out about `node_id` with the help of `partner_id`. Incarnations are those of the records that the choice was made on."""

    pool_id: str
    node_id: str
    partner_id: str
    incarnations: tuple[str, str]


def next_probe(state: ClusterState, due: Collection[tuple[str, str]], not_now: Collection[tuple[str, str]] = ()) -> Probe | None:
    """The first (pool, node), by name, of which nothing is known or that is `due` again, with a partner to probe it with; None: nothing to do.

    `not_now`: (pool, node) pairs to be left alone. Only nodes that answer take part.
    """
    for pool_id in sorted(state.shared_pools):
        nodes = dict(_askable(state, pool_id))
        for node_id, pool in sorted(nodes.items()):
            wanted = pool.across is LocksAcross.UNKNOWN or (pool_id, node_id) in due
            partners = [other for other in _partners(nodes, node_id) if (pool_id, other) not in not_now]
            if wanted and partners and (pool_id, node_id) not in not_now:
                both = (state.nodes[node_id].record.incarnation, state.nodes[partners[0]].record.incarnation)
                return Probe(pool_id, node_id, partners[0], both)
    return None


def probed(state: ClusterState, probe: Probe, why_not: str) -> Transaction | None:
    """What a probe changes: "" proves both; a sentence refutes the node, and its partner unless that is proved. None: nothing, or other boots."""
    kept = {node_id: state.nodes.get(node_id) for node_id in (probe.node_id, probe.partner_id)}
    changes = Transaction()
    for (node_id, node), incarnation in zip(kept.items(), probe.incarnations, strict=True):
        if node is None or node.record.incarnation != incarnation:
            return None
        before = pool_of(node.record, probe.pool_id)
        if before is None:
            return None
        if why_not and node_id == probe.partner_id and before.across is LocksAcross.PROVED:
            continue
        other = probe.partner_id if node_id == probe.node_id else probe.node_id
        across, why = (LocksAcross.REFUTED, why_not) if why_not else (LocksAcross.PROVED, f"Proved with {other}.")
        if before.across is across:
            continue
        pools = tuple(replace(pool, across=across, across_why=why) if pool is before else pool for pool in node.record.pools)
        changes = changes.and_then(Transaction({node_key(node_id): node.revision}, {node_key(node_id): replace(node.record, pools=pools)}))
    return changes if changes.puts else None


def locked_between(state: ClusterState, pool_ids: Iterable[str], node_ids: Collection[str]) -> tuple[str, ...]:
    """Those of the pools whose locks may be relied on between all of these nodes, by name."""
    return tuple(pool_id for pool_id in sorted({*pool_ids}) if all(_proved(state, pool_id, node_id) for node_id in node_ids))


def carried_over(before: NodeRecord, after: tuple[NodePool, ...]) -> tuple[NodePool, ...]:
    """The pools of a new report of the same boot, with what was found out about their locks."""
    known = {(pool.pool_id, pool.fingerprint): pool for pool in before.pools if pool.shared and pool.ofd_locks}
    kept = []
    for pool in after:
        old = known.get((pool.pool_id, pool.fingerprint))
        kept.append(replace(pool, across=old.across, across_why=old.across_why) if old and pool.shared and pool.ofd_locks else pool)
    return tuple(kept)


def pool_of(node: NodeRecord, pool_id: str) -> NodePool | None:
    return next((pool for pool in node.pools if pool.pool_id == pool_id), None)


def _proved(state: ClusterState, pool_id: str, node_id: str) -> bool:
    kept, shared = state.nodes.get(node_id), state.shared_pools.get(pool_id)
    pool = None if kept is None else pool_of(kept.record, pool_id)
    if pool is None or shared is None or not reaches(pool, pool_id, shared.record.fingerprint):
        return False
    return pool.ofd_locks and pool.across is LocksAcross.PROVED


def _askable(state: ClusterState, pool_id: str) -> Iterable[tuple[str, NodePool]]:
    """Nodes that answer, see the pool's file system, and can ask for locks on it."""
    fingerprint = state.shared_pools[pool_id].record.fingerprint
    for node_id, kept in state.nodes.items():
        pool = pool_of(kept.record, pool_id)
        if pool is not None and reaches(pool, pool_id, fingerprint) and pool.ofd_locks and state.health_of(node_id) is not Health.SILENT:
            yield node_id, pool


def _partners(nodes: dict[str, NodePool], node_id: str) -> list[str]:
    """The others, proved ones first: with them it is certain whose fault a failure is."""
    order = (LocksAcross.PROVED, LocksAcross.UNKNOWN, LocksAcross.REFUTED)
    return sorted((other for other in nodes if other != node_id), key=lambda other: (order.index(nodes[other].across), other))
