"""`python -m tests.simulate SEEDS [--jobs N] [--story]`: live through the seeds; status 0 only if every promise was kept in each.

SEEDS: `500` (the first 500), `17,4711`, `100-200`, or any of them with commas. `--full` also fails if a row of the table was hit less than 100 times.
`--keep FILE` writes down what each seed came to; the same command goes on where it was ended, for as long as the code is the same.
`--mutation NAME` takes a guard out, and succeeds only if that is noticed. `--aim KIND` has more of one kind of fault, as a mutation has by itself.
"""

import argparse
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from time import monotonic

from tests.simulate.mutations import MUTATIONS
from tests.simulate.results import Results, code_digest
from tests.simulate.seed import OPERATIONS, Run
from tests.simulate.table import table, thin
from tests.simulate.worker import live, prepare

HASH_SEED = "0"
"""Sets of strings must have the same order in every process."""

DAY_S = 86_400.0
PROGRESS_S = 10.0


def seeds_of(text: str) -> Iterator[int]:
    """The seeds that the text names."""
    if text.isdigit():
        yield from range(1, int(text) + 1)
        return
    for part in text.rstrip(",").split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


@contextmanager
def _workers(jobs: int, story: bool) -> Iterator[Callable[[Callable[[int], Run], Iterable[int]], Iterator[Run]]]:
    """`map`, in so many processes; one is this process."""
    if jobs == 1:
        prepare(story)
        yield map
        return
    with multiprocessing.get_context("spawn").Pool(jobs, prepare, (story,)) as pool:
        yield partial(pool.imap_unordered, chunksize=1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulate", description="Simulate whole clusters under faults, in virtual time.")
    parser.add_argument("seeds", nargs="?", default="200", metavar="SEEDS", help="500 (the first 500), 17,4711 or 100-200")
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    parser.add_argument("--story", action="store_true", help="tell what happened in each seed")
    parser.add_argument("--full", action="store_true", help="fail if a row, step or fault was hit less than 100 times")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="keep what each seed came to there; go on where an earlier run ended")
    parser.add_argument("--mutation", default="", choices=["", *MUTATIONS], help="take this guard out; the run must notice")
    parser.add_argument(
        "--aim", default="", metavar="KIND", help="every second fault is of this kind (a function of faults.py): old_commands"
    )
    parser.add_argument("--operations", type=int, default=OPERATIONS, help=f"of a seed, at least ({OPERATIONS})")
    asked = parser.parse_args()
    began_s = told_s = monotonic()
    hit: Counter[str] = Counter()
    failed: list[Run] = []
    count, operations, faults, virtual_s = 0, 0, 0, 0.0
    seeds = list(seeds_of(asked.seeds))
    of = {"code": code_digest(Path.cwd()), "mutation": asked.mutation, "aim": asked.aim, "operations": asked.operations}
    results = None if asked.keep is None else Results(asked.keep, of)
    kept = {} if results is None else {seed: results.runs[seed] for seed in seeds if seed in results.runs}
    if kept:
        print(f"{len(kept)} of {len(seeds)} seeds are in {asked.keep} already", flush=True)
    one = partial(live, story=asked.story, mutation=asked.mutation, aim=asked.aim, operations=asked.operations)
    with _workers(min(asked.jobs, len(seeds)), asked.story) as each:
        for run in chain(kept.values(), each(one, [seed for seed in seeds if seed not in kept])):
            if results is not None and run.seed not in kept:
                results.add(run)
            count, operations, faults, virtual_s = count + 1, operations + run.operations, faults + run.faults, virtual_s + run.virtual_s
            hit.update(run.hit)
            if asked.story:
                print("\n".join(run.story))
            if run.violation:
                failed.append(run)
                print(f"seed {run.seed}: {run.violation}\n  replay: make simulate SEEDS={run.seed}, ARGS=--story", flush=True)
                if asked.mutation:
                    break
            if monotonic() - told_s > PROGRESS_S:
                told_s = monotonic()
                speed = (count - len(kept)) / (told_s - began_s)
                print(f"{count} of {len(seeds)} seeds, {len(failed)} failed, {speed:.2f} seeds/s", flush=True)
            if len(seeds) == 1:
                print(f"seed {run.seed}: digest {run.digest}")
    took_s = monotonic() - began_s
    print(table(hit))
    print(
        f"{count} seeds ({operations} operations, {faults} faults, {virtual_s / DAY_S:.2f} days) in {took_s:.0f} s, "
        f"{(count - len(kept)) / took_s:.2f} seeds/s; {len(failed)} failed{': ' + ','.join(str(run.seed) for run in failed) if failed else ''}"
    )
    if asked.mutation:
        print(f"mutation {asked.mutation}: " + (f"noticed after {count} seeds" if failed else "NOT NOTICED"))
        return 0 if failed else 1
    rare = thin(hit) if asked.full else []
    for name in rare:
        print(f"too rare: {name} ({hit[name]})")
    return 1 if failed or rare else 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != HASH_SEED:
        os.execve(sys.executable, [sys.executable, "-m", "tests.simulate", *sys.argv[1:]], {**os.environ, "PYTHONHASHSEED": HASH_SEED})
    sys.exit(main())
