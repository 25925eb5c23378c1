"""The cgroup trees this machine has, and what holds for a group of any of them.

Decision: a tree is what /proc/self/mounts shows and holds a controller that the lab uses; everything else about versions
follows from that. So a machine with cgroup v1, one with cgroup v2 alone, and one that has both are one case: each
controller is used where it lives. A subtree is killed and removed by its path alone, because `down` knows nothing else.
"""

import errno
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hostlerlab.processes import identify
from hostlerlab.shell import wait_for

MOUNTS = Path("/proc/self/mounts")
# The tree with this controller is one that every process of a host stays in, so it tells what belongs to the host.
TRACKER = "pids"
# What the lab and libvirt set in a cgroup v2 tree. The rest (hugetlb, misc, rdma) is nobody's here.
V2_CONTROLLERS = ("cpu", "cpuset", "io", "memory", "pids")
NEEDED = ("cpu", "cpuset", "memory", "pids")
PIDS_MAX = 4096  # a runaway test must not take the machine's pids; a host with 20 guests uses about 300
CPU_PERIOD_US = 100_000
EMPTY_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Caps:
    """What the whole host may use. `host_reserve_milli` of the CPU is kept from guests for the host's daemons; `weight`: what it counts for
    against the rest of the machine, in halves of an ordinary process."""

    cpu_milli: int
    memory_mib: int
    host_reserve_milli: int
    weight: int = 1

    @property
    def guests_cpu_milli(self) -> int:
        return self.cpu_milli - self.host_reserve_milli


@dataclass(frozen=True, slots=True)
class Tree:
    """One mounted tree: a v1 hierarchy or the v2 tree, where it is mounted and the controllers in it."""

    version: Literal[1, 2]
    root: Path
    controllers: frozenset[str]


def trees(mounts: str | None = None) -> tuple[Tree, ...]:
    """The trees the lab uses, of a text like /proc/self/mounts. A tree that is mounted twice counts where it comes first."""
    found: list[Tree] = []
    for line in (MOUNTS.read_text() if mounts is None else mounts).splitlines():
        _, where, kind, options, *_ = line.split(" ")
        match kind:
            case "cgroup":
                tree = Tree(1, Path(where), frozenset(options.split(",")))
            case "cgroup2":
                available = (Path(where) / "cgroup.controllers").read_text().split()
                tree = Tree(2, Path(where), frozenset(available) & frozenset(V2_CONTROLLERS))
            case _:
                continue
        if tree.controllers and not any((t.version, t.controllers) == (tree.version, tree.controllers) for t in found):
            found.append(tree)
    return tuple(found)


def lacking(found: Sequence[Tree]) -> list[str]:
    """The controllers that a lab needs and no tree has, in words; empty when all are there."""
    have = {c for tree in found for c in tree.controllers}
    unified = next((tree.root for tree in found if tree.version == 2), None)
    if unified is not None:
        return [f"cgroup controller {c} (neither in {unified}/cgroup.controllers nor mounted as v1)" for c in NEEDED if c not in have]
    # In v2 access to devices is a program attached to the group, not a controller.
    return [f"cgroup controller {c} (v1 or v2)" for c in (*NEEDED, "devices") if c not in have]


def pids_below(group: Path) -> set[int]:
    """Pids in `group` and all groups below it; empty when it does not exist."""
    found: set[int] = set()
    for folder, _, files in os.walk(group):
        if "cgroup.procs" in files:
            try:
                found.update(int(pid) for pid in (Path(folder) / "cgroup.procs").read_text().split())
            except OSError as refused:
                # A v2 group of threads names no processes: the group above it, which is one of ours too, names them all.
                # Otherwise ENODEV/ENOENT: the group was removed between listing and reading, so it had no process.
                if refused.errno != errno.EOPNOTSUPP and Path(folder).exists():
                    raise
    return found


def kill_below(group: Path) -> None:
    """SIGKILL everything in `group` until it is empty. A process forked meanwhile is met in the next round."""

    def empty() -> bool:
        pids = pids_below(group)
        for pid in pids:
            process = identify(pid)
            if process is not None:
                process.signal(signal.SIGKILL)
        return not pids

    wait_for(f"the processes in {group} to die", empty, EMPTY_TIMEOUT_S)


def remove_tree(group: Path) -> None:
    """rmdir `group` and every group below it. Groups vanish a moment after their last process, hence the retry."""

    def gone() -> bool:
        for folder, _, _ in os.walk(group, topdown=False):
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                continue
            except OSError:
                return False
        return not group.exists()

    wait_for(f"cgroup {group} to become removable", gone, EMPTY_TIMEOUT_S)
