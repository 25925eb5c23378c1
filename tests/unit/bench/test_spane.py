"""The waiting-time replay of SPANE on episodes worked out by hand: one rule of the protocol that is not kept, and no figure can be compared any more.

A server has two cells of 40 CPU and 90 GiB. `first-fit` fills cell 0 first.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from tests.bench.placement.decider import Breach, ByRule, Demand, Seat, Server, Shape
from tests.bench.placement.rules import first_fit
from tests.bench.placement.spane import BEYOND_FIRST_FIT, demand_of, episode, mean_wait_s, trimmed_mean, wait_s
from tests.bench.placement.traces import TraceVm

GIB = 1024


def trace(*vms: tuple[int, int, float, float]) -> tuple[TraceVm, ...]:
    """Of (arrives, lives, CPU, GiB)."""
    return tuple(
        TraceVm(row, arrives_s, lives_s, int(cpu * 1000), int(gib * GIB)) for row, (arrives_s, lives_s, cpu, gib) in enumerate(vms)
    )


@dataclass
class Recorder:
    """First-fit that writes down what it hears."""

    heard: list[str] = field(default_factory=list)
    seats: dict[int, Seat] = field(default_factory=dict)

    def opened(self, server: int, shape: Shape) -> None:
        self.heard.append(f"opened {server}")

    def choose(self, servers: Sequence[Server], demand: Demand) -> Seat | None:
        self.heard.append(f"asked {demand.vm}")
        return first_fit(servers, demand)

    def arrived(self, demand: Demand, seat: Seat) -> None:
        self.heard.append(f"arrived {demand.vm}")
        self.seats[demand.vm] = seat

    def departed(self, demand: Demand, seat: Seat) -> None:
        self.heard.append(f"departed {demand.vm}")
        assert seat == self.seats[demand.vm]


class OwnBooks:
    """An engine as production has it: it ignores the hosts that it is shown, and knows what it was told. First-fit on its own books."""

    def __init__(self) -> None:
        self.free: list[list[list[int]]] = []

    def opened(self, server: int, shape: Shape) -> None:
        assert server == len(self.free)
        self.free.append([[shape.cpu_milli, shape.memory_mib] for _ in range(shape.cells)])

    def choose(self, servers: Sequence[Server], demand: Demand) -> Seat | None:
        for server, cells in enumerate(self.free):
            room = [cell for cell, free in enumerate(cells) if free[0] >= demand.cell_cpu_milli and free[1] >= demand.cell_memory_mib]
            if len(room) >= demand.cells:
                return Seat(server, tuple(room[: demand.cells]))
        return None

    def arrived(self, demand: Demand, seat: Seat) -> None:
        self._charge(demand, seat, 1)

    def departed(self, demand: Demand, seat: Seat) -> None:
        self._charge(demand, seat, -1)

    def _charge(self, demand: Demand, seat: Seat, sign: int) -> None:
        for cell in seat.cells:
            self.free[seat.server][cell][0] -= sign * demand.cell_cpu_milli
            self.free[seat.server][cell][1] -= sign * demand.cell_memory_mib


def answer(seat: Seat | None) -> ByRule:
    """A decider that says always the same."""
    return ByRule(lambda servers, demand: seat)


def test_the_head_waits_for_a_departure_and_lives_from_its_start() -> None:
    """A wait that ends too early or too late, or a VM that waited and is robbed of the end of its life: the next one would wait less."""
    vms = trace(
        (0, 100, 40, 1),  # cell 0 until 100
        (0, 50, 40, 1),  # cell 1 until 50
        (10, 10, 40, 1),  # waits for 50: 40 s; from there 10 s, until 60
        (20, 5, 40, 1),  # waits for 60: 40 s
        (70, 5, 40, 1),  # cell 1 is free again since 65: no wait
    )
    assert wait_s(vms, ByRule(first_fit), 1) == 80


def test_who_has_room_waits_behind_a_head_that_has_none() -> None:
    """A queue that lets small VMs past makes every rule look better than the published ones, which must not."""
    vms = trace(
        (0, 100, 40, 1),  # cell 0 until 100
        (0, 200, 30, 1),  # cell 1 until 200; 10 CPU are left there all the time
        (10, 5, 40, 1),  # waits for 100: 90 s
        (20, 5, 1, 1),  # has room in cell 1, and waits for 100: 80 s
    )
    assert wait_s(vms, ByRule(first_fit), 1) == 170


def test_departures_come_before_an_arrival_at_the_same_time() -> None:
    """A VM that is placed beside one which is gone: another place than in the published replay, and other waits ever after."""
    recorder = Recorder()
    assert wait_s(trace((0, 100, 40, 1), (100, 5, 40, 1)), recorder, 1) == 0
    assert recorder.seats[1] == Seat(0, (0,)), "cell 0 was free again at 100"
    assert recorder.heard == ["opened 0", "asked 0", "arrived 0", "departed 0", "asked 1", "arrived 1"]


def test_all_of_one_moment_are_gone_before_the_head_is_tried_again() -> None:
    """A head that takes the place of the first who leaves, where the published replay has two to choose from."""
    vms = trace(
        (0, 50, 40, 1),  # cell 0 until 50
        (0, 100, 40, 1),  # cell 1 until 100
        (50, 50, 40, 1),  # cell 0 until 100
        (60, 5, 40, 1),  # waits for 100, when VM 1 leaves first: 40 s
    )
    recorder = Recorder()
    assert wait_s(vms, recorder, 1) == 40
    assert recorder.heard[-4:] == ["departed 1", "departed 2", "asked 3", "arrived 3"]
    assert recorder.seats[3] == Seat(0, (0,))


@pytest.mark.parametrize(
    ("cpu", "gib", "cells", "cell_cpu_milli", "cell_memory_mib"),
    [(4, 10, 1, 4000, 10 * GIB), (1, 11, 2, 500, 5632), (64, 128, 2, 32_000, 64 * GIB)],
)
def test_more_than_10_gib_is_halved(cpu: int, gib: int, cells: int, cell_cpu_milli: int, cell_memory_mib: int) -> None:
    """A VM of 64 CPU would fit nowhere, or one of 10 GiB would be spread; and half a CPU that is rounded adds up."""
    demand = demand_of(TraceVm(0, 0, 1, cpu * 1000, gib * GIB))
    assert (demand.cells, demand.cell_cpu_milli, demand.cell_memory_mib) == (cells, cell_cpu_milli, cell_memory_mib)


def test_what_has_no_halves_is_told() -> None:
    """A rest that is charged to nobody, and grows with every VM."""
    for vm in (TraceVm(3, 0, 1, 1001, 12 * GIB), TraceVm(3, 0, 1, 1000, 12 * GIB + 1)):
        with pytest.raises(ValueError, match="VM 3 has no 2 equal parts"):
            demand_of(vm)


def test_a_halved_vm_takes_from_both_cells_of_one_server() -> None:
    """Halves on two servers, or twice the whole: more or fewer VMs fit than in the published replay."""
    vms = trace(
        (0, 100, 30, 1),  # cell 0 of server 0
        (0, 50, 24, 12),  # 12 from each: only server 1 has that in both cells
        (0, 200, 34, 1),  # server 0, cell 1: 6 left
        (0, 200, 28, 1),  # server 1, cell 0: exactly what a half has left there
        (10, 5, 29, 1),  # server 1, cell 1 has 28: waits for 50, 40 s
    )
    recorder = Recorder()
    assert wait_s(vms, recorder, 2) == 40
    assert [recorder.seats[vm] for vm in range(5)] == [Seat(0, (0,)), Seat(1, (0, 1)), Seat(0, (1,)), Seat(1, (0,)), Seat(1, (1,))]


def test_an_episode_ends_forty_after_first_fit_is_stuck() -> None:
    """Another length is another episode: VMs that wait in one replay and do not exist in the other."""
    vms = trace(
        (0, 5, 40, 1),  # cell 0 until 5
        (6, 4, 40, 1),  # cell 0 again: what left before its arrival is gone
        (7, 999, 40, 1),  # cell 1
        (10, 5, 40, 1),  # has no room, as what leaves at 10 has not left when VM 2 is placed: 3 + 40
        *((20, 1, 1, 1) for _ in range(60)),
    )
    assert BEYOND_FIRST_FIT == 40
    assert episode(vms, 0, 1) == vms[:43]
    assert episode(vms, 1, 1) == vms[1:43], "from another row on one fewer"
    assert episode(vms, 2, 1) == vms[2:44], "there VM 3 has room, and fills the server: 2 + 40"


def test_a_trace_that_is_too_short_is_no_shorter_episode() -> None:
    """A mean over episodes of which some were cut."""
    vms = trace((0, 99, 40, 1), (0, 99, 40, 1), *((1, 1, 40, 1) for _ in range(42)))
    assert len(episode(vms, 0, 1)) == 42, "44 rows: the last one is not reached"
    with pytest.raises(ValueError, match="row 0"):
        episode(vms[:-1], 0, 1)
    with pytest.raises(ValueError, match="row 40"):
        episode(trace(*((0, 99, 0, 0) for _ in range(80))), 40, 1)


@pytest.mark.parametrize(
    ("values", "mean"),
    [
        ([1000, 2, 3, 4, 5, 6, 7, 8, 9, 1], 5.5),
        ([1000, 2, 3, 4, 5, 6, 7, 8, 9], 116),
        ([-5, 500, *range(10, 27)], 18),
    ],
)
def test_a_tenth_is_left_out_at_either_end(values: list[float], mean: float) -> None:
    """One long episode that decides the whole figure. Of 9 none is left out, of 19 one at either end."""
    assert trimmed_mean(values) == mean


def test_every_episode_has_a_decider_of_its_own() -> None:
    """An engine that starts an episode with the VMs of the last one."""
    vms = trace((0, 100, 40, 1), (0, 100, 40, 1), (10, 1, 40, 1))
    assert mean_wait_s([vms, vms], OwnBooks, 1) == 90


def test_an_engine_that_lives_on_what_it_is_told_decides_as_the_rule_does() -> None:
    """A charge or a release that an engine is not told of: production's engine would be judged on wrong books."""
    rng = random.Random(7)
    kinds = ((1, 2), (4, 8), (8, 32), (16, 32), (64, 128))
    vms = trace(*((5 * row, rng.randrange(1, 2000), *rng.choice(kinds)) for row in range(400)))
    told, shown = OwnBooks(), Recorder()
    assert wait_s(vms, told, 3) == wait_s(vms, shown, 3) > 0
    assert sum(line.startswith("departed") for line in shown.heard) > 100


