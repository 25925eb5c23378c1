"""Refuses nodes that lack a network of the VM's cards."""

from scheduler.core.placement.fleet import Fleet, Mask, all_of, network_fact
from scheduler.core.placement.reject import Reject, Rule
from scheduler.core.placement.request import PlacementRequest
from scheduler.core.view import NodeView


def networks(view: NodeView, request: PlacementRequest) -> Reject | None:
    absent = sorted(set(request.networks) - set(view.node.networks))
    return Reject(view.node.node_id, Rule.NETWORK, f"no network {', '.join(absent)}") if absent else None


def with_networks(nodes: Fleet, request: PlacementRequest) -> Mask | None:
    return all_of(nodes.having(network_fact(network)) for network in request.networks)
