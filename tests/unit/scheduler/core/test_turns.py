"""The queue of live migrations: never more at once than the limits, nobody waits for ever, and every wait has its reason."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostler.model.journal import COMMITTED, COPYING, DESTINATION_READY, DONE, RESERVED
from hostler.model.records import Priority
from scheduler.core.records import (
    ClaimKind,
    ClaimRecord,
    Migration,
    OperationRecord,
    OperationState,
    PhaseEntry,
    StoredError,
    Verb,
)
from scheduler.core.state import ClusterState, Kept
from scheduler.core.turns import AGES_MS, HOLD_BACK_FIRST_MS, HOLD_BACK_MOST_MS, Limits, held_back_ms, queue, turn
from tests.examples import share
from tests.unit.scheduler.core.kept import Cluster

NODES = ("n1", "n2", "n3", "n4")
LIMITS = Limits(2, 2)


class Moves:
    """A state of migrations alone, in the order of acceptance."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.limits = limits
        self.state = ClusterState()
        self.names: list[str] = []

    def accept(
        self,
        source: str,
        destination: str,
        priority: Priority = Priority.NORMAL,
        phase: str = RESERVED,
        now_ms: int = 0,
        vm_id: str = "",
        named: bool = False,
        cold: bool = False,
    ) -> str:
        self.state.revision += 1
        number, revision = len(self.names), self.state.revision
        vm_id = vm_id or f"vm-{number}"
        migration = Migration(source, destination, "boot:1", priority=priority, named=named, cold=cold)
        operation = OperationRecord(
            f"op-{number:03}", Verb.MIGRATE_VM, vm_id, OperationState.PENDING, phase, "", (PhaseEntry(phase, now_ms, ""),),
            "user/ann", f"r{number}", "", now_ms, now_ms, migration=migration,
        )  # fmt: skip
        self.state.operations[operation.operation_id] = Kept(operation, revision)
        claim = ClaimRecord(vm_id, vm_id, destination, ClaimKind.MIGRATE_IN, {}, operation.operation_id)
        self.state.claims[(destination, vm_id)] = Kept(claim, revision)
        self.names.append(operation.operation_id)
        return operation.operation_id

    def change(self, operation_id: str, **fields: object) -> None:
        self.state.revision += 1
        kept = self.state.operations[operation_id]
        self.state.operations[operation_id] = Kept(replace(kept.record, **fields), self.state.revision)  # type: ignore[arg-type]

    def begin(self, operation_id: str) -> None:
        self.change(operation_id, phase=COPYING)

    def end(self, operation_id: str, state: OperationState = OperationState.SUCCEEDED, now_ms: int = 0) -> None:
        kept = self.state.operations[operation_id].record
        error = StoredError("FailedPrecondition", "MIGRATION_FAILED", "the link broke.") if state is OperationState.FAILED else None
        phases = (*kept.phases, PhaseEntry(COPYING, now_ms, ""), PhaseEntry(DONE, now_ms, ""))
        self.change(operation_id, phase=DONE, state=state, phases=phases, update_ms=now_ms, error=error)

    def its_turn(self, now_ms: int = 0) -> list[str]:
        return [name for name, why in queue(self.state, self.limits, now_ms).items() if not why]

    def begin_all(self, now_ms: int = 0) -> None:
        """One after the other, as a driver that looks again each time."""
        while ready := self.its_turn(now_ms):
            self.begin(ready[0])

    def running(self) -> list[OperationRecord]:
        return [kept.record for kept in self.state.operations.values() if kept.record.phase in (DESTINATION_READY, COPYING)]


def most(running: list[OperationRecord]) -> Limits:
    """The most that any node sends and receives, and any link carries."""
    found = [one.migration for one in running if one.migration is not None]
    sends = Counter(one.source_node_id for one in found)
    receives = Counter(one.destination_node_id for one in found)
    links = Counter((one.source_node_id, one.destination_node_id) for one in found)
    return Limits(*(max(each.values(), default=0) for each in (sends, receives, links)))


WISHES = st.lists(
    st.tuples(st.sampled_from(NODES), st.sampled_from(NODES), st.sampled_from(list(Priority))).filter(lambda wish: wish[0] != wish[1]),
    min_size=1,
    max_size=40,
)


