"""A host's group in the cgroup v2 tree.

Decision: a v2 group that hands controllers down may hold no process, so the daemons of a host are in a leaf `daemons` and
its guests below `machine`, which is made in advance with a quota and a weight as in v1. The host's cgroup namespace must
be rooted at the group itself, or libvirt would look for `machine` in the leaf; and a namespace is rooted where its
founder is. Hence two steps: `make` an ordinary group for the founder, then `settle`: move it to the leaf, hand down the
controllers. A controller that `make` turned on at the root of the tree is left on when the lab is gone: it limits nobody,
and somebody else may have come to use it. Until `settle` nobody below uses it, and
systemd turns off at the root, with every unit and login session that comes or goes, what only we want: so `settle` begins anew there.
"""

from dataclasses import dataclass
from pathlib import Path

from hostlerlab.cgroup_trees import CPU_PERIOD_US, PIDS_MAX, TRACKER, Caps, Tree, remove_tree
from hostlerlab.journal import Journal, Record

# The shares of v1 (512 and 110 of 1024) on the scale of v2, where 100 is the default.
HOST_CPU_WEIGHT = 50
GUEST_CPU_WEIGHT = 11
# systemd writes to the root a few times when a session comes; each time it has to hit the moment between two writes of ours.
HAND_DOWN_ATTEMPTS = 20


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
        if self.caps is not None:
            self._cap(self.caps)

    def settle(self) -> None:
        if self.caps is None:
            return
        self._daemons.mkdir(exist_ok=True)
        for pid in self.founder_procs.read_text().split():
            (self._daemons / "cgroup.procs").write_text(pid)
        self._keep_controllers()
        self._cap(self.caps)  # a controller that was taken away has come back without its caps
        self.machine.mkdir(exist_ok=True)
        if "cpu" in self.tree.controllers:
            _cap_cpu(self.machine, self.caps.guests_cpu_milli, GUEST_CPU_WEIGHT)

    def _keep_controllers(self) -> None:
        """Hand the controllers down to the guests' groups: from then on nobody can turn them off above."""
        for _ in range(HAND_DOWN_ATTEMPTS):
            _hand_down(self.tree.root, self.tree.controllers)
            try:
                _hand_down(self.path, self.tree.controllers)
            except FileNotFoundError:  # the kernel's word for: not handed down by the group above
                continue
            return
        raise RuntimeError(f"somebody keeps turning off controllers of {sorted(self.tree.controllers)} in {self.tree.root}")

    def _cap(self, caps: Caps) -> None:
        if "cpu" in self.tree.controllers:
            _cap_cpu(self.path, caps.cpu_milli, HOST_CPU_WEIGHT * caps.weight)
        if "memory" in self.tree.controllers:
            (self.path / "memory.max").write_text(str(caps.memory_mib << 20))

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
