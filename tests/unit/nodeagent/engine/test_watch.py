"""The ring of changes: every past moment that it remembers can be had, every change is told once and in order, and what it forgot is not made up."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.errors import OutOfRange, Reason
from nodeagent.engine.watch import Ring

PUTS = st.lists(st.tuples(st.sampled_from("abc"), st.one_of(st.none(), st.integers(0, 2))), max_size=40)


@given(puts=PUTS, capacity=st.integers(1, 10))
def test_every_remembered_moment_is_as_it_was(puts: list[tuple[str, int | None]], capacity: int) -> None:
    """A page of a list that shows another moment than its first page; a gap where the ring has forgotten."""
    ring: Ring[int] = Ring("h", {"a": 9}, capacity)
    moments = {ring.revision: dict(ring.things)}
    for name, thing in puts:
        ring.put(name, thing)
        moments[ring.revision] = dict(ring.things)
    for revision, moment in moments.items():
        if ring.revision - revision > capacity:
            with pytest.raises(OutOfRange) as caught:
                ring.changes_after(revision)
            assert caught.value.reason is Reason.REVISION_COMPACTED
            continue
        assert ring.at(revision) == moment
        replayed = dict(moment)
        for change in ring.changes_after(revision):
            assert replayed.get(change.name) == change.before
            replayed |= {change.name: change.now} if change.now is not None else {}
            if change.now is None:
                del replayed[change.name]
        assert replayed == ring.things


def test_what_is_so_already_is_no_change() -> None:
    """Watchers who are woken for nothing."""
    ring: Ring[int] = Ring("h", {"a": 1, "b": 2})
    ring.put_all({"a": 1, "b": 2})
    assert ring.changes_after(ring.revision) == []
    ring.put_all({"a": 1, "c": 3})
    assert [(change.name, change.now) for change in ring.changes_after(1)] == [("b", None), ("c", 3)]


def test_a_token_from_the_future_is_refused() -> None:
    """A made-up token that waits for ever."""
    ring: Ring[int] = Ring("h")
    with pytest.raises(OutOfRange) as caught:
        ring.changes_after(ring.revision + 1)
    assert caught.value.reason is Reason.REVISION_UNKNOWN


async def test_a_follower_that_falls_behind_is_told_so() -> None:
    """A slow watcher that misses changes and does not know it."""
    ring: Ring[int] = Ring("h", capacity=2)
    following = ring.follow(ring.revision)
    ring.put("a", 1)
    change = await anext(following)
    assert change is not None
    assert (change.name, change.now) == ("a", 1)
    for thing in range(2, 6):
        ring.put("a", thing)
    with pytest.raises(OutOfRange):
        await anext(following)


async def test_a_change_wakes_everybody_who_waits() -> None:
    """A watcher that sleeps through a change."""
    ring: Ring[int] = Ring("h")
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(ring.moves_on(ring.revision, 60), name=f"waiter {n}") for n in range(3)]
        await asyncio.sleep(0)
        ring.put("a", 1)
    assert [task.result() for task in waiting] == [True] * 3
    assert await ring.moves_on(ring.revision, 0) is False
