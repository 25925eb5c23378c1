"""The placement policy as a table: which rules refuse a node, in which order, and which scores choose among the rest, with their weights.

A new rule or score is one file and one row. The table can be printed for an operator, and its digest says under which policy a choice was made.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from scheduler.core.placement.filters.acceleration import acceleration
from scheduler.core.placement.filters.capacity import capacity
from scheduler.core.placement.filters.images import images
from scheduler.core.placement.filters.local_volume import local_volume
from scheduler.core.placement.filters.networks import networks
from scheduler.core.placement.filters.node_excluded import node_excluded
from scheduler.core.placement.filters.node_health import node_health
from scheduler.core.placement.filters.node_named import node_named
from scheduler.core.placement.filters.node_state import node_state
from scheduler.core.placement.filters.pools import pools
from scheduler.core.placement.reject import Reject, Rule
from scheduler.core.placement.request import PlacementRequest
from scheduler.core.placement.scores.balance_cpu import balance_cpu
from scheduler.core.placement.scores.balance_memory import balance_memory
from scheduler.core.view import NodeView

DIGEST_BYTES = 8


@dataclass(frozen=True, slots=True)
class Filter:
    """A row of rules. `final`: when it refuses, the other rules are not asked, because their answers would not matter to anybody."""

    rule: Rule
    refuse: Callable[[NodeView, PlacementRequest], Reject | None]
    meaning: str
    final: bool = False


@dataclass(frozen=True, slots=True)
class Score:
    """A row of scores; `rate` gives 0..100, more is better."""

    name: str
    weight: int
    rate: Callable[[NodeView, PlacementRequest], int]
    meaning: str


@dataclass(frozen=True, slots=True)
class Policy:
    filters: tuple[Filter, ...]
    scores: tuple[Score, ...]

    def table(self) -> str:
        """The policy for people, a line a row."""
        rules = [f"refuse  {row.rule:<14} {row.meaning}{' (no other rule is asked then)' if row.final else ''}" for row in self.filters]
        scores = [f"prefer  {row.name:<14} {row.meaning}, weight {row.weight}" for row in self.scores]
        return "\n".join([*rules, *scores])

    @property
    def digest(self) -> str:
        """Short name of this very table."""
        return hashlib.blake2b(self.table().encode(), digest_size=DIGEST_BYTES).hexdigest()


SPREAD = Policy(
    filters=(
        Filter(Rule.NODE_NAMED, node_named, "not the node that was asked for", final=True),
        Filter(Rule.NODE_EXCLUDED, node_excluded, "ruled out by the request", final=True),
        Filter(Rule.NODE_STATE, node_state, "takes no new VMs"),
        Filter(Rule.NODE_HEALTH, node_health, "does not answer, or its hypervisor does not"),
        Filter(Rule.LOCAL_VOLUME, local_volume, "a volume of the VM is in another node's own pool"),
        Filter(Rule.NETWORK, networks, "lacks a network"),
        Filter(Rule.POOL, pools, "lacks a pool, or has another one under its name"),
        Filter(Rule.IMAGE, images, "its pool lacks an image"),
        Filter(Rule.ACCELERATION, acceleration, "runs guests in another way than the VM needs"),
        Filter(Rule.CAPACITY, capacity, "has too little left of something the VM is charged"),
    ),
    scores=(
        Score("balance_memory", 1, balance_memory, "percent of memory free afterwards"),
        Score("balance_cpu", 1, balance_cpu, "percent of CPU free afterwards"),
    ),
)
"""The default: VMs spread over the nodes by memory and CPU alike."""
