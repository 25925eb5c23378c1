"""The handoff's promises, in every state that small slices of faults can reach; and that a missing guard would be noticed."""

import pytest

from tests.explore.configurations import HOLDS, Configuration
from tests.explore.mutations import COMMIT_BY_OPERATION, MUTATIONS
from tests.explore.search import Found, explore

QUICK = ("no-fault", "lockless-libvirt-fails")
QUICK_MUTATIONS = ("no-freeze", "no-inspection", "any-arrival", "no-paused-arrival", "no-epoch-nor-state")


def _told(found: Found) -> str:
    return "\n".join((found.violation, *found.story))


@pytest.mark.parametrize("name", QUICK)
def test_no_state_breaks_a_promise_and_each_can_end_well(name: str) -> None:
    found = explore(HOLDS[name].rules, HOLDS[name].budget)
    assert not found.violation, _told(found)
    assert found.states > 1000, "the search went nowhere"


@pytest.mark.parametrize("name", QUICK_MUTATIONS)
def test_a_missing_guard_is_noticed_quickly(name: str) -> None:
    _finds(MUTATIONS[name])


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
def test_a_commit_that_compares_the_operation_alone_is_safe_here() -> None:
    found = explore(COMMIT_BY_OPERATION.rules, COMMIT_BY_OPERATION.budget)
    assert not found.violation, _told(found)


def _finds(configuration: Configuration) -> None:
    found = explore(configuration.rules, configuration.budget)
    assert configuration.finds, "nothing is expected to be found"
    assert found.violation.startswith(configuration.finds), _told(found)
