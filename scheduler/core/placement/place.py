"""Chooses a node for a VM, or says why there is none: sift, score, choose. The commit is the claim's (`scheduler.core.claims`).

Same view, request, policy and seed: same answer, on every replica. Nodes with equal scores are ordered by a mixture of the seed and a number of
their own, so that deciders at work at the same time do not all run to the first one, and yet every choice can be repeated.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from hostler.model.quantities import Quantities, Shortfall, amount_short, is_memory, memory_key, pool_key, shortfalls
from scheduler.core.claims import free_of
from scheduler.core.placement.cells import emptiest_cell
from scheduler.core.placement.cluster import ClusterView
from scheduler.core.placement.fleet import BLOCK, Amounts, Fleet, Mask
from scheduler.core.placement.policy import Policy
from scheduler.core.placement.reject import PoolShortfall, Refusal, Rule
from scheduler.core.placement.request import PlacementRequest
from scheduler.core.placement.sift import Sifted, first_refused, in_order, refused_only_by, rejects_of, sift

RANKING_KEPT = 5
"""What is kept of the ranking: enough to see why the first was first, few enough to be stored with the operation."""
TOLD_MOST = 32
"""Nodes of which a no says in words why: an error's details travel in the trailers of a reply, of which clients accept 8 KiB."""
SEED_BYTES = 8
_LOW = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Ranked:
    """A node that could take the VM: `total` is the weighted sum of `scores` (name, 0..100)."""

    node_id: str
    total: int
    scores: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """The choice, with what its transaction must guard and write.

    charged: to the node's ledger, guarded by `ledger_revision`. shared_charged: to shared pools' ledgers, guarded by `pool_revisions`.
    `ranking` has the best few; `refused`: how many nodes each rule refused, of `node_count`.
    """

    node_id: str
    incarnation: str
    cell: int
    charged: Quantities
    shared_charged: Mapping[str, Quantities]
    revision: int
    ledger_revision: int
    pool_revisions: Mapping[str, int]
    ranking: tuple[Ranked, ...]
    node_count: int
    refused: Mapping[Rule, int]


@dataclass(frozen=True, slots=True)
class NoFit:
    """No node. With a shared pool short, `able_count` nodes may well have been able to.

    refused: how many nodes each rule refused; first_refused: the same, each node counted with the first rule alone. `told`: in words, of at most
    TOLD_MOST nodes, by their ids; none that was not asked for. `cordoned`: nodes that refuse for that alone. `roomiest`: of the nodes that lack
    memory alone the one with the most, and how much it has (MiB).
    """

    revision: int
    node_count: int
    able_count: int
    refused: Mapping[Rule, int]
    first_refused: Mapping[Rule, int]
    told: tuple[Refusal, ...]
    pools: tuple[PoolShortfall, ...]
    cordoned: tuple[str, ...] = ()
    roomiest: tuple[str, int] | None = None


def place(view: ClusterView, request: PlacementRequest, policy: Policy, seed: int) -> Placement | NoFit:
    """Choose a node for the request, or say why there is none. Same arguments, same answer."""
    nodes = view.nodes
    sifted = sift(nodes, request, policy)
    short = _pools_short(view, request)
    if short or not sifted.able_count:
        return _no_fit(view, request, policy, sifted, short)
    ranking = _ranking(nodes, request, policy, sifted, seed)
    chosen = nodes[ranking[0].node_id]
    cell = emptiest_cell(chosen)
    return Placement(
        node_id=chosen.node.node_id,
        incarnation=chosen.node.incarnation,
        cell=cell,
        charged=request.charge_in(cell),
        shared_charged=request.shared_charge,
        revision=view.revision,
        ledger_revision=chosen.ledger_revision,
        pool_revisions={pool_id: view.shared_pools[pool_id].ledger_revision for pool_id in request.shared_charge},
        ranking=ranking,
        node_count=len(nodes),
        refused=sifted.refused,
    )


def seed_of(operation_id: str) -> int:
    """The seed of an operation: a repeat on the same state chooses the same node."""
    return int.from_bytes(hashlib.blake2b(operation_id.encode(), digest_size=SEED_BYTES).digest())


