"""Which cgroup trees a lab uses, what it writes into them, and what it says when one is missing."""

import subprocess
from pathlib import Path

import pytest

from hostlerlab import cgroup_trees, cgroup_v2, cgroups
from hostlerlab.cgroup_trees import Caps, Tree, lacking, trees
from hostlerlab.cgroup_v1 import GroupV1
from hostlerlab.cgroup_v2 import GroupV2
from hostlerlab.cgroups import Cgroup, group_in
from hostlerlab.journal import Journal

CAPS = Caps(cpu_milli=600, memory_mib=5120, host_reserve_milli=100)
ALL = frozenset({"cpu", "cpuset", "io", "memory", "pids"})
V1 = """\
tmpfs {0} tmpfs rw,mode=755 0 0
cgroup {0}/cpu cgroup rw,relatime,cpu,cpuacct 0 0
cgroup {0}/cpuset cgroup rw,relatime,cpuset 0 0
cgroup {0}/memory cgroup rw,relatime,memory 0 0
cgroup {0}/devices cgroup rw,relatime,devices 0 0
cgroup {0}/pids cgroup rw,relatime,pids 0 0
"""


def unified(root: Path, controllers: str, handed_down: str = "") -> str:
    """A v2 root with these controllers; its line in /proc/self/mounts."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "cgroup.controllers").write_text(controllers + "\n")
    (root / "cgroup.subtree_control").write_text(handed_down)
    return f"cgroup2 {root} cgroup2 rw,nsdelegate 0 0\n"


def kinds(tree: Tree) -> type[object]:
    return type(group_in(tree, "hostler-n1", CAPS))


def test_v2_alone_is_one_tree_with_all(tmp_path: Path) -> None:
    """Breaks when a fresh Debian 12 is taken for a machine without cgroups, or other controllers than the lab's are turned on."""
    (tree,) = trees(unified(tmp_path, "cpuset cpu io memory hugetlb pids rdma misc") + "tmpfs /run tmpfs rw 0 0\n")
    assert tree == Tree(2, tmp_path, ALL)
    assert kinds(tree) is GroupV2
    assert lacking((tree,)) == []


def test_a_v2_tree_without_our_controllers_is_not_used(tmp_path: Path) -> None:
    """Breaks when a v1 machine whose v2 tree serves for something else is used by the v2 rules."""
    found = trees(V1.format(tmp_path) + unified(tmp_path / "unified", "hugetlb"))
    assert {t.root.name for t in found} == {"cpu", "cpuset", "memory", "devices", "pids"}
    assert {kinds(t) for t in found} == {GroupV1}
    assert lacking(found) == []


def test_each_controller_is_used_where_it_lives(tmp_path: Path) -> None:
    """Breaks when the memory cap is lost on a machine that keeps memory in v1 and the rest in v2."""
    text = f"cgroup {tmp_path}/memory cgroup rw,memory 0 0\n" + unified(tmp_path / "unified", "cpuset cpu io pids")
    memory, rest = trees(text)
    assert (kinds(memory), kinds(rest)) == (GroupV1, GroupV2)
    assert rest.controllers == ALL - {"memory"}
    assert lacking((memory, rest)) == []


def test_a_tree_mounted_twice_counts_once(tmp_path: Path) -> None:
    """Breaks when a second mount of the tree makes the lab put a process into one group twice and show the wrong path."""
    first, second = tmp_path / "a", tmp_path / "b"
    found = trees(unified(first, "cpu cpuset memory pids") + unified(second, "cpu cpuset memory pids"))
    assert [t.root for t in found] == [first]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    """Breaks when a user of a kernel without the memory controller is told something else, or nothing."""
    (without_memory,) = lacking(trees(unified(tmp_path, "cpuset cpu io pids")))
    assert "controller memory" in without_memory
    assert str(tmp_path / "cgroup.controllers") in without_memory
    v1 = V1.format(tmp_path).splitlines(keepends=True)
    assert lacking(trees("".join(line for line in v1 if "devices" not in line))) == ["cgroup controller devices (v1 or v2)"]
    assert len(lacking(trees("tmpfs /run tmpfs rw 0 0\n"))) == 5


def test_a_v2_host_is_capped_before_its_first_process(tmp_path: Path) -> None:
    """Breaks when the founder runs uncapped, or cannot enter because controllers are handed down already."""
    (tree,) = trees(unified(tmp_path, "cpuset cpu io memory pids", "pids"))
    group = group_in(tree, "hostler-n1", CAPS)
    journal = Journal(tmp_path / "journal")
    group.make(journal)
    assert [(r.kind, r.name) for r in journal.read()] == [("cgroup", str(tmp_path / "hostler-n1"))]
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu +cpuset +io +memory"
    host = tmp_path / "hostler-n1"
    knobs = {p.name: p.read_text() for p in host.iterdir()}
    assert knobs == {"pids.max": "4096", "cpu.max": "60000 100000", "cpu.weight": "50", "memory.max": str(5120 << 20)}
    assert group.founder_procs == host / "cgroup.procs"


