"""The packing replay on flat hosts, of one cell and without end: how many a decider needs, how many it keeps busy, and what nobody can beat.

- A host is opened when the decider refuses a VM, and never before; then it is asked once more. The hosts needed are the ones ever opened. For a
  rule that refuses only when there is no room this is also the peak of hosts with a VM, as none is opened while one is empty.
- The lower bound is the peak over time of demand: the greater of (CPU of all VMs / a host's) and (memory of all / a host's), rounded up.
- The means are over time, from the first arrival to the last: of the hosts that have a VM, and of the lower bound before it is rounded. What leaves
  after the last arrival is not looked at: a trace's emptying is no load that anybody has.
- Departures at a time come before arrivals at that time. Nobody waits, so everybody leaves at a time that the trace says.
- A trace starts with empty hosts, which flatters everyone in the first hours. Azure's lifetimes are bins (`traces`).

Hosts of 64 CPU and 256 GiB (Azure) or 128 GiB (Huawei-East-1) are our choice; no paper has these replays. Nor had the figures that were quoted
first their definitions beside them: that they are the ones above was found out by reproducing these figures to the last digit (`known`). A mean to
the last departure, or of the rounded bound, gives others.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.placement.decider import Breach, Decider, Demand, Pool, Shape
from tests.bench.placement.traces import MIB_PER_GIB, MILLI, TraceVm

AZURE_SHAPE = Shape(cells=1, cpu_milli=64 * MILLI, memory_mib=256 * MIB_PER_GIB)
HUAWEI_SHAPE = Shape(cells=1, cpu_milli=64 * MILLI, memory_mib=128 * MIB_PER_GIB)


@dataclass(frozen=True, slots=True)
class Hosts:
    """`needed`: at the peak. `busy`: on the average over time."""

    needed: int
    busy: float


class _Average:
    """Over time, of a level that changes now and then."""

    def __init__(self, begin_s: int) -> None:
        self._begin_s = begin_s
        self._now_s = begin_s
        self._sum = 0.0

    def until(self, at_s: int, level: float) -> None:
        """It has been so since the last time."""
        self._sum += level * (at_s - self._now_s)
        self._now_s = at_s

    @property
    def value(self) -> float:
        return self._sum / (self._now_s - self._begin_s) if self._now_s > self._begin_s else 0.0


def replay(vms: Sequence[TraceVm], decider: Decider, shape: Shape) -> Hosts:
    """What the decider needs for a trace."""
    pool, busy = Pool(shape, decider), _Average(vms[0].arrives_s)
    for vm in vms:
        while (left_s := pool.next_departure_s) is not None and left_s <= vm.arrives_s:
            busy.until(left_s, pool.busy)
            pool.depart(left_s)
        busy.until(vm.arrives_s, pool.busy)
        _place(pool, vm)
    return Hosts(len(pool.servers), busy.value)


def lower_bound(vms: Sequence[TraceVm], shape: Shape) -> Hosts:
    """What no decider can do with less."""
    leaving: list[tuple[int, int, int]] = []
    cpu_milli = memory_mib = 0
    peak, busy = 0.0, _Average(vms[0].arrives_s)

    def level() -> float:
        return max(cpu_milli / shape.cpu_milli, memory_mib / shape.memory_mib)

    for vm in vms:
        while leaving and leaving[0][0] <= vm.arrives_s:
            busy.until(leaving[0][0], level())
            _, cpu, memory = heapq.heappop(leaving)
            cpu_milli, memory_mib = cpu_milli - cpu, memory_mib - memory
        busy.until(vm.arrives_s, level())
        cpu_milli, memory_mib = cpu_milli + vm.cpu_milli, memory_mib + vm.memory_mib
        peak = max(peak, level())
        if vm.lifetime_s is not None:
            heapq.heappush(leaving, (vm.arrives_s + vm.lifetime_s, vm.cpu_milli, vm.memory_mib))
    return Hosts(math.ceil(peak), busy.value)


def _place(pool: Pool, vm: TraceVm) -> None:
    demand = Demand.of(vm, cells=1)
    seat = pool.place(demand)
    if seat is None:
        pool.open()
        seat = pool.place(demand)
    if seat is None:
        raise Breach(f"VM {vm.row} is refused although a host is empty")
    if vm.lifetime_s is not None:
        pool.leaves(demand, seat, vm.arrives_s + vm.lifetime_s)
