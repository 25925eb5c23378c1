"""Two VMs on the same hosts: what one decides on is not the other's, so two searches side by side have seen what both can do together.

What could couple them is in two places. In the store: a `BYSTANDER` is put beside the VM that is searched, and every transaction of the search
must leave it alone. On the hosts: everything about a VM is under its own lock and its own name, except that a host and its agent come and go for
both, and links break for both: `explore_pair` searches two VMs at once, in which those moves happen to both in one step, and whatever else in any
order.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from tests.explore.moves import Moves
from tests.explore.rules import Rules
from tests.explore.search import broken, ended_well
from tests.explore.world import Budget, World, begin

BOTH = ("'s agent is killed", "'s agent is started again", " loses its power", " has power again", " breaks", " is whole again")
"""How the sentences of those moves end, up to a comma: they are the host's, or the link's, not the VM's."""

MAX_PAIRS = 200_000

Pair = tuple[World, World]


@dataclass(frozen=True, slots=True)
class FoundPairs:
    """`alone`: how many states each VM was seen in. `violation` is empty if there is none."""

    pairs: int
    alone: tuple[int, int]
    violation: str = ""


def explore_pair(rules: Rules, one: Budget, other: Budget) -> FoundPairs:
    """Raises RuntimeError above MAX_PAIRS."""
    moves = Moves(rules)
    first = (begin(one), begin(other))
    known: dict[Pair, int] = {first: 0}
    todo, before = [first], list[list[int]]([[]])
    for place, pair in enumerate(todo):
        for after, fault in _moves(moves, pair):
            there = known.get(after)
            if there is None:
                if len(todo) >= MAX_PAIRS:
                    raise RuntimeError(f"more than {MAX_PAIRS} pairs")
                there = known[after] = len(todo)
                todo.append(after)
                before.append([])
                for now, was in zip(after, pair, strict=True):
                    if violation := broken(now, was):
                        return FoundPairs(len(todo), (0, 0), violation)
            if not fault:
                before[there].append(place)
    ends = [place for place, pair in enumerate(todo) if ended_well(pair[0]) and ended_well(pair[1])]
    can_end = set(ends)
    while ends:
        for place in before[ends.pop()]:
            if place not in can_end:
                can_end.add(place)
                ends.append(place)
    alone = (len({pair[0] for pair in todo}), len({pair[1] for pair in todo}))
    return FoundPairs(len(todo), alone, "" if len(can_end) == len(todo) else "limbo: no end can be reached from some pair")


def _moves(moves: Moves, pair: Pair) -> Iterator[tuple[Pair, bool]]:
    shared: list[dict[str, list[World]]] = [{}, {}]
    for which, world in enumerate(pair):
        for move in moves(world):
            what = move.says.partition(",")[0]
            if what.endswith(BOTH):
                shared[which].setdefault(what, []).append(move.world)
            else:
                yield ((move.world, pair[1]) if which == 0 else (pair[0], move.world)), move.fault
    for what in shared[0].keys() & shared[1].keys():
        for after in product(shared[0][what], shared[1][what]):
            yield after, not what.endswith("again")
