"""The raw limit of a decision in Python: a scan of all hosts for the best fit of CPU and memory, and nothing else. One answer's time is bar 1's unit.

No labels, no NUMA, no affinity, no reserve: what an engine does beside this is what its guarantees cost. The best fit is the host that is fullest, by
the sum of its shares of CPU and memory; each decision is written into the arrays before the next is made.
Two ways of one rule. `fused` writes every step into arrays that are there already, and weighs each host by its fullness times whether it
fits: the fastest that keeps to a scan. `plain` is what one writes down first, with a new array for every step.
Run by a Python that has numpy: `python -m tests.bench.placement.peers.numpy_scan`; see `served`.
"""

import importlib
import time
from pathlib import Path
from typing import Any

from tests.bench.placement.peers.cluster import Answer, Cluster, Shape, free
from tests.bench.placement.peers.served import Served, serve

INSTALL = "make a venv and pip install numpy==2.4.6 there"
WAYS = ("fused", "plain")
EMPTY = 1.0
"""The fullness of an empty host: more than nothing, which is what a host weighs that does not fit."""


class NumpyScan:
    """The hosts as arrays. Raises ImportError where numpy is not installed."""

    def __init__(self, cluster: Cluster, way: str = WAYS[0]) -> None:
        if way not in WAYS:
            raise ValueError(f"{way!r} is none of {WAYS}")
        self.numpy: Any = importlib.import_module("numpy")
        numbers, left = self.numpy.float32, free(cluster).values()  # whole numbers to 16 million: exact
        self._ids = [host.id for host in cluster.hosts]
        self._cpu = self.numpy.array([shape.cpu_milli for shape in left], numbers)
        self._memory = self.numpy.array([shape.memory_mib for shape in left], numbers)
        self._cpu_all = self.numpy.array([host.cpu_milli for host in cluster.hosts], numbers)
        self._memory_all = self.numpy.array([host.memory_mib for host in cluster.hosts], numbers)
        self._fullness = EMPTY + (1 - self._cpu / self._cpu_all) + (1 - self._memory / self._memory_all)
        self._fits, self._fits_too = (self.numpy.empty(len(self._ids), bool) for _ in range(2))
        self._weight = self.numpy.empty(len(self._ids), numbers)
        self._best = {"fused": self._fused, "plain": self._plain}[way]
        self._given = [one.copy() for one in (self._cpu, self._memory, self._fullness)]

    def place(self, shape: Shape) -> Answer:
        began_s = time.perf_counter()
        at = self._best(shape.cpu_milli, shape.memory_mib)
        if at is not None:
            self._take(at, shape)
        took_s = time.perf_counter() - began_s
        return Answer(None, took_s, "no host has room") if at is None else Answer(self._ids[at], took_s)

    def undo(self) -> None:
        self._cpu, self._memory, self._fullness = (one.copy() for one in self._given)

    def _take(self, at: int, shape: Shape) -> None:
        self._cpu[at] -= shape.cpu_milli
        self._memory[at] -= shape.memory_mib
        self._fullness[at] += shape.cpu_milli / self._cpu_all[at] + shape.memory_mib / self._memory_all[at]

    def _fused(self, cpu_milli: int, memory_mib: int) -> int | None:
        numpy, fits, weight = self.numpy, self._fits, self._weight
        numpy.greater_equal(self._cpu, cpu_milli, out=fits)
        numpy.greater_equal(self._memory, memory_mib, out=self._fits_too)
        numpy.logical_and(fits, self._fits_too, out=fits)
        numpy.multiply(self._fullness, fits, out=weight)
        at = int(weight.argmax())
        return at if fits[at] else None

    def _plain(self, cpu_milli: int, memory_mib: int) -> int | None:
        fits = (self._cpu >= cpu_milli) & (self._memory >= memory_mib)
        fullness = EMPTY + (1 - self._cpu / self._cpu_all) + (1 - self._memory / self._memory_all)
        at = int(self.numpy.where(fits, fullness, 0).argmax())
        return at if fits[at] else None


def numpy_scan(python: Path, cluster: Cluster, *, way: str = WAYS[0], ready_s: float = 60.0) -> Served:
    """In a process of its own, by a Python that has numpy. Raises PeerMissing."""
    return Served(__name__, python, cluster, install=INSTALL, ready_s=ready_s, settings={"way": way})


def opened(cluster: Cluster, settings: dict[str, Any]) -> tuple[NumpyScan, dict[str, Any]]:
    scan = NumpyScan(cluster, settings["way"])
    return scan, {"version": scan.numpy.__version__}


if __name__ == "__main__":
    serve(opened)
