"""The source's table: each row once, by name, and the laws of safety over every combination of evidence there can be."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest

from hostler.model.copy import GONE, Copy, Stage
from hostler.model.owner import Owner, OwnerRead, OwnerState
from nodeagent.core.definitions import Outgoing
from nodeagent.core.observed import Locks
from nodeagent.core.outgoing import Act, Copying, Ending, Evidence, gone_copy, next_act

EPOCH = 7
HANDOFF = Outgoing("op", "uid", EPOCH, 40, "n2", "n2:1", "n2:2", (), 0, Stage.COPYING)


def owner(state: OwnerState, epoch: int = EPOCH, operation_id: str = "op") -> OwnerRead:
    return OwnerRead("uid", Owner(epoch, "n1", "boot:1", state, operation_id), 41, 50)


OURS = owner(OwnerState.HANDOFF)
BACK = owner(OwnerState.RUNNING)
OWNERS = [
    None,
    *(owner(state, epoch, op) for state, epoch, op in product(OwnerState, (EPOCH - 1, EPOCH, EPOCH + 1), ("op", "another"))),
]


def evidence(
    record: OwnerRead | None = OURS,
    copy: Copy = Copy.RUNNING,
    frozen: bool = False,
    copying: Copying = Copying.RUNNING,
    arrived: bool = False,
    locks: Locks | None = None,
    lockless: bool = False,
    settled: bool = False,
    leaving: bool = False,
) -> Evidence:
    return Evidence(record, copy, frozen, copying, arrived, locks, lockless, settled, leaving)


def every() -> Iterator[Evidence]:
    """Every combination of evidence, those that cannot happen included."""
    for values in product(OWNERS, Copy, (False, True), Copying, (False, True), (None, *Locks), *[(False, True)] * 3):
        yield Evidence(*values)


ROWS = [
    ("nobody knows the owner", evidence(None), Act.WAIT),
    ("nobody knows the owner, and it is frozen", evidence(None, frozen=True, copy=Copy.SWITCHED, locks=Locks.FREE), Act.WAIT),
    ("committed", evidence(owner(OwnerState.COMMITTED, EPOCH + 1), copy=Copy.SWITCHED, frozen=True), Act.KILL),
    ("committed, and the copy runs", evidence(owner(OwnerState.COMMITTED, EPOCH + 1)), Act.KILL),
    ("committed, and nobody can see the copy", evidence(owner(OwnerState.COMMITTED, EPOCH + 1), copy=Copy.UNKNOWN), Act.KILL),
    ("committed, and it is gone", evidence(owner(OwnerState.COMMITTED, EPOCH + 1), copy=Copy.GONE_MIGRATED), Act.FINISH),
    ("taken over, and it is gone", evidence(owner(OwnerState.RUNNING, EPOCH + 2), copy=Copy.ABSENT), Act.FINISH),
    ("aborted while frozen", evidence(BACK, frozen=True, copy=Copy.SWITCHED), Act.THAW),
    ("aborted while copying", evidence(BACK), Act.STOP_COPY),
    ("aborted after the switch", evidence(BACK, copy=Copy.SWITCHED, copying=Copying.FAILED), Act.RESUME),
    ("aborted, paused", evidence(BACK, copy=Copy.PAUSED, copying=Copying.FAILED), Act.RESUME),
    ("aborted, nobody can see the copy", evidence(BACK, copy=Copy.UNKNOWN, copying=Copying.FAILED), Act.WAIT),
    ("aborted, it runs", evidence(BACK, copying=Copying.FAILED), Act.ABORTED),
    ("aborted, it is gone", evidence(BACK, copy=Copy.ABSENT, copying=Copying.FAILED), Act.ABORTED),
    ("handoff, nothing begun", evidence(copying=Copying.NOT_BEGUN), Act.BEGIN_COPY),
    ("handoff, copying", evidence(), Act.WAIT),
    ("handoff, arrived", evidence(copy=Copy.SWITCHED, arrived=True), Act.FREEZE),
    ("handoff, the call returned", evidence(copy=Copy.SWITCHED, copying=Copying.RETURNED), Act.FREEZE),
    ("handoff, frozen", evidence(copy=Copy.SWITCHED, arrived=True, frozen=True), Act.INSPECT),
    ("handoff, frozen and clean", evidence(copy=Copy.SWITCHED, arrived=True, frozen=True, locks=Locks.FREE), Act.COMMIT),
    ("handoff, frozen, a lock is held", evidence(copy=Copy.SWITCHED, arrived=True, frozen=True, locks=Locks.HELD), Act.FAIL),
    ("handoff, frozen, locks prove nothing", evidence(copy=Copy.SWITCHED, arrived=True, frozen=True, locks=Locks.UNPROVABLE), Act.FAIL),
    ("handoff, frozen while it ran", evidence(copy=Copy.RUNNING, arrived=True, frozen=True, locks=Locks.FREE), Act.FAIL),
    ("handoff, gone because it migrated", evidence(copy=Copy.GONE_MIGRATED), Act.COMMIT),
    ("handoff, gone, nobody knows why", evidence(copy=Copy.ABSENT), Act.FAIL),
    ("handoff, nobody can see the copy", evidence(copy=Copy.UNKNOWN), Act.WAIT),
    ("handoff, the call failed", evidence(copying=Copying.FAILED), Act.FAIL),
    ("handoff, not running and nothing begun", evidence(copy=Copy.PAUSED, copying=Copying.NOT_BEGUN), Act.FAIL),
    ("lockless, arrived", evidence(copy=Copy.SWITCHED, arrived=True, lockless=True), Act.WAIT),
    ("lockless, gone because it migrated", evidence(copy=Copy.GONE_MIGRATED, arrived=True, lockless=True), Act.COMMIT),
    ("lockless, libvirt is about to end it", evidence(copy=Copy.SWITCHED, arrived=True, lockless=True, leaving=True), Act.FREEZE),
    (
        "lockless, libvirt is about to end it, and it is frozen",
        evidence(copy=Copy.SWITCHED, arrived=True, frozen=True, lockless=True, leaving=True),
        Act.COMMIT,
    ),
    (
        "lockless, libvirt is about to end it, and it was frozen by an earlier agent",
        evidence(copy=Copy.SWITCHED, frozen=True, copying=Copying.FAILED, lockless=True, leaving=True),
        Act.COMMIT,
    ),
    ("lockless, it runs, whatever is written", evidence(arrived=True, lockless=True, leaving=True), Act.WAIT),
    (
        "lockless, the call failed after the switch",
        evidence(copy=Copy.SWITCHED, arrived=True, copying=Copying.FAILED, lockless=True),
        Act.WAIT,
    ),
    (
        "lockless, the call failed after the switch, and libvirt is through with it",
        evidence(copy=Copy.SWITCHED, arrived=True, copying=Copying.FAILED, lockless=True, settled=True),
        Act.FAIL,
    ),
    (
        "lockless, the call returned and libvirt has not ended it yet",
        evidence(copy=Copy.SWITCHED, arrived=True, copying=Copying.RETURNED, lockless=True, settled=True),
        Act.WAIT,
    ),
    (
        "lockless, the call failed and it runs again",
        evidence(copy=Copy.RUNNING, arrived=True, copying=Copying.FAILED, lockless=True),
        Act.FAIL,
    ),
    ("lockless, frozen by an earlier agent", evidence(frozen=True, copying=Copying.FAILED, lockless=True), Act.FAIL),
    ("another operation's handoff", evidence(owner(OwnerState.HANDOFF, operation_id="another")), Act.WAIT),
    ("taken for off, and it was not", evidence(owner(OwnerState.STOPPED)), Act.KILL),
    ("taken for off, and gone", evidence(owner(OwnerState.STOPPED), copy=Copy.ABSENT), Act.ABORTED),
    ("frozen by a person's leave", evidence(owner(OwnerState.FROZEN), frozen=True), Act.WAIT),
]


@pytest.mark.parametrize(("known", "act"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_each_row(known: Evidence, act: Act) -> None:
    """A row that was changed without its being meant."""
    assert next_act(HANDOFF, known) is act


def test_a_commit_is_asked_for_only_with_proof() -> None:
    """Two writers: the owner changes although the source may still write."""
    for known in every():
        if next_act(HANDOFF, known) is Act.COMMIT:
            proved = known.frozen and known.copy is Copy.SWITCHED and known.locks is Locks.FREE and not known.lockless
            told = known.frozen and known.copy is Copy.SWITCHED and known.leaving and known.lockless
            assert proved or told or known.copy is Copy.GONE_MIGRATED, known
            assert known.owner is not None
            record = known.owner.owner
            assert (record.state, record.epoch, record.operation_id) == (OwnerState.HANDOFF, EPOCH, "op"), known


def test_the_copy_goes_on_only_under_its_own_epoch() -> None:
    """Two copies: the source continues although another owner may have been made."""
    for known in every():
        if next_act(HANDOFF, known) in (Act.THAW, Act.RESUME, Act.ABORTED, Act.STOP_COPY):
            assert known.owner is not None
            record = known.owner.owner
            off = record.state is OwnerState.STOPPED and known.copy in GONE
            assert (record.state, record.epoch) == (OwnerState.RUNNING, EPOCH) or off, known


def test_another_epoch_kills_whatever_is_there() -> None:
    """A copy that survives the change of owner, or a fence; one that is killed while it is still the owner's, and may run."""
    for known in every():
        act = next_act(HANDOFF, known)
        other = known.owner is not None and known.owner.owner.epoch != EPOCH
        fenced = known.owner is not None and not other and known.owner.owner.state is OwnerState.STOPPED
        assert other == (act is Act.FINISH or (act is Act.KILL and not fenced)), known
        if other or fenced:
            assert (act is not Act.KILL) == (known.copy in GONE), known


