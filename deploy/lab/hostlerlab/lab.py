"""The lab as a whole: up, down, status, and what is left over.

Decision: `up` is idempotent. A healthy lab in the same folder is joined; anything else recorded there is taken down
first, then everything is built anew. `down` reads the journal alone, never a naming pattern, so it removes what `up`
made and nothing else; `leftovers` looks by pattern and only reports. One lab per machine: a file in /run names the
folder of the lab that owns the fixed names.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from hostlerlab import dhcp, network, shared_pool
from hostlerlab.cgroup_trees import TRACKER, Caps, kill_below, lacking, pids_below, remove_tree, trees
from hostlerlab.cgroups import Cgroup
from hostlerlab.hosts import Host, HostSpec
from hostlerlab.journal import Journal, Record
from hostlerlab.processes import Process, command_line
from hostlerlab.shell import remove_path, run, wait_for
from hostlerlab.space import Space

CLAIM_FILE = Path("/run/hostlerlab")
PROGRAMS = ("ip", "nsenter", "unshare", "setsid", "nft", "dnsmasq", "glusterd", "gluster", "mount.glusterfs",
            "libvirtd", "virtlogd", "virsh", "qemu-system-x86_64", "qemu-img")  # fmt: skip
MAX_HOSTS = 9
HOST_MEMORY_MIB = 5120
# What the machine keeps for etcd, schedulers, storage and the tests themselves.
MACHINE_RESERVE_MILLI = 200
MACHINE_RESERVE_MIB = 4096
HOST_RESERVE_MILLI = 100


class LabBusy(RuntimeError):
    """Another lab owns the machine's fixed names."""


