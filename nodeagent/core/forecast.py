"""What a copy would take if the guest went on as it does now: the policy of `precopy`, played in the head with a measured dirty rate and a bandwidth.

It reckons as if all memory were in use and as if no page were dirtied twice in a pass: a bound, not an average. The dirty rate is
QEMU's, who samples pages for a second: of a guest that wrote 128 MiB over and over it saw 126 MiB/s (emulation, QEMU 7.2), each page once. Two
guesses are named as such in the answer: the dirty rate where the hypervisor cannot measure it, and the bandwidth where there is neither a limit nor
an earlier copy.
"""

import math

from hostler.model.migration_facts import Convergence, Forecast
from nodeagent.core.precopy import MOST_PERCENT, SHRINKS, Limits, throttle_for

MIB = 1 << 20
GUESSED_SHARE_PER_S = 0.01
"""Of its memory that a guest is taken to dirty in a second, where nobody can measure it: a moderately busy server."""
GUESSED_LINK_BYTES_PER_S = 112 * MIB
"""What a link of 1 Gbit/s carries: the least that hosts have."""
PASSES = 60
"""More are not reckoned: a copy that still shrinks then does so too slowly to be called converging."""
HANDOFF_MS = 150
"""What the handoff adds to the rest of the copy: freeze, look, commit, resume; 60-250 ms were measured."""
DRAIN_MS = 150
"""What the last writes to a disk that is copied along add to it: 35-420 ms were measured."""


def forecast(memory_mib: int, dirty_bytes_per_s: int | None, seen_bytes_per_s: int, limits: Limits, disk_bytes: int = 0) -> Forecast:
    """`dirty_bytes_per_s` None: could not be measured. `seen_bytes_per_s`: what an earlier copy from this host reached, 0: there was none.
    `disk_bytes`: of disks that are copied first, once over."""
    memory = float(memory_mib * MIB)
    dirty = memory * GUESSED_SHARE_PER_S if dirty_bytes_per_s is None else float(dirty_bytes_per_s)
    limit = limits.bandwidth_mib_s * MIB
    link = float(min(limit, seen_bytes_per_s) if limit and seen_bytes_per_s else limit or seen_bytes_per_s or GUESSED_LINK_BYTES_PER_S)
    percent = throttle_for(dirty, link) if dirty > SHRINKS * link else 0
    seconds, left = _played(memory, dirty, link, percent, limits.downtime_ms)
    ends = left <= link * limits.downtime_ms / 1000
    kind = Convergence.CONVERGES if not percent else Convergence.CONVERGES_THROTTLED
    return Forecast(
        kind if ends else Convergence.DOES_NOT_CONVERGE,
        int(dirty),
        dirty_bytes_per_s is not None,
        int(link),
        bool(limit or seen_bytes_per_s),
        math.ceil(seconds + disk_bytes / link),
        math.ceil(1000 * left / link) + HANDOFF_MS + (DRAIN_MS if disk_bytes else 0),
        min(percent, MOST_PERCENT),
        disk_bytes,
    )


def _played(memory: float, dirty: float, link: float, percent: int, downtime_ms: int) -> tuple[float, float]:
    """Seconds, and what is left at their end. The throttle comes after the second pass, when QEMU takes its step."""
    seconds, left = 0.0, memory
    for number in range(1, PASSES + 1):
        took_s = left / link
        seconds += took_s
        speed = 1.0 if number <= 2 else (100 - percent) / 100
        before, left = left, min(memory, dirty * speed * took_s)
        if left <= link * downtime_ms / 1000:
            break
        if number > 2 and left >= before:
            break
    return seconds, left
