"""A host's group in one cgroup v1 hierarchy.

Decision: the host's daemons sit in the group itself, its guests below `machine`, which is made in advance with a quota
below the host's, so that guests cannot starve the host's own daemons, and with the weight of nice 10 against them.
"""

from dataclasses import dataclass
from pathlib import Path

from hostlerlab.cgroup_trees import CPU_PERIOD_US, PIDS_MAX, TRACKER, Caps, Tree, remove_tree
from hostlerlab.journal import Journal, Record

# sched_prio_to_weight[nice 10] in the kernel: what a guest counts for against a daemon of its host.
GUEST_CPU_SHARES = 110
# Half of a root-level process of nice 0: etcd and the schedulers go before busy hosts.
HOST_CPU_SHARES = 512


@dataclass(frozen=True, slots=True)
class GroupV1:
    """See `cgroups.Group`."""

    tree: Tree
    name: str
    caps: Caps | None

    @property
    def path(self) -> Path:
        return self.tree.root / self.name

    @property
    def machine(self) -> Path:
        return self.path / "machine"

    @property
    def founder_procs(self) -> Path:
        return self.path / "cgroup.procs"

    @property
    def procs(self) -> Path:
        return self.path / "cgroup.procs"

    def make(self, journal: Journal) -> None:
        self._make(journal, self.path)
        if TRACKER in self.tree.controllers:
            (self.path / "pids.max").write_text(str(PIDS_MAX))
        if self.caps is None:
            return
        if "cpu" in self.tree.controllers:
            self._make(journal, self.machine)
            _cap_cpu(self.path, self.caps.cpu_milli, HOST_CPU_SHARES * self.caps.weight)
            _cap_cpu(self.machine, self.caps.guests_cpu_milli, GUEST_CPU_SHARES)
        if "memory" in self.tree.controllers:
            (self.path / "memory.limit_in_bytes").write_text(str(self.caps.memory_mib << 20))

    def settle(self) -> None:
        """Nothing to do: a v1 group may hold processes and groups at once."""

    def clear(self) -> None:
        for guest in self.machine.iterdir() if self.machine.exists() else ():
            if guest.is_dir():
                remove_tree(guest)

    def _make(self, journal: Journal, group: Path) -> None:
        journal.add(Record("cgroup", str(group)))
        group.mkdir(exist_ok=True)
        if "cpuset" in self.tree.controllers:
            # A new cpuset is empty and refuses tasks until it has both.
            for knob in ("cpuset.cpus", "cpuset.mems"):
                (group / knob).write_text((group.parent / knob).read_text())


def _cap_cpu(group: Path, milli: int, shares: int) -> None:
    (group / "cpu.cfs_period_us").write_text(str(CPU_PERIOD_US))
    (group / "cpu.cfs_quota_us").write_text(str(milli * CPU_PERIOD_US // 1000))
    (group / "cpu.shares").write_text(str(shares))
