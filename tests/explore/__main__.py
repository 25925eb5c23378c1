"""`python -m tests.explore [NAME ...] [--all] [--story]`: search what is named, by default all but the large slices; status 0 only if each is
as expected.

`--budget agents=1,libvirt=1,moves=1+2 [--lockless]` searches that slice instead, and expects it to hold. Slices are searched in `--processes`
(2) at a time, the slowest first.

`--walks 10000 [--seed 1]` walks at random in place of searching, through everything at once: three nodes, three moves, every kind of fault.
"""

import argparse
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from random import Random
from time import monotonic, process_time

from tests.explore.configurations import HOLDS, LARGE, Configuration
from tests.explore.moves import Moves
from tests.explore.mutations import MUTATIONS, REDUNDANT
from tests.explore.rules import Rules
from tests.explore.search import MAX_STATES, Found, explore
from tests.explore.walks import GROUNDS, Walk, walk
from tests.explore.world import Budget

EVERYTHING: Mapping[str, Configuration] = {**HOLDS, **REDUNDANT, **MUTATIONS}
KNOWN: Mapping[str, Configuration] = {**LARGE, **EVERYTHING}
"""The large ones first, for they take longest."""


WALKS_AT_ONCE = 250
"""By one `Moves`: what that remembers of the decisions goes with it."""


@dataclass(frozen=True, slots=True)
class Result:
    """One search; `took_s` is processor time."""

    name: str
    found: Found
    took_s: float


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.explore", description="Search a migration's handoff for a broken promise.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(KNOWN))
    parser.add_argument("--all", action="store_true", help="the large slices too")
    parser.add_argument("--budget", default="", help="a slice of its own, as agents=1,moves=1+2")
    parser.add_argument("--lockless", action="store_true", help="with --budget: disks without locks")
    parser.add_argument("--story", action="store_true", help="tell how each violation comes about")
    parser.add_argument("--processes", type=int, default=2, help="searches at a time")
    parser.add_argument("--walks", type=int, default=0, help="so many random walks on each ground, in place of a search")
    parser.add_argument("--seed", type=int, default=1, help="of the first walk (1)")
    asked = parser.parse_args()
    if asked.walks:
        return _walk_all(asked.walks, asked.seed, asked.processes)
    unknown = [name for name in asked.names if name not in KNOWN]
    if unknown:
        parser.error(f"there is no {unknown[0]}")
    if asked.budget:
        configuration = Configuration(Rules(lockless=asked.lockless), _budget(asked.budget))
        return 0 if _tell(_found(asked.budget, configuration), configuration, story=asked.story) else 1
    names = asked.names or list(KNOWN if asked.all else EVERYTHING)
    began_s, fine, states = monotonic(), True, 0
    # Forked, so that no search inherits what another has remembered; one search each, so that its memory goes with it.
    with ProcessPoolExecutor(asked.processes, mp_context=get_context("fork"), max_tasks_per_child=None) as pool:
        for ended in as_completed([pool.submit(_search, name) for name in names]):
            result = ended.result()
            states += result.found.states
            fine = _tell(result, KNOWN[result.name], story=asked.story) and fine
    print(f"{len(names)} searches, {states} states, {monotonic() - began_s:.0f} s")
    return 0 if fine else 1


def _walk_all(count: int, seed: int, processes: int) -> int:
    """Every ground in parts, so that the processes have their work until the end."""
    parts = [
        (name, first, min(WALKS_AT_ONCE, seed + count - first)) for name in GROUNDS for first in range(seed, seed + count, WALKS_AT_ONCE)
    ]
    began_s, steps, faults, home, fine = monotonic(), 0, 0, 0, True
    with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
        for name, walked in pool.map(_walk_part, parts):
            for number, one in walked:
                steps, faults, home = steps + len(one.story), faults + one.faults, home + one.home
                if one.violation:
                    fine = False
                    print(f"{name}, walk {number}: {one.violation}")
                    for place, says in enumerate(one.story, 1):
                        print(f"  {place:3} {says}")
    walks = count * len(GROUNDS)
    print(
        f"{walks} walks, {steps} steps, {faults} faults, {home} came to an end, {monotonic() - began_s:.0f} s: {'' if fine else 'not '}as promised"
    )
    return 0 if fine else 1


def _walk_part(part: tuple[str, int, int]) -> tuple[str, list[tuple[int, Walk]]]:
    name, first, count = part
    rules, budget = GROUNDS[name]
    moves = Moves(rules)
    return name, [(number, walk(moves, budget, Random(f"{name} {number}"))) for number in range(first, first + count)]


def _budget(text: str) -> Budget:
    amounts: dict[str, object] = {}
    for part in text.split(","):
        what, _, amount = part.partition("=")
        amounts[what] = tuple(int(one) for one in amount.split("+")) if what == "moves" else what == "off" or int(amount)
    return Budget(**amounts)  # type: ignore[arg-type]


def _search(name: str) -> Result:
    result = _found(name, KNOWN[name])
    return Result(
        result.name, Found(result.found.states, result.found.violation, result.found.story, bounded=result.found.bounded), result.took_s
    )


def _found(name: str, configuration: Configuration) -> Result:
    began_s = process_time()
    found = explore(configuration.rules, configuration.budget, configuration.bound or MAX_STATES, bound=bool(configuration.bound))
    return Result(name, found, process_time() - began_s)


def _tell(result: Result, configuration: Configuration, *, story: bool) -> bool:
    """Whether it is as expected."""
    found = result.found
    fine = found.violation.startswith(configuration.finds) if configuration.finds else not found.violation
    verdict = f"{found.violation} ({len(found.story)} steps)" if found.violation else "holds"
    verdict = f"{verdict} in the nearest {configuration.bound} states, not exhausted" if found.bounded else verdict
    expected = "" if fine else f"  NOT EXPECTED, but {configuration.finds or 'that it holds'}"
    print(f"{result.name:34} {found.states:8} states {result.took_s:6.1f} s  {verdict}{expected}", flush=True)
    if found.violation and (story or not fine):
        for number, says in enumerate(found.story, 1):
            print(f"  {number:3} {says}")
    return fine


if __name__ == "__main__":
    sys.exit(main())
