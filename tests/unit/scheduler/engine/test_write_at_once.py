"""A write that is decided on this replica's own copy first: it may be behind the store, and then the store's word counts."""

from collections.abc import Sequence
from typing import Any, cast

import pytest

from hostler.model.domain import ServiceClass
from scheduler.core.records import FlavorRecord, flavor_key
from scheduler.core.state import ClusterState
from scheduler.core.transaction import Transaction
from scheduler.engine.writer import Writer
from scheduler.ports import Committed, Compare, OutcomeUnknown, Refused, StoreUnavailable, TxnResult, Unchanged, Write

KEY = flavor_key("small")


class Copy:
    """A mirror that is at revision `behind` until it is refreshed, then at `newest`."""

    def __init__(self, behind: int, newest: int) -> None:
        self.state, self._newest = ClusterState(revision=behind), ClusterState(revision=newest)
        self.refreshed = 0

    async def refresh(self) -> ClusterState:
        self.refreshed += 1
        self.state = self._newest
        return self.state

    async def await_revision(self, revision: int) -> None:
        return None


class Store:
    """Holds KEY at one revision; `lost` is raised by the first write, which is carried out or not."""

    def __init__(self, revision: int, lost: Exception | None = None, *, carried_out: bool = False) -> None:
        self.revision = revision
        self.written = 0
        self._lost, self._carried_out = lost, carried_out

    async def txn(self, compares: Sequence[Compare], writes: Sequence[Write]) -> TxnResult:
        lost, self._lost = self._lost, None
        holds = all(isinstance(compare, Unchanged) and compare.mod_revision == self.revision for compare in compares)
        if holds and (lost is None or self._carried_out):
            self.revision, self.written = self.revision + 1, self.written + 1
        if lost is not None:
            raise lost
        return Committed(self.revision) if holds else Refused(0, ())


def wanted_at(*revisions: int) -> Any:  # noqa: ANN401 a decision
    """Wants to write KEY if the state is at one of these revisions, under that revision's guard."""

    def decide(state: ClusterState) -> Transaction | None:
        record = FlavorRecord("small", 1, 64, 0, ServiceClass.BURSTABLE)
        return Transaction({KEY: state.revision}, {KEY: record}) if state.revision in revisions else None

    return decide


def writer(store: Store, copy: Copy) -> Writer:
    return Writer(cast(Any, store), cast(Any, copy))


async def test_what_the_copy_knows_rightly_costs_one_transaction() -> None:
    """A frozen guest that waits for questions whose answers were known."""
    store, copy = Store(5), Copy(5, 5)
    assert await writer(store, copy).apply_at_once(wanted_at(5)) == 6
    assert (store.written, copy.refreshed) == (1, 0)


@pytest.mark.parametrize("wanted", [(5, 7), (7,)])
async def test_a_copy_that_is_behind_is_not_believed(wanted: tuple[int, ...]) -> None:
    """A write that is given up, or carried out on what is not so any more, because this replica had not heard the last of it."""
    store, copy = Store(7), Copy(5, 7)
    assert await writer(store, copy).apply_at_once(wanted_at(*wanted)) == 8
    assert store.written == 1


async def test_nothing_is_written_if_the_newest_state_wants_nothing() -> None:
    store, copy = Store(7), Copy(5, 7)
    assert await writer(store, copy).apply_at_once(wanted_at(5)) == 0
    assert store.written == 0


@pytest.mark.parametrize(("lost", "carried_out", "wrote"), [
    (OutcomeUnknown("lost"), True, 0),
    (OutcomeUnknown("lost"), False, 6),
    (StoreUnavailable("no leader"), False, 6),
])  # fmt: skip
async def test_a_write_whose_outcome_is_not_known_is_decided_anew(lost: Exception, carried_out: bool, wrote: int) -> None:
    """A write that is made twice, or not at all."""
    store = Store(5, lost, carried_out=carried_out)
    copy = Copy(5, 6 if carried_out else 5)
    assert await writer(store, copy).apply_at_once(wanted_at(5)) == wrote
    assert store.written == 1