def default_specs(count: int, *, lockd: bool = False) -> tuple[HostSpec, ...]:
    """`count` equal hosts n1.. whose caps together stay below this machine; `lockd` as in HostSpec."""
    if not 1 <= count <= MAX_HOSTS:
        raise ValueError(f"a lab has 1 to {MAX_HOSTS} hosts, not {count}")
    cpu_milli = ((os.cpu_count() or 1) * 1000 - MACHINE_RESERVE_MILLI) // count
    total_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    memory_mib = min(HOST_MEMORY_MIB, (total_mib - MACHINE_RESERVE_MIB) // count)
    caps = Caps(cpu_milli, memory_mib, HOST_RESERVE_MILLI)
    return tuple(HostSpec(f"n{i}", f"10.91.7.{10 + i}", caps, lockd) for i in range(1, count + 1))


class Lab:
    """A lab in `folder` with the hosts of `specs`."""

    def __init__(self, folder: Path, specs: Sequence[HostSpec]) -> None:
        self.folder = folder.resolve()
        self.journal = Journal(self.folder / "journal.jsonl")
        self.cgroup = Cgroup("hostler-lab")
        self.hosts = {s.name: Host(s, self.folder / s.name, self.journal) for s in specs}
        self.store = Space(
            shared_pool.NAME,
            self.folder / shared_pool.NAME,
            Cgroup("hostler-store"),
            self.journal,
        )

    @staticmethod
    def attach(folder: Path) -> "Lab":
        """The lab that is up in `folder`. Raises `RuntimeError` when there is none."""
        described = folder / "lab.json"
        if not described.exists():
            raise RuntimeError(f"no lab in {folder}")
        raw = json.loads(described.read_text())
        return Lab(folder, [HostSpec(h["name"], h["address"], Caps(**h["caps"]), h["lockd"]) for h in raw["hosts"]])

    @property
    def dhcp_folder(self) -> Path:
        return self.folder / "dhcp"

    # -- up ---------------------------------------------------------------------------------------------------

    def up(self, *, fresh: bool = False) -> bool:
        """Bring the lab up; True when it was built, False when a healthy one was joined. `fresh` always builds."""
        check_requirements()
        with _machine_lock() as claim:
            owner = claim.read_text().strip() if claim.exists() else ""
            if owner and owner != str(self.folder) and Journal(Path(owner) / "journal.jsonl").exists():
                raise LabBusy(f"a lab is up in {owner}; take that down first")
            if not fresh and self._same_and_healthy():
                return False
            self._take_down()
            claim.write_text(f"{self.folder}\n")
            self._build()
        return True

    def _same_and_healthy(self) -> bool:
        if not any(r.kind == "ready" for r in self.journal.read()):
            return False
        described = self.folder / "lab.json"
        return described.exists() and described.read_text() == self._description() and not self.problems()

    def _description(self) -> str:
        hosts = [
            {
                "name": h.name,
                "address": h.address,
                "lockd": h.spec.lockd,
                "caps": {
                    "cpu_milli": h.spec.caps.cpu_milli,
                    "memory_mib": h.spec.caps.memory_mib,
                    "host_reserve_milli": h.spec.caps.host_reserve_milli,
                },
            }
            for h in self.hosts.values()
        ]
        return json.dumps({"hosts": hosts}, indent=1) + "\n"

    def _build(self) -> None:
        self._clean_folder()
        (self.folder / "lab.json").write_text(self._description())
        network.prepare_netns_dir(self.journal)
        network.create_bridge(self.journal)
        self.cgroup.create(self.journal)
        dhcp.start(self.dhcp_folder, self.cgroup, self.journal)
        self.store.cgroup.create(self.journal)
        network.create_netns(self.journal, self.store.name, shared_pool.ADDRESS, None)
        shared_pool.start_server(self.store)
        for host in self.hosts.values():
            host.space.cgroup.create(self.journal)
            network.create_netns(self.journal, host.name, host.address, "br0")
            host.write_files()
        with ThreadPoolExecutor(len(self.hosts)) as pool:
            list(pool.map(Host.start, self.hosts.values()))
        self.journal.add(Record("ready", "lab"))

    def _clean_folder(self) -> None:
        """Empty the folder, except libvirt's capability caches, which take each host seconds to make again."""
        if self.folder.exists() and any(self.folder.iterdir()) and not (self.folder / "lab.json").exists():
            raise RuntimeError(f"{self.folder} is not empty and not a lab's folder")
        kept = {h.folder: h.folder / "cache-libvirt" for h in self.hosts.values()}
        for path in self.folder.iterdir() if self.folder.exists() else ():
            if path in kept:
                for inner in path.iterdir():
                    if inner != kept[path]:
                        remove_path(inner)
            else:
                remove_path(path)
        self.folder.mkdir(parents=True, exist_ok=True)

    # -- down -------------------------------------------------------------------------------------------------

    def down(self) -> bool:
        """Remove everything recorded; True when there was something. Logs stay in the folder until the next `up`."""
        with _machine_lock() as claim:
            if not self.journal.exists():
                return False
            self._take_down()
            if claim.exists() and claim.read_text().strip() == str(self.folder):
                claim.unlink()
        return True

    def _take_down(self) -> None:
        records = self.journal.read()
        groups = [Path(r.name) for r in records if r.kind == "cgroup"]
        for group in groups:
            kill_below(group)
        for record in reversed(records):
            match record.kind:
                case "netns":
                    _delete_netns(record.name)
                case "link":
                    _delete_link(record.name)
        for group in reversed(groups):
            remove_tree(group)
        for record in reversed(records):
            match record.kind:
                case "mount":
                    _unmount_if_unused(Path(record.name))
                case "dir":
                    _remove_empty_dir(Path(record.name))
        self.journal.remove()

    # -- looking ----------------------------------------------------------------------------------------------

    def problems(self) -> list[str]:
        """What is wrong with a lab that should be up; empty when it is healthy."""
        wrong = []
        for record in self.journal.read():
            match record.kind:
                case "netns" if not (network.NETNS_DIR / record.name).exists():
                    wrong.append(f"network namespace {record.name} is gone")
                case "link" if not Path(f"/sys/class/net/{record.name}").exists():
                    wrong.append(f"link {record.name} is gone")
        latest = {r.name: r for r in self.journal.read() if r.kind == "process"}
        wrong += [f"{r.name} (pid {r.pid}) is dead" for r in latest.values() if not Process(r.pid, r.start_ticks).alive()]
        if not wrong:
            wrong += [f"libvirtd of {h.name} does not answer" for h in self.hosts.values() if not h.libvirt_answers()]
        return wrong

    def is_up(self) -> bool:
        return any(r.kind == "ready" for r in self.journal.read())

    def lease(self, mac: str) -> str | None:
        """The address a guest's MAC got from DHCP, or None so far."""
        return dhcp.lease(self.dhcp_folder, mac)

    def wait_for_lease(self, mac: str, timeout_s: float) -> str:
        """Wait for a guest's address."""
        wait_for(f"a DHCP lease for {mac}", lambda: self.lease(mac) is not None, timeout_s)
        found = self.lease(mac)
        assert found is not None
        return found


def leftovers(folder: Path) -> list[str]:
    """Everything on this machine that looks like a lab's, for a report after `down`. Looks by name, touches nothing."""
    found = [f"netns {p.name}" for p in _children(network.NETNS_DIR) if p.name.startswith("hostler-")]
    found += [f"link {p.name}" for p in _children(Path("/sys/class/net")) if p.name.startswith("hostler")]
    for tree in trees():
        for group in _children(tree.root):
            if group.is_dir() and group.name.startswith("hostler-"):
                found.append(f"cgroup {group}")
                if TRACKER in tree.controllers:
                    found += [f"process {pid} {command_line(pid)}" for pid in sorted(pids_below(group))]
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    found += [f"mount {m}" for m in mounts if str(folder.resolve()) in m]
    if CLAIM_FILE.exists():
        found.append(f"claim {CLAIM_FILE}")
    return found


def check_requirements() -> None:
    """Raise `RuntimeError` saying all that this machine lacks for a lab."""
    missing = [f"program {name}" for name in PROGRAMS if shutil.which(name) is None]
    missing += lacking(trees())
    if os.geteuid() != 0:
        missing.append("root")
    if missing:
        raise RuntimeError("the lab needs: " + ", ".join(missing))


@contextmanager
def _machine_lock() -> Iterator[Path]:
    """Exclude other `up` and `down` on this machine; yields the claim file. The lock dies with the process."""
    with open("/run/hostlerlab.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield CLAIM_FILE


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


def _delete_netns(name: str) -> None:
    if (network.NETNS_DIR / name).exists():
        run(["ip", "netns", "delete", name])


def _delete_link(name: str) -> None:
    """Delete a link. Deleting a namespace takes its veth away a moment later, so a loser of that race is content."""
    if Path(f"/sys/class/net/{name}").exists():
        deleted = run(["ip", "link", "delete", name], check=False)
        if deleted.returncode != 0 and Path(f"/sys/class/net/{name}").exists():
            raise RuntimeError(f"cannot delete link {name}: {deleted.stderr.strip()}")


def _unmount_if_unused(path: Path) -> None:
    mounted = f" {path} " in Path("/proc/self/mounts").read_text()
    if mounted and not any(path.iterdir()):
        run(["umount", str(path)])


def _remove_empty_dir(path: Path) -> None:
    if path.is_dir() and not any(path.iterdir()):
        path.rmdir()
