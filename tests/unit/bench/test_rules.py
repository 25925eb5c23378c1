"""The reference rules, on hosts of which is known what is free: an engine that beats a rule which is not the published one has beaten nobody."""

import pytest

from tests.bench.placement.decider import Demand, Rule, Seat, Server, Shape
from tests.bench.placement.rules import balance_fit, best_fit, first_fit, flat_first_fit, flat_least_cpu, imbalance_and_pack
from tests.bench.placement.spane import SHAPE

GIB = 1024
FLAT = Shape(1, 64_000, 256 * GIB)
Free = tuple[float, float]


def hosts(*servers: tuple[Free, ...], shape: Shape = SHAPE) -> list[Server]:
    """Of the (CPU, GiB) that are free in each cell."""
    made = []
    for index, cells in enumerate(servers):
        server = Server(index, shape)
        server.free_cpu_milli = [int(cpu * 1000) for cpu, _ in cells]
        server.free_memory_mib = [int(gib * GIB) for _, gib in cells]
        made.append(server)
    return made


def small(cpu: int, gib: int) -> Demand:
    return Demand(0, cpu * 1000, gib * GIB, 1)


def halved(cpu: int, gib: int) -> Demand:
    return Demand(0, cpu * 500, gib * 512, 2)


def test_first_fit_goes_by_server_then_by_cell() -> None:
    """The episodes' lengths are first-fit's: with another order they are other episodes."""
    servers = hosts(((1, 90), (4, 90)), ((40, 90), (40, 90)))
    assert first_fit(servers, small(4, 8)) == Seat(0, (1,))
    assert first_fit(servers, small(5, 8)) == Seat(1, (0,))
    assert first_fit(servers, halved(4, 12)) == Seat(1, (0, 1)), "cell 0 of server 0 has no 2 CPU for a half"


def test_best_fit_takes_the_cell_with_the_least_of_what_is_scarce() -> None:
    """A best-fit by CPU alone is another rule."""
    servers = hosts(((20, 90), (30, 9)), ((40, 90), (40, 90)))
    assert best_fit(servers, small(4, 8)) == Seat(0, (1,)), "9 of 90 GiB are less than 20 of 40 CPU"
    assert best_fit(servers, small(4, 10)) == Seat(0, (0,))
    assert best_fit(hosts(((40, 90), (20, 90)), ((20, 90), (40, 90))), small(1, 1)) == Seat(0, (1,)), "the first of equals"


def test_best_fit_adds_up_both_cells_for_a_halved_vm() -> None:
    """A halved VM that is judged by one of its halves."""
    servers = hosts(((10, 90), (40, 90)), ((20, 90), (20, 90)))
    assert best_fit(servers, halved(4, 12)) == Seat(1, (0, 1)), "1/2 + 1/2 is less than 1/4 + 1"


def test_balance_fit_evens_out_the_server_whose_cells_differ_most() -> None:
    """The rule whose published figures no size of cluster may be worse than."""
    servers = hosts(((20, 90), (30, 90)), ((10, 90), (40, 90)), ((0, 90), (0, 0)))
    assert balance_fit(servers, small(1, 1)) == Seat(1, (1,))
    assert balance_fit(servers, halved(4, 12)) == Seat(0, (0, 1)), "first-fit for a VM that takes of both"
    assert balance_fit(hosts(((9, 90), (9, 90)), ((8, 90), (8, 90))), small(1, 1)) == Seat(0, (0,)), "no server differs: the first cell"


def test_balance_fit_counts_only_servers_with_room() -> None:
    """A head that waits because the most uneven server is full."""
    servers = hosts(((0, 90), (3, 90)), ((20, 90), (21, 90)))
    assert balance_fit(servers, small(4, 4)) == Seat(1, (1,))
    assert balance_fit(servers, small(22, 4)) is None


def test_balance_fit_takes_the_other_cell_if_the_emptier_has_no_room() -> None:
    """What is left is the scarcer of two amounts: the cell that has more left of it may have too little of the other."""
    servers = hosts(((16, 90), (40, 18)), ((40, 90), (40, 90)))
    assert balance_fit(servers, small(1, 20)) == Seat(0, (0,)), "cell 0 has 0.4 left, cell 1 0.2 and no 20 GiB"
    turned = hosts(((10, 90), (40, 36)), ((40, 90), (40, 90)))
    assert balance_fit(turned, small(1, 40)) == Seat(0, (0,)), "cell 1 has 0.4 left and no 40 GiB, cell 0 has 0.25"


def test_imbalance_and_pack_weighs_both() -> None:
    """The bar that is known to be reachable would be another one.

    8 CPU and 9 GiB, which are 0.2 and 0.1 of a cell. Server 0: imbalance grows by 0.3; of its 80 CPU 72 are left, 2 x 0.9: together 2.1.
    Server 1, cell 0: the difference of CPU goes from 0.2 to 0, of memory from 0.2 to 0.1, that is -0.3; 2 x 32/80 = 0.8: together 0.5.
    Server 1, cell 1: from 0.2 to 0.4 and from 0.2 to 0.3, that is +0.3; 0.8: together 1.1.
    """
    servers = hosts(((40, 90), (40, 90)), ((24, 90), (16, 72)))
    assert imbalance_and_pack(servers, small(8, 9)) == Seat(1, (0,))
    assert imbalance_and_pack(servers[:1], small(8, 9)) == Seat(0, (0,)), "the first of equals"
    even = hosts(((20, 45), (20, 45)), ((34, 90), (10, 90)))
    # Server 0: +0.3 + 2 x 32/80 = 1.1. Server 1, cell 0: 0.6 to 0.4 is -0.2, memory +0.1, 2 x 36/80 = 0.9: 0.8.
    assert imbalance_and_pack(even, small(8, 9)) == Seat(1, (0,)), "a fuller server loses to one that gets more even"
    uneven_memory = hosts(((20, 45), (20, 45)), ((20, 90), (20, 45)))
    assert imbalance_and_pack(uneven_memory, small(8, 9)) == Seat(1, (0,)), "memory is evened out as CPU is"
    fuller = hosts(((40, 90), (40, 90)), ((20, 90), (20, 90)))
    assert imbalance_and_pack(fuller, small(8, 9)) == Seat(1, (0,)), "where imbalance grows alike the fuller one"
    assert imbalance_and_pack(even, halved(16, 18)) == Seat(0, (0, 1)), "halves change no imbalance: the fuller one"


@pytest.mark.parametrize("rule", [first_fit, best_fit, balance_fit, imbalance_and_pack, flat_first_fit, flat_least_cpu])
def test_without_room_there_is_no_seat(rule: Rule) -> None:
    """A rule that ends the run where its head should wait."""
    full = hosts(((1, 1),), shape=FLAT) if rule in (flat_first_fit, flat_least_cpu) else hosts(((1, 90), (40, 1)))
    assert rule(full, small(2, 2)) is None
    assert rule([], small(2, 2)) is None


def test_flat_rules_look_at_memory_too() -> None:
    """Hosts that are chosen by CPU alone."""
    servers = hosts(((64, 256),), ((8, 4),), ((8, 16),), ((8, 16),), shape=FLAT)
    assert flat_least_cpu(servers, small(4, 8)) == Seat(2, (0,)), "host 1 has no 8 GiB, and of equals the first"
    assert flat_least_cpu(servers, small(9, 8)) == Seat(0, (0,))
    assert flat_first_fit(servers[1:], small(4, 8)) == Seat(2, (0,))
    assert flat_first_fit(servers, small(4, 8)) == first_fit(servers, small(4, 8)) == Seat(0, (0,))
