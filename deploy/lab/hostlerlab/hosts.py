"""One lab host: a namespaced machine with its own libvirtd, virtlogd, guest bridge and pools.

Decision: a host is as close to a production host as one machine allows. QEMU runs as its own user with the seccomp
sandbox, DAC labels and a private /dev; libvirtd listens on its unix socket alone; cgroup controllers are on. What is
per machine in Debian's layout (/run, /etc/libvirt, /var/lib/libvirt, /var/lib/hostler, /etc/hostler ...) is per host.
"""

import grp
import os
import stat
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from hostlerlab import shared_pool
from hostlerlab.cgroup_trees import Caps
from hostlerlab.cgroups import Cgroup
from hostlerlab.journal import Journal
from hostlerlab.processes import Process, identify
from hostlerlab.shell import COMMAND_TIMEOUT_S, remove_path, wait_for
from hostlerlab.space import Bind, Space

GUEST_BRIDGE = "br0"
STATE_DIR = Path("/var/lib/hostler")
SHARED_POOL = STATE_DIR / "pools" / "shared"
LOCKSPACE = SHARED_POOL / ".lockspace"
LOCAL_POOL = STATE_DIR / "pools" / "local"
LIBVIRT_SOCKET = Path("/run/libvirt/libvirt-sock")
QEMU_USER = "libvirt-qemu"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
KVM_DEVICE = Path("/dev/kvm")
LIBVIRTD_TIMEOUT_S = 60.0
_UUID_SPACE = uuid.UUID("6f0d8a52-6a52-4d0e-9c3e-7d0a6f7c9107")

# A private directory of the lab folder -> where the host sees it.
_DIRECTORIES = {
    "run": "/run",
    "etc-libvirt": "/etc/libvirt",
    "etc-hostler": "/etc/hostler",
    "lib-libvirt": "/var/lib/libvirt",
    "cache-libvirt": "/var/cache/libvirt",
    "log-libvirt": "/var/log/libvirt",
    "log-hostler": "/var/log/hostler",
    "lib-hostler": "/var/lib/hostler",
}


@dataclass(frozen=True, slots=True)
class HostSpec:
    """What to build: short name (n1), address on the lab bridge, caps of the whole host.

    `lockd`: libvirt takes leases on disks through virtlockd as well, in a lockspace on the shared pool (docs/decisions/0012).
    """

    name: str
    address: str
    caps: Caps
    lockd: bool = False


def host_uuid(name: str) -> str:
    """The host's libvirt UUID, stable over lab runs. Two hosts with one UUID refuse to migrate to each other."""
    return str(uuid.uuid5(_UUID_SPACE, name))


