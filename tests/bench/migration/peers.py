"""The two who migrate: plain libvirt, and Hostler. Each has a VM of the same definition, started and moved in its own way; nothing else differs.

Plain is `virsh migrate --live --p2p` with libvirt's defaults. `plain` goes through the very tunnel that Hostler's agents use (libvirtd has no network
socket here, as in production); `plain-direct` sends the memory from QEMU to QEMU over bare TCP, and only libvirt's own talk through the tunnel.
The definition is read from the VM that Hostler made, with another uuid, another disk of the same content and another address of its card.
"""

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lxml import etree

from client import CALL_S, Client
from hostler.api.cluster.v1 import nodes_pb2, operations_pb2, vms_pb2
from hostler.api.type.v1 import operation_pb2, vm_pb2
from hostlerlab.cluster import LabCluster
from hostlerlab.hosts import SHARED_POOL, Host
from tests.bench.migration.figures import DIRECT, OURS

ROOT = Path(__file__).resolve().parents[3]
DIRECTORY = "/run/hostler/bench"
PLAIN_DISKS = SHARED_POOL / "plain"
VIRSH = ["virsh", "-q", "-c", "qemu:///system"]
FLOOR_MILLI = 50
END_S = 60.0
"""After a limit of time has passed and the copy was told to stop."""
PYTHONPATH = os.pathsep.join(str(ROOT / part) for part in (".", "client/python", "deploy/lab", "deploy/demo"))


def tool(name: str) -> list[str]:
    """A program of this folder."""
    return [sys.executable, "-m", f"tests.bench.migration.{name}"]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": PYTHONPATH, "GRPC_ENABLE_FORK_SUPPORT": "false"}


@dataclass(frozen=True, slots=True)
class Order:
    """One migration to make. `deadline_s`: past it the copy is told to stop, and the run counts as one that did not end."""

    source: Host
    destination: Host
    link_mib_s: int = 0
    deadline_s: float = 60.0


@dataclass(slots=True)
class Outcome:
    """`lost`: why it did not arrive. `told_ms`: the downtime that the one who drives reports; `work`: of its throttle, what is known."""

    began_s: float = 0.0
    ended_s: float = 0.0
    lost: str = ""
    told_ms: float | None = None
    told_bytes: int = 0
    throttle_percent: int | None = None
    iterations: int | None = None
    acts_ms: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Machine:
    """A running VM: its domain's name, where it is, and the hardware address of its card ("": it has none)."""

    name: str
    host: Host
    mac: str = ""
    disk: Path | None = None
    vm_id: str = ""


class Tunnels:
    """One process per host that carries plain libvirt's migrations."""

    def __init__(self, ends: dict[str, subprocess.Popen[bytes]]) -> None:
        self._ends = ends

    def ask(self, host: Host, *words: str) -> str:
        end = self._ends[host.name]
        assert end.stdin is not None
        assert end.stdout is not None
        end.stdin.write((" ".join(words) + "\n").encode())
        end.stdin.flush()
        answer = end.stdout.readline().decode().strip()
        if not answer:
            raise RuntimeError(f"the tunnel's end on {host.name} is gone")
        return answer

    @contextmanager
    def between(self, source: Host, destination: Host) -> Iterator[tuple[str, str]]:
        """(libvirt's socket, QEMU's socket) on the source."""
        operation = f"plain-{uuid.uuid4().hex[:12]}"
        endpoint = self.ask(destination, "incoming", operation, source.name)
        try:
            libvirt, qemu = self.ask(source, "outgoing", operation, endpoint, destination.name).split()
            yield libvirt, qemu
        finally:
            for host in (source, destination):
                self.ask(host, "close", operation)