def tie_break(seed: int, spread: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Where nodes with these numbers stand among their equals: the finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014) over both."""
    mixed = spread ^ np.uint64(seed & _LOW)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _ranking(nodes: Fleet, request: PlacementRequest, policy: Policy, sifted: Sifted, seed: int) -> tuple[Ranked, ...]:
    """The best few of the nodes that can take it, best first."""
    rates = [row.rates(nodes, request) for row in policy.scores]
    totals = np.where(sifted.able, _sum(policy, rates), -1.0)
    names = [row.name for row in policy.scores]
    places = _best(totals, min(RANKING_KEPT, sifted.able_count), nodes.spread, seed)
    scores = np.array([rate[places] for rate in rates]).T.astype(int).tolist()
    return tuple(
        [
            Ranked(nodes.at(place).node.node_id, int(totals[place]), tuple(zip(names, of_place, strict=True)))
            for place, of_place in zip(places, scores, strict=True)
        ]
    )


def _sum(policy: Policy, rates: list[Amounts]) -> Amounts:
    """Weighted."""
    weighted = [rate if row.weight == 1 else row.weight * rate for row, rate in zip(policy.scores, rates, strict=True)]
    total = weighted[0]
    for more in weighted[1:]:
        total = total + more
    return total


def _best(totals: Amounts, count: int, spread: NDArray[np.uint64], seed: int) -> list[int]:
    """The places of the `count` largest, largest first, equals by the seed.

    They are looked at in BLOCK rows: a column whose largest is less than that of `count` others has none of them.
    """
    rows = totals.reshape(BLOCK, -1)
    largest = rows.max(axis=0)
    least = np.partition(largest, -count)[-count] if len(largest) > count else 0.0
    columns = np.flatnonzero(largest >= max(least, 0.0))
    row, column = np.nonzero(rows[:, columns] >= max(least, 0.0))
    places = row * len(largest) + columns[column]
    order = np.lexsort((tie_break(seed, spread[places]), -totals[places]))
    return cast("list[int]", places[order[:count]].tolist())


def _no_fit(view: ClusterView, request: PlacementRequest, policy: Policy, sifted: Sifted, short: tuple[PoolShortfall, ...]) -> NoFit:
    nodes = view.nodes
    told = nodes.present & ~sifted.able
    if Rule.NODE_NAMED in sifted.refused:
        told = told & sifted.answers[Rule.NODE_NAMED]
    shown = [nodes.at(int(place)) for place in in_order(nodes, told)[:TOLD_MOST]]
    cordoned = in_order(nodes, refused_only_by(nodes, sifted, Rule.NODE_STATE))
    return NoFit(
        view.revision,
        len(nodes),
        sifted.able_count,
        sifted.refused,
        first_refused(nodes, sifted, policy),
        tuple(Refusal(node.node.node_id, rejects_of(node, request, policy)) for node in shown),
        short,
        tuple(nodes.at(int(place)).node.node_id for place in cordoned),
        _roomiest(nodes, request, refused_only_by(nodes, sifted, Rule.CAPACITY)),
    )


def _roomiest(nodes: Fleet, request: PlacementRequest, short: Mask) -> tuple[str, int] | None:
    """Of nodes that have too little of something: where memory alone is short, and most is free."""
    for key, amount in request.charge_in(0).items():
        if not is_memory(key):
            short = short & (nodes.left(key) >= amount)
    places = in_order(nodes, short)
    if not len(places):
        return None
    free_mib = nodes.left(memory_key(0))[places]
    best = int(free_mib.argmax())
    return nodes.at(int(places[best])).node.node_id, int(free_mib[best])


def _pools_short(view: ClusterView, request: PlacementRequest) -> tuple[PoolShortfall, ...]:
    """Shared pools that cannot hold the new volumes, wherever the VM goes. A pool without an account has nothing to give."""
    short: list[PoolShortfall] = []
    for pool_id, charge in request.shared_charge.items():
        pool = view.shared_pools.get(pool_id)
        if pool is None:
            none = Shortfall(pool_key(pool_id), charge[pool_key(pool_id)], 0)
            short.append(PoolShortfall(pool_id, f"shared pool {pool_id} is not known in the cluster", none))
        else:
            short += [PoolShortfall(pool_id, f"shared {amount_short(one)}", one) for one in shortfalls(charge, free_of(pool.ledger))]
    return tuple(short)