class Host:
    """A host of the lab; `run`, `popen` and `virsh` act inside its namespaces."""

    def __init__(self, spec: HostSpec, folder: Path, journal: Journal) -> None:
        self.spec = spec
        self.name = spec.name
        self.address = spec.address
        self.folder = folder
        self.space = Space(spec.name, folder, Cgroup(f"hostler-{spec.name}", spec.caps), journal)

    @property
    def libvirt_socket(self) -> Path:
        """The host's libvirt socket as seen from outside. A unix socket path is at most 107 bytes."""
        return self.folder / "run" / LIBVIRT_SOCKET.relative_to("/run")

    @property
    def libvirt_uri(self) -> str:
        """The URI by which a process outside reaches this host's libvirtd."""
        return f"qemu+unix:///system?socket={self.libvirt_socket}"

    def outside(self, path: Path | str) -> Path:
        """Where a path inside this host lies outside. Only for the private directories; the pools' content is not one
        (the shared pool is a mount that exists inside only)."""
        inner = Path(path)
        if inner.is_relative_to(SHARED_POOL):
            raise ValueError(f"{inner} is on the shared pool, which is mounted inside the hosts only")
        for source, target in _DIRECTORIES.items():
            if inner.is_relative_to(target):
                return self.folder / source / inner.relative_to(target)
        return inner

    def write_files(self) -> None:
        """Lay out the host's private directories and configuration."""
        for source in _DIRECTORIES:
            (self.folder / source).mkdir(parents=True, exist_ok=True)
        for pool in (SHARED_POOL, LOCAL_POOL):
            self._private(pool).mkdir(parents=True)
        etc = self.folder / "etc-libvirt"
        (etc / "libvirtd.conf").write_text(_libvirtd_conf(self.name))
        (etc / "qemu.conf").write_text(_qemu_conf() + ('lock_manager = "lockd"\n' if self.spec.lockd else ""))
        (etc / "virtlogd.conf").write_text("")
        if self.spec.lockd:
            (etc / "virtlockd.conf").write_text("")
            (etc / "qemu-lockd.conf").write_text(f'file_lockspace_dir = "{LOCKSPACE}"\n')
        # No capability bounding, no default networks or pools: an empty /etc/libvirt/qemu starts nothing.
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        (self.folder / "machine-id").write_text(uuid.UUID(host_uuid(self.name)).hex + "\n")

        if KVM_DEVICE.exists():
            self._make_kvm_node(self.folder / "dev-kvm")

    @staticmethod
    def _make_kvm_node(node: Path) -> None:
        """A device node as udev would make it. With root's alone libvirt's probe (as root) finds KVM and its check (as QEMU's
        user) does not, so it probes again on every look at the capabilities: a start then takes 52 s instead of 1."""
        os.mknod(node, stat.S_IFCHR, KVM_DEVICE.stat().st_rdev)
        os.chown(node, 0, grp.getgrnam("kvm").gr_gid)
        node.chmod(0o660)

    def _private(self, path: Path) -> Path:
        return self.folder / "lib-hostler" / path.relative_to(STATE_DIR)

    def power_off(self) -> None:
        """Everything that runs in this host dies at once, as by the power switch. Disks, addresses and wires stay."""
        self.space.cgroup.kill()

    def power_on(self) -> None:
        """Boot after `power_off`: an empty /run, a new boot id, no guests."""
        self.space.cgroup.clear()
        self.start()

    def start(self) -> None:
        """Create the namespaces (its netns exists), mount the shared pool, start virtlogd and libvirtd."""
        for old in (self.folder / "run").iterdir():
            remove_path(old)
        (self.folder / "run" / "hostler").mkdir(mode=0o755)
        (self.folder / "run" / "lock").mkdir()
        (self.folder / "boot-id").write_text(f"{uuid.uuid4()}\n")
        binds = [Bind(self.folder / source, Path(target)) for source, target in _DIRECTORIES.items()]
        binds += [Bind(self.folder / "hosts", Path("/etc/hosts")), Bind(self.folder / "boot-id", BOOT_ID)]
        if Path("/etc/machine-id").exists():
            binds += [Bind(self.folder / "machine-id", Path("/etc/machine-id"))]
        binds += [Bind(self.folder / "dev-kvm", KVM_DEVICE)] if KVM_DEVICE.exists() else []
        self.space.create(binds)
        shared_pool.mount(self.space, str(SHARED_POOL))
        self.start_libvirt()
        # The first look at QEMU's capabilities takes seconds; without this it would happen inside the first VM's start.
        self.virsh("domcapabilities", "--virttype", "qemu")

    def start_libvirt(self) -> None:
        """Start virtlogd, virtlockd where it is used, and libvirtd (again, after a test killed them) and wait until libvirtd answers."""
        if self.spec.lockd:
            self.run(["mkdir", "-p", str(LOCKSPACE)])
        for name in ("virtlogd", *(("virtlockd",) if self.spec.lockd else ()), "libvirtd"):
            running = self.space.daemon_process(name)
            if running is None or not running.alive():
                self.space.daemon(name, [name])
        wait_for(f"libvirtd of {self.name} to answer", self.libvirt_answers, LIBVIRTD_TIMEOUT_S)

    def libvirt_answers(self) -> bool:
        return self.space.run(["virsh", "-c", "qemu:///system", "uri"], check=False).returncode == 0

    def daemon_process(self, name: Literal["libvirtd", "virtlogd", "virtlockd"]) -> Process:
        """A daemon of this host, to be stopped or killed by a test."""
        found = self.space.daemon_process(name)
        if found is None:
            raise RuntimeError(f"{name} of {self.name} was never started")
        return found

    def virsh(self, *args: str, stdin: str | None = None, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """`virsh` on this host's libvirtd; its stdout. Raises `CommandError` with virsh's words. For XML: `/dev/stdin`."""
        return self.space.run(["virsh", "-q", "-c", "qemu:///system", *args], stdin=stdin, timeout_s=timeout_s).stdout

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float = COMMAND_TIMEOUT_S,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside the host to its end."""
        return self.space.run(argv, timeout_s=timeout_s, stdin=stdin, env=env, check=check)

    def popen(
        self,
        argv: Sequence[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a command inside the host; the pid is the command's own."""
        return self.space.popen(argv, cwd=cwd, env=env, stdin=stdin, stdout=stdout, stderr=stderr)

    def qemu_process(self, domain: str) -> Process:
        """The QEMU process of a running domain, from libvirt's pid file."""
        pid = int((self.folder / "run" / "libvirt" / "qemu" / f"{domain}.pid").read_text())
        found = identify(pid)
        if found is None:
            raise RuntimeError(f"QEMU {pid} of {domain} on {self.name} is gone")
        return found


def _libvirtd_conf(name: str) -> str:
    return f"""host_uuid = "{host_uuid(name)}"
listen_tls = 0
listen_tcp = 0
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_ro_perms = "0700"
unix_sock_rw_perms = "0700"
log_level = 3
log_outputs = "3:stderr"
"""


def _qemu_conf() -> str:
    lines = [
        f'user = "{QEMU_USER}"',
        f'group = "{QEMU_USER}"',
        "dynamic_ownership = 1",
        "seccomp_sandbox = 1",
        'stdio_handler = "logd"',
        "max_core = 0",
        "keepalive_interval = 2",
        "keepalive_count = 3",
    ]
    if not mac_module():
        lines.append('security_driver = "none"')
    return "\n".join(lines) + "\n"


def mac_module() -> str | None:
    """The mandatory access control module that could confine QEMU on this machine, or None (DAC labels remain)."""
    if Path("/sys/kernel/security/apparmor/profiles").exists():
        return "apparmor"
    if Path("/sys/fs/selinux/enforce").exists():
        return "selinux"
    return None
