"""How a running copy of memory is steered, as one decision: what the hypervisor says of it -> change a limit, go on, or give it up.

The ceiling of the downtime is the VM's and is never raised by itself. What can be given is the guest's speed: when an iteration of the copy does
not shrink what remains, the guest's CPUs are throttled, by as much as the measured rates ask for and not in blind steps: a guest that dirties U
bytes a second at full speed, and runs at TARGET * B / U of it, leaves TARGET of each iteration for the next one on a link of B bytes a second. U is
what is seen now, divided by the speed that the guest has now, and the largest seen: a guest that dirties a small working set over and over looks
slower than it is.

A copy is given up when throttling is spent and nothing is gained, or when nothing moves at all: with the figures, and what would help.
"""

import math
from dataclasses import dataclass, replace

from hostler.model.copy import DEFAULT_DOWNTIME_MS
from nodeagent.core.observed import MigrationProgress

MIB = 1 << 20

SHRINKS = 0.5
"""An iteration that leaves more than this share of the one before is not worth it. QEMU takes a step of its throttle above the same share."""
TARGET = 0.4
"""What an iteration is to leave of the one before: below SHRINKS by as much as the measured rates may be wrong."""
LEAST_STEP_PERCENT = 5
"""A smaller change does not show within the noise of the measured rates."""
MOST_PERCENT = 90
"""Above it a guest is as good as stopped: its own timeouts end what the migration wanted to keep alive."""

NEW_LEAST = 0.96
"""What remains has a new minimum when it is below this share of the last one: less is noise."""
STALL_ITERATIONS = 6
STALL_S = 20.0
"""Both without a new minimum, fully throttled: the copy has stalled. The guest pays for every second of it."""
HELPLESS_S = 120.0
"""The same for a copy whose throttle does not rise as asked (the hypervisor does it in its own time): longer than all its steps."""
SILENT_S = 60.0
"""Nothing moves at all for this long: the link is gone, though no error came. Above every keepalive on the way (8 s)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the copy may take. `bandwidth_mib_s` 0: no limit; `max_downtime_ms` 0: the default."""

    bandwidth_mib_s: int = 0
    max_downtime_ms: int = 0

    @property
    def downtime_ms(self) -> int:
        return self.max_downtime_ms or DEFAULT_DOWNTIME_MS


@dataclass(frozen=True, slots=True)
class Course:
    """What is remembered between two looks. `set`: the limits that the hypervisor has; `wanted_percent`: the throttle last asked for."""

    set: Limits
    wanted_percent: int = 0
    iteration: int = 0
    begin_bytes: int = 0
    """What remained when this iteration was first seen."""
    full_speed_bytes_per_s: float = 0.0
    """The largest rate at which the guest dirties memory, at full speed, as far as seen."""
    least_bytes: int = 0
    least_iteration: int = 0
    least_s: float = 0.0
    moved_bytes: int = 0
    moved_s: float = 0.0
    throttle_reached_percent: int = 0


@dataclass(frozen=True, slots=True)
class GoOn:
    """Nothing to change."""


