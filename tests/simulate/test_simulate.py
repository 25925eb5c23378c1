"""The simulation itself: some seeds keep every promise, a seed is the same each time, and a guard that is taken out is noticed."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.simulate.loop import Stuck, VirtualLoop
from tests.simulate.results import Results
from tests.simulate.seed import Run

SEEDS = "1-3"
"""Some seconds each; `make simulate` runs more."""

SHORT_SEED = ("1,", "--operations", "60")
"""The one that `make check` lives through, twice."""


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, as `make simulate` runs it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}
    return subprocess.run(
        [sys.executable, "-m", "tests.simulate", *arguments], capture_output=True, text=True, check=False, env=environment, timeout=300
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_some_seeds_keep_every_promise() -> None:
    """A promise that is broken under faults: two copies, a ledger that does not add up, an operation that never ends, something left over."""
    ran = simulate(SEEDS)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]


@pytest.mark.timeout(300)
def test_a_seed_keeps_every_promise_and_is_the_same_each_time() -> None:
    """The same, in one seed; and a failing seed that cannot be looked at, because it does something else the next time."""
    ran = [simulate(*SHORT_SEED) for _ in range(2)]
    assert [one.returncode for one in ran] == [0, 0], ran[0].stdout[-3000:] + ran[0].stderr[-3000:]
    digests = [re.findall(r"digest (\w+)", one.stdout) for one in ran]
    assert len(digests[0]) == 1
    assert digests[0] == digests[1]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_guard_that_is_taken_out_is_noticed() -> None:
    """A simulation that would say that all is well whatever the product does."""
    ran = simulate("1-40", "--jobs", "1", "--mutation", "any-owned-arrival")
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]


def test_a_loop_in_which_nobody_waits_for_the_clock_is_stuck() -> None:
    """A deadlock that makes the simulation hang in place of saying so."""
    loop = VirtualLoop()
    with pytest.raises(Stuck):
        loop.run_until_complete(loop.create_future())
    loop.close()


def test_what_a_run_that_was_ended_has_kept_is_gone_on_with(tmp_path: Path) -> None:
    """Hours of seeds that are lost with the process; or seeds of other code that are counted among those of this one."""
    kept, run = tmp_path / "kept", Run(7, "", "digest", Counter({"row": 3}), 200, 5, 12.5, ())
    Results(kept, {"code": "a"}).add(run)
    with kept.open("a") as file:
        file.write('{"seed": 8, "viol')
    assert Results(kept, {"code": "a"}).runs == {7: run}
    assert Results(kept, {"code": "b"}).runs == {}
    assert Results(kept, {"code": "a"}).runs == {}
