"""An event loop without sockets or threads, whose time is a number: when nobody has anything to do, it jumps to the next timer.

Everything that waits in the daemons waits on this loop (`asyncio.sleep`, `asyncio.timeout`, futures): a minute of pauses costs nothing, and the order
of everything depends on the program alone. Two things in asyncio would let memory addresses decide the order: a TaskGroup cancels its tasks in the
order of a set, and an async generator is closed by the garbage collector. So tasks hash by number here, and collection happens between the runs.
"""

import asyncio
import itertools
from asyncio import base_events
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from typing import Any, TypeVar

T = TypeVar("T")

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
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


class _Handle:
    """A callback to come: as `asyncio.Handle` and `asyncio.TimerHandle`, without what only their debug mode needs."""

    __slots__ = ("args", "callback", "context", "when_s")

    def __init__(self, callback: Callable[..., Any], args: tuple[Any, ...], context: Context, when_s: float) -> None:
        self.callback: Callable[..., Any] | None = callback
        self.args, self.context, self.when_s = args, context, when_s

    def cancel(self) -> None:
        self.callback, self.args = None, ()

    def cancelled(self) -> bool:
        return self.callback is None

    def when(self) -> float:
        return self.when_s


class VirtualLoop(base_events.BaseEventLoop):
    """`now_s` is the time since the beginning of the run.

    Its own `call_soon`, `call_at` and `_run_once`, because half of a run would be spent in asyncio's: nothing here comes from outside, from another
    thread or in debug mode. Timers of the same instant run in the order in which they were set.
    """

    _stopping: bool

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        global _numbers
        _numbers = itertools.count(1)
        self._soon: deque[_Handle] = deque()
        self._timers: list[tuple[float, int, _Handle]] = []
        self._timer_numbers = itertools.count()

    def time(self) -> float:
        return self.now_s

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Any:  # type: ignore[override]  # noqa: ANN401
        handle = _Handle(callback, args, copy_context() if context is None else context, 0.0)
        self._soon.append(handle)
        return handle

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Any:  # type: ignore[override]  # noqa: ANN401
        handle = _Handle(callback, args, copy_context() if context is None else context, when)
        heappush(self._timers, (when, next(self._timer_numbers), handle))
        return handle

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Any:  # type: ignore[override]  # noqa: ANN401
        return self.call_at(self.now_s + delay, callback, *args, context=context)

    def create_task(self, coro: Any, *, name: object = None, context: Context | None = None) -> "asyncio.Task[Any]":  # noqa: ANN401
        return NumberedTask(coro, loop=self, name=None if name is None else str(name), context=context)

    def _run_once(self) -> None:
        """Everything until somebody stops the loop. Raises Stuck."""
        soon, timers, still = self._soon, self._timers, 0
        while not self._stopping:
            if not soon and timers and timers[0][0] > self.now_s:
                self.now_s, still = timers[0][0], 0
            while timers and timers[0][0] <= self.now_s:
                handle = heappop(timers)[2]
                if handle.callback is not None:
                    soon.append(handle)
            if not soon and not timers:
                raise Stuck(f"at {self.now_s:.3f} s: everybody waits, and nobody for the clock")
            still += len(soon)
            if still > CALLBACKS_WITHOUT_TIME:
                raise Stuck(f"at {self.now_s:.3f} s: the instant does not end")
            for _ in range(len(soon)):
                handle = soon.popleft()
                callback = handle.callback
                if callback is None:
                    continue
                try:
                    handle.context.run(callback, *handle.args)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:
                    self.call_exception_handler({"message": f"exception in {callback!r}", "exception": error})

    def close(self) -> None:
        self._soon.clear()
        self._timers.clear()
        super().close()

    def _write_to_self(self) -> None:
        """Nobody is waiting in a system call."""

    def run_in_executor(self, executor: object, func: Callable[..., Any], *args: object) -> "asyncio.Future[Any]":
        raise RuntimeError(f"{func} would run in a thread, outside of the virtual time")


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
