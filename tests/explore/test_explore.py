"""The handoff's promises, in every state that small slices of faults can reach; that a missing guard would be noticed; and that what real hosts did
is known to the search."""

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tests.explore.acceptance import MET, doctored, judge
from tests.explore.configurations import HOLDS, Configuration
from tests.explore.moves import Moves
from tests.explore.mutations import MUTATIONS, REDUNDANT
from tests.explore.pairs import explore_pair
from tests.explore.recorder import load
from tests.explore.rules import Rules
from tests.explore.search import Found, explore
from tests.explore.walks import EVERYTHING, GROUNDS, walk
from tests.explore.world import BYSTANDER, Budget, begin

QUICK = (
    "no-fault",
    "lockless-libvirt-fails",
    "cold-move",
    "cold-move-late",
    "cold-move-link-cut",
    "cold-move-to-a-third-node",
)
QUICK_MUTATIONS = (
    "no-freeze",
    "no-inspection",
    "any-arrival",
    "no-paused-arrival",
    "no-epoch-nor-state",
    "fence-no-laying-down",
    "fence-register-at-once",
    "gone-if-silent",
    "late-commands",
)
RECORDED = {path.stem: path for path in sorted((Path(__file__).parent / "recorded").glob("*.json"))}
OFF_AND_STARTED = Budget(off=True, moves=(), starts=1)


def _told(found: Found) -> str:
    return "\n".join((found.violation, *found.story))


@pytest.mark.parametrize("name", QUICK)
def test_no_state_breaks_a_promise_and_each_can_end_well(name: str) -> None:
    found = explore(HOLDS[name].rules, HOLDS[name].budget)
    assert not found.violation, _told(found)
    assert found.states > 300, "the search went nowhere"


@pytest.mark.parametrize("name", QUICK_MUTATIONS)
def test_a_missing_guard_is_noticed_quickly(name: str) -> None:
    _finds(MUTATIONS[name])


def test_a_bound_is_told() -> None:
    """A search that was ended early, and reads as if it had been exhausted."""
    found = explore(Rules(), Budget(), 100, bound=True)
    assert (found.bounded, found.states) == (True, 100)
    with pytest.raises(RuntimeError, match="more than 100 states"):
        explore(Rules(), Budget(), 100)


# ---- what real hosts did


@pytest.mark.parametrize("name", MET)
def test_what_real_hosts_did_is_known(name: str) -> None:
    """A model of another protocol than the one that runs."""
    verdict = judge(load(RECORDED[name]), MET[name])
    assert verdict.accepted, "\n".join((f"{verdict.told} of {verdict.records} records are known; up to there:", *verdict.story))


def test_every_recording_is_judged() -> None:
    assert RECORDED.keys() == MET.keys()


DOCTORED = [(name, what) for name in MET for what in doctored(load(RECORDED[name]))]


@pytest.mark.parametrize("what", [what for name, what in DOCTORED if name == "plain"])
def test_what_must_never_be_is_not_known(what: str) -> None:
    """A search that knows everything finds nothing."""
    _refuses("plain", what)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "what"), [one for one in DOCTORED if one[0] != "plain"])
def test_what_must_never_be_is_not_known_with_faults_either(name: str, what: str) -> None:
    _refuses(name, what)


def test_a_phase_that_is_left_out_is_not_known() -> None:
    """A search that skips what the journal has to say."""
    recording = load(RECORDED["plain"])
    for place in range(2, len(recording.seen) - 1):
        left_out = replace(recording, seen=(*recording.seen[:place], *recording.seen[place + 1 :]))
        assert not judge(left_out, MET["plain"]).accepted, recording.seen[place]


# ---- two VMs


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Budget(off=True, moves=(), starts=1, agents=1), Budget(off=True, agents=1)),
        (Budget(off=True, moves=(), starts=1, power=1), Budget(off=True, power=1)),
        (Budget(off=True, cuts=1), Budget(off=True, moves=(), starts=1, cuts=1)),
    ],
)
def test_two_vms_reach_together_what_each_reaches_alone(one: Budget, other: Budget) -> None:
    """A host's crash that hits both brings neither anywhere that it would not come to alone."""
    found = explore_pair(Rules(), one, other)
    assert not found.violation
    assert found.alone == (explore(Rules(), one).states, explore(Rules(), other).states)


def test_nothing_that_is_written_for_one_vm_touches_another() -> None:
    """A transaction of one VM's operation that changes another's record, or needs it to be as it was."""
    first, moves = begin(Budget(), bystander=True), Moves(Rules())
    known, todo = {first}, [first]
    for world in todo:
        for move in moves(world):
            assert move.world.store.state.vms[BYSTANDER] == first.store.state.vms[BYSTANDER], move.says
            if move.world not in known:
                known.add(move.world)
                todo.append(move.world)
    assert len(known) == explore(Rules(), Budget()).states


# ---- whole slices


@pytest.mark.slow
def test_a_live_migration_and_a_start_beside_it() -> None:
    found = explore_pair(Rules(), Budget(), OFF_AND_STARTED)
    assert not found.violation
    assert found.alone == (explore(Rules(), Budget()).states, explore(Rules(), OFF_AND_STARTED).states)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in HOLDS if name not in QUICK])
def test_no_state_of_a_larger_slice_breaks_a_promise(name: str) -> None:
    found = explore(HOLDS[name].rules, HOLDS[name].budget)
    assert not found.violation, _told(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MUTATIONS if name not in QUICK_MUTATIONS])
def test_a_missing_guard_is_noticed(name: str) -> None:
    _finds(MUTATIONS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", REDUNDANT)
def test_a_redundant_guard_is_redundant_still(name: str) -> None:
    found = explore(REDUNDANT[name].rules, REDUNDANT[name].budget)
    assert not found.violation, _told(found)


def _refuses(name: str, what: str) -> None:
    assert not judge(doctored(load(RECORDED[name]))[what], MET[name]).accepted


def _finds(configuration: Configuration) -> None:
    found = explore(configuration.rules, configuration.budget)
    assert configuration.finds, "nothing is expected to be found"
    assert found.violation.startswith(configuration.finds), _told(found)


def test_walks_through_everything_keep_every_promise_and_some_come_to_an_end() -> None:
    """Faults that break a promise together, and by themselves do not; walks that begin nothing, or get nowhere."""
    for name, (rules, budget) in GROUNDS.items():
        moves = Moves(rules)
        walked = [walk(moves, budget, Random(f"{name} {number}")) for number in range(1, 7)]
        assert [one.violation for one in walked] == [""] * len(walked), name
        assert sum(one.faults for one in walked) > len(walked)
        assert any(one.home for one in walked)


def test_walks_find_what_a_missing_guard_lets_happen() -> None:
    """Walks that would call everything well."""
    moves = Moves(Rules(arrives_paused=False))
    walked = (walk(moves, EVERYTHING, Random(str(number))) for number in range(50))
    assert any(one.violation for one in walked)
