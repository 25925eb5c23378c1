"""The reference rules that an engine is measured against, each a function of what is free.

first-fit, best-fit and balance-fit are ChanTinPing/SPANE's (baseline_agent/ @dad74f5; the definitions are carried over, no code). What is left of
a cell is the smaller of its free shares of CPU and of memory, before the VM is placed. Hosts and cells are looked at in ascending order, and the
first of equals is taken. SPANE publishes nothing for best-fit: as its file stands it takes a request for a matrix and cannot be run.

imbalance-and-pack is one formula. Of the seats with room it takes the one with the least
    growth of (|cpu a - cpu b| / cell's CPU + |memory a - memory b| / cell's memory) + 2 x the server's free share of CPU,
a and b being what is free in the two cells. It is reckoned in whole numbers, multiplied by the cell's sizes, so that equals are equal.

Flat hosts, of one cell, have first-fit and least-cpu (the usual best-fit: the host with the least free CPU that still has room). These look at
every host for each of 100,000s of VMs and are therefore written apart.
"""

from collections.abc import Iterator, Sequence

from tests.bench.placement.decider import Demand, Rule, Seat, Server, seats


def first_fit(servers: Sequence[Server], demand: Demand) -> Seat | None:
    """The first cell; for a VM that takes of both, the first server."""
    return next(seats(servers, demand), None)


def best_fit(servers: Sequence[Server], demand: Demand) -> Seat | None:
    """The cell with the least left; for a VM that takes of both, the server whose cells have the least left together."""
    return min(seats(servers, demand), key=lambda seat: sum(_left(servers[seat.server], cell) for cell in seat.cells), default=None)


def balance_fit(servers: Sequence[Server], demand: Demand) -> Seat | None:
    """Of the servers with room the one whose cells differ most, and of its cells with room the emptier. For a VM that takes of both: first-fit."""
    if demand.cells > 1:
        return first_fit(servers, demand)
    rooms = [(server, cells) for server in servers if (cells := server.fitting(demand))]
    if not rooms:
        return None
    server, cells = max(rooms, key=lambda room: abs(_left(room[0], 0) - _left(room[0], 1)))
    return Seat(server.index, (max(cells, key=lambda cell: _left(server, cell)),))


def imbalance_and_pack(servers: Sequence[Server], demand: Demand) -> Seat | None:
    return min(seats(servers, demand), key=lambda seat: _imbalance_and_pack(servers[seat.server], demand, seat), default=None)


def flat_first_fit(servers: Sequence[Server], demand: Demand) -> Seat | None:
    server = next(_flat_rooms(servers, demand), None)
    return None if server is None else Seat(server.index, (0,))


def flat_least_cpu(servers: Sequence[Server], demand: Demand) -> Seat | None:
    server = min(_flat_rooms(servers, demand), key=lambda server: server.free_cpu_milli[0], default=None)
    return None if server is None else Seat(server.index, (0,))


NUMA_RULES: dict[str, Rule] = {
    "first-fit": first_fit,
    "best-fit": best_fit,
    "balance-fit": balance_fit,
    "imbalance-and-pack": imbalance_and_pack,
}
FLAT_RULES: dict[str, Rule] = {"first-fit": flat_first_fit, "least-cpu": flat_least_cpu}


def _left(server: Server, cell: int) -> float:
    return min(server.free_cpu_milli[cell] / server.shape.cpu_milli, server.free_memory_mib[cell] / server.shape.memory_mib)


def _imbalance_and_pack(server: Server, demand: Demand, seat: Seat) -> int:
    cpu_growth = _growth(server.free_cpu_milli, demand.cell_cpu_milli, seat.cells)
    memory_growth = _growth(server.free_memory_mib, demand.cell_memory_mib, seat.cells)
    free_cpu_milli = sum(server.free_cpu_milli) - demand.cpu_milli
    return (cpu_growth + free_cpu_milli) * server.shape.memory_mib + memory_growth * server.shape.cpu_milli


def _growth(free: Sequence[int], amount: int, cells: Sequence[int]) -> int:
    """By how much two cells differ more once these have given so much."""
    a, b = (have - amount if cell in cells else have for cell, have in enumerate(free))
    return abs(a - b) - abs(free[0] - free[1])


def _flat_rooms(servers: Sequence[Server], demand: Demand) -> Iterator[Server]:
    cpu, memory = demand.cell_cpu_milli, demand.cell_memory_mib
    return (server for server in servers if server.free_cpu_milli[0] >= cpu and server.free_memory_mib[0] >= memory)
