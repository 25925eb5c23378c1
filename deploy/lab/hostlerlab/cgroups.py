"""One cgroup subtree per host: its caps, and the exact list of its processes.

Decision: a host owns the group `hostler-<name>` in every tree the lab uses, be they the hierarchies of cgroup v1, the one
tree of cgroup v2, or some of each. Inside the host's mount namespace that group is shown where the tree's root is, so
libvirt builds `machine/...` below it and all guests of one host sit under the host's cap. The tree of the pids controller
tracks: libvirt moves processes within the host's group only, so what is below it was started in this host, whatever
happened to parents and pid files. What differs between the versions is in `cgroup_v1` and `cgroup_v2`, nowhere else.
"""

from pathlib import Path
from typing import Protocol

from hostlerlab.cgroup_trees import TRACKER, Caps, Tree, kill_below, pids_below, trees
from hostlerlab.cgroup_v1 import GroupV1
from hostlerlab.cgroup_v2 import GroupV2
from hostlerlab.journal import Journal

_ENTER = 'while [ "$1" != -- ]; do echo $$ > "$1"; shift; done; shift; exec "$@"'


class Group(Protocol):
    """A host's group in one tree. Without caps it only tracks: it has processes, no guests and no groups below."""

    @property
    def tree(self) -> Tree: ...

    @property
    def path(self) -> Path:
        """The group, as seen from outside the host."""

    @property
    def founder_procs(self) -> Path:
        """Where the first process of the host writes its pid; it then makes the host's cgroup namespace."""

    @property
    def procs(self) -> Path:
        """Where every later process writes its pid, once the group is settled."""

    def make(self, journal: Journal) -> None:
        """Record and make the group, capped; the first process may enter."""

    def settle(self) -> None:
        """The cgroup namespace exists: get the group ready for daemons and guests."""

    def clear(self) -> None:
        """Every process is dead: forget the guests and get the group ready for a first process again."""


def group_in(tree: Tree, name: str, caps: Caps | None) -> Group:
    match tree.version:
        case 1:
            return GroupV1(tree, name, caps)
        case 2:
            return GroupV2(tree, name, caps)


class Cgroup:
    """The group `name` in every tree; without `caps`, only in the one that tracks processes."""

    def __init__(self, name: str, caps: Caps | None = None) -> None:
        self.name = name
        self.groups = tuple(group_in(t, name, caps) for t in trees() if caps is not None or TRACKER in t.controllers)

    def create(self, journal: Journal) -> None:
        """Make the groups and set the caps."""
        for group in self.groups:
            group.make(journal)

    def settle(self) -> None:
        """To be called once the host's first process has made the cgroup namespace, before anything else enters."""
        for group in self.groups:
            group.settle()

    def founding(self) -> list[str]:
        """What to put before the command line of the host's first process."""
        return _entering([g.founder_procs for g in self.groups])

    def entering(self) -> list[str]:
        """What to put before a command line to make it part of this host from its first instruction."""
        return _entering([g.procs for g in self.groups])

    def pids(self) -> set[int]:
        """Every process started in this host, guests included."""
        return pids_below(self._tracker)

    def kill(self) -> None:
        """Kill everything in this host."""
        kill_below(self._tracker)

    def clear(self) -> None:
        """After `kill`: forget the guests' groups, so that the host can be founded again."""
        for group in self.groups:
            group.clear()

    @property
    def _tracker(self) -> Path:
        return next(g.path for g in self.groups if TRACKER in g.tree.controllers)


def _entering(files: list[Path]) -> list[str]:
    return ["sh", "-c", _ENTER, "sh", *map(str, files), "--"]
