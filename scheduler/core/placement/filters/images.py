"""Refuses nodes whose pool lacks an image that a new volume is copied from. A pool that is absent is the rule POOL's to tell."""

from scheduler.core.placement.fleet import Fleet, Mask, all_of, image_fact, pool_fact
from scheduler.core.placement.reject import Reject, Rule
from scheduler.core.placement.request import PlacementRequest
from scheduler.core.view import NodeView


def images(view: NodeView, request: PlacementRequest) -> Reject | None:
    if not request.images:
        return None
    there = {pool.pool_id: pool.images for pool in view.node.pools}
    absent = [f"no image {image} in pool {pool_id}" for pool_id, image in request.images if image not in there.get(pool_id, {image: 0})]
    return Reject(view.node.node_id, Rule.IMAGE, ", ".join(sorted(absent))) if absent else None


def with_images(nodes: Fleet, request: PlacementRequest) -> Mask | None:
    return all_of(nodes.having(image_fact(pool_id, image)) | ~nodes.having(pool_fact(pool_id)) for pool_id, image in request.images)
