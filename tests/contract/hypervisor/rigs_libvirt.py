"""libvirt on QEMU, on two hosts of the lab: real domains, real locks on shared storage, real migrations over a relay of two sockets.

The lab is joined or built once and left up. Each case gets fresh adapters and fresh VMs; what it made is destroyed when it ends. The adapters
stand outside the hosts' mount namespaces here, so they reach sockets and pid files by the lab's outside paths, and images by /proc/PID/root.
The guest is the lab's Linux guest, which writes a counter to its disk and obeys the power button.
"""

import asyncio
import functools
import itertools
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import hostlerlab
from hostler.model.domain import DiskSpec, DomainSpec, NicSpec, ServiceClass
from hostler.server.clock import SystemClock
from hostlerlab.guest import build as guest_build
from hostlerlab.guest import layout
from hostlerlab.hosts import LOCAL_POOL, SHARED_POOL, Host
from hostlerlab.lab import Lab, default_specs
from nodeagent.adapters.acceleration import measured_acceleration
from nodeagent.adapters.libvirt_hypervisor import CALL_DEADLINE_S, LibvirtHypervisor, LibvirtSettings
from nodeagent.core.domain_xml import Acceleration
from nodeagent.ports import Hypervisor, Locks, MigrationSockets
from tests.contract.hypervisor.rig import Capability, ContractVM, HandEdit, Rig, RigKind

FOLDER = Path("build/lab")
HOSTS = 3
POOL = "shared"
GUEST_MIB = 256
LOCAL_MIB, FILLED_MIB = 512, 96
QUEUE_EVENTS = 8
SOCKETS = Path("/run/hostler")
PORTS = range(20_000, 30_000)
"""A run that was killed leaves its relays to the lab's `down`: each relay takes a port and a directory that nobody had before."""
STRANGER = """<domain type='qemu'><name>somebody-elses-{uuid}</name><uuid>{uuid}</uuid><memory unit='MiB'>16</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os><on_reboot>destroy</on_reboot></domain>"""


class OutsideHypervisor(LibvirtHypervisor):
    """Sees the images of a host from outside of it; everything else is the adapter as it is."""

    def __init__(self, host: Host, acceleration: Acceleration) -> None:
        settings = LibvirtSettings(
            uri=host.libvirt_uri,
            run_dir=host.outside("/run/libvirt/qemu"),
            log_dir=host.outside("/var/log/libvirt/qemu"),
            qemu_conf=host.outside("/etc/libvirt/qemu.conf"),
            queue_events=QUEUE_EVENTS,
        )
        super().__init__(settings, SystemClock(), acceleration)
        self._root = f"/proc/{host.space.holder().pid}/root"

    async def locks(self, disk_paths: tuple[str, ...]) -> Locks:
        return await super().locks(tuple(map(self._reached, disk_paths)))

    def _reached(self, image: str) -> str:
        return f"{self._root}{image}"


_measured: list[Acceleration] = []


async def measured_once() -> Acceleration:
    if not _measured:
        _measured.append(await measured_acceleration())
    return _measured[0]


@functools.cache
def _lab() -> tuple[Host, Host]:
    """A healthy lab is joined whatever its size; building one of another size would take it from whoever uses it."""
    lab = Lab.attach(FOLDER) if (FOLDER / "lab.json").exists() else Lab(FOLDER, default_specs(HOSTS))
    if not lab.is_up() or lab.problems():
        lab = Lab(FOLDER, default_specs(HOSTS))
        lab.up()
    return lab.hosts["n1"], lab.hosts["n2"]


@functools.cache
def _guest(*, small: bool) -> Path:
    images = guest_build.build()
    return (images.bootsector if small else images.linux).resolve()