@settings(max_examples=share(200), deadline=None)
@given(WISHES, st.lists(st.integers(0, 39), max_size=60), st.builds(Limits, *[st.integers(1, 3)] * 3))
def test_never_more_than_the_limits_and_all_have_their_turn(
    wishes: list[tuple[str, str, Priority]], ends: list[int], limits: Limits
) -> None:
    """A node that sends three at once, or one that waits though nothing is in its way: whatever is asked, in whatever order they end."""
    moves, wanted = Moves(limits), list(ends)
    for source, destination, priority in wishes:
        moves.accept(source, destination, priority)
    for _ in range(len(wishes) + 1):
        moves.begin_all()
        running = moves.running()
        seen = most(running)
        assert (seen.sends <= limits.sends, seen.receives <= limits.receives, seen.link <= limits.link) == (True, True, True)
        waiting = [name for name, why in queue(moves.state, limits, 0).items() if why]
        assert running or not waiting, "they wait for nobody"
        if not running:
            break
        moves.end(running[(wanted.pop() if wanted else 0) % len(running)].operation_id)
    assert all(kept.record.done for kept in moves.state.operations.values())


@settings(max_examples=share(100), deadline=None)
@given(st.data())
def test_one_that_waits_is_not_overtaken_for_ever(data: st.DataObject) -> None:
    """A LOW one that never goes because somebody always comes with HIGH, or with a move that needs one node less."""
    moves = Moves()
    patient = moves.accept("n1", "n2", Priority.LOW)
    now_ms, waited = 0, 0
    for _ in range(2 * AGES_MS // 60_000 + 8):
        for source, destination in data.draw(
            st.lists(st.sampled_from([("n1", "n3"), ("n3", "n2"), ("n1", "n2"), ("n4", "n2")]), max_size=4)
        ):
            moves.accept(source, destination, Priority.HIGH, now_ms=now_ms)
        moves.begin_all(now_ms)
        if moves.state.operations[patient].record.phase == COPYING:
            break
        for one in moves.running():
            moves.end(one.operation_id, now_ms=now_ms)
        now_ms, waited = now_ms + 60_000, waited + 1
    assert moves.state.operations[patient].record.phase == COPYING, f"still waiting after {waited} rounds"


def test_the_reason_names_the_node_and_how_many_are_before_it() -> None:
    """A wait that nobody can explain."""
    moves = Moves()
    for _ in range(2):
        moves.begin(moves.accept("n1", "n2"))
    waiting = [moves.accept("n1", "n3") for _ in range(4)]
    assert turn(moves.state, waiting[3], LIMITS, 0) == "Waits for a turn: n1 sends 2 already, 3 before it."
    assert turn(moves.state, waiting[0], LIMITS, 0) == "Waits for a turn: n1 sends 2 already."
    assert turn(moves.state, moves.accept("n4", "n2"), LIMITS, 0) == "Waits for a turn: n2 receives 2 already."


def test_a_link_carries_no_more_than_it_may_and_says_so() -> None:
    """Three copies that share one link because both nodes may have more; or a wait without a reason. The way back has its own count."""
    moves, limits = Moves(), Limits(sends=3, receives=3, link=1)
    moves.begin(moves.accept("n1", "n2"))
    second, third, elsewhere, back = (moves.accept(*pair) for pair in (("n1", "n2"), ("n1", "n2"), ("n1", "n3"), ("n2", "n1")))
    waits = queue(moves.state, limits, 0)
    assert waits[second] == "Waits for a turn: n1 sends n2 1 already."
    assert waits[third] == "Waits for a turn: n1 sends n2 1 already, 1 before it."
    assert waits[back] == ""
    moves.end(moves.names[0])
    assert [name for name, why in queue(moves.state, limits, 0).items() if not why] == [second, elsewhere, back]


def test_priority_first_then_acceptance() -> None:
    """An urgent move behind a whole drain, or two equals in an order that nobody asked for."""
    moves = Moves()
    for _ in range(2):
        moves.begin(moves.accept("n1", "n2"))
    low, first, second = (moves.accept("n1", "n3", priority) for priority in (Priority.LOW, Priority.NORMAL, Priority.NORMAL))
    high = moves.accept("n1", "n4", Priority.HIGH)
    moves.change(first, reason="somebody wrote it again")
    assert list(queue(moves.state, LIMITS, 0)) == [high, first, second, low]


def test_what_is_off_or_committed_copies_nothing() -> None:
    """A link that stands idle because a move waits for another that only changes an owner, or has arrived already."""
    moves = Moves()
    moves.accept("n1", "n2", phase=COMMITTED)
    moves.accept("n1", "n2", phase=COMMITTED)
    moves.accept("n1", "n2", cold=True)
    moves.accept("n1", "n2", cold=True)
    assert turn(moves.state, moves.accept("n1", "n2"), LIMITS, 0) == ""


def test_nobody_waits_for_one_that_cannot_go() -> None:
    """A node that is emptied stops because the destination of two of its moves does not answer."""
    moves = Moves()
    moves.state.nodes = {}
    stuck = [moves.accept("n1", "n2") for _ in range(2)]
    free = moves.accept("n1", "n3")
    answers = queue(moves.state, LIMITS, 0, silent={"n2"})
    assert [answers[name] for name in (*stuck, free)] == ["n2 does not answer.", "n2 does not answer.", ""]
    moves.change(stuck[0], cancel_requested=True)
    assert turn(moves.state, stuck[0], LIMITS, 0, silent={"n2"}) == "", "a cancelled one goes on to its end"


def failed_before(times: int, **how: object) -> tuple[Moves, str]:
    """A VM whose copy has failed so often in a row, the last time at 1,000,000 ms, and is to be moved again."""
    cluster = Cluster()
    cluster.node("n1")
    cluster.off("web")
    moves = Moves()
    moves.state.vms = cluster.state.vms
    moves.end(moves.accept("n1", "n2", vm_id="web", now_ms=1), OperationState.FAILED, 1)
    moves.end(moves.accept("n1", "n2", vm_id="web", now_ms=1), now_ms=2)
    for number in range(times):
        moves.end(moves.accept("n1", "n2", vm_id="web", now_ms=10), OperationState.FAILED, 1_000_000 - times + 1 + number)
    return moves, moves.accept("n1", "n2", vm_id="web", now_ms=1_000_000, **how)  # type: ignore[arg-type]


def test_a_failed_copy_holds_the_next_one_back_and_says_for_how_long() -> None:
    """A VM that cannot be moved and is tried all the time, at the cost of those that can."""
    moves, again = failed_before(2)
    assert turn(moves.state, again, LIMITS, 1_000_000 + 2 * HOLD_BACK_FIRST_MS - 18_000) == (
        "Waits 18 s more, because its copy failed 2 times in a row (the link broke). "
        "Name a destination or use the priority HIGH to go at once."
    )
    assert turn(moves.state, again, LIMITS, 1_000_000 + 2 * HOLD_BACK_FIRST_MS) == ""


def test_who_names_a_destination_or_uses_high_is_not_held_back() -> None:
    """A person who has repaired the link and is told to wait five minutes."""
    for how in ({"named": True}, {"priority": Priority.HIGH}):
        moves, again = failed_before(9, **how)
        assert turn(moves.state, again, LIMITS, 1_000_001) == ""


def test_one_that_is_held_back_is_in_nobodys_way() -> None:
    """A queue that stands still behind a VM that may not go yet."""
    moves, _ = failed_before(9)
    moves.begin(moves.accept("n1", "n2"))
    assert turn(moves.state, moves.accept("n1", "n2"), LIMITS, 1_000_001) == ""


def test_it_doubles_up_to_the_most() -> None:
    """A wait of hours after many failures."""
    moves, _ = failed_before(1)
    failed = [kept.record for kept in moves.state.operations.values() if kept.record.state is OperationState.FAILED][-1:]
    waits = [held_back_ms(failed * times, failed[0].update_ms) for times in range(8)]
    assert waits == [0, 20_000, 40_000, 80_000, 160_000, HOLD_BACK_MOST_MS, HOLD_BACK_MOST_MS, HOLD_BACK_MOST_MS]
    assert held_back_ms(failed * 100_000, failed[0].update_ms) == HOLD_BACK_MOST_MS


@pytest.mark.parametrize("behind_ms", [0, 5_000, HOLD_BACK_FIRST_MS, HOLD_BACK_FIRST_MS + 1, 1_958_000, 10**9])
def test_a_replica_whose_clock_is_behind_holds_it_back_for_twice_the_time_at_most(behind_ms: int) -> None:
    """A migration that stands for half an hour with "20 s more" on it, because another replica, whose clock is ahead, wrote of the failure."""
    moves, _ = failed_before(1)
    failed = [kept.record for kept in moves.state.operations.values() if kept.record.state is OperationState.FAILED][-1:]
    begin_ms = failed[0].update_ms - behind_ms
    assert held_back_ms(failed, begin_ms) <= HOLD_BACK_FIRST_MS
    assert 0 in (held_back_ms(failed, begin_ms), held_back_ms(failed, begin_ms + 2 * HOLD_BACK_FIRST_MS))
