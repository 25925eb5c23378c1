"""Refuses nodes that have too little left of anything the VM is charged: CPU floor, memory of one NUMA cell, space in local pools.

It asks for exactly what the claim will charge, in the cell that the claim will charge, so that a node that passes is refused by the claim only
if its ledger has changed since.
"""

from hostler.model.quantities import amount_short, shortfalls
from scheduler.core.claims import left_of
from scheduler.core.placement.cells import cells_of, emptiest_cell
from scheduler.core.placement.fleet import Fleet, Mask, all_of
from scheduler.core.placement.reject import Reject, Rule
from scheduler.core.placement.request import PlacementRequest
from scheduler.core.view import NodeView


def capacity(view: NodeView, request: PlacementRequest) -> Reject | None:
    need = request.charge_in(emptiest_cell(view))
    short = shortfalls(need, {key: left_of(view.ledger, key) for key in need})
    if not short:
        return None
    cells = len(cells_of(view.ledger.allocatable))
    return Reject(view.node.node_id, Rule.CAPACITY, ", ".join(amount_short(one, cells) for one in short), short)


def with_capacity(nodes: Fleet, request: PlacementRequest) -> Mask | None:
    return all_of(nodes.left(key) >= amount for key, amount in request.charge_in(0).items())
