"""When a deadline stops an operation, and how such an end differs from a person's cancel."""

from dataclasses import replace

from hostler.model.journal import COMMITTED, COPYING, Request, begin, cancelled, enter, expired, fail, stop_error
from hostler.model.records import OperationRecord, OperationState, Verb


def migration(deadline_s: int) -> OperationRecord:
    return enter(begin(Request("user/ann", "r-1", "d", 1_000, deadline_s), Verb.MIGRATE_VM, "web", ""), COPYING, "", "s1@1", 1_500)


def test_it_stops_at_its_deadline_and_not_before() -> None:
    """A migration that is stopped early, or never, or twice."""
    assert expired(migration(2), 2_999) is None
    assert expired(migration(0), 10**12) is None
    due = expired(migration(2), 3_000)
    assert due is not None
    assert (due.cancel_requested, due.expired) == (True, True)
    assert expired(due, 4_000) is None


def test_what_is_past_its_point_of_no_return_goes_on() -> None:
    """A guest that is taken back after its owner has changed."""
    assert expired(enter(migration(2), COMMITTED, "", "s1@1", 1_600), 9_000) is None


def test_a_deadline_fails_and_a_person_cancels() -> None:
    """An operation that is called cancelled although nobody did, or that does not say why it ended."""
    late = expired(migration(2), 3_000)
    assert late is not None
    assert stop_error(late).reason == "DEADLINE"
    assert fail(late, stop_error(late), "s1@1", 3_500).state is OperationState.FAILED
    asked = cancelled(migration(2))
    assert asked is not None
    assert stop_error(asked).reason == "OPERATION_CANCELLED"
    assert fail(asked, stop_error(asked), "s1@1", 3_500).state is OperationState.CANCELLED
    assert expired(replace(asked), 9_000) is None, "a person was first"