@dataclass(slots=True)
class LibvirtRig:
    """Two hosts of the lab for one case."""

    hosts: tuple[Host, Host]
    hypervisors: tuple[LibvirtHypervisor, LibvirtHypervisor]
    clock: SystemClock = field(default_factory=SystemClock)
    call_deadline_s: float = CALL_DEADLINE_S
    queue_events: int = QUEUE_EVENTS
    vms: list[ContractVM] = field(default_factory=list)
    small: set[str] = field(default_factory=set)
    strangers: list[tuple[Host, str]] = field(default_factory=list)
    second: dict[str, str] = field(default_factory=dict)
    relays: dict[str, list[subprocess.Popen[bytes]]] = field(default_factory=dict)

    def hypervisor(self, host: int) -> Hypervisor:
        return self.hypervisors[host]

    async def new_vm(self, *, local: bool = False, small: bool = False) -> ContractVM:
        vm_uid, volume_uid = str(uuid.uuid4()), str(uuid.uuid4())
        path = str((LOCAL_POOL if local else SHARED_POOL) / f"{volume_uid}.qcow2")
        await asyncio.to_thread(self.hosts[0].run, ["cp", str(_guest(small=small)), path])
        if local:
            await asyncio.to_thread(self._fill, path)
        disks, nics = (DiskSpec(volume_uid, POOL, "qcow2"),), (NicSpec("br0", f"52:54:00:{vm_uid[:2]}:{vm_uid[2:4]}:{vm_uid[4:6]}"),)
        spec = DomainSpec(vm_uid, "a <label>\n", 1, 100, GUEST_MIB, ServiceClass.BURSTABLE, disks, nics)
        vm = ContractVM(spec, ({volume_uid: path}, {volume_uid: path}))
        self.vms.append(vm)
        self.small |= {vm.uid} if small else set()
        return vm

    def _fill(self, path: str) -> None:
        """Data for a copy that takes its time, past the end of what the guest uses; and an empty file of the same size on the other host."""
        end = LOCAL_MIB - FILLED_MIB
        for command in (
            ["qemu-img", "resize", "-q", "-f", "qcow2", path, f"{LOCAL_MIB}M"],
            ["qemu-io", "-f", "qcow2", "-c", f"write -q -P 0xa7 {end}M {FILLED_MIB}M", path],
        ):
            self.hosts[0].run(command)
        self.hosts[1].run(["qemu-img", "create", "-q", "-f", "qcow2", path, f"{LOCAL_MIB}M"])

    async def same_disks(self, vm: ContractVM) -> bool:
        (path,) = vm.disk_paths[0].values()
        files = [str(host.outside(path)) for host in self.hosts]
        compare = ["qemu-img", "compare", "-q", "-U", "-f", "qcow2", "-F", "qcow2", *files]
        return (await asyncio.to_thread(subprocess.run, compare, check=False)).returncode == 0

    async def ticks(self, vm: ContractVM, host: int = 0) -> int:
        """The last counter on the disk, read past the page cache of the FUSE client."""
        (path,) = vm.disk_paths[host].values()
        image = f"driver=qcow2,cache.direct=on,file.driver=file,file.cache.direct=on,file.filename={path}"
        size = layout.SECTOR_BYTES if vm.uid in self.small else layout.AREA_BYTES
        skip = (layout.BOOTSECTOR_RECORD_OFFSET if vm.uid in self.small else layout.AREA_OFFSET) // size
        out = f"/run/hostler/ring-{uuid.uuid4().hex}"
        blocks = [f"bs={size}", f"skip={skip}", f"count={skip + 1}"]
        at = self.hosts[host]
        await asyncio.to_thread(at.run, ["qemu-img", "dd", "-U", "--image-opts", "-O", "raw", *blocks, f"if={image}", f"of={out}"])
        raw = at.outside(out)
        found = raw.read_bytes()[-size:]
        raw.unlink()
        if vm.uid in self.small:
            record = layout.parse_bootsector_record(found)
            return 0 if record is None else record.counter
        ring = layout.parse_ring(found)
        return ring[-1].counter if ring else 0

    async def take_images(self, host: int, vm: ContractVM) -> None:
        for path in vm.disk_paths[host].values():
            image = f"/proc/{self.hosts[host].space.holder().pid}/root{path}"
            await asyncio.to_thread(os.chown, image, 0, 0)
            await asyncio.to_thread(os.chmod, image, 0o600)

    async def add_unmanaged(self, host: int) -> str:
        stranger = str(uuid.uuid4())
        xml = STRANGER.format(uuid=stranger)
        self.strangers.append((self.hosts[host], stranger))
        await asyncio.to_thread(self.hosts[host].virsh, "create", "--paused", "/dev/stdin", stdin=xml)
        return stranger

    async def by_hand(self, host: int, vm: ContractVM, edit: HandEdit) -> None:
        (path,) = vm.disk_paths[host].values()
        virsh = functools.partial(self._virsh, host)
        match edit:
            case HandEdit.MEMORY:
                await virsh("setmem", vm.uid, f"{GUEST_MIB * 3 // 4}M", "--live")
            case HandEdit.SUSPEND:
                await virsh("suspend", vm.uid)
            case HandEdit.ATTACH_DISK:
                await asyncio.to_thread(self.hosts[host].run, ["qemu-img", "create", "-q", "-f", "raw", f"{path}.extra", "1M"])
                await virsh("attach-disk", vm.uid, f"{path}.extra", "vdb", "--live", "--targetbus", "virtio")
            case HandEdit.LINK_DOWN:
                await virsh("domif-setlink", vm.uid, vm.spec.nics[0].mac_address, "down")
            case HandEdit.DEFINE | HandEdit.AUTOSTART:
                await virsh("define", "/dev/stdin", stdin=(await virsh("dumpxml", vm.uid)))
                if edit is HandEdit.AUTOSTART:
                    await virsh("autostart", vm.uid)
            case HandEdit.SECOND_USER:
                disk = f"<devices><disk type='file'><source file='{path}'/><target dev='vda'/></disk></devices></domain>"
                other = self.second[vm.uid] = str(uuid.uuid4())
                await virsh("define", "/dev/stdin", stdin=STRANGER.format(uuid=other).replace("</domain>", disk))

    async def undo_by_hand(self, host: int, vm: ContractVM, edit: HandEdit) -> None:
        virsh = functools.partial(self._virsh, host)
        match edit:
            case HandEdit.MEMORY:
                await virsh("setmem", vm.uid, f"{GUEST_MIB}M", "--live")
            case HandEdit.SUSPEND:
                await virsh("resume", vm.uid)
            case HandEdit.ATTACH_DISK:
                await virsh("detach-disk", vm.uid, "vdb", "--live")
            case HandEdit.LINK_DOWN:
                await virsh("domif-setlink", vm.uid, vm.spec.nics[0].mac_address, "up")
            case HandEdit.DEFINE | HandEdit.AUTOSTART:
                await virsh("undefine", vm.uid)
            case HandEdit.SECOND_USER:
                await virsh("undefine", self.second.pop(vm.uid))

    async def destroy_by_hand(self, host: int, vm: ContractVM) -> None:
        await self._virsh(host, "destroy", vm.uid)

    async def _virsh(self, host: int, *arguments: str, stdin: str | None = None) -> str:
        return await asyncio.to_thread(self.hosts[host].virsh, *arguments, stdin=stdin)

    async def hang(self, host: int, vm: ContractVM | None) -> None:
        self._signal(host, vm, signal.SIGSTOP)

    async def unhang(self, host: int, vm: ContractVM | None) -> None:
        self._signal(host, vm, signal.SIGCONT)

    def _signal(self, host: int, vm: ContractVM | None, number: signal.Signals) -> None:
        process = self.hosts[host].daemon_process("libvirtd") if vm is None else self.hosts[host].qemu_process(vm.uid)
        assert process.signal(number)

    async def connect(self, operation_id: str) -> MigrationSockets:
        source, destination = self.hosts
        folder = SOCKETS / f"contract-{uuid.uuid4().hex[:8]}"
        for host in self.hosts:
            await asyncio.to_thread(host.run, ["sh", "-c", f"mkdir -m 0711 {folder} && chown libvirt-qemu {folder}"])
        sockets = MigrationSockets(*(str(folder / f"{stream}.sock") for stream in ("libvirt", "qemu", "disks")))
        started = self.relays.setdefault(operation_id, [])
        for near, far in ((sockets.libvirt, "/run/libvirt/libvirt-sock"), (sockets.qemu, sockets.qemu), (sockets.disks, sockets.disks)):
            port = PORTS[uuid.uuid4().int % len(PORTS)]
            started.append(await _relay(destination, f"tcp:{destination.address}:{port}", f"unix:{far}"))
            started.append(await _relay(source, f"unix:{near}", f"tcp:{destination.address}:{port}"))
        # To the disks QEMU itself connects; to the rest libvirt does, as root.
        await asyncio.to_thread(source.run, ["chown", "libvirt-qemu", sockets.disks])
        return sockets

    async def disconnect(self, operation_id: str) -> None:
        for relay in self.relays.pop(operation_id, []):
            relay.terminate()
            await asyncio.to_thread(relay.wait)
            assert relay.stdout is not None
            relay.stdout.close()

    def turn(self) -> None:
        """The other host becomes host 0, for a way back."""
        self.hosts, self.hypervisors = self.hosts[::-1], self.hypervisors[::-1]

    async def clean(self) -> None:
        """Nothing of this case is left, even if it failed with a daemon or a domain stopped."""
        for host in self.hosts:
            host.daemon_process("libvirtd").signal(signal.SIGCONT)
        for operation_id in list(self.relays):
            await self.disconnect(operation_id)
        for vm, hypervisor in itertools.product(self.vms, self.hypervisors):
            await hypervisor.kill(vm.uid)
            await hypervisor.destroy(vm.uid)
        for host, stranger in self.strangers:
            await asyncio.to_thread(host.virsh, "destroy", stranger)
        for other in self.second.values():
            await asyncio.to_thread(self.hosts[0].virsh, "undefine", other)
        paths = [one for vm in self.vms for path in vm.disk_paths[0].values() for one in (path, f"{path}.extra")]
        for host in self.hosts:
            await asyncio.to_thread(host.run, ["rm", "-f", *paths])


async def _relay(host: Host, listen: str, connect: str) -> subprocess.Popen[bytes]:
    def start() -> subprocess.Popen[bytes]:
        env = {**os.environ, "PYTHONPATH": str(Path(hostlerlab.__file__).parents[1])}
        started = host.popen([sys.executable, "-m", "hostlerlab.relay", listen, connect], env=env, stdout=subprocess.PIPE)
        assert started.stdout is not None
        if started.stdout.readline() != b"ready\n":
            started.wait()
            started.stdout.close()
            raise RuntimeError(f"the relay {listen} did not start")
        return started

    return await asyncio.to_thread(start)


@asynccontextmanager
async def open_rig() -> AsyncIterator[Rig]:
    hosts = await asyncio.to_thread(_lab)
    await asyncio.to_thread(_guest, small=True)
    acceleration = await measured_once()
    async with AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(OutsideHypervisor(host, acceleration).connected()) for host in hosts]
        rig = LibvirtRig(hosts, (first, second))
        try:
            yield rig
        finally:
            await rig.clean()


RIGS = (RigKind("libvirt", frozenset(Capability), open_rig, (pytest.mark.lab, pytest.mark.timeout(300))),)
