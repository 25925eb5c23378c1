"""The story on real hosts: three namespaced machines with libvirt and QEMU each, GlusterFS, three etcd members. As root."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import story
from client import Client
from hostler.api.type.v1 import vm_pb2
from hostler.server import channels
from hostler.server.clock import SystemClock
from hostler.server.tls import TlsFiles, load
from hostlerlab.cluster import LabCluster, lab_cluster
from hostlerlab.guest import probe
from hostlerlab.hosts import STATE_DIR
from hostlerlab.lab import Lab, default_specs
from hostlerlab.ready import HOSTS, put_image

HERE = Path(__file__).parent
BUILD = Path("build").resolve()
SETTLE_LINES = 50
LEASE_TIMEOUT_S = 60.0
SETTLE_TIMEOUT_S = 30.0
CHECK_TIMEOUT_S = 60.0


class _Watched:
    def __init__(self, stream: probe.StreamClient) -> None:
        self._stream = stream

    async def settle(self) -> None:
        await self._stream.wait_lines(SETTLE_LINES, timeout_s=SETTLE_TIMEOUT_S)

    def seen(self) -> story.Seen:
        report = self._stream.report()
        return story.Seen(report.lines, len(report.seq_gaps), report.reconnects, len(report.boot_ids), report.longest_gap_ms)


class Real:
    """A stage made of a LabCluster."""

    slow_mib_s = 0  # no limit: an emulated guest takes a second or two as it is (docs/decisions/0007)

    def __init__(self, lab: Lab, cluster: LabCluster) -> None:
        self._lab = lab
        self._cluster = cluster
        self.material = load(TlsFiles.in_directory(cluster.user_tls), clock=SystemClock())
        self._clients: dict[str, Client] = {}
        self.replicas = cluster.replicas

    def client(self, replica: str) -> Client:
        if replica not in self._clients:
            endpoint = self._cluster.endpoints[self.replicas.index(replica)]
            self._clients[replica] = Client(channels.to_scheduler(self.material, endpoint))
        return self._clients[replica]

    @asynccontextmanager
    async def watch(self, vm: vm_pb2.VM) -> AsyncIterator[_Watched]:
        address = await asyncio.to_thread(self._lab.wait_for_lease, vm.nics[0].mac_address, LEASE_TIMEOUT_S)
        await probe.wait_answer(address)
        async with probe.watch(address) as stream:
            yield _Watched(stream)

    async def kill_replica(self, replica: str) -> None:
        self._cluster.supervisor.send_signal(replica, signal.SIGKILL)

    async def check(self) -> str:
        """The script that imports nothing of ours; a VM that has just moved may need a moment until its old host has cleared up."""
        hosts = [f"{host.name}={host.space.holder().pid}={host.outside(STATE_DIR / 'agent')}" for host in self._lab.hosts.values()]
        endpoints = ",".join(self._cluster.etcd.client_urls)
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(HERE / "check_cluster.py"), endpoints, *hosts, stdout=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            output, _ = await process.communicate()
        if process.returncode != 0:
            raise story.Failed(output.decode().strip())
        return output.decode().strip()

    async def close(self) -> None:
        for client in self._clients.values():
            await client.channel.close()


async def play(teller: story.Teller) -> None:
    teller.chapter("The stage: guest image, three hosts with libvirt, shared storage, etcd, two schedulers, three agents")
    lab = Lab(BUILD / "lab", default_specs(HOSTS))
    try:
        await asyncio.to_thread(lab.up, fresh=True)
        await asyncio.to_thread(put_image, lab, BUILD)
        async with lab_cluster(lab, BUILD / "cluster") as cluster:
            stage = Real(lab, cluster)
            try:
                await story.tell(stage, teller)
                if os.environ.get("KEEP"):
                    await _keep(cluster)
            finally:
                await stage.close()
    finally:
        await asyncio.to_thread(lab.down)


async def _keep(cluster: LabCluster) -> None:
    """Leave it running until Ctrl-C, and say what to type."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    print("\nThe cluster keeps running. In another terminal:\n")
    for name, value in cluster.environment().items():
        print(f"  export {name}={value}")
    print(f"  export PATH={Path(sys.executable).parent}:$PATH")
    print("  hostler node list\n  hostler vm list -o wide\n  hostler vm migrate web-1\n  hostler op list\n\nCtrl-C ends it.", flush=True)
    await stop.wait()


if __name__ == "__main__":
    sys.exit(story.run(play))
