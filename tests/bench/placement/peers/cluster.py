"""What every peer is asked, in words of none of them: hosts, what runs there, the shapes to place; and what a peer answers.

What is free follows from what runs there and is said nowhere else, so that no two peers are told different clusters. Millicores and MiB, as Hostler
counts; a peer that counts whole CPUs is given none that are not whole (`whole_cpus`), because rounding would hand it another cluster.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

MILLI = 1000


@dataclass(frozen=True, slots=True)
class Shape:
    """What a VM takes. `disk_mib` counts only where a host's own disk is given out."""

    cpu_milli: int
    memory_mib: int
    disk_mib: int = 0


@dataclass(frozen=True, slots=True)
class Host:
    """All that it may give out: what its own system takes is not in it, an overcommitment of CPU is."""

    id: str
    cpu_milli: int
    memory_mib: int
    disk_mib: int = 0


@dataclass(frozen=True, slots=True)
class Instance:
    """A VM and the host that it runs on."""

    id: str
    host_id: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class Cluster:
    """Before anything is asked."""

    hosts: tuple[Host, ...]
    instances: tuple[Instance, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """To one shape. `host_id`: None if it was refused, and then `why` says why; `parts_s`: what its time is made of, where a peer has parts;
    `cpu_s`: of a peer that is a process of its own for each answer."""

    host_id: str | None
    took_s: float
    why: str = ""
    parts_s: dict[str, float] = field(default_factory=dict)
    cpu_s: float | None = None


@dataclass(frozen=True, slots=True)
class Round:
    """Several shapes, each answered before the next was asked. `cpu_s`: of the peer's process, which a busy machine stretches less than `took_s`."""

    answers: tuple[Answer, ...]
    cpu_s: float

    @property
    def took_s(self) -> float:
        return sum(answer.took_s for answer in self.answers)


def free(cluster: Cluster) -> dict[str, Shape]:
    """What is left of each host, in the hosts' order. Raises ValueError for a cluster that cannot be."""
    left = {host.id: [host.cpu_milli, host.memory_mib, host.disk_mib] for host in cluster.hosts}
    if len(left) < len(cluster.hosts):
        raise ValueError("two hosts have the same id")
    if len({instance.id for instance in cluster.instances}) < len(cluster.instances):
        raise ValueError("two instances have the same id")
    for instance in cluster.instances:
        if instance.host_id not in left:
            raise ValueError(f"instance {instance.id} is on {instance.host_id}, which is no host")
        of_host = left[instance.host_id]
        of_host[0] -= instance.shape.cpu_milli
        of_host[1] -= instance.shape.memory_mib
        of_host[2] -= instance.shape.disk_mib
        if min(of_host) < 0:
            raise ValueError(f"host {instance.host_id} has given out more than it has")
    return {host_id: Shape(*numbers) for host_id, numbers in left.items()}


def whole_cpus(cpu_milli: int) -> int:
    """Raises ValueError for a part of a CPU."""
    if cpu_milli % MILLI:
        raise ValueError(f"{cpu_milli} millicores are no whole number of CPUs, and this peer counts no parts of one")
    return cpu_milli // MILLI


# ---- on the wire to a peer's own process


def rows_of_shapes(shapes: Iterable[Shape]) -> list[list[int]]:
    return [[shape.cpu_milli, shape.memory_mib, shape.disk_mib] for shape in shapes]


def shapes_of(rows: Iterable[list[int]]) -> list[Shape]:
    return [Shape(*row) for row in rows]


def rows_of(cluster: Cluster) -> dict[str, Any]:
    """Rows instead of objects: 100,000 instances are one line."""
    return {
        "hosts": [[host.id, host.cpu_milli, host.memory_mib, host.disk_mib] for host in cluster.hosts],
        "instances": [[one.id, one.host_id, one.shape.cpu_milli, one.shape.memory_mib, one.shape.disk_mib] for one in cluster.instances],
    }


def cluster_of(rows: dict[str, Any]) -> Cluster:
    return Cluster(
        hosts=tuple(Host(*row) for row in rows["hosts"]),
        instances=tuple(Instance(name, host_id, Shape(*numbers)) for name, host_id, *numbers in rows["instances"]),
    )


def row_of(answer: Answer) -> list[Any]:
    return [answer.host_id, answer.took_s, answer.why, answer.parts_s]


def round_of(rows: Iterable[list[Any]], cpu_s: float) -> Round:
    return Round(tuple(Answer(*row) for row in rows), cpu_s)
