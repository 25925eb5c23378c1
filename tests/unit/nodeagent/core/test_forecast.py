"""What is foretold of a copy: bounds that follow the figures, and guesses that are called so."""

import pytest

from hostler.model.migration_facts import Convergence
from nodeagent.core.forecast import GUESSED_LINK_BYTES_PER_S, HANDOFF_MS, forecast
from nodeagent.core.precopy import MOST_PERCENT, Limits

MIB = 1 << 20


def test_an_idle_guest_takes_its_memory_over_the_link() -> None:
    """A time that is off by a unit, or a throttle for a guest that needs none."""
    told = forecast(4096, 2 * MIB, 0, Limits(200))
    assert (told.convergence, told.seconds, told.throttle_percent) == (Convergence.CONVERGES, 21, 0)
    assert HANDOFF_MS < told.downtime_ms <= 300 + HANDOFF_MS
    assert (told.dirty_measured, told.bandwidth_known) == (True, True)


def test_disks_that_are_copied_first_take_their_time_too() -> None:
    """Hours of copying that a forecast of memory alone calls seconds."""
    without, told = (forecast(4096, 2 * MIB, 0, Limits(200), disk) for disk in (0, 20_000 * MIB))
    assert (told.seconds - without.seconds, told.disk_bytes) == (100, 20_000 * MIB)
    assert told.downtime_ms > without.downtime_ms, "the last writes to the disk cross while the guest stands still"


def test_a_busy_guest_is_foretold_its_throttle() -> None:
    """A promise that such a guest goes on at full speed."""
    told = forecast(512, 190 * MIB, 0, Limits(128))
    assert told.convergence is Convergence.CONVERGES_THROTTLED
    assert 60 <= told.throttle_percent <= 80
    assert told.seconds < 30


def test_what_cannot_end_is_said_not_to_end() -> None:
    """A yes to a copy that will be given up after minutes."""
    told = forecast(4096, 4000 * MIB, 0, Limits(32))
    assert (told.convergence, told.throttle_percent) == (Convergence.DOES_NOT_CONVERGE, MOST_PERCENT)


def test_guesses_are_called_guesses() -> None:
    """A guess that is read as a measurement."""
    told = forecast(1024, None, 0, Limits())
    assert (told.dirty_measured, told.bandwidth_known) == (False, False)
    assert told.bandwidth_bytes_per_s == GUESSED_LINK_BYTES_PER_S
    seen = forecast(1024, 0, 50 * MIB, Limits())
    assert (seen.bandwidth_bytes_per_s, seen.bandwidth_known) == (50 * MIB, True)
    assert forecast(1024, 0, 50 * MIB, Limits(10)).bandwidth_bytes_per_s == 10 * MIB


@pytest.mark.parametrize("dirty_mib_s", [0, 10, 100, 1000])
def test_more_link_or_more_downtime_never_makes_it_worse(dirty_mib_s: int) -> None:
    """A forecast that advises the wrong change."""
    order = [Convergence.DOES_NOT_CONVERGE, Convergence.CONVERGES_THROTTLED, Convergence.CONVERGES]
    ranks = [order.index(forecast(2048, dirty_mib_s * MIB, 0, Limits(link)).convergence) for link in range(10, 2000, 40)]
    assert ranks == sorted(ranks)
    seconds = [forecast(2048, dirty_mib_s * MIB, 0, Limits(100, downtime)).seconds for downtime in range(100, 20_000, 500)]
    assert seconds == sorted(seconds, reverse=True)
