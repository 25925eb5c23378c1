"""Prefers the node with the larger part of its memory free, all NUMA cells together."""

from hostler.model.quantities import is_memory
from scheduler.core.claims import left_of
from scheduler.core.placement.cells import memory_mib
from scheduler.core.placement.fleet import Amounts, Fleet
from scheduler.core.placement.request import PlacementRequest
from scheduler.core.placement.scores.balance import percent_free_after, percents_free_after
from scheduler.core.view import NodeView


def balance_memory(view: NodeView, request: PlacementRequest) -> int:
    free = sum(left_of(view.ledger, key) for key in view.ledger.allocatable if is_memory(key))
    return percent_free_after(memory_mib(view.ledger.allocatable), free, request.memory_charged_mib)


def balances_memory(nodes: Fleet, request: PlacementRequest) -> Amounts:
    return percents_free_after(nodes.per_memory, nodes.free_memory_mib, request.memory_charged_mib)
