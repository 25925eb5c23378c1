"""Loops that should run for ever: restarted with growing pauses, given up in the open, stopped when cancelled."""

import asyncio

import pytest

from hostler.server.manual_clock import ManualClock
from hostler.server.tasks import Backoff, LoopEnded, LoopGaveUp, start, supervised

BACKOFF = Backoff(first_s=1, limit_s=4, healthy_after_s=60, max_failures=5)


class Loop:
    """Fails in the ways it is told, then rests until cancelled."""

    def __init__(self, clock: ManualClock, *ways: str) -> None:
        self.clock, self.ways, self.runs, self.cancelled = clock, list(ways), 0, False

    async def __call__(self) -> None:
        self.runs += 1
        way = self.ways.pop(0) if self.ways else "rest"
        if way == "return":
            return
        if way == "raise":
            raise OSError("no")
        if way == "run well, raise":
            await self.clock.sleep(100)
            raise OSError("no")
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


async def drive(loop: Loop, clock: ManualClock, group: asyncio.TaskGroup, pauses: list[float]) -> asyncio.Task[None]:
    """Start the loop and check each pause before it runs again."""
    task = start(group, "beat", loop, clock=clock, backoff=BACKOFF)
    for pause_s in pauses:
        await clock.until_sleeping(1)
        wake = clock.next_wake_s()
        assert wake is not None
        assert wake - clock.monotonic_s() == pause_s
        clock.advance(pause_s)
        await asyncio.sleep(0)
    return task


async def test_pauses_double_up_to_the_limit_and_a_return_is_a_failure_too() -> None:
    clock = ManualClock()
    loop = Loop(clock, "raise", "return", "raise", "raise")
    async with asyncio.TaskGroup() as group:
        task = await drive(loop, clock, group, [1, 2, 4, 4])
        assert (loop.runs, task.get_name()) == (5, "beat")
        task.cancel()
    assert loop.cancelled


async def test_a_good_run_wipes_the_slate() -> None:
    clock = ManualClock()
    loop = Loop(clock, "raise", "raise", "run well, raise", "raise")
    async with asyncio.TaskGroup() as group:
        task = await drive(loop, clock, group, [1, 2, 100, 1, 2])
        task.cancel()


async def test_too_many_failures_end_the_daemon_with_the_last_one_as_the_cause() -> None:
    clock = ManualClock()
    loop = Loop(clock, *["raise"] * 4, "return")
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            await drive(loop, clock, group, [1, 2, 4, 4])
    gave_up = caught.value.exceptions[0]
    assert isinstance(gave_up, LoopGaveUp)
    assert isinstance(gave_up.__cause__, LoopEnded)
    assert loop.runs == BACKOFF.max_failures


async def test_cancelling_during_a_pause_ends_it_too() -> None:
    clock = ManualClock()
    task = asyncio.ensure_future(supervised("beat", Loop(clock, "raise"), clock=clock, backoff=BACKOFF))
    await clock.until_sleeping(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
