"""What a placement engine is asked and told by the trace replays, and what its answers are held to.

One interface for all of them. A rule of three lines judges by the hosts that it is shown (`ByRule`); an engine with a state of its own ignores them
and lives on what it is told, as it does in production: of each host before it is asked anything about it, of each VM once it is placed, of each
that left, in the order in which these happen. Nobody is told when a VM will leave.

The replay keeps books of its own (`Pool`), in whole numbers. An answer that they refute ends the run: an engine that overcommits, or that spreads a
VM in another way than the protocol says, has not won anything.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

from tests.bench.placement.traces import TraceVm


class Breach(Exception):
    """A decider's answer that the replay's books refute."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Of every host of a replay: so many NUMA cells, and what each of them has."""

    cells: int
    cpu_milli: int
    memory_mib: int


@dataclass(frozen=True, slots=True)
class Demand:
    """All that a decider may know of a VM. `cells`: how many cells of one host it takes, from each so much."""

    vm: int
    cell_cpu_milli: int
    cell_memory_mib: int
    cells: int

    @classmethod
    def of(cls, vm: TraceVm, cells: int) -> Self:
        if vm.cpu_milli % cells or vm.memory_mib % cells:
            raise ValueError(f"VM {vm.row} has no {cells} equal parts")
        return cls(vm.row, vm.cpu_milli // cells, vm.memory_mib // cells, cells)

    @property
    def cpu_milli(self) -> int:
        return self.cell_cpu_milli * self.cells

    @property
    def memory_mib(self) -> int:
        return self.cell_memory_mib * self.cells


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a VM goes: the host, and its cells in ascending order."""

    server: int
    cells: tuple[int, ...]


@dataclass(slots=True)
class Server:
    """A host in the replay's books, free amounts by cell. Deciders read it; only the pool writes."""

    index: int
    shape: Shape
    free_cpu_milli: list[int] = field(init=False)
    free_memory_mib: list[int] = field(init=False)
    vms: int = 0

    def __post_init__(self) -> None:
        self.free_cpu_milli = [self.shape.cpu_milli] * self.shape.cells
        self.free_memory_mib = [self.shape.memory_mib] * self.shape.cells

    def fitting(self, demand: Demand) -> list[int]:
        """The cells that have room for what is taken from each."""
        cpu, memory = demand.cell_cpu_milli, demand.cell_memory_mib
        rooms = enumerate(zip(self.free_cpu_milli, self.free_memory_mib, strict=True))
        return [cell for cell, (free_cpu, free_memory) in rooms if cpu <= free_cpu and memory <= free_memory]


class Decider(Protocol):
    """A placement engine, as the replays see it."""

    def opened(self, server: int, shape: Shape) -> None:
        """There is one more host, empty. Hosts are numbered from 0."""

    def choose(self, servers: Sequence[Server], demand: Demand) -> Seat | None:
        """Where it goes; None: nowhere as things are. A demand that was refused is asked again when something has changed."""

    def arrived(self, demand: Demand, seat: Seat) -> None:
        """It was placed as chosen: its charge counts from now on."""

    def departed(self, demand: Demand, seat: Seat) -> None:
        """It is gone from there, and its charge with it."""


Rule = Callable[[Sequence[Server], Demand], Seat | None]


@dataclass(frozen=True, slots=True)
class ByRule:
    """A decider without a state."""

    rule: Rule

    def opened(self, server: int, shape: Shape) -> None:
        pass

    def choose(self, servers: Sequence[Server], demand: Demand) -> Seat | None:
        return self.rule(servers, demand)

    def arrived(self, demand: Demand, seat: Seat) -> None:
        pass

    def departed(self, demand: Demand, seat: Seat) -> None:
        pass


def seats(servers: Sequence[Server], demand: Demand) -> Iterator[Seat]:
    """Every seat with room, by host, then by cell."""
    for server in servers:
        cells = server.fitting(demand)
        if demand.cells == 1:
            yield from (Seat(server.index, (cell,)) for cell in cells)
        elif len(cells) == demand.cells:
            yield Seat(server.index, tuple(cells))


class Pool:
    """The replay's books: the hosts, who leaves when, and the decider, who hears of all of it."""

    def __init__(self, shape: Shape, decider: Decider, servers: int = 0) -> None:
        self.servers: list[Server] = []
        self.busy = 0
        """Hosts that have a VM."""
        self._shape = shape
        self._decider = decider
        self._leaving: list[tuple[int, int, Demand, Seat]] = []
        for _ in range(servers):
            self.open()

    def open(self) -> None:
        """One more host."""
        self.servers.append(Server(len(self.servers), self._shape))
        self._decider.opened(len(self.servers) - 1, self._shape)

    def place(self, demand: Demand) -> Seat | None:
        """Where the decider puts it, and it is charged there; None: the decider refuses it."""
        seat = self._decider.choose(self.servers, demand)
        if seat is not None:
            self._check(demand, seat)
            self._charge(demand, seat, 1)
            self._decider.arrived(demand, seat)
        return seat

    def leaves(self, demand: Demand, seat: Seat, at_s: int) -> None:
        """It will go then."""
        heapq.heappush(self._leaving, (at_s, demand.vm, demand, seat))

    @property
    def next_departure_s(self) -> int | None:
        return self._leaving[0][0] if self._leaving else None

    def depart(self, until_s: int) -> None:
        """Everyone goes whose time has come, that moment included."""
        while self._leaving and self._leaving[0][0] <= until_s:
            _, _, demand, seat = heapq.heappop(self._leaving)
            self._charge(demand, seat, -1)
            self._decider.departed(demand, seat)

    def _charge(self, demand: Demand, seat: Seat, sign: int) -> None:
        server = self.servers[seat.server]
        for cell in seat.cells:
            server.free_cpu_milli[cell] -= sign * demand.cell_cpu_milli
            server.free_memory_mib[cell] -= sign * demand.cell_memory_mib
        was_busy = server.vms > 0
        server.vms += sign
        self.busy += (server.vms > 0) - was_busy

    def _check(self, demand: Demand, seat: Seat) -> None:
        if not 0 <= seat.server < len(self.servers):
            raise Breach(f"VM {demand.vm}: there is no host {seat.server}")
        if len(set(seat.cells)) != demand.cells or len(seat.cells) != demand.cells:
            raise Breach(f"VM {demand.vm} takes {demand.cells} of a host's cells, and was given {seat.cells}")
        if not set(seat.cells) <= set(self.servers[seat.server].fitting(demand)):
            raise Breach(f"VM {demand.vm}: host {seat.server} has no room in {seat.cells}")
