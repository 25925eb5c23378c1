"""The placement policy as a table: which rules refuse a node, in which order, and which scores choose among the rest, with their weights.

A new rule or score is one file and one row. It has two faces that must agree (a test compares them): one for all nodes at once, which decides, and
one for a single node, which says why in words. The table can be printed for an operator, and its digest says under which policy a choice was made.
"""

import hashlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property

from scheduler.core.placement.filters.acceleration import acceleration, with_acceleration
from scheduler.core.placement.filters.capacity import capacity, with_capacity
from scheduler.core.placement.filters.images import images, with_images
from scheduler.core.placement.filters.local_volume import local_volume, with_local_volumes
from scheduler.core.placement.filters.networks import networks, with_networks
from scheduler.core.placement.filters.node_excluded import node_excluded, not_excluded
from scheduler.core.placement.filters.node_health import in_health, node_health
from scheduler.core.placement.filters.node_named import as_named, node_named
from scheduler.core.placement.filters.node_state import node_state, taking_vms
from scheduler.core.placement.filters.pools import pools, pools_asked, with_pools
from scheduler.core.placement.fleet import Amounts, Fleet, Mask
from scheduler.core.placement.reject import Reject, Rule
from scheduler.core.placement.request import PlacementRequest
from scheduler.core.placement.scores.balance_cpu import balance_cpu, balances_cpu
from scheduler.core.placement.scores.balance_memory import balance_memory, balances_memory
from scheduler.core.view import NodeView

DIGEST_BYTES = 8


@dataclass(frozen=True, slots=True)
class Filter:
    """A row of rules. `passing`: where it does not refuse; None: it has nothing to ask. `refuse`: the same of one node, in words.

    `final`: when it refuses, the other rules are not asked, because their answers would not matter to anybody. `about`: what of the request it
    looks at, where all else that it looks at are the nodes' facts: its answer is then kept until a fact changes.
    """

    rule: Rule
    passing: Callable[[Fleet, PlacementRequest], Mask | None]
    refuse: Callable[[NodeView, PlacementRequest], Reject | None]
    meaning: str
    final: bool = False
    about: Callable[[PlacementRequest], Hashable] | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """A row of scores, each 0..100 in whole numbers, more is better: of every node that can take the VM, and of one."""

    name: str
    weight: int
    rates: Callable[[Fleet, PlacementRequest], Amounts]
    rate: Callable[[NodeView, PlacementRequest], int]
    meaning: str


@dataclass(frozen=True)
class Policy:
    filters: tuple[Filter, ...]
    scores: tuple[Score, ...]

    @cached_property
    def of_facts(self) -> tuple[Filter, ...]:
        """Rules whose answers are kept."""
        return tuple(row for row in self.filters if row.about is not None)

    @cached_property
    def of_more(self) -> tuple[Filter, ...]:
        """The others that are not final."""
        return tuple(row for row in self.filters if row.about is None and not row.final)

    @cached_property
    def final(self) -> tuple[Filter, ...]:
        return tuple(row for row in self.filters if row.final)

    def about(self, request: PlacementRequest) -> Hashable:
        """All of the request that the rules of facts look at."""
        return tuple([row.about(request) for row in self.of_facts if row.about is not None])

    def table(self) -> str:
        """The policy for people, a line a row."""
        rules = [f"refuse  {row.rule:<14} {row.meaning}{' (no other rule is asked then)' if row.final else ''}" for row in self.filters]
        scores = [f"prefer  {row.name:<14} {row.meaning}, weight {row.weight}" for row in self.scores]
        return "\n".join([*rules, *scores])

    @property
    def digest(self) -> str:
        """Short name of this very table."""
        return hashlib.blake2b(self.table().encode(), digest_size=DIGEST_BYTES).hexdigest()


def _nothing(_request: PlacementRequest) -> Hashable:
    return ()


SPREAD = Policy(
    filters=(
        Filter(Rule.NODE_NAMED, as_named, node_named, "not the node that was asked for", final=True),
        Filter(Rule.NODE_EXCLUDED, not_excluded, node_excluded, "ruled out by the request", final=True),
        Filter(Rule.NODE_STATE, taking_vms, node_state, "takes no new VMs", about=_nothing),
        Filter(Rule.NODE_HEALTH, in_health, node_health, "does not answer, or its hypervisor does not", about=_nothing),
        Filter(Rule.LOCAL_VOLUME, with_local_volumes, local_volume, "a volume of the VM is in another node's own pool"),
        Filter(Rule.NETWORK, with_networks, networks, "lacks a network", about=lambda r: r.networks),
        Filter(Rule.POOL, with_pools, pools, "lacks a pool, or has another one under its name", about=pools_asked),
        Filter(Rule.IMAGE, with_images, images, "its pool lacks an image", about=lambda r: r.images),
        Filter(
            Rule.ACCELERATION,
            with_acceleration,
            acceleration,
            "runs guests in another way than the VM needs",
            about=lambda request: request.acceleration,
        ),
        Filter(Rule.CAPACITY, with_capacity, capacity, "has too little left of something the VM is charged"),
    ),
    scores=(
        Score("balance_memory", 1, balances_memory, balance_memory, "percent of memory free afterwards"),
        Score("balance_cpu", 1, balances_cpu, balance_cpu, "percent of CPU free afterwards"),
    ),
)
"""The default: VMs spread over the nodes by memory and CPU alike."""
