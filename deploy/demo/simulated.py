"""The story on simulated hosts and an embedded store, in one process. Says plainly what is simulated."""

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import story
from client import Client
from devcluster.cluster import DevCluster, DevOptions, dev_cluster
from hostler.api.type.v1 import vm_pb2
from hostler.server import channels, logs
from hostler.server.clock import SystemClock
from hostler.server.tls import TlsFiles, load

LOOK_S = 0.01
SETTLE_LOOKS = 30
OFFER = DevOptions(cpu_milli=1000, memory_mib=1280, reserve_mib=256)


class _Watched:
    """Looks at the simulated guest's sequence counter: it moves while exactly one copy executes."""

    def __init__(self, cluster: DevCluster, vm_uid: str) -> None:
        self._cluster = cluster
        self._vm_uid = vm_uid
        self._looks = 0
        self._looked = asyncio.Condition()
        self._last_ticks = -1
        self._last_move_s = cluster.world.clock.monotonic_s()
        self._outage_s = 0.0
        self._rewinds = 0
        self._boots: set[str] = set()

    async def run(self) -> None:
        while True:
            guest, now_s = self._cluster.world.guest(self._vm_uid), self._cluster.world.clock.monotonic_s()
            self._boots.add(guest.boot_id)
            self._rewinds += guest.ticks < self._last_ticks
            if guest.ticks > self._last_ticks:
                self._outage_s = max(self._outage_s, now_s - self._last_move_s)
                self._last_ticks, self._last_move_s = guest.ticks, now_s
            self._looks += 1
            async with self._looked:
                self._looked.notify_all()
            await asyncio.sleep(LOOK_S)

    async def settle(self) -> None:
        wanted = self._looks + SETTLE_LOOKS
        async with self._looked:
            await self._looked.wait_for(lambda: self._looks >= wanted)

    def seen(self) -> story.Seen:
        return story.Seen(self._last_ticks, self._rewinds, 0, len(self._boots), self._outage_s * 1000)


class Simulated:
    """A stage made of a DevCluster."""

    slow_mib_s = 40

    def __init__(self, cluster: DevCluster) -> None:
        self._cluster = cluster
        self._material = load(TlsFiles.in_directory(cluster.user_certificate()), clock=SystemClock())
        self._clients: dict[str, Client] = {}
        self.replicas = tuple(cluster.schedulers)

    def client(self, replica: str) -> Client:
        if replica not in self._clients:
            endpoint = f"127.0.0.1:{self._cluster.schedulers[replica].port}"
            self._clients[replica] = Client(channels.to_scheduler(self._material, endpoint))
        return self._clients[replica]

    @asynccontextmanager
    async def watch(self, vm: vm_pb2.VM) -> AsyncIterator[_Watched]:
        watched = _Watched(self._cluster, vm.uid)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(watched.run(), name="watch the guest")
            yield watched
            task.cancel()

    async def kill_replica(self, replica: str) -> None:
        await self._cluster.schedulers[replica].kill()

    async def check(self) -> str:
        """The embedded store's records against the simulated processes."""
        items = {item.key: item.value for item in self._cluster.store.keyspace().list("/hostler/state/", 0)}
        vms = [json.loads(value) for key, value in items.items() if "/vm/" in key]
        for vm in vms:
            executing = self._cluster.world.guest(vm["uid"]).executing
            if executing != (vm["owner"]["node_id"],):
                raise story.Failed(f"{vm['vm_id']} is owned by {vm['owner']['node_id']} and executes on {executing}")
        if self._cluster.world.violations:
            raise story.Failed("; ".join(self._cluster.world.violations))
        return f"{len(vms)} VMs execute once each, where the store says; never two writers of one disk"

    async def close(self) -> None:
        for client in self._clients.values():
            await client.channel.close()


async def play(teller: story.Teller) -> None:
    print("Simulated: hosts, hypervisor, guests, storage, and etcd (embedded). Real: schedulers, agents, gRPC, TLS, journal.")
    with tempfile.TemporaryDirectory(prefix="hostler-demo-") as directory:
        async with dev_cluster(Path(directory), OFFER) as cluster:
            stage = Simulated(cluster)
            try:
                await story.tell(stage, teller)
            finally:
                await stage.close()


if __name__ == "__main__":
    logs.configure(level="error")
    sys.exit(story.run(play))
