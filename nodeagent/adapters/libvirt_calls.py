"""Blocking libvirt calls under asyncio: at most one per lane, bounded in number, each with a deadline that holds even if libvirt never returns.

A lane is one domain seen for one purpose, so that a stuck QEMU stalls only itself. A call that misses its deadline goes on in its thread:
its caller is told `HypervisorUnavailable`, its lane stays taken until the thread comes back, and nothing else waits for it. Threads are
daemons, started per call (about 0.1 ms), because the executor of the standard library joins its threads at exit: one call into a hung
libvirtd would hang the agent's end. Works from several event loops, one after the other.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from nodeagent.ports import HypervisorUnavailable

T = TypeVar("T")


class Calls:
    """At most `limit` calls at once; one at a time in a lane. A full house is an answer, not a queue."""

    def __init__(self, limit: int, unavailable: Callable[[str], Exception] = HypervisorUnavailable) -> None:
        """`unavailable` makes what is raised when there is no answer, from a sentence for the log."""
        self._limit = limit
        self._unavailable = unavailable
        self._running: dict[str, Future[Any]] = {}
        self._waiting: set[asyncio.Future[None]] = set()
        self._guard = threading.Lock()

    @property
    def running(self) -> int:
        """Calls whose threads have not come back, abandoned ones included."""
        return len(self._running)

    def lane_taken(self, lane: str) -> bool:
        """Whether a call runs in `lane`, abandoned ones included."""
        return lane in self._running

    def give_up(self, why: str) -> None:
        """Tell everybody who waits in the running loop that there is no answer, as at their deadlines."""
        for waiting in [one for one in self._waiting if not one.done()]:
            waiting.set_exception(self._unavailable(why))

    async def run(self, lane: str, deadline_s: float | None, work: Callable[[], T], late: Callable[[T], None] | None = None) -> T:
        """`work()` in a thread of its own, after what runs in `lane`. `deadline_s` counts from now, waiting for the lane included; None: none.
        `late` puts away, in a thread too, what `work` returned when nobody waited any more.

        Raises what `work` raises; HypervisorUnavailable at the deadline or by `give_up`, or at once when `limit` calls are running. Cancelling
        the caller leaves the thread to its end.
        """
        timeout = asyncio.timeout(deadline_s)
        try:
            async with timeout:
                while (before := self._running.get(lane)) is not None:
                    await self._ended(before)
                call = self._start(lane, work)
                try:
                    await self._ended(call)
                except BaseException:
                    call.add_done_callback(lambda done: _put_away(done, late))
                    raise
                return call.result()
        except TimeoutError as err:
            if timeout.expired():
                raise self._unavailable(f"no answer in {deadline_s:g} s ({lane})") from err
            raise

    def _start(self, lane: str, work: Callable[[], T]) -> Future[T]:
        call: Future[T] = Future()
        with self._guard:
            if len(self._running) >= self._limit:
                raise self._unavailable(f"{self._limit} calls wait for an answer already")
            self._running[lane] = call
        threading.Thread(target=self._work, args=(lane, call, work), name=f"libvirt {lane}", daemon=True).start()
        return call

    async def _ended(self, call: Future[Any]) -> None:
        """Wait until the call's thread is through, whichever loop started it."""
        loop = asyncio.get_running_loop()
        woken = loop.create_future()

        def wake(_call: Future[Any]) -> None:
            try:
                loop.call_soon_threadsafe(_settle, woken)
            except RuntimeError:
                return  # the loop is closed: nobody waits any more

        call.add_done_callback(wake)
        self._waiting.add(woken)
        try:
            await woken
        finally:
            self._waiting.discard(woken)

    def _work(self, lane: str, call: Future[T], work: Callable[[], T]) -> None:
        try:
            result = work()
        except BaseException as err:  # it belongs to whoever waits for the call
            self._leave(lane)
            call.set_exception(err)
        else:
            self._leave(lane)
            call.set_result(result)

    def _leave(self, lane: str) -> None:
        with self._guard:
            del self._running[lane]


def _put_away(done: Future[T], late: Callable[[T], None] | None) -> None:
    if late is not None and done.exception() is None:
        threading.Thread(target=late, args=(done.result(),), name="libvirt, late", daemon=True).start()


def _settle(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
