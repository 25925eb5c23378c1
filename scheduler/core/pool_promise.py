"""What a pool can promise, as one value for a name: who has it, what is left in it, how its writers are kept apart, and what a live move costs.

A name stands for one shared file system, or for each node's own directory (`pools`); the latter is told as one pool with the sums. Downtimes are
measured, not promised: the ranges that the lab's runs have seen (docs/pools.md says which runs). Between the nodes the weakest decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from hostler.model.quantities import pool_key
from scheduler.core.pool_locks import pool_of
from scheduler.core.pools import reaches
from scheduler.core.records import LocksAcross, NodePool
from scheduler.core.state import ClusterState


class LiveMove(StrEnum):
    """Meanings in proto hostler.api.type.v1.Pool.LiveMove."""

    BY_LOCKS = "BY_LOCKS"
    BY_WORD = "BY_WORD"
    COLD_ONLY = "COLD_ONLY"
    BY_COPY = "BY_COPY"


DOWNTIME_MS = {LiveMove.BY_LOCKS: (130, 420), LiveMove.BY_WORD: (180, 510), LiveMove.COLD_ONLY: (0, 0), LiveMove.BY_COPY: (460, 900)}
"""The guest's, least and most, over the lab's runs."""


class LockKind(StrEnum):
    """Meanings in proto hostler.api.type.v1.Pool.LockKind; UNKNOWN is its zero."""

    UNKNOWN = "LOCK_KIND_UNSPECIFIED"
    NONE = "NONE"
    OFD = "OFD"


@dataclass(frozen=True, slots=True)
class PoolPromise:
    """One pool. Sizes in MiB; `free_mib` can be promised to new volumes. `images`: size of each by name, the largest if nodes differ."""

    pool_id: str
    shared: bool
    node_ids: tuple[str, ...]
    fingerprint: str
    filesystem: str
    total_mib: int
    foreign_mib: int
    claimed_mib: int
    locks: LockKind
    reason: str
    images: tuple[tuple[str, int], ...]

    @property
    def free_mib(self) -> int:
        return max(0, self.total_mib - self.foreign_mib - self.claimed_mib)

    @property
    def live_move(self) -> LiveMove:
        return live_move(self.shared, self.locks)


def live_move(shared: bool, locks: LockKind) -> LiveMove:
    """How a running VM with a disk in such a pool changes its node."""
    if not shared:
        return LiveMove.BY_COPY
    return LiveMove.BY_LOCKS if locks is LockKind.OFD else LiveMove.BY_WORD


def pool_ids(state: ClusterState) -> list[str]:
    """Every name that some node or the cluster's account knows."""
    return sorted({*state.shared_pools, *(pool.pool_id for kept in state.nodes.values() for pool in kept.record.pools)})


def promise(state: ClusterState, pool_id: str) -> PoolPromise | None:
    """The pool of that name; None: there is none."""
    there = {node_id: pool for node_id, kept in sorted(state.nodes.items()) if (pool := pool_of(kept.record, pool_id)) is not None}
    shared = state.shared_pools.get(pool_id)
    if shared is None:
        return _local(state, pool_id, there) if there else None
    seeing = {node_id: pool for node_id, pool in there.items() if reaches(pool, pool_id, shared.record.fingerprint)}
    locks, reason = _locks_of_all(seeing)
    key = pool_key(pool_id)
    first = next(iter(seeing.values()), None)
    allocatable, claimed = shared.record.allocatable.get(key, 0), shared.record.claimed.get(key, 0)
    total_mib = first.total_mib if first is not None else allocatable
    return PoolPromise(
        pool_id=pool_id,
        shared=True,
        node_ids=tuple(seeing),
        fingerprint=shared.record.fingerprint,
        filesystem=_all_of({pool.filesystem for pool in seeing.values()}),
        total_mib=total_mib,
        foreign_mib=max(0, total_mib - allocatable),
        claimed_mib=claimed,
        locks=locks,
        reason=" ".join([*reason, *_strangers(there, seeing)]),
        images=_images(list(seeing.values())),
    )


def locks_of(pool: NodePool) -> tuple[LockKind, str]:
    """Of one node's pool, and one sentence about it."""
    if not pool.ofd_locks:
        return LockKind.NONE, "Its locks cannot be asked, or are declared not to be used."
    if not pool.shared:
        return LockKind.OFD, "Proved on this node alone, whose own it is."
    match pool.across:
        case LocksAcross.PROVED:
            return LockKind.OFD, pool.across_why
        case LocksAcross.REFUTED:
            return LockKind.NONE, pool.across_why
        case _:
            return LockKind.UNKNOWN, "Not probed with another node yet."


def _locks_of_all(pools: dict[str, NodePool]) -> tuple[LockKind, list[str]]:
    """The weakest, and what each node that is not proved says."""
    found = {node_id: locks_of(pool) for node_id, pool in pools.items()}
    said = [f"{node_id}: {why}" for node_id, (kind, why) in found.items() if kind is not LockKind.OFD]
    kinds = {kind for kind, _ in found.values()}
    for kind in (LockKind.NONE, LockKind.UNKNOWN):
        if kind in kinds:
            return kind, said
    return (LockKind.OFD, [f"Proved between {_listed(pools)}."]) if kinds else (LockKind.UNKNOWN, ["No node sees it now."])


def _local(state: ClusterState, pool_id: str, there: dict[str, NodePool]) -> PoolPromise:
    key = pool_key(pool_id)
    claimed = sum(state.ledgers[node_id].record.claimed.get(key, 0) for node_id in there if node_id in state.ledgers)
    kinds = {locks_of(pool)[0] for pool in there.values()}
    return PoolPromise(
        pool_id=pool_id,
        shared=False,
        node_ids=tuple(there),
        fingerprint=_all_of({pool.fingerprint for pool in there.values()}),
        filesystem=_all_of({pool.filesystem for pool in there.values()}),
        total_mib=sum(pool.total_mib for pool in there.values()),
        foreign_mib=sum(pool.foreign_mib for pool in there.values()),
        claimed_mib=claimed,
        locks=LockKind.OFD if kinds == {LockKind.OFD} else LockKind.NONE,
        reason="Each node's own directory; sizes are the sums." if len(there) > 1 else "",
        images=_images(list(there.values())),
    )


def _strangers(there: dict[str, NodePool], seeing: dict[str, NodePool]) -> list[str]:
    others = [node_id for node_id in there if node_id not in seeing]
    return [f"{_listed(others)} has another file system under this name, which takes no part."] if others else []


def _images(pools: Sequence[NodePool]) -> tuple[tuple[str, int], ...]:
    sizes: dict[str, int] = {}
    for pool in pools:
        for name, mib in pool.images.items():
            sizes[name] = max(mib, sizes.get(name, 0))
    return tuple(sorted(sizes.items()))


def _all_of(values: set[str]) -> str:
    return ",".join(sorted(value for value in values if value)) if len(values) > 1 else next(iter(values), "")


def _listed(names: Sequence[str] | dict[str, NodePool]) -> str:
    return ", ".join(names)
