"""Prefers the node with the larger part of its CPU not promised to anybody."""

from hostler.model.quantities import CPU_MILLI
from scheduler.core.claims import left_of
from scheduler.core.placement.fleet import Amounts, Fleet
from scheduler.core.placement.request import PlacementRequest
from scheduler.core.placement.scores.balance import percent_free_after, percents_free_after
from scheduler.core.view import NodeView


def balance_cpu(view: NodeView, request: PlacementRequest) -> int:
    offered = view.ledger.allocatable.get(CPU_MILLI, 0)
    return percent_free_after(offered, left_of(view.ledger, CPU_MILLI), request.charge_in(0).get(CPU_MILLI, 0))


def balances_cpu(nodes: Fleet, request: PlacementRequest) -> Amounts:
    return percents_free_after(nodes.per_cpu, nodes.left(CPU_MILLI), request.charge_in(0).get(CPU_MILLI, 0))
