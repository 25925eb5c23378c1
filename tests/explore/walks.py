"""Random walks through everything that may go wrong, all of it in one story: what no search can exhaust. A walk strays for a while, then no fault
happens any more and it goes on until all has ended. Walks prove nothing; they reach what lies beyond the slices, and what they find is a story.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from msgspec.structs import replace

from tests.explore.moves import Moves
from tests.explore.rules import Rules
from tests.explore.search import broken, ended_well
from tests.explore.world import Budget, begin

FAULTY = 0.12
"""Of the steps, if there is a fault to be had. Most moves of a state are faults: drawn alike they would be spent before anything has begun."""
STRAY_STEPS = 160
HOME_STEPS = 1500
"""A driver that asks again and again makes many steps of a wait; whoever has not come home by then is counted, and not judged."""

EVERYTHING = Budget(
    nodes=3,
    moves=(1, 2, 0),
    agents=2,
    zombies=1,
    schedulers=1,
    sleepers=1,
    messages=3,
    cuts=2,
    libvirt=2,
    deaths=1,
    cancels=2,
    power=1,
    fences=1,
    starts=2,
)
GROUNDS: Mapping[str, tuple[Rules, Budget]] = {
    "everything": (Rules(), EVERYTHING),
    "everything, without locks": (Rules(lockless=True), EVERYTHING),
    "everything, of a VM that begins off": (Rules(), replace(EVERYTHING, off=True)),
    "everything, and a wrong word, with locks": (Rules(locks_bar=True), replace(EVERYTHING, wrong_fences=1)),
}


@dataclass(frozen=True, slots=True)
class Walk:
    """`violation` is empty if no promise was broken; `home`: everything has ended; `faults`: how many there were."""

    violation: str
    home: bool
    faults: int
    story: tuple[str, ...]


def walk(moves: Moves, budget: Budget, random: Random) -> Walk:
    """From the beginning until a promise is broken, everything has ended, or it has gone far enough."""
    world, faults, story = begin(budget), 0, list[str]()
    for step in range(STRAY_STEPS + HOME_STEPS):
        straying = step < STRAY_STEPS
        if not straying and ended_well(world):
            return Walk("", True, faults, tuple(story))
        ways = list(moves(world))
        honest, faulty = [way for way in ways if not way.fault], [way for way in ways if way.fault]
        choice = faulty if straying and faulty and (not honest or random.random() < FAULTY) else honest
        if not choice:
            return Walk("", ended_well(world), faults, tuple(story))
        way = random.choice(choice)
        story.append(way.says)
        faults += way.fault
        if violation := broken(way.world, world):
            return Walk(violation, False, faults, tuple(story))
        world = way.world
    return Walk("", ended_well(world), faults, tuple(story))