def test_a_settled_v2_host_has_its_processes_in_a_leaf(tmp_path: Path) -> None:
    """Breaks when the host's group hands controllers down while it holds a process, which the kernel refuses."""
    (tree,) = trees(unified(tmp_path, "cpuset cpu io memory pids"))
    group = group_in(tree, "hostler-n1", CAPS)
    group.make(Journal(tmp_path / "journal"))
    host = tmp_path / "hostler-n1"
    (host / "cgroup.procs").write_text("4711\n")
    (host / "cgroup.subtree_control").write_text("")
    group.settle()
    assert group.procs == host / "daemons" / "cgroup.procs"
    assert group.procs.read_text() == "4711"
    assert (host / "cgroup.subtree_control").read_text() == "+cpu +cpuset +io +memory +pids"
    machine = {p.name: p.read_text() for p in (host / "machine").iterdir()}
    assert machine == {"cpu.max": "50000 100000", "cpu.weight": "11"}


def test_controllers_that_systemd_took_away_are_turned_on_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when a login between the making of a host and its first process ends `up`, or leaves the host without its caps."""
    (tree,) = trees(unified(tmp_path, "cpuset cpu io memory pids"))
    group = group_in(tree, "hostler-n1", CAPS)
    group.make(Journal(tmp_path / "journal"))
    host = tmp_path / "hostler-n1"
    for knob in host.iterdir():
        knob.unlink()
    (host / "cgroup.procs").write_text("4711\n")
    (host / "cgroup.subtree_control").write_text("")
    taken = [True, True, False]
    hand_down = cgroup_v2._hand_down

    def racing(at: Path, controllers: frozenset[str]) -> None:
        if at == host and taken.pop(0):
            (tmp_path / "cgroup.subtree_control").write_text("pids")
            raise FileNotFoundError(at)
        hand_down(at, controllers)

    monkeypatch.setattr(cgroup_v2, "_hand_down", racing)
    group.settle()
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu +cpuset +io +memory"
    assert (host / "cgroup.subtree_control").read_text() == "+cpu +cpuset +io +memory +pids"
    assert ((host / "cpu.max").read_text(), (host / "memory.max").read_text()) == ("60000 100000", str(5120 << 20))
    taken += [True] * cgroup_v2.HAND_DOWN_ATTEMPTS
    with pytest.raises(RuntimeError, match="turning off controllers"):
        group.settle()


def test_a_v2_group_that_only_tracks_asks_for_nothing_else(tmp_path: Path) -> None:
    """Breaks when the store, whose processes are in its group itself, is given controllers to hand down."""
    (tree,) = trees(unified(tmp_path, "cpuset cpu io memory pids"))
    group = group_in(tree, "hostler-store", None)
    group.make(Journal(tmp_path / "journal"))
    group.settle()
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+pids"
    assert [p.name for p in (tmp_path / "hostler-store").iterdir()] == ["pids.max"]
    assert group.procs == group.founder_procs == tmp_path / "hostler-store" / "cgroup.procs"


def test_v1_writes_what_it_always_wrote(tmp_path: Path) -> None:
    """Breaks when teaching the lab v2 changes a cap under v1."""
    for name in ("cpu", "cpuset", "memory", "devices", "pids"):
        (tmp_path / name).mkdir()
    for knob in ("cpus", "mems"):
        (tmp_path / "cpuset" / f"cpuset.{knob}").write_text("0-1\n")
    journal = Journal(tmp_path / "journal")
    for tree in trees(V1.format(tmp_path)):
        group_in(tree, "hostler-n1", CAPS).make(journal)
    written = {str(p.relative_to(tmp_path)): p.read_text() for p in tmp_path.rglob("hostler-n1/**/*") if p.is_file()}
    assert written == {
        "cpu/hostler-n1/cpu.cfs_period_us": "100000",
        "cpu/hostler-n1/cpu.cfs_quota_us": "60000",
        "cpu/hostler-n1/cpu.shares": "512",
        "cpu/hostler-n1/machine/cpu.cfs_period_us": "100000",
        "cpu/hostler-n1/machine/cpu.cfs_quota_us": "50000",
        "cpu/hostler-n1/machine/cpu.shares": "110",
        "cpuset/hostler-n1/cpuset.cpus": "0-1\n",
        "cpuset/hostler-n1/cpuset.mems": "0-1\n",
        "memory/hostler-n1/memory.limit_in_bytes": str(5120 << 20),
        "pids/hostler-n1/pids.max": "4096",
    }
    assert {r.name for r in journal.read()} == {str(p) for p in tmp_path.rglob("hostler-n1/**") if p.is_dir()}


def test_a_process_is_in_all_groups_before_its_first_instruction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when a command of a host starts outside one of the host's groups, where `down` and the caps do not reach it."""
    memory = tmp_path / "memory"
    memory.mkdir()
    mounts = tmp_path / "mounts"
    mounts.write_text(f"cgroup {memory} cgroup rw,memory 0 0\n" + unified(tmp_path / "unified", "cpuset cpu pids"))
    monkeypatch.setattr(cgroup_trees, "MOUNTS", mounts)
    host = cgroups.Cgroup("hostler-n1", CAPS)
    host.create(Journal(tmp_path / "journal"))
    (tmp_path / "unified/hostler-n1/cgroup.procs").write_text("")
    (tmp_path / "unified/hostler-n1/cgroup.subtree_control").write_text("")
    host.settle()
    told = subprocess.run([*host.entering(), "sh", "-c", "echo $$"], capture_output=True, text=True, check=True).stdout
    assert (memory / "hostler-n1/cgroup.procs").read_text() == told
    assert (tmp_path / "unified/hostler-n1/daemons/cgroup.procs").read_text() == told
    store = Cgroup("hostler-store")
    assert [g.path for g in store.groups] == [tmp_path / "unified/hostler-store"]
