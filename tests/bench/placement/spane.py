"""The waiting-time replay of SPANE (arXiv 2504.14946): which VMs an episode has, who waits for how long, and the mean that counts.

Found in ChanTinPing/SPANE (MIT; facts are carried over, no code), in these files:
- schedgym/sched_env.py @6a24efb: every server has two cells. A VM with more than 10 GiB takes half of its CPU and half of its memory from each cell
  of one server; any other takes all of it from one cell. A cell may be filled to the last.
- the same: strict FIFO. The head of the queue waits until it has a place, and everyone behind it waits too, with room or without. While it waits,
  time goes from departure to departure. Departures at a time come before an arrival at that time, and all departures of one moment before the head
  is tried again. A VM that waited lives its whole lifetime from its start. Waiting counts from arrival to start and is summed over the episode.
- the same: an episode that would come to the last row of the trace or beyond is an error, not a shorter episode.
- baseline_flex.py @3dbe525: 40 CPU and 90 GiB per cell, 2 to 9 servers. The episode's length is first-fit's for the same number of servers: VMs are
  placed until the *next* one has no room, where what leaves between the last one's arrival and the next one's has not left yet; then 40 more. So
  every decider waits for the same VMs, and first-fit too has to wait.
- common.py @47c0421: the mean without the lowest and the highest tenth of the episodes.

Not decided by SPANE: its environment asks an agent only when there is room. Here a decider is always asked, since an engine has to find that out
itself; one that refuses although there was room waits for the next departure like anyone else.
"""

from collections.abc import Callable, Iterable, Sequence

from tests.bench.placement.decider import Breach, ByRule, Decider, Demand, Pool, Seat, Shape, seats
from tests.bench.placement.rules import first_fit
from tests.bench.placement.traces import MIB_PER_GIB, MILLI, TraceVm

SHAPE = Shape(cells=2, cpu_milli=40 * MILLI, memory_mib=90 * MIB_PER_GIB)
WHOLE_UP_TO_MIB = 10 * MIB_PER_GIB
"""A VM with more memory is halved."""
SERVERS = range(2, 10)
"""The sizes of cluster for which there are published figures."""
BEYOND_FIRST_FIT = 40
TRIMMED = 10
"""One in so many episodes is left out at either end."""

Episode = tuple[TraceVm, ...]


def demand_of(vm: TraceVm) -> Demand:
    return Demand.of(vm, cells=2 if vm.memory_mib > WHOLE_UP_TO_MIB else 1)


def episode(vms: Sequence[TraceVm], start: int, servers: int, shape: Shape = SHAPE) -> Episode:
    """The VMs of the episode that starts at this row."""
    length = _placed_by_first_fit(vms, start, servers, shape) + BEYOND_FIRST_FIT
    if start + length >= len(vms) - 1:
        raise ValueError(f"the trace ends before the episode that starts at row {start}")
    return tuple(vms[start : start + length])


def wait_s(vms: Episode, decider: Decider, servers: int, shape: Shape = SHAPE) -> int:
    """How long the VMs of an episode wait, all together."""
    pool = Pool(shape, decider, servers)
    now_s, waited_s = vms[0].arrives_s, 0
    for vm in vms:
        pool.depart(vm.arrives_s)
        now_s, seat = _wait(pool, demand_of(vm), max(now_s, vm.arrives_s))
        waited_s += now_s - vm.arrives_s
        _leave_later(pool, vm, seat, now_s)
    return waited_s


def mean_wait_s(episodes: Iterable[Episode], decider: Callable[[], Decider], servers: int) -> float:
    """The figure that is published: of every episode with a decider of its own."""
    return trimmed_mean([wait_s(vms, decider(), servers) for vms in episodes])


def trimmed_mean(values: Sequence[float]) -> float:
    cut = len(values) // TRIMMED
    kept = sorted(values)[cut : len(values) - cut]
    return sum(kept) / len(kept)


def _wait(pool: Pool, demand: Demand, now_s: int) -> tuple[int, Seat]:
    """(when it has its place, which)."""
    while (seat := pool.place(demand)) is None:
        if pool.next_departure_s is None:
            raise Breach(f"VM {demand.vm} is refused, and nobody is left who could make room")
        now_s = pool.next_departure_s
        pool.depart(now_s)
    return now_s, seat


def _leave_later(pool: Pool, vm: TraceVm, seat: Seat, placed_s: int) -> None:
    if vm.lifetime_s is not None:
        pool.leaves(demand_of(vm), seat, placed_s + vm.lifetime_s)


def _placed_by_first_fit(vms: Sequence[TraceVm], start: int, servers: int, shape: Shape) -> int:
    """How many have a place when for the first time the next one has none."""
    pool = Pool(shape, ByRule(first_fit), servers)
    for row in range(start, len(vms) - 1):
        vm = vms[row]
        pool.depart(vm.arrives_s)
        seat = pool.place(demand_of(vm))
        if seat is None:
            raise ValueError(f"VM {vm.row} has no room in {servers} empty servers")
        _leave_later(pool, vm, seat, vm.arrives_s)
        if next(seats(pool.servers, demand_of(vms[row + 1])), None) is None:
            return row + 1 - start
    raise ValueError(f"the trace ends before {servers} servers are full from row {start} on")