def test_memory_is_copied_only_once_and_only_in_a_handoff() -> None:
    """A migration begun for nobody, or a second one beside the first."""
    for known in every():
        if next_act(HANDOFF, known) is Act.BEGIN_COPY:
            assert known.owner == OURS, known
            assert (known.copy, known.copying, known.frozen) == (Copy.RUNNING, Copying.NOT_BEGUN, False), known


def test_a_guest_is_frozen_only_when_its_copy_may_be_there() -> None:
    """Downtime for nothing: a guest stopped before there is anything to commit."""
    for known in every():
        if next_act(HANDOFF, known) is Act.FREEZE:
            assert known.arrived or known.copying is Copying.RETURNED or known.leaving, known
            assert known.owner == OURS, known
            assert not known.frozen, known


def test_no_wait_without_something_to_wait_for() -> None:
    """Limbo: the source waits although nothing that it knows of will ever change."""
    for known in every():
        if next_act(HANDOFF, known) is Act.WAIT and known.owner in (OURS, BACK):
            going_on = known.copying in (Copying.RUNNING, Copying.RETURNED) or known.copy is Copy.UNKNOWN
            going_on = going_on or (known.lockless and known.copy is Copy.SWITCHED and not known.settled)
            assert going_on, known


def test_nothing_is_done_for_somebody_else() -> None:
    """A record that is neither this handoff's nor its end: only a person's or the scheduler's next word counts."""
    for known in every():
        record = known.owner.owner if known.owner is not None else None
        ours = record is not None and record.state is OwnerState.HANDOFF and record.operation_id == "op"
        if record is None or (record.epoch == EPOCH and not ours and record.state not in (OwnerState.RUNNING, OwnerState.STOPPED)):
            assert next_act(HANDOFF, known) is Act.WAIT, known


