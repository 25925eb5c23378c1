"""The handoff's promises, in every state that small slices of faults can reach; and that a missing guard would be noticed."""

import pytest

from tests.explore.configurations import HOLDS, Configuration
from tests.explore.mutations import MUTATIONS, REDUNDANT
from tests.explore.search import Found, explore

QUICK = ("no-fault", "lockless-libvirt-fails")
QUICK_MUTATIONS = (
    "no-freeze",
    "no-inspection",
    "any-arrival",
    "no-paused-arrival",
    "no-epoch-nor-state",
    "fence-no-laying-down",
    "fence-register-at-once",
    "gone-if-silent",
)


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
@pytest.mark.parametrize("name", REDUNDANT)
def test_a_redundant_guard_is_redundant_still(name: str) -> None:
    found = explore(REDUNDANT[name].rules, REDUNDANT[name].budget)
    assert not found.violation, _told(found)


def _finds(configuration: Configuration) -> None:
    found = explore(configuration.rules, configuration.budget)
    assert configuration.finds, "nothing is expected to be found"
    assert found.violation.startswith(configuration.finds), _told(found)
