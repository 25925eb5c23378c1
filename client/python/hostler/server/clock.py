"""Where time and fresh ids come from, so that everything else takes them as arguments and a test or simulation can own them.

Durations are measured on CLOCK_BOOTTIME: it never jumps with the wall clock, and unlike CLOCK_MONOTONIC it also counts the time a machine
was suspended, in which leases and deadlines elsewhere went on running. Wall time is for display and for certificates, never for deciding
that something has expired. `manual_clock` has the fakes.
"""

import asyncio
import time
import uuid
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Time as one process sees it."""

    def monotonic_s(self) -> float:
        """Seconds since an arbitrary point, suspended time included; only differences mean anything, and only in this boot."""

    def now(self) -> datetime:
        """Wall time, aware, in UTC; may jump."""

    async def sleep(self, duration_s: float) -> None:
        """Return after at least `duration_s`."""


class IdSource(Protocol):
    """Fresh identifiers."""

    def uuid(self) -> str:
        """A random UUID in its 36-character lower-case form."""


class SystemClock:
    """The machine's clocks."""

    def monotonic_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def now(self) -> datetime:
        return datetime.now(UTC)

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(duration_s)


class SystemIds:
    """The machine's random numbers."""

    def uuid(self) -> str:
        return str(uuid.uuid4())


def wall_ms(clock: Clock) -> int:
    """Wall time in milliseconds since 1970: what records show."""
    return int(clock.now().timestamp() * 1000)
