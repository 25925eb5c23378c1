"""The blows: how each victim is found, struck, and brought back, and what proves that the blow has landed.

A killed daemon is started again by the lab's supervisor, as systemd would; a killed libvirtd or etcd member by this file, at once. A frozen one goes
on by itself after its time, and finds everything as it left it: the watchdog of the lab's units is off, because a daemon that wakes with an old
view is worse than one that was killed for being late.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hostlerlab import faults
from hostlerlab.cluster import GATEWAY, LabCluster
from hostlerlab.faults import Drop, PacketLoss
from hostlerlab.hosts import Host
from hostlerlab.processes import Process, identify
from hostlerlab.shell import run, wait_for
from hostlerlab.supervisor import State
from tests.sweep.cells import LASTS_S, Blow, Victim
from tests.sweep.observer import Etcd

BACK_TIMEOUT_S = 60.0
FLOW_TIMEOUT_S = 20.0
"""From the order of a migration until its memory flows."""
SCHEDULER_UID = 65510
"""Of the first replica; each has its own, so that its packets can be told from everybody else's on loopback."""


class NotLanded(Exception):
    """The blow hit nobody: the cell proves nothing."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Who is who in this handoff. `replica` is the one that stands at the gate, else the one that drives; `tunnel` host:port, "" before H1."""

    cluster: LabCluster
    vm_uid: str
    source: Host
    destination: Host
    replica: str
    tunnel: str


@dataclass(frozen=True, slots=True)
class Landed:
    """A blow that hit. `back` waits until it is over and the victim is there again; its answer completes the proof."""

    proof: str
    back: Callable[[], Awaitable[str]]


class Loss(Protocol):
    """Packets being dropped."""

    def inject(self) -> None: ...

    def packets(self) -> int: ...

    def heal(self) -> None: ...


async def strike(victim: Victim, blow: Blow, scene: Scene) -> Landed:
    """Raises NotLanded."""
    if blow is Blow.CUT:
        return await cut(_loss(victim, scene), LASTS_S[blow])
    process = await asyncio.to_thread(_process, victim, scene)
    if blow is Blow.KILL:
        return await _kill(victim, process, scene)
    return await _freeze(process, LASTS_S[blow])


def _process(victim: Victim, scene: Scene) -> Process:
    try:
        match victim:
            case Victim.SOURCE_AGENT:
                found = identify(scene.cluster.supervisor.pid(scene.source.name))
            case Victim.DESTINATION_AGENT:
                found = identify(scene.cluster.supervisor.pid(scene.destination.name))
            case Victim.SCHEDULER:
                found = identify(scene.cluster.supervisor.pid(scene.replica))
            case Victim.SOURCE_LIBVIRTD:
                found = scene.source.daemon_process("libvirtd")
            case Victim.DESTINATION_LIBVIRTD:
                found = scene.destination.daemon_process("libvirtd")
            case Victim.SOURCE_QEMU:
                found = scene.source.qemu_process(scene.vm_uid)
            case Victim.DESTINATION_QEMU:
                found = scene.destination.qemu_process(scene.vm_uid)
            case _:
                found = identify(scene.cluster.etcd.pid(leader(scene.cluster)))
    except (OSError, RuntimeError) as error:
        raise NotLanded(f"no {victim.value} to hit: {error}") from error
    if found is None or not found.alive():
        raise NotLanded(f"the {victim.value} is gone already")
    return found


async def _kill(victim: Victim, process: Process, scene: Scene) -> Landed:
    unit = {
        Victim.SOURCE_AGENT: scene.source.name,
        Victim.DESTINATION_AGENT: scene.destination.name,
        Victim.SCHEDULER: scene.replica,
    }.get(victim)
    starts = sum(change.state is State.ACTIVE for change in scene.cluster.supervisor.transitions(unit)) if unit else 0
    member = leader(scene.cluster) if victim is Victim.ETCD_LEADER else ""
    if member:
        await asyncio.to_thread(scene.cluster.etcd.kill_member, member)
    else:
        await asyncio.to_thread(faults.kill, process)
    if process.alive():
        raise NotLanded(f"pid {process.pid} outlives SIGKILL")

    async def back() -> str:
        if unit is not None:
            await scene.cluster.supervisor.wait_for_state(unit, State.ACTIVE, BACK_TIMEOUT_S, starts=starts + 1)
        elif member:
            scene.cluster.etcd.start_member(member)
            await asyncio.to_thread(scene.cluster.etcd.wait_healthy, member)
        elif victim in (Victim.SOURCE_LIBVIRTD, Victim.DESTINATION_LIBVIRTD):
            await asyncio.to_thread((scene.source if victim is Victim.SOURCE_LIBVIRTD else scene.destination).start_libvirt)
        return ""

    return Landed(f"pid {process.pid} gone", back)


