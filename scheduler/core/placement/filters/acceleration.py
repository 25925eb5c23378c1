"""Refuses nodes that run guests in another way than the node a running VM comes from: its CPU state would not load there."""

from scheduler.core.placement.fleet import Fleet, Mask, acceleration_fact
from scheduler.core.placement.reject import Reject, Rule
from scheduler.core.placement.request import PlacementRequest
from scheduler.core.view import NodeView


def acceleration(view: NodeView, request: PlacementRequest) -> Reject | None:
    if request.acceleration in ("", view.node.acceleration):
        return None
    detail = f"runs guests by {view.node.acceleration or 'unknown means'}, {request.vm_id} needs {request.acceleration}"
    return Reject(view.node.node_id, Rule.ACCELERATION, detail)


def with_acceleration(nodes: Fleet, request: PlacementRequest) -> Mask | None:
    return nodes.having(acceleration_fact(request.acceleration)) if request.acceleration else None
