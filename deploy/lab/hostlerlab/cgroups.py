"""One cgroup v1 subtree per host: its caps, and the exact list of its processes.

Decision: a host owns the group `<controller>/hostler-<name>` in every mounted v1 hierarchy. Inside its mount namespace
that group is bind-mounted over the controller's root, so libvirt builds `machine/...` below it and all guests of one
host sit under the host's cap. `pids` is a hierarchy that libvirt never moves processes in: what is in it was started in
this host, whatever happened to parents and pid files. `machine` is made in advance with a quota below the host's, so
guests cannot starve the host's own daemons, and with the weight of nice 10 against them.
"""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hostlerlab.journal import Journal, Record
from hostlerlab.processes import identify
from hostlerlab.shell import wait_for

TRACKER = "pids"
PIDS_MAX = 4096  # a runaway test must not take the machine's pids; a host with 20 guests uses about 300
CPU_PERIOD_US = 100_000
# sched_prio_to_weight[nice 10] in the kernel: what a guest counts for against a daemon of its host.
GUEST_CPU_SHARES = 110
# Half of a root-level process of nice 0: etcd and the schedulers go before busy hosts.
HOST_CPU_SHARES = 512
EMPTY_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted cgroup v1 hierarchy: directory name under /sys/fs/cgroup, mount point, controllers in it."""

    name: str
    root: Path
    controllers: tuple[str, ...]


def hierarchies() -> tuple[Hierarchy, ...]:
    """All mounted cgroup v1 hierarchies; empty on a machine that has cgroup v2 alone."""
    found = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split(" ")
        if kind == "cgroup":
            root = Path(where)
            found.append(Hierarchy(root.name, root, tuple(options.split(","))))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Caps:
    """What the whole host may use. `host_reserve_milli` of the CPU is kept from guests for the host's daemons."""

    cpu_milli: int
    memory_mib: int
    host_reserve_milli: int


class Cgroup:
    """The group `name` in every v1 hierarchy (or in `only` those)."""

    def __init__(self, name: str, only: Sequence[str] | None = None) -> None:
        self.name = name
        self.hierarchies = tuple(h for h in hierarchies() if only is None or h.name in only)
        tracker = next((h for h in self.hierarchies if TRACKER in h.controllers), None)
        if tracker is None:
            raise RuntimeError("no cgroup v1 'pids' hierarchy is mounted: the lab needs cgroup v1 controllers")
        self.tracker = tracker

    def create(self, journal: Journal, caps: Caps | None = None) -> None:
        """Make the groups and set the caps."""
        for hierarchy in self.hierarchies:
            group = hierarchy.root / self.name
            self._make(journal, hierarchy, group)
            if hierarchy is self.tracker:
                (group / "pids.max").write_text(str(PIDS_MAX))
            if caps is None:
                continue
            if "cpu" in hierarchy.controllers:
                self._cap_cpu(journal, hierarchy, group, caps)
            if "memory" in hierarchy.controllers:
                (group / "memory.limit_in_bytes").write_text(str(caps.memory_mib << 20))

    def _cap_cpu(self, journal: Journal, hierarchy: Hierarchy, group: Path, caps: Caps) -> None:
        machine = group / "machine"
        self._make(journal, hierarchy, machine)
        guests_milli = caps.cpu_milli - caps.host_reserve_milli
        for where, milli, shares in (
            (group, caps.cpu_milli, HOST_CPU_SHARES),
            (machine, guests_milli, GUEST_CPU_SHARES),
        ):
            (where / "cpu.cfs_period_us").write_text(str(CPU_PERIOD_US))
            (where / "cpu.cfs_quota_us").write_text(str(milli * CPU_PERIOD_US // 1000))
            (where / "cpu.shares").write_text(str(shares))

    @staticmethod
    def _make(journal: Journal, hierarchy: Hierarchy, group: Path) -> None:
        journal.add(Record("cgroup", str(group)))
        group.mkdir(exist_ok=True)
        if "cpuset" in hierarchy.controllers:
            # A new cpuset is empty and refuses tasks until it has both.
            for knob in ("cpuset.cpus", "cpuset.mems"):
                (group / knob).write_text((group.parent / knob).read_text())

    def procs_files(self) -> tuple[Path, ...]:
        """The files into which a process writes its pid to become part of this host."""
        return tuple(h.root / self.name / "cgroup.procs" for h in self.hierarchies)

    def guest_groups(self) -> tuple[Path, ...]:
        """The groups that libvirt made for guests, in every hierarchy; those of dead guests included."""
        machines = (h.root / self.name / "machine" for h in self.hierarchies)
        return tuple(g for m in machines if m.exists() for g in m.iterdir() if g.is_dir())

    def pids(self) -> set[int]:
        """Every process started in this host, guests included."""
        return pids_below(self.tracker.root / self.name)


def pids_below(group: Path) -> set[int]:
    """Pids in `group` and all groups below it; empty when it does not exist."""
    found: set[int] = set()
    for folder, _, files in os.walk(group):
        if "cgroup.procs" in files:
            try:
                found.update(int(pid) for pid in (Path(folder) / "cgroup.procs").read_text().split())
            except OSError as gone:
                # ENODEV/ENOENT: the group was removed between listing and reading, so it had no process.
                if Path(folder).exists():
                    raise gone
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
