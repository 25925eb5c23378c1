"""Refuses every node but the one that the request names."""

from scheduler.core.placement.fleet import Fleet, Mask
from scheduler.core.placement.reject import Reject, Rule
from scheduler.core.placement.request import PlacementRequest
from scheduler.core.view import NodeView


def node_named(view: NodeView, request: PlacementRequest) -> Reject | None:
    if request.only_node_id in ("", view.node.node_id):
        return None
    return Reject(view.node.node_id, Rule.NODE_NAMED, f"{request.only_node_id} was asked for")


def as_named(nodes: Fleet, request: PlacementRequest) -> Mask | None:
    return nodes.only((request.only_node_id,)) if request.only_node_id else None
