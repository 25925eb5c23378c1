"""The nodes in columns, as a placement sees them: for each thing that a rule or a score asks, one array with a place for every node.

A decision looks at all nodes with a few operations on arrays, and at single nodes only to say in words why not. A column is kept as the nodes
change, one node at a time, so a decision costs what the look costs, never what the cluster holds.

Facts (a node's state, a network, an image, a pool) are columns of yes and no, made when a node first has the fact and dropped with the last one.
Amounts are what is left of each quantity, in float64, which counts exactly to 2^53. A place where no node is has no fact, and nothing left.
"""

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator
from copy import copy
from dataclasses import dataclass
from typing import TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from hostler.model.quantities import CPU_MILLI, is_memory, memory_key
from scheduler.core.claims import left_of
from scheduler.core.placement.cells import cells_of, emptiest_cell, memory_mib
from scheduler.core.records import NodePool
from scheduler.core.view import NodeView

Mask: TypeAlias = NDArray[np.bool_]
Amounts: TypeAlias = NDArray[np.float64]
Fact: TypeAlias = tuple[str, ...]
T = TypeVar("T", bound=np.generic)
K = TypeVar("K")

FIRST_PLACES = 64
BLOCK = 64
"""Places come in whole blocks, so that the largest of each block can be told at once."""
SPREAD_BYTES = 8
KNOWN_MOST = 256
"""Different wishes about the nodes' facts (networks, pools, images) that are kept; each has ten arrays of a byte a node."""
EMPTIEST = "memory_mib"
"""The column of what is left in each node's emptiest cell."""


def state_fact(state: str) -> Fact:
    return ("state", state)


def health_fact(health: str) -> Fact:
    return ("health", health)


def network_fact(network: str) -> Fact:
    return ("network", network)


def acceleration_fact(acceleration: str) -> Fact:
    return ("acceleration", acceleration)


def pool_fact(pool_id: str) -> Fact:
    return ("pool", pool_id)


def shared_fact(pool_id: str) -> Fact:
    return ("shared", pool_id)


def fingerprint_fact(pool_id: str, fingerprint: str) -> Fact:
    return ("fingerprint", pool_id, fingerprint)


def image_fact(pool_id: str, image: str) -> Fact:
    return ("image", pool_id, image)


def facts_of(view: NodeView) -> frozenset[Fact]:
    """What is true of a node, for the rules that ask yes or no."""
    node = view.node
    return frozenset(
        (
            state_fact(node.state),
            health_fact(view.health),
            acceleration_fact(node.acceleration),
            *map(network_fact, node.networks),
            *(fact for pool in node.pools for fact in _pool_facts(pool)),
        )
    )


@dataclass(slots=True)
class _FactColumn:
    mask: Mask
    nodes: int = 0