@contextmanager
def tunnels(cluster: LabCluster) -> Iterator[Tunnels]:
    """For as long as the block lasts."""
    with contextlib.ExitStack() as stack:
        ends = {}
        for host in cluster.lab.hosts.values():
            arguments = [host.name, str(cluster.folder / "tls" / f"node-{host.name}"), host.address, DIRECTORY]
            end = stack.enter_context(
                host.popen([*tool("tunnel_end"), *arguments], env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            )
            assert end.stdin is not None
            stack.callback(end.stdin.close)
            assert end.stdout is not None
            if end.stdout.readline() != b"ready\n":
                raise RuntimeError(f"no tunnel on {host.name}")
            ends[host.name] = end
        yield Tunnels(ends)


class Plain:
    """libvirt alone."""

    def __init__(self, peer: str, through: Tunnels) -> None:
        self.peer = peer
        self._tunnels = through

    async def start(self, host: Host, definition: str, image: Path) -> Machine:
        """A transient domain like the one defined, on a disk of its own."""
        name = str(uuid.uuid4())
        xml, disk, mac = twin(definition, name)
        await asyncio.to_thread(host.run, ["mkdir", "-p", str(PLAIN_DISKS)])
        await asyncio.to_thread(host.run, ["cp", str(image), str(disk)])
        await asyncio.to_thread(lambda: host.virsh("create", "/dev/stdin", stdin=xml))
        return Machine(name, host, mac, disk)

    async def stop(self, machine: Machine, hosts: list[Host]) -> None:
        for host in hosts:
            await asyncio.to_thread(host.run, [*VIRSH, "destroy", machine.name], check=False)
        await asyncio.to_thread(machine.host.run, ["rm", "-f", str(machine.disk)])

    async def migrate(self, machine: Machine, order: Order) -> Outcome:
        """By `virsh migrate`, to its end; a deadline ends the copy as an operator would."""
        return await asyncio.to_thread(self._migrate, machine, order)

    def _migrate(self, machine: Machine, order: Order) -> Outcome:
        with self._tunnels.between(order.source, order.destination) as (libvirt, qemu):
            data = f"tcp://{order.destination.address}" if self.peer == DIRECT else f"unix://{qemu}"
            command = [*VIRSH, "migrate", "--live", "--p2p", machine.name, f"qemu+unix:///system?socket={libvirt}", "--migrateuri", data]
            command += ["--bandwidth", str(order.link_mib_s)] if order.link_mib_s else []
            outcome = Outcome(time.monotonic())
            with order.source.popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as virsh:
                try:
                    virsh.wait(order.deadline_s)
                except subprocess.TimeoutExpired:
                    outcome.lost = f"still running at {order.deadline_s:.0f} s; {_copy_state(order.source, machine.name)}"
                    order.source.run([*VIRSH, "domjobabort", machine.name], check=False)
                    virsh.wait(END_S)
                outcome.ended_s = time.monotonic()
                assert virsh.stdout is not None
                said = virsh.stdout.read().decode().strip()
        if virsh.returncode != 0:
            outcome.lost = outcome.lost or said
            return outcome
        machine.host = order.destination
        told = order.destination.run([*VIRSH, "domjobinfo", "--completed", machine.name], check=False).stdout
        outcome.told_ms = _number(told, r"Total downtime:\s+(\d+)")
        outcome.iterations = int(_number(told, r"Iteration:\s+(\d+)") or 0)
        outcome.told_bytes = round((_number(told, r"Data processed:\s+([\d.]+)") or 0.0) * _unit(told, "Data processed"))
        return outcome


class Ours:
    """Hostler, by its API."""

    peer = OURS

    def __init__(self, client: Client, cluster: LabCluster) -> None:
        self._client = client
        self._cluster = cluster

    async def start(self, host: Host, vm_id: str, pool: str, image: str, memory_mib: int, nic: bool) -> Machine:
        """A VM on that host, made from an image of the pool; its floor is so low that a host takes all of a drain's."""
        disk = vm_pb2.VM.Disk(new_volume=vm_pb2.VM.NewVolume(pool=f"pools/{pool}", image=image))
        nics = [vm_pb2.VM.Nic(network="networks/br0")] if nic else []
        request = vms_pb2.CreateVMRequest(
            vm_id=vm_id,
            vm=vm_pb2.VM(vcpus=1, memory_mib=memory_mib, cpu_floor_milli=FLOOR_MILLI, disks=[disk], nics=nics),
            node=f"nodes/{host.name}",
        )
        done = await self._client.wait(await self._client.vms.CreateVM(request, timeout=CALL_S))
        if done.state != operation_pb2.Operation.SUCCEEDED:
            raise RuntimeError(f"{vm_id}: {done.error.message}")
        return Machine(done.vm.uid, host, done.vm.nics[0].mac_address if nic else "", vm_id=vm_id)

    async def stop(self, machine: Machine) -> None:
        await self._client.wait(await self._client.delete(machine.vm_id))

    async def order(self, machine: Machine, order: Order) -> operation_pb2.Operation:
        return await self._client.migrate(machine.vm_id, order.destination.name, order.link_mib_s)

    async def migrate(self, machine: Machine, order: Order) -> Outcome:
        """By `MigrateVM`, until the operation is done."""
        outcome = Outcome(time.monotonic())
        operation = await self.order(machine, order)
        try:
            async with asyncio.timeout(order.deadline_s):
                done = await self.ended(operation)
        except TimeoutError:
            outcome.lost = f"still running at {order.deadline_s:.0f} s"
            request = operations_pb2.CancelOperationRequest(name=operation.name)
            await self._client.operations.CancelOperation(request, timeout=CALL_S)
            done = await self._client.wait(operation)
        outcome.ended_s = time.monotonic()
        if done.state != operation_pb2.Operation.SUCCEEDED:
            outcome.lost = outcome.lost or done.error.message
            return outcome
        machine.host = order.destination
        facts = done.migration
        outcome.told_ms, outcome.told_bytes = float(facts.downtime_ms), facts.bytes_transferred
        outcome.throttle_percent, outcome.iterations = facts.throttle_percent, facts.iterations
        return outcome

    async def drain(self, host: Host) -> list[str]:
        """Empties a host with the defaults of `hostler node drain`; why it did not, if it did not."""
        request = nodes_pb2.DrainNodeRequest(name=f"nodes/{host.name}")
        done = await self.ended(await self._client.nodes.DrainNode(request, timeout=CALL_S))
        return [] if done.state == operation_pb2.Operation.SUCCEEDED else [done.error.message]

    async def uncordon(self, host: Host) -> None:
        await self._client.nodes.UncordonNode(nodes_pb2.UncordonNodeRequest(name=f"nodes/{host.name}"), timeout=CALL_S)

    async def ended(self, operation: operation_pb2.Operation) -> operation_pb2.Operation:
        """Told at once, not at the next question."""
        async with contextlib.aclosing(self._client.follow(operation)) as followed:
            async for now in followed:
                if now.done:
                    return now
        raise RuntimeError(f"{operation.name} was not followed to its end")


def twin(definition: str, name: str) -> tuple[str, Path, str]:
    """(the same domain under another uuid without Hostler's mark, its disk, its card's address)."""
    domain = etree.fromstring(definition.encode())
    for tag in ("name", "uuid"):
        found = domain.find(tag)
        assert found is not None
        found.text = name
    for gone in ("metadata", "title", "description"):
        for element in domain.findall(gone):
            domain.remove(element)
    source = domain.find("devices/disk/source")
    assert source is not None
    old = Path(str(source.get("file")))
    disk = PLAIN_DISKS / f"{name}{old.suffix}"
    source.set("file", str(disk))
    mac = ""
    for element in domain.iterfind("devices/interface/mac"):
        mac = f"52:54:00:{name[0:2]}:{name[2:4]}:{name[4:6]}"
        element.set("address", mac)
    return etree.tostring(domain, encoding="unicode"), disk, mac


@asynccontextmanager
async def reading(command: list[str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """A witness in a process of its own: it looks from here on, and ends with the block."""
    process = await asyncio.create_subprocess_exec(
        *command, env=environment(), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        async with asyncio.timeout(END_S):
            if await process.stdout.readline() != b"ready\n":
                raise RuntimeError(f"{command[2]} did not begin")
        yield process
    finally:
        process.stdin.close()
        async with asyncio.timeout(END_S):
            await process.wait()


def _copy_state(host: Host, name: str) -> str:
    told = host.run([*VIRSH, "domjobinfo", name], check=False).stdout
    left = re.search(r"Memory remaining:\s+(.+)", told)
    passes = re.search(r"Iteration:\s+(\d+)", told)
    return f"{left[1] if left else '?'} left after {passes[1] if passes else '?'} passes"


def _number(text: str, pattern: str) -> float | None:
    found = re.search(pattern, text)
    return float(found[1]) if found else None


def _unit(text: str, name: str) -> int:
    found = re.search(rf"{name}:\s+[\d.]+ (\w+)", text)
    return {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}[found[1]] if found else 0


def said(*command: str) -> str:
    """What a short command prints."""
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
