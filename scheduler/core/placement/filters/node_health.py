"""Refuses nodes that do not answer or whose hypervisor does not: a claim there would be a promise nobody can keep now."""

from typing import assert_never

from scheduler.core.placement.fleet import Fleet, Mask, health_fact
from scheduler.core.placement.reject import Reject, Rule
from scheduler.core.placement.request import PlacementRequest
from scheduler.core.view import Health, NodeView


def node_health(view: NodeView, request: PlacementRequest) -> Reject | None:
    match view.health:
        case Health.READY:
            return None
        case Health.SILENT:
            detail = "silent"
        case Health.HYPERVISOR_DOWN:
            detail = "hypervisor down" + (f" ({view.node.reason.rstrip('.')})" if view.node.reason else "")
        case _ as never:
            assert_never(never)
    return Reject(view.node.node_id, Rule.NODE_HEALTH, detail)


def in_health(nodes: Fleet, _request: PlacementRequest) -> Mask | None:
    return nodes.having(health_fact(Health.READY))
