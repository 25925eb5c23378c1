"""How a loop that should run for ever is kept running: named, restarted after a failure with a growing pause, given up in the open.

A control loop's failure must not take the daemon down at once, and must not be retried for ever in silence either: after `max_failures` in a
row the failure goes to the TaskGroup, the daemon ends, and the service manager starts it afresh. A loop that returns has failed as well.
A run of HEALTHY_AFTER_S wipes the slate. Cancellation passes straight through.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from hostler.server.clock import Clock

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses between restarts: `first_s`, doubled each time up to `limit_s`. A run of `healthy_after_s` counts as a success."""

    first_s: float = 0.5
    limit_s: float = 30.0
    healthy_after_s: float = 60.0
    max_failures: int = 8

    def pause_s(self, failures: int) -> float:
        """The pause after that many failures in a row (1 or more)."""
        return min(self.first_s * 2.0 ** (failures - 1), self.limit_s)


class LoopEnded(Exception):
    """A loop that should run for ever returned."""


class LoopGaveUp(Exception):
    """A loop failed too often in a row; its last failure is the `__cause__`."""


async def supervised(name: str, loop: Callable[[], Awaitable[None]], *, clock: Clock, backoff: Backoff = Backoff()) -> None:
    """Run `loop()` again and again; never returns. Raises LoopGaveUp."""
    failures = 0
    while True:
        began_s = clock.monotonic_s()
        try:
            await loop()
            raise LoopEnded(f"{name} returned")
        except Exception as err:
            failures = 1 if clock.monotonic_s() - began_s >= backoff.healthy_after_s else failures + 1
            if failures >= backoff.max_failures:
                raise LoopGaveUp(f"{name} failed {failures} times in a row") from err
            log.error("loop failed", loop=name, failures=failures, pause_s=backoff.pause_s(failures), exc_info=err)
        await clock.sleep(backoff.pause_s(failures))


def start(
    group: asyncio.TaskGroup, name: str, loop: Callable[[], Awaitable[None]], *, clock: Clock, backoff: Backoff | None = None
) -> asyncio.Task[None]:
    """Start a supervised loop in a TaskGroup as a task of that name."""
    return group.create_task(supervised(name, loop, clock=clock, backoff=backoff or Backoff()), name=name)
