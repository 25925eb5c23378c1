"""A host's group in the cgroup v2 tree.

Decision: a v2 group that hands controllers down may hold no process, so the daemons of a host are in a leaf `daemons` and
its guests below `machine`, which is made in advance with a quota and a weight as in v1. The host's cgroup namespace must
be rooted at the group itself, or libvirt would look for `machine` in the leaf; and a namespace is rooted where its
founder is. Hence two steps: `make` an ordinary group for the founder, then `settle`: move it to the leaf, hand down the
controllers. A controller that `make` turned on at the root of the tree stays on when the lab is gone: it limits nobody,
and turning it off could take it from somebody who has come to use it meanwhile.
"""

from dataclasses import dataclass
from pathlib import Path

from hostlerlab.cgroup_trees import CPU_PERIOD_US, PIDS_MAX, TRACKER, Caps, Tree, remove_tree
from hostlerlab.journal import Journal, Record

# The shares of v1 (512 and 110 of 1024) on the scale of v2, where 100 is the default.
HOST_CPU_WEIGHT = 50
GUEST_CPU_WEIGHT = 11


@dataclass(frozen=True, slots=True)
class GroupV2:
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
        return self.founder_procs if self.caps is None else self._daemons / "cgroup.procs"

    @property
    def _daemons(self) -> Path:
        return self.path / "daemons"

    def make(self, journal: Journal) -> None:
        wanted = frozenset({TRACKER}) if self.caps is None else self.tree.controllers
        _hand_down(self.tree.root, wanted & self.tree.controllers)
        journal.add(Record("cgroup", str(self.path)))
        self.path.mkdir(exist_ok=True)
        if TRACKER in self.tree.controllers:
            (self.path / "pids.max").write_text(str(PIDS_MAX))
        if self.caps is None:
            return
        if "cpu" in self.tree.controllers:
            _cap_cpu(self.path, self.caps.cpu_milli, HOST_CPU_WEIGHT)
        if "memory" in self.tree.controllers:
            (self.path / "memory.max").write_text(str(self.caps.memory_mib << 20))

    def settle(self) -> None:
        if self.caps is None:
            return
        self._daemons.mkdir(exist_ok=True)
        for pid in self.founder_procs.read_text().split():
            (self._daemons / "cgroup.procs").write_text(pid)
        _hand_down(self.path, self.tree.controllers)
        self.machine.mkdir(exist_ok=True)
        if "cpu" in self.tree.controllers:
            _cap_cpu(self.machine, self.caps.guests_cpu_milli, GUEST_CPU_WEIGHT)

    def clear(self) -> None:
        for group in (self.machine, self._daemons):
            remove_tree(group)
        kept = (self.path / "cgroup.subtree_control").read_text().split()
        if kept:
            (self.path / "cgroup.subtree_control").write_text(" ".join(f"-{c}" for c in kept))


def _hand_down(group: Path, controllers: frozenset[str]) -> None:
    """Let the children of `group` have these controllers."""
    knob = group / "cgroup.subtree_control"
    lacking = sorted(controllers - frozenset(knob.read_text().split()))
    if lacking:
        knob.write_text(" ".join(f"+{c}" for c in lacking))


def _cap_cpu(group: Path, milli: int, weight: int) -> None:
    (group / "cpu.max").write_text(f"{milli * CPU_PERIOD_US // 1000} {CPU_PERIOD_US}")
    (group / "cpu.weight").write_text(str(weight))