class Fleet:
    """Nodes by id. Changed by whoever keeps it, one node at a time; `copy` it to try something out."""

    def __init__(self, views: Iterable[NodeView] = ()) -> None:
        self._places: dict[str, int] = {}
        self._vacant: list[int] = []
        self._views: list[NodeView | None] = []
        self._facts: dict[Fact, _FactColumn] = {}
        self._left: dict[str, Amounts] = {}
        self._order: NDArray[np.intp] | None = None
        self._known: dict[Hashable, object] = {}
        self._room = FIRST_PLACES
        self._none: Mask = np.zeros(self._room, np.bool_)
        self._nothing: Amounts = np.zeros(self._room)
        self.present: Mask = np.zeros(self._room, np.bool_)
        """Where there is a node."""
        self.free_memory_mib: Amounts = np.zeros(self._room)
        """All cells together."""
        self.per_memory: Amounts = np.zeros(self._room)
        self.per_cpu: Amounts = np.zeros(self._room)
        """A hundred by what the node offers: an amount times this is its percentage. 0 for a node that offers none."""
        self.spread: NDArray[np.uint64] = np.zeros(self._room, np.uint64)
        """A fixed number of each node's own, for the order among equals."""
        for view in views:
            self.put(view)

    # ---- keeping it

    def put(self, view: NodeView) -> None:
        """The node is as in `view` now."""
        place = self._places.get(view.node.node_id)
        if place is None:
            place = self._settle(view.node.node_id)
        before, self._views[place] = self._views[place], view
        if before is None or before.node is not view.node or before.health is not view.health:
            self._put_facts(place, frozenset() if before is None else facts_of(before), facts_of(view))
        self._put_amounts(place, before, view)

    def drop(self, node_id: str) -> None:
        """There is no such node any more."""
        place = self._places.pop(node_id, None)
        if place is None:
            return
        before = self._views[place]
        if before is not None:
            self._put_facts(place, facts_of(before), frozenset())
        for column in (*self._left.values(), self.free_memory_mib):
            column[place] = 0.0
        self._views[place] = None
        self.present[place] = False
        self._vacant.append(place)
        self._order = None

    def copy(self) -> "Fleet":
        """One to be changed without changing this one."""
        other = copy(self)
        other._known = {}
        other._places, other._vacant, other._views = dict(self._places), list(self._vacant), list(self._views)
        other._facts = {fact: _FactColumn(column.mask.copy(), column.nodes) for fact, column in self._facts.items()}
        other._left = {key: column.copy() for key, column in self._left.items()}
        other.present, other.free_memory_mib = self.present.copy(), self.free_memory_mib.copy()
        other.per_memory, other.per_cpu, other.spread = self.per_memory.copy(), self.per_cpu.copy(), self.spread.copy()
        return other

    # ---- looking at it

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[NodeView]:
        """In order of the nodes' ids."""
        return (self.at(int(place)) for place in self.order)

    def __contains__(self, node_id: str) -> bool:
        return node_id in self._places

    def __getitem__(self, node_id: str) -> NodeView:
        return self.at(self._places[node_id])

    def at(self, place: int) -> NodeView:
        view = self._views[place]
        if view is None:
            raise IndexError(f"no node at place {place}")
        return view

    def having(self, fact: Fact) -> Mask:
        """Where the fact is true. To be read only."""
        column = self._facts.get(fact)
        return self._none if column is None else column.mask

    def left(self, key: str) -> Amounts:
        """What may still be promised of a quantity; of memory, in the emptiest cell. To be read only."""
        return self._left.get(EMPTIEST if is_memory(key) else key, self._nothing)

    def known(self, about: Hashable, find: Callable[[], K]) -> K:
        """What was found about the nodes' facts, until one of them changes. `about` says what was asked; one kind of answer alone may be kept."""
        found = self._known.get(about)
        if found is None:
            if len(self._known) == KNOWN_MOST:
                self._known.clear()
            found = self._known[about] = find()
        return cast("K", found)

    def only(self, node_ids: Iterable[str]) -> Mask:
        """Where these nodes are."""
        mask = np.zeros(self._room, np.bool_)
        mask[[self._places[node_id] for node_id in node_ids if node_id in self._places]] = True
        return mask

    @property
    def order(self) -> NDArray[np.intp]:
        """The places in order of the nodes' ids."""
        if self._order is None:
            self._order = np.fromiter((place for _, place in sorted(self._places.items())), np.intp, len(self._places))
        return self._order

    # ---- columns

    def _settle(self, node_id: str) -> int:
        """A place for a new node."""
        if not self._vacant and len(self._views) == self._room:
            self._grow()
        place = self._vacant.pop() if self._vacant else len(self._views)
        if place == len(self._views):
            self._views.append(None)
        self._places[node_id] = place
        self.present[place] = True
        self.spread[place] = spread_of(node_id)
        self._order = None
        return place

    def _grow(self) -> None:
        more = max(1, self._room // 4 // BLOCK) * BLOCK
        self._room += more

        def longer(column: NDArray[T]) -> NDArray[T]:
            return np.concatenate([column, np.zeros(more, column.dtype)])

        for column in self._facts.values():
            column.mask = longer(column.mask)
        self._left = {key: longer(amounts) for key, amounts in self._left.items()}
        self._none, self._nothing, self.present = longer(self._none), longer(self._nothing), longer(self.present)
        self.free_memory_mib, self.per_memory, self.per_cpu = map(longer, (self.free_memory_mib, self.per_memory, self.per_cpu))
        self.spread = longer(self.spread)

    def _put_facts(self, place: int, before: frozenset[Fact], after: frozenset[Fact]) -> None:
        self._known = {}
        for fact in before - after:
            column = self._facts[fact]
            column.mask[place] = False
            column.nodes -= 1
            if not column.nodes:
                del self._facts[fact]
        for fact in after - before:
            kept = self._facts.get(fact)
            if kept is None:
                kept = self._facts[fact] = _FactColumn(np.zeros(self._room, np.bool_))
            kept.mask[place] = True
            kept.nodes += 1

    def _put_amounts(self, place: int, before: NodeView | None, view: NodeView) -> None:
        ledger = view.ledger
        others = {key for key in ledger.allocatable if not is_memory(key)}
        for key in others.union(() if before is None else before.ledger.allocatable):
            if not is_memory(key):
                self._set(key, place, left_of(ledger, key))
        self._set(EMPTIEST, place, left_of(ledger, memory_key(emptiest_cell(view))))
        free_mib = sum(left_of(ledger, memory_key(cell)) for cell in cells_of(ledger.allocatable))
        self.free_memory_mib[place] = free_mib
        self.per_memory[place] = percent_per(memory_mib(ledger.allocatable))
        self.per_cpu[place] = percent_per(ledger.allocatable.get(CPU_MILLI, 0))

    def _set(self, key: str, place: int, left: int) -> None:
        column = self._left.get(key)
        if column is None:
            column = self._left[key] = np.zeros(self._room)
        column[place] = left


def all_of(masks: Iterable[Mask]) -> Mask | None:
    """Where all of these are true; None: there are none, so everywhere."""
    found: Mask | None = None
    for mask in masks:
        found = mask if found is None else found & mask
    return found


def percent_per(offered: int) -> float:
    """What an amount is multiplied with to be a percentage."""
    return 100.0 / offered if offered > 0 else 0.0


def spread_of(node_id: str) -> int:
    """64 bits that are the node's own, the same on every replica."""
    return int.from_bytes(hashlib.blake2b(node_id.encode(), digest_size=SPREAD_BYTES).digest())


def _pool_facts(pool: NodePool) -> Iterator[Fact]:
    yield pool_fact(pool.pool_id)
    if pool.shared:
        yield shared_fact(pool.pool_id)
    if pool.fingerprint:
        yield fingerprint_fact(pool.pool_id, pool.fingerprint)
    yield from (image_fact(pool.pool_id, image) for image in pool.images)
