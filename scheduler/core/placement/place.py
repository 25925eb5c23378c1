"""Chooses a node for a VM, or says of every node why not: filter, score, choose. The commit is the claim's (`scheduler.core.claims`).

Same view, request, policy and seed: same answer, on every replica. Nodes with equal scores are ordered by a hash of the seed and their id, so
that deciders at work at the same time do not all run to the first one, and yet every choice can be repeated.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from hostler.model.quantities import Quantities, Shortfall, amount_short, pool_key, shortfalls
from scheduler.core.claims import free_of
from scheduler.core.placement.cells import emptiest_cell
from scheduler.core.placement.policy import Policy
from scheduler.core.placement.reject import PoolShortfall, Refusal, Reject
from scheduler.core.placement.request import PlacementRequest
from scheduler.core.view import ClusterView, NodeView

RANKING_KEPT = 5
"""What is kept of the ranking: enough to see why the first was first, few enough to be stored with the operation."""
SEED_BYTES = 8


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
    `ranking` has the best few; `refusals` one entry for each node that could not.
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
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True, slots=True)
class NoFit:
    """No node: `refusals` has one entry for each node that could not. With a shared pool short, other nodes may well have been able to."""

    revision: int
    node_count: int
    refusals: tuple[Refusal, ...]
    pools: tuple[PoolShortfall, ...]


def place(view: ClusterView, request: PlacementRequest, policy: Policy, seed: int) -> Placement | NoFit:
    """Choose a node for the request, or say of every node why not. Same arguments, same answer."""
    feasible, refusals = sift(view, request, policy)
    short = _pools_short(view, request)
    if short or not feasible:
        return NoFit(view.revision, len(view.nodes), refusals, short)
    ranking = sorted(
        (_rank(node, request, policy) for node in feasible), key=lambda ranked: (-ranked.total, tie_break(seed, ranked.node_id))
    )
    chosen = next(node for node in feasible if node.node.node_id == ranking[0].node_id)
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
        ranking=tuple(ranking[:RANKING_KEPT]),
        refusals=refusals,
    )


def sift(view: ClusterView, request: PlacementRequest, policy: Policy) -> tuple[tuple[NodeView, ...], tuple[Refusal, ...]]:
    """The nodes that can take the VM, and the others with every rule that refused."""
    feasible: list[NodeView] = []
    refusals: list[Refusal] = []
    for node in view.nodes:
        if rejects := _rejects(node, request, policy):
            refusals.append(Refusal(node.node.node_id, rejects))
        else:
            feasible.append(node)
    return tuple(feasible), tuple(refusals)


def seed_of(operation_id: str) -> int:
    """The seed of an operation: a repeat on the same state chooses the same node."""
    return int.from_bytes(hashlib.blake2b(operation_id.encode(), digest_size=SEED_BYTES).digest())


def tie_break(seed: int, node_id: str) -> bytes:
    """Where the node stands among its equals."""
    return hashlib.blake2b(f"{seed}/{node_id}".encode(), digest_size=SEED_BYTES).digest()


def _rejects(node: NodeView, request: PlacementRequest, policy: Policy) -> tuple[Reject, ...]:
    rejects: list[Reject] = []
    for row in policy.filters:
        reject = row.refuse(node, request)
        if reject is None:
            continue
        rejects.append(reject)
        if row.final:
            break
    return tuple(rejects)


def _rank(node: NodeView, request: PlacementRequest, policy: Policy) -> Ranked:
    scores = tuple((row.name, row.rate(node, request)) for row in policy.scores)
    total = sum(row.weight * score for row, (_, score) in zip(policy.scores, scores, strict=True))
    return Ranked(node.node.node_id, total, scores)


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
