"""Refuses nodes that take no new VMs, even when the request names them: cordoning is an operator's word."""

from scheduler.core.placement.fleet import Fleet, Mask, state_fact
from scheduler.core.placement.reject import Reject, Rule
from scheduler.core.placement.request import PlacementRequest
from scheduler.core.records import NodeState
from scheduler.core.view import NodeView


def node_state(view: NodeView, request: PlacementRequest) -> Reject | None:
    if view.node.state is NodeState.ACTIVE:
        return None
    return Reject(view.node.node_id, Rule.NODE_STATE, view.node.state.lower())


def taking_vms(nodes: Fleet, _request: PlacementRequest) -> Mask | None:
    return nodes.having(state_fact(NodeState.ACTIVE))
