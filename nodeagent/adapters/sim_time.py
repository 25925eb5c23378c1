"""Runs work in virtual time: the hands of a ManualClock move to the next sleeper whenever nobody has anything else to do.

"Nothing else to do" is judged by letting the event loop turn `REST_TURNS` times without a new sleeper appearing. That holds as long as all the
work is in this loop and waits only for the clock or for each other: the world's and the engine's longest chain of wake-ups is a few turns.
Work that waits for a socket, a thread or a process must not be run in virtual time.
"""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

from hostler.server.manual_clock import ManualClock

T = TypeVar("T")

REST_TURNS = 24
"""Several times the longest chain; each turn costs about a microsecond."""

LIMIT_S = 86_400.0
"""A simulated day: work that has not ended by then never will."""


class NeverEnds(Exception):
    """The work waits for something that no clock will bring, or took more than `LIMIT_S`."""


async def in_virtual_time(clock: ManualClock, work: Coroutine[object, object, T]) -> T:
    """What `work` returns or raises; the clock has moved as far as it needed. Raises NeverEnds."""
    end_s = clock.monotonic_s() + LIMIT_S
    task = asyncio.ensure_future(work)
    try:
        await _rest(clock)
        while not task.done():
            wake_s = clock.next_wake_s()
            if wake_s is None or wake_s > end_s:
                raise NeverEnds("everybody waits, and nobody for the clock" if wake_s is None else "no end within a simulated day")
            clock.advance(max(0.0, wake_s - clock.monotonic_s()))
            await _rest(clock)
        return task.result()
    finally:
        task.cancel()


async def keep_moving(clock: ManualClock) -> None:
    """Move the clock for as long as this runs; for a test that is written as if time went by itself."""
    while True:
        await clock.until_sleeping(1)
        await _rest(clock)
        wake_s = clock.next_wake_s()
        if wake_s is not None:
            clock.advance(max(0.0, wake_s - clock.monotonic_s()))


async def _rest(clock: ManualClock) -> None:
    """Let everybody run until nobody goes to sleep or wakes up any more."""
    turns, sleeping = 0, clock.sleeping()
    while turns < REST_TURNS:
        await asyncio.sleep(0)
        turns, sleeping = (turns + 1, sleeping) if clock.sleeping() == sleeping else (0, clock.sleeping())
