"""Refuses nodes other than the one that holds a local volume of the VM. Volumes on two nodes refuse every node: nothing can reach both."""

from scheduler.core.placement.fleet import Fleet, Mask, all_of
from scheduler.core.placement.reject import Reject, Rule
from scheduler.core.placement.request import PlacementRequest
from scheduler.core.view import NodeView


def local_volume(view: NodeView, request: PlacementRequest) -> Reject | None:
    elsewhere = [
        f"volume {volume.volume_id} is in pool {volume.pool_id} of {volume.node_id}"
        for volume in request.local_volumes
        if volume.node_id != view.node.node_id
    ]
    return Reject(view.node.node_id, Rule.LOCAL_VOLUME, ", ".join(elsewhere)) if elsewhere else None


def with_local_volumes(nodes: Fleet, request: PlacementRequest) -> Mask | None:
    return all_of(nodes.only((node_id,)) for node_id in {volume.node_id for volume in request.local_volumes})