def test_only_the_hypervisors_word_tells_a_source_that_migrated_from_one_that_is_gone() -> None:
    """A source that ran on and then died is taken for one that migrated away: its older copy is resumed over a newer disk."""
    for stage, told, written, copying in product((Stage.PREPARED, Stage.COPYING, Stage.FAILED), Ending, Ending, Copying):
        seen = gone_copy(replace(HANDOFF, stage=stage), told, written, copying)
        vouched = Ending.MIGRATED in (told, written) or copying is Copying.RETURNED
        assert seen in GONE
        assert seen is Copy.ABSENT or (vouched and stage is not Stage.PREPARED), (stage, told, written, copying)


@pytest.mark.parametrize(
    ("told", "written", "copying", "copy"),
    [
        (Ending.MIGRATED, Ending.UNTOLD, Copying.RUNNING, Copy.GONE_MIGRATED),
        (Ending.UNTOLD, Ending.UNTOLD, Copying.RETURNED, Copy.GONE_MIGRATED),
        (Ending.UNTOLD, Ending.MIGRATED, Copying.FAILED, Copy.GONE_MIGRATED),
        (Ending.OTHERWISE, Ending.MIGRATED, Copying.FAILED, Copy.GONE_MIGRATED),
        (Ending.OTHERWISE, Ending.UNTOLD, Copying.FAILED, Copy.ABSENT),
        (Ending.UNTOLD, Ending.OTHERWISE, Copying.FAILED, Copy.ABSENT),
        (Ending.UNTOLD, Ending.UNTOLD, Copying.FAILED, Copy.ABSENT),
    ],
)
def test_an_agent_that_was_away_goes_by_what_was_written_down(told: Ending, written: Ending, copying: Copying, copy: Copy) -> None:
    """A guest called crashed although the hypervisor's own record says that it migrated away."""
    assert gone_copy(HANDOFF, told, written, copying) is copy