@pytest.mark.parametrize(
    ("seat", "word"),
    [
        (Seat(1, (0,)), "no host 1"),
        (Seat(-1, (0,)), "no host -1"),
        (Seat(0, (0, 1)), "takes 1"),
        (Seat(0, (0, 0)), "takes 1"),
        (Seat(0, ()), "takes 1"),
        (Seat(0, (2,)), "no room"),
    ],
)
def test_a_seat_that_is_none_ends_the_run(seat: Seat, word: str) -> None:
    """An engine that is measured on hosts or cells that do not exist."""
    with pytest.raises(Breach, match=word):
        wait_s(trace((0, 1, 1, 1)), answer(seat), 1)


def test_an_engine_that_overcommits_ends_the_run() -> None:
    """The least waiting of all has who puts two VMs in one place."""
    with pytest.raises(Breach, match="VM 1: host 0 has no room"):
        wait_s(trace((0, 9, 21, 1), (0, 9, 20, 1)), answer(Seat(0, (0,))), 1)
    with pytest.raises(Breach, match="takes 2"):
        wait_s(trace((0, 9, 4, 12)), answer(Seat(0, (0,))), 1)
    with pytest.raises(Breach, match="takes 2"):
        wait_s(trace((0, 9, 4, 12)), answer(Seat(0, (0, 0))), 1)


def test_an_engine_that_refuses_waits_until_something_changes() -> None:
    """A refusal without need that costs nothing, or one that hangs the benchmark."""

    def one_at_a_time(servers: Sequence[Server], demand: Demand) -> Seat | None:
        return None if servers[0].vms else first_fit(servers, demand)

    vms = trace((0, 100, 1, 1), (10, 5, 1, 1))
    assert wait_s(vms, ByRule(one_at_a_time), 1) == 90
    with pytest.raises(Breach, match="VM 0 is refused"):
        wait_s(vms, answer(None), 1)
