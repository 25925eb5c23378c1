"""Time: the system's never runs backwards, the manual one moves only when told and wakes everybody in order."""

import asyncio
import re
import time
from datetime import timedelta

from hostler.server.clock import Clock, IdSource, SystemClock, SystemIds
from hostler.server.manual_clock import EPOCH, ManualClock, SequenceIds


async def test_the_system_clock_counts_suspended_time_and_sleeps_at_least_as_told() -> None:
    clock: Clock = SystemClock()
    before = clock.monotonic_s()
    assert abs(before - time.clock_gettime(time.CLOCK_BOOTTIME)) < 1
    await clock.sleep(0.01)
    assert clock.monotonic_s() - before >= 0.01
    assert clock.now().utcoffset() == timedelta(0)


async def test_sleepers_wake_in_the_order_of_their_times() -> None:
    clock, woken = ManualClock(), []

    async def sleeper(name: str, duration_s: float) -> None:
        await clock.sleep(duration_s)
        woken.append((name, clock.monotonic_s()))

    async with asyncio.TaskGroup() as group:
        for name, duration_s in (("late", 5), ("early", 1), ("early too", 1), ("later", 6)):
            group.create_task(sleeper(name, duration_s))
        await clock.until_sleeping(4)
        assert clock.next_wake_s() == 1
        clock.advance(0.5)
        assert clock.sleeping() == 4
        clock.advance(4.5)
        assert clock.sleeping() == 1
        clock.advance(1)
    assert [name for name, _ in woken] == ["early", "early too", "late", "later"]
    assert clock.now() == EPOCH + timedelta(seconds=6)


async def test_a_cancelled_sleeper_is_forgotten() -> None:
    clock = ManualClock()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(clock.sleep(1))
        await clock.until_sleeping(1)
        task.cancel()
    assert (clock.sleeping(), clock.next_wake_s()) == (0, None)
    clock.advance(2)


def test_ids_are_uuids_and_never_repeat() -> None:
    pattern = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
    sources: tuple[IdSource, ...] = (SystemIds(), SequenceIds())
    for source in sources:
        made = [source.uuid() for _ in range(100)]
        assert len(set(made)) == 100
        assert all(pattern.fullmatch(id_) for id_ in made)
    assert SequenceIds().uuid() == "00000000-0000-4000-8000-000000000001"