@dataclass(frozen=True, slots=True)
class Tune:
    """Tell the hypervisor; None: leave it as it is."""

    bandwidth_mib_s: int | None = None
    max_downtime_ms: int | None = None
    throttle_percent: int | None = None


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Stop the copy; the guest goes on where it is. `reason`: the figures and what would help, for a person."""

    reason: str


Move = GoOn | Tune | GiveUp


def next_move(course: Course, limits: Limits, seen: MigrationProgress, now_s: float) -> tuple[Course, Move]:
    """One look at the copy. `now_s`: any monotonic clock, the same in every call of one copy."""
    course = _moved(course, seen, now_s)
    if now_s - course.moved_s >= SILENT_S:
        return course, GiveUp(
            f"Nothing of the memory has crossed for {now_s - course.moved_s:.0f} s. Look at the link between the two nodes."
        )
    throttle: int | None = None
    if seen.iteration > course.iteration:
        course, throttle = _new_iteration(course, limits, seen, now_s)
    if (stalled := _stalled(course, limits, seen, now_s)) is not None:
        return course, stalled
    bandwidth = limits.bandwidth_mib_s if limits.bandwidth_mib_s != course.set.bandwidth_mib_s else None
    downtime = limits.downtime_ms if limits.downtime_ms != course.set.downtime_ms else None
    if bandwidth is None and downtime is None and throttle is None:
        return course, GoOn()
    if bandwidth is not None or downtime is not None:  # another race: what was the least under the old limits says nothing
        course = replace(course, set=limits, least_bytes=0, least_iteration=seen.iteration, least_s=now_s)
    return course, Tune(bandwidth, downtime, throttle)


def throttle_for(full_speed_bytes_per_s: float, link_bytes_per_s: float) -> int:
    """How many percent of its speed the guest is to lose for the copy to converge; 0: none."""
    if full_speed_bytes_per_s <= 0 or link_bytes_per_s <= 0:
        return 0
    needed = 1 - TARGET * link_bytes_per_s / full_speed_bytes_per_s
    return min(MOST_PERCENT, max(0, math.ceil(100 * needed)))


def _moved(course: Course, seen: MigrationProgress, now_s: float) -> Course:
    course = replace(course, throttle_reached_percent=max(course.throttle_reached_percent, seen.throttle_percent))
    if (
        seen.bytes_done > course.moved_bytes or seen.bytes_done == 0
    ):  # before the first byte the destination's memory is being made, which takes its time
        return replace(course, moved_bytes=seen.bytes_done, moved_s=now_s)
    return course


def _new_iteration(course: Course, limits: Limits, seen: MigrationProgress, now_s: float) -> tuple[Course, int | None]:
    speed = (100 - min(99, seen.throttle_percent)) / 100
    full = max(course.full_speed_bytes_per_s, seen.dirty_bytes_per_s / speed)
    before = course.begin_bytes
    course = replace(course, iteration=seen.iteration, begin_bytes=seen.remaining_bytes, full_speed_bytes_per_s=full)
    if course.least_bytes == 0 or seen.remaining_bytes < course.least_bytes * NEW_LEAST:
        course = replace(course, least_bytes=max(1, seen.remaining_bytes), least_iteration=seen.iteration, least_s=now_s)
    link = _link(limits, seen)
    if _shrinks(before, seen, link):
        return course, None
    now_percent = max(course.wanted_percent, seen.throttle_percent)
    wanted = min(MOST_PERCENT, max(throttle_for(full, link), now_percent + LEAST_STEP_PERCENT))
    if seen.throttle_percent < course.wanted_percent or wanted <= now_percent:
        return course, None  # the last step has not been taken yet, or there is none left
    return replace(course, wanted_percent=wanted), wanted


def _shrinks(before: int, seen: MigrationProgress, link: float) -> bool:
    """By the measured rates where there are any; else by what remained at the two looks."""
    if seen.dirty_bytes_per_s > 0 and link > 0:
        return seen.dirty_bytes_per_s <= SHRINKS * link
    return before == 0 or seen.remaining_bytes <= SHRINKS * before


def _link(limits: Limits, seen: MigrationProgress) -> float:
    """Bytes a second: the limit where there is one, unless the link carries less."""
    limit = limits.bandwidth_mib_s * MIB
    return float(min(limit, seen.rate_bytes_per_s) if limit and seen.rate_bytes_per_s else limit or seen.rate_bytes_per_s)


def _stalled(course: Course, limits: Limits, seen: MigrationProgress, now_s: float) -> GiveUp | None:
    idle_s, idle_iterations = now_s - course.least_s, seen.iteration - course.least_iteration
    if course.wanted_percent == 0 or idle_iterations < STALL_ITERATIONS:
        return None
    spent = seen.throttle_percent >= MOST_PERCENT
    if idle_s < (STALL_S if spent else HELPLESS_S):
        return None
    link, left = _link(limits, seen), course.least_bytes
    needs_ms = math.ceil(1000 * left / link) if link else 0
    guest = f"the guest dirties {_mib(seen.dirty_bytes_per_s)} MiB/s at {100 - seen.throttle_percent} % of its speed"
    rates = f"{guest}, the link carries {_mib(link)} MiB/s"
    missed = f"at best {_mib(left)} MiB remained: {needs_ms} ms of downtime, where {limits.downtime_ms} ms are allowed"
    fix = f"Raise --bandwidth, or --max-downtime to {max(needs_ms, limits.downtime_ms + 1)} or more, or move it when it is less busy."
    return GiveUp(f"The copy does not converge: {rates}, and {missed}. {fix}")


def _mib(amount: float) -> int:
    return round(amount / MIB)
