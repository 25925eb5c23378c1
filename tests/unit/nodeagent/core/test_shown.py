"""What a host of a cluster shows of the VMs that it holds."""

import pytest

from hostler.model.domain import DomainSpec, ServiceClass
from hostler.model.node import VMPower, VMStatus
from hostler.model.owner import OwnerState
from hostler.model.records import Observed
from nodeagent.core.definitions import Definition
from nodeagent.core.shown import NOT_KNOWN, VMView, held_views

SPEC = DomainSpec("uid", "web-1", 1, 100, 64, ServiceClass.BURSTABLE)


DEFINITION = Definition(SPEC, 3, "op")


def shown(definition: Definition = DEFINITION, power: VMPower | None = VMPower.ON, leaving: bool = False, stale: str = "") -> VMView:
    statuses = {} if power is None else {"uid": VMStatus("uid", 3, True, power)}
    return held_views("n1", {"uid": definition}, statuses, frozenset({"uid"}) if leaving else frozenset(), stale)["web-1"]


@pytest.mark.parametrize(
    ("power", "observed"),
    [
        (VMPower.ON, Observed.RUNNING),
        (VMPower.PAUSED, Observed.RUNNING),
        (VMPower.OFF, Observed.STOPPED),
        (VMPower.CRASHED, Observed.CRASHED),
        (VMPower.UNKNOWN, Observed.RUNNING),
    ],
)
def test_what_is_seen_is_shown(power: VMPower, observed: Observed) -> None:
    """A power that is shown as another, or that nobody thought of."""
    assert shown(power=power).vm.observed is observed


def test_what_was_never_seen_counts_as_running_and_says_so() -> None:
    """A VM shown as stopped by a host that could not look: somebody starts it a second time."""
    view = shown(power=None, stale="It does not answer.")
    assert (view.vm.observed, view.stale) == (Observed.RUNNING, NOT_KNOWN)


def test_moving_is_shown_at_both_ends() -> None:
    """A VM on its way, shown as an ordinary one."""
    assert shown(Definition(SPEC, 3, "op", incoming=True), VMPower.PAUSED).vm.owner.state is OwnerState.HANDOFF
    assert shown(leaving=True).vm.owner.state is OwnerState.HANDOFF
    assert shown().vm.owner.state is OwnerState.RUNNING


def test_the_etag_changes_with_what_is_true_and_not_with_staleness() -> None:
    """A VM that changed under an old etag; an etag that changes because nobody answers."""
    assert shown().etag == shown(stale="It does not answer.").etag
    assert len({shown().etag, shown(power=VMPower.OFF).etag, shown(Definition(SPEC, 4, "op")).etag}) == 3


def test_of_two_with_one_name_the_newer_owner_s_is_shown() -> None:
    """A leftover of a deleted VM that hides the one of the same name which runs."""
    old = Definition(DomainSpec("old", "web-1", 1, 100, 64, ServiceClass.BURSTABLE), 2, "op")
    new = Definition(SPEC, 5, "op")
    assert held_views("n1", {"uid": new, "old": old}, {}, frozenset(), "")["web-1"].vm.uid == "uid"
