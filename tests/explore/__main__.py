"""`python -m tests.explore [NAME ...] [--all] [--story]`: search what is named, by default all but the large slices; status 0 only if each is
as expected.

`--budget agents=1,libvirt=1 [--lockless]` searches that slice instead, and expects it to hold.
"""

import argparse
import sys
from collections.abc import Mapping
from time import monotonic

from tests.explore.configurations import HOLDS, LARGE, Configuration
from tests.explore.mutations import MUTATIONS, REDUNDANT
from tests.explore.rules import Rules
from tests.explore.search import explore
from tests.explore.world import Budget

EVERYTHING: Mapping[str, Configuration] = {**HOLDS, **REDUNDANT, **MUTATIONS}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.explore", description="Search a migration's handoff for a broken promise.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join({**EVERYTHING, **LARGE}))
    parser.add_argument("--all", action="store_true", help="the large slices too")
    parser.add_argument("--budget", default="", help="a slice of its own, as agents=1,libvirt=1")
    parser.add_argument("--lockless", action="store_true", help="with --budget: disks without locks")
    parser.add_argument("--story", action="store_true", help="tell how each violation comes about")
    asked = parser.parse_args()
    known = {**EVERYTHING, **LARGE}
    unknown = [name for name in asked.names if name not in known]
    if unknown:
        parser.error(f"there is no {unknown[0]}")
    chosen = {name: known[name] for name in asked.names or (known if asked.all else EVERYTHING)}
    if asked.budget:
        amounts = {what: int(amount) for what, _, amount in (part.partition("=") for part in asked.budget.split(","))}
        chosen = {asked.budget: Configuration(Rules(lockless=asked.lockless), Budget(**amounts))}
    results = [_search(name, configuration, story=asked.story) for name, configuration in chosen.items()]
    return 0 if all(results) else 1


def _search(name: str, configuration: Configuration, *, story: bool) -> bool:
    """Whether it is as expected."""
    began_s = monotonic()
    found = explore(configuration.rules, configuration.budget)
    fine = found.violation.startswith(configuration.finds) if configuration.finds else not found.violation
    verdict = f"{found.violation} ({len(found.story)} steps)" if found.violation else "holds"
    expected = "" if fine else f"  NOT EXPECTED, but {configuration.finds or 'that it holds'}"
    print(f"{name:28} {found.states:8} states {monotonic() - began_s:6.1f} s  {verdict}{expected}", flush=True)
    if found.violation and (story or not fine):
        for number, says in enumerate(found.story, 1):
            print(f"  {number:3} {says}")
    return fine


sys.exit(main())
