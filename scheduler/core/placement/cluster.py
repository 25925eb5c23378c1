"""The cluster at one store revision, as a placement sees it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from scheduler.core.placement.fleet import Fleet
from scheduler.core.view import PoolView


@dataclass(frozen=True, slots=True)
class ClusterView:
    """`nodes` in columns; whoever gave the view goes on keeping them, so it is true until then."""

    revision: int
    nodes: Fleet
    shared_pools: Mapping[str, PoolView] = field(default_factory=dict)
