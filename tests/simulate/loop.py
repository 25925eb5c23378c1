"""An event loop without sockets or threads, whose time is a number: when nobody has anything to do, it jumps to the next timer.

Everything that waits in the daemons waits on this loop (`asyncio.sleep`, `asyncio.timeout`, futures): a minute of pauses costs nothing, and the order
of everything depends on the program alone. Two things in asyncio would let memory addresses decide the order: a TaskGroup cancels its tasks in the
order of a set, and an async generator is closed by the garbage collector. So tasks hash by number here, and collection happens between the runs.
"""

import asyncio
import itertools
from asyncio import base_events
from collections.abc import Callable, Coroutine
from contextvars import Context
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, cast

T = TypeVar("T")

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
RESOLUTION_S = 1e-9
CALLBACKS_WITHOUT_TIME = 200_000
"""So many callbacks at one instant are a loop that never waits: the busiest honest instant has a few thousand."""


_numbers = itertools.count(1)
"""Of the tasks of the present loop; there is one at a time."""


class Stuck(Exception):
    """Nothing is ready and no timer is set, or one instant never ends: whoever waits, waits for ever."""


class NumberedTask(asyncio.Task[T]):
    """A task whose place in a set depends on when it was made, not on where."""

    number = 0

    def __hash__(self) -> int:
        if not self.number:
            self.number = next(_numbers)
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other


class _Jump:
    """In the place of a selector: nothing ever comes from outside, so waiting is moving the clock."""

    def __init__(self, loop: "VirtualLoop") -> None:
        self._loop = loop
        self._still = 0

    def select(self, timeout: float | None) -> tuple[()]:
        if timeout is None:
            raise Stuck(f"at {self._loop.time():.3f} s: everybody waits, and nobody for the clock")
        if timeout > 0:
            self._loop.now_s += timeout
            self._still = 0
        else:
            self._still += 1
            if self._still > CALLBACKS_WITHOUT_TIME:
                raise Stuck(f"at {self._loop.time():.3f} s: the instant does not end")
        return ()


class VirtualLoop(base_events.BaseEventLoop):
    """`now_s` is the time since the beginning of the run."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        global _numbers
        _numbers = itertools.count(1)
        self._selector = _Jump(self)
        self._clock_resolution = RESOLUTION_S
        self.set_task_factory(cast(Any, _numbered))

    def time(self) -> float:
        return self.now_s

    def _process_events(self, event_list: tuple[()]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody is waiting in a system call."""

    def run_in_executor(self, executor: object, func: Callable[..., Any], *args: object) -> "asyncio.Future[Any]":
        raise RuntimeError(f"{func} would run in a thread, outside of the virtual time")


def _numbered(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T], context: Context | None = None) -> "asyncio.Task[T]":
    return NumberedTask(work, loop=loop, context=context)


class LoopClock:
    """Implements `hostler.server.clock.Clock` on a VirtualLoop; `ahead_s` is by how much this daemon's wall clock is wrong."""

    def __init__(self, loop: VirtualLoop, ahead_s: float = 0.0) -> None:
        self._loop = loop
        self._begin = BEGIN + timedelta(seconds=ahead_s)

    def monotonic_s(self) -> float:
        return self._loop.now_s

    def now(self) -> datetime:
        return self._begin + timedelta(seconds=self._loop.now_s)

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(duration_s)
