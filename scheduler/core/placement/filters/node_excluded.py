"""Refuses the nodes that the request rules out, with the request's own reason: a migration's source, a node that has just refused."""

from scheduler.core.placement.fleet import Fleet, Mask
from scheduler.core.placement.reject import Reject, Rule
from scheduler.core.placement.request import PlacementRequest
from scheduler.core.view import NodeView


def node_excluded(view: NodeView, request: PlacementRequest) -> Reject | None:
    reason = request.excluded.get(view.node.node_id)
    return None if reason is None else Reject(view.node.node_id, Rule.NODE_EXCLUDED, reason or "excluded")


def not_excluded(nodes: Fleet, request: PlacementRequest) -> Mask | None:
    return ~nodes.only(request.excluded) if request.excluded else None
