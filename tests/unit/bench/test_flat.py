"""The packing replay on traces worked out by hand: hosts that are counted wrong are money that is not there.

A host has 4 CPU and 8 GiB.
"""

import pytest

from tests.bench.placement.decider import Breach, ByRule, Shape
from tests.bench.placement.flat import Hosts, lower_bound, replay
from tests.bench.placement.rules import flat_first_fit, flat_least_cpu
from tests.bench.placement.traces import TraceVm

GIB = 1024
SHAPE = Shape(1, 4000, 8 * GIB)


def trace(*vms: tuple[int, int | None, int, int]) -> tuple[TraceVm, ...]:
    """Of (arrives, lives, CPU, GiB)."""
    return tuple(TraceVm(row, arrives_s, lives_s, cpu * 1000, gib * GIB) for row, (arrives_s, lives_s, cpu, gib) in enumerate(vms))


def test_an_emptied_host_is_used_again_before_one_is_opened() -> None:
    """Hosts that are counted once for every VM that comes to an empty one."""
    vms = trace(
        (0, 20, 3, 1),  # host 0 until 20
        (0, 10, 3, 1),  # host 1 until 10
        (10, None, 2, 1),  # host 0 has 1 CPU, host 1 is empty again: host 1, for ever
        (15, None, 1, 1),  # host 0 has exactly 1 CPU: host 0, for ever
        (40, 5, 3, 1),  # host 0 has 3
    )
    assert replay(vms, ByRule(flat_first_fit), SHAPE) == Hosts(2, 2.0)


def test_a_rule_decides_how_many_hosts_are_needed() -> None:
    """Two rules that are measured alike because one of them is asked for both."""
    vms = trace(
        (0, None, 2, 1),  # host 0 has 2 CPU left
        (0, 5, 2, 1),  # host 0 is full until 5
        (0, None, 3, 1),  # host 1 has 1 CPU left
        (10, None, 1, 1),  # first-fit: host 0, which has 1 left then; least CPU: host 1, and host 0 keeps its 2
        (20, None, 2, 1),  # first-fit: a third host
    )
    assert replay(vms, ByRule(flat_first_fit), SHAPE).needed == 3
    assert replay(vms, ByRule(flat_least_cpu), SHAPE).needed == 2


def test_busy_is_over_time_until_the_last_arrival() -> None:
    """A host that counts after its last VM has gone, or a mean that the trace's end flatters.

    Two hosts until 10, one until 30, none until 40, one at 40 when it ends: (2 x 10 + 1 x 20 + 0 x 10) / 40 = 1.0.
    """
    vms = trace((0, 10, 4, 1), (0, 30, 4, 1), (40, 1000, 4, 1))
    assert replay(vms, ByRule(flat_first_fit), SHAPE) == Hosts(2, 1.0)


def test_departures_come_before_an_arrival_at_the_same_time() -> None:
    """A host too many for every VM that replaces another: Azure's times are bins of five minutes, so nearly all of them do."""
    vms = trace((0, 300, 4, 8), (300, 300, 4, 8), (600, 300, 4, 8))
    assert replay(vms, ByRule(flat_first_fit), SHAPE) == Hosts(1, 1.0)
    assert lower_bound(vms, SHAPE) == Hosts(1, 1.0)


def test_who_never_leaves_keeps_its_host() -> None:
    """A VM that still ran when its trace ended, and makes room for others all the same."""
    vms = trace((0, None, 4, 8), (1000, None, 4, 8))
    assert replay(vms, ByRule(flat_first_fit), SHAPE) == Hosts(2, 1.0)
    assert lower_bound(vms, SHAPE) == Hosts(2, 1.0)


def test_the_lower_bound_is_of_the_scarcer_amount_at_the_peak() -> None:
    """A bound that some engine beats, or one that is out of reach because two peaks of different times are added.

    By CPU: 3/4 of a host until 10, 1/4 until 20, 5/4 after. By memory: 1/8, then 6/8, then 7/8.
    The greater: 0.75 for 10 s, 0.75 for 10 s, 1.25 for 20 s.
    """
    vms = trace((0, 10, 3, 1), (10, None, 1, 6), (20, None, 4, 1), (40, 1, 0, 0))
    bound = lower_bound(vms, SHAPE)
    assert bound.needed == 2
    assert bound.busy == pytest.approx((0.75 * 10 + 0.75 * 10 + 1.25 * 20) / 40)


def test_an_engine_that_refuses_an_empty_host_ends_the_run() -> None:
    """Hosts that are opened for ever."""
    with pytest.raises(Breach, match="VM 0 is refused although a host is empty"):
        replay(trace((0, 1, 1, 1)), ByRule(lambda servers, demand: None), SHAPE)
