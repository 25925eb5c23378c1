"""The fakes of `clock`: time that moves only when it is told to, and ids that come in a known order.

They ship with the package because the simulator and the tests of every loop stand on them. Sleepers wake in the order of their wake-up
times; ties wake in the order in which they went to sleep.
"""

import asyncio
import heapq
import itertools
from datetime import UTC, datetime, timedelta
from uuid import UUID

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
"""Where the wall time of a ManualClock begins unless told otherwise."""


class ManualClock:
    """A clock whose hands are moved by `advance`."""

    def __init__(self, start: datetime = EPOCH) -> None:
        self._start = start
        self._elapsed_s = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._changed = asyncio.Event()

    def monotonic_s(self) -> float:
        return self._elapsed_s

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self._elapsed_s)

    async def sleep(self, duration_s: float) -> None:
        if duration_s <= 0:
            await asyncio.sleep(0)
            return
        wake = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed_s + duration_s, next(self._order), wake))
        self._changed.set()
        await wake

    def sleeping(self) -> int:
        """How many tasks are asleep (cancelled ones do not count)."""
        return sum(not wake.done() for _, _, wake in self._sleepers)

    def next_wake_s(self) -> float | None:
        """When the next sleeper wakes, on the scale of `monotonic_s`; None: nobody sleeps."""
        times = [at for at, _, wake in self._sleepers if not wake.done()]
        return min(times) if times else None

    async def until_sleeping(self, count: int) -> None:
        """Wait until at least `count` tasks are asleep: how a test knows that a loop has come to rest."""
        while self.sleeping() < count:
            self._changed.clear()
            await self._changed.wait()

    def advance(self, duration_s: float) -> None:
        """Move time on and wake everybody whose time has come; they run when the caller next awaits."""
        self._elapsed_s += duration_s
        while self._sleepers and self._sleepers[0][0] <= self._elapsed_s:
            _, _, wake = heapq.heappop(self._sleepers)
            if not wake.done():
                wake.set_result(None)


class SequenceIds:
    """UUIDs 00000000-0000-4000-8000-000000000001, ...2 and so on."""

    def __init__(self) -> None:
        self._next = itertools.count(1)

    def uuid(self) -> str:
        return str(UUID(int=next(self._next) | 0x4000 << 64 | 0x8000 << 48))