async def _freeze(process: Process, lasts_s: float) -> Landed:
    await asyncio.to_thread(faults.freeze, process)
    if process.state() != "T":
        raise NotLanded(f"pid {process.pid} is {process.state()}, not T")
    until_s = asyncio.get_running_loop().time() + lasts_s

    async def back() -> str:
        await asyncio.sleep(max(0.0, until_s - asyncio.get_running_loop().time()))
        state = process.state()
        process.signal(signal.SIGCONT)
        return f", {state} {lasts_s:.0f} s later"

    return Landed(f"pid {process.pid} T", back)


async def cut(loss: Loss, lasts_s: float) -> Landed:
    """From now on its packets are lost, for so long."""
    await asyncio.to_thread(loss.inject)
    until_s = asyncio.get_running_loop().time() + lasts_s

    async def back() -> str:
        try:
            await asyncio.sleep(max(0.0, until_s - asyncio.get_running_loop().time()))
            packets = await asyncio.to_thread(loss.packets)
        finally:
            await asyncio.to_thread(loss.heal)
        if packets == 0:
            raise NotLanded("no packet was dropped")
        return f"{packets} packets dropped"

    return Landed("", back)


def _loss(victim: Victim, scene: Scene) -> Loss:
    match victim:
        case Victim.SOURCE_TO_SCHEDULER:
            return PacketLoss(scene.source.space, Drop("both", peer=GATEWAY))
        case Victim.SOURCE_TO_DESTINATION:
            return PacketLoss(scene.source.space, Drop("both", peer=scene.destination.address))
        case Victim.DESTINATION_TO_SCHEDULER:
            return PacketLoss(scene.destination.space, Drop("both", peer=GATEWAY))
        case Victim.TUNNEL_REPLIES:
            port = int(scene.tunnel.rpartition(":")[2])
            return PacketLoss(scene.source.space, Drop("in", peer=scene.destination.address, remote_port=port))
        case _:
            ports = [int(endpoint.rpartition(":")[2]) for endpoint in scene.cluster.etcd.endpoints]
            return LoopbackLoss(scheduler_uid(scene.replica), ports)


def scheduler_uid(replica: str) -> int:
    """s1, s2 ..."""
    return SCHEDULER_UID + int(replica.removeprefix("s"))


class LoopbackLoss:
    """What one user's processes send to these ports of loopback is lost: a scheduler whose etcd has fallen silent."""

    TABLE = "hostler_sweep"

    def __init__(self, uid: int, ports: Sequence[int]) -> None:
        self._rule = f'oifname "lo" meta skuid {uid} tcp dport {{ {", ".join(map(str, ports))} }} counter name dropped drop'

    def inject(self) -> None:
        chain = f" chain output {{ type filter hook output priority -300; policy accept; {self._rule}; }}"
        run(["nft", "-f", "-"], stdin=f"table inet {self.TABLE} {{\n counter dropped {{}}\n{chain}\n}}\n")

    def packets(self) -> int:
        listed = run(["nft", "list", "counter", "inet", self.TABLE, "dropped"]).stdout
        return int(listed.partition("packets ")[2].split()[0])

    def heal(self) -> None:
        run(["nft", "delete", "table", "inet", self.TABLE])

    @classmethod
    def heal_left_over(cls) -> None:
        """Of a sweep that was killed."""
        run(["nft", "delete", "table", "inet", cls.TABLE], check=False)


async def lose_finish(source: Host, destination: Host, tunnel: Callable[[], str], lasts_s: float) -> Landed:
    """Cut the way back of libvirt's own connection while the memory's connection is open: `Finish` is called after that, and its reply is lost."""
    port, loss = await asyncio.to_thread(_when_memory_flows, source, destination, tunnel)
    landed = await cut(loss, lasts_s)
    if len(connections(source, port)) > 1:
        return landed
    await asyncio.to_thread(loss.heal)
    raise NotLanded("the memory was through before the cut")


def _when_memory_flows(source: Host, destination: Host, tunnel: Callable[[], str]) -> tuple[int, PacketLoss]:
    wait_for("the tunnel's port", lambda: bool(tunnel()), FLOW_TIMEOUT_S)
    port, seen = int(tunnel().rpartition(":")[2]), list[int]()

    def both() -> bool:
        seen.extend(local for local in connections(source, port) if local not in seen)
        return len(seen) > 1

    wait_for("libvirt's and QEMU's connections", both, FLOW_TIMEOUT_S)
    return port, PacketLoss(source.space, Drop("in", peer=destination.address, remote_port=port, local_port=seen[0]))


def connections(host: Host, remote_port: int) -> list[int]:
    """The local ports of a host's established TCP connections to that remote port."""
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{host.space.holder().pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, remote, state = line.split()[:4]
            if state == "01" and int(remote.rpartition(":")[2], 16) == remote_port:
                found.append(int(local.rpartition(":")[2], 16))
    return found


def leader(cluster: LabCluster) -> str:
    """The member of etcd that leads."""
    for member in cluster.etcd.members:
        try:
            status = Etcd([member.client_url]).ask("maintenance/status", {})
        except OSError:
            continue
        if status.get("leader") == status["header"]["member_id"]:
            return member.name
    raise NotLanded("etcd has no leader")
