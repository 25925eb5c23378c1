"""A whole cluster in one process: real schedulers and agents talking real gRPC with real certificates, over an embedded store and simulated hosts.

What is simulated: the hypervisor, storage and the hosts (`nodeagent.adapters.sim_*`), and etcd (`scheduler.adapters.memory_store`). Everything
between is what production runs. Nothing of the two daemons is changed for it: this is a third composition root beside their own.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hostler.server import pki
from hostler.server.clock import Clock, SystemClock
from hostler.server.identity import Principal, PrincipalKind
from hostler.server.startup import Shutdown
from hostler.server.tls import ServerTls, TlsFiles
from nodeagent import app as agent_app
from nodeagent.adapters.sim_host_facts import SimHostFacts
from nodeagent.adapters.sim_hypervisor import SimHypervisor
from nodeagent.adapters.sim_storage import SimFileSystem
from nodeagent.adapters.sim_tunnel import SimTunnel
from nodeagent.adapters.sim_volumes import SimVolumes
from nodeagent.adapters.sim_world import SimTimes, SimWorld
from nodeagent.adapters.state_directory import StateDirectory
from nodeagent.core.ledger import CapacityCap
from nodeagent.engine.vms import Offer
from scheduler import app as scheduler_app
from scheduler.adapters.memory_store import MemoryServer
from scheduler.engine.election import LEASE_TTL_S
from scheduler.engine.liveness import WRITE_PAUSE_S
from scheduler.ports import Store

CLUSTER = "dev"
RunDaemon = Callable[[Shutdown, Callable[[int], None]], Coroutine[object, object, None]]

START_TIMEOUT_S = 15.0
"""A replica or an agent that is not ready by then has failed; starting takes well under a second."""


@dataclass(frozen=True, slots=True)
class DevOptions:
    """How large the cluster is, and how slow. Sizes are of each simulated host; times are the daemons' own and the simulation's."""

    nodes: int = 3
    replicas: int = 2
    cpu_milli: int = 8000
    memory_mib: int = 16384
    reserve_mib: int = 512
    pool_mib: int = 1024 * 1024
    images: dict[str, int] = field(default_factory=lambda: {"debian-12": 2048, "guest": 64})
    times: SimTimes = field(default_factory=SimTimes)
    lease_ttl_s: int = LEASE_TTL_S
    beat_write_pause_s: float = WRITE_PAUSE_S


@dataclass(slots=True)
class Daemon:
    """One replica or agent: its task, the port it serves on, and the handle that stops it."""

    name: str
    task: "asyncio.Task[None]"
    port: int
    shutdown: Shutdown

    async def kill(self) -> None:
        """As kill -9 is: nothing is put away, nothing is told to anybody."""
        self.task.cancel()
        await asyncio.wait([self.task])


class DevCluster:
    """`async with dev_cluster(directory)`: a running cluster. Certificates and the agents' state files are below `directory`."""

    def __init__(self, directory: Path, options: DevOptions, group: asyncio.TaskGroup, world: SimWorld, clock: Clock) -> None:
        self.directory = directory
        self.options = options
        self.world = world
        self.store = MemoryServer(clock)
        self.schedulers: dict[str, Daemon] = {}
        self.agents: dict[str, Daemon] = {}
        self._group = group
        self._clock = clock
        self._ca = pki.init_ca(directory / "ca", CLUSTER, clock=clock) if not (directory / "ca").exists() else pki.load_ca(directory / "ca")

    @property
    def endpoints(self) -> tuple[str, ...]:
        """host:port of each replica that runs."""
        return tuple(f"127.0.0.1:{daemon.port}" for daemon in self.schedulers.values())

    def user_certificate(self, name: str = "admin") -> Path:
        """The directory of a user's tls.crt, tls.key and ca.crt."""
        return self._certificate(PrincipalKind.USER, name)

    async def start(self) -> None:
        """Replicas first, so that the agents find them."""
        shared = SimFileSystem("shared", self.options.pool_mib, shared=True)
        for image, size_mib in self.options.images.items():
            shared.add_image(image, size_mib)
        for index in range(1, self.options.replicas + 1):
            await self.start_scheduler(f"s{index}")
        for index in range(1, self.options.nodes + 1):
            local = SimFileSystem(f"local-{index}", self.options.pool_mib)
            self.world.add_host(
                f"n{index}",
                cpu_milli=self.options.cpu_milli,
                memory_mib_by_cell={0: self.options.memory_mib},
                pools={"shared": shared, "local": local},
            )
            await self.start_agent(f"n{index}")

    async def start_scheduler(self, replica_id: str, port: int = 0) -> Daemon:
        """A replica with its own connection to the store."""
        tls = self._tls(PrincipalKind.SCHEDULER, replica_id)
        replica = scheduler_app.Replica(
            replica_id,
            tls,
            self.store_of(replica_id),
            f"127.0.0.1:{port}",
            lease_ttl_s=self.options.lease_ttl_s,
            beat_write_pause_s=self.options.beat_write_pause_s,
            clock=self._clock,
        )
        self.schedulers[replica_id] = await self._launch(replica_id, lambda shutdown, ready: scheduler_app.run(replica, shutdown, ready))
        return self.schedulers[replica_id]

    async def start_agent(self, node_id: str, port: int = 0) -> Daemon:
        """An agent on the simulated host of that name; a second time: the agent's restart, with the guests that are there."""
        parts = self.parts_of(node_id)
        node = agent_app.Node(
            node_id,
            self._tls(PrincipalKind.NODE, node_id),
            f"127.0.0.1:{port}",
            f"127.0.0.1:{port}",
            self.endpoints,
            Offer(CapacityCap(), self.options.reserve_mib),
            clock=self._clock,
        )
        self.agents[node_id] = await self._launch(node_id, lambda shutdown, ready: agent_app.run(node, parts, shutdown, ready))
        return self.agents[node_id]

    def store_of(self, replica_id: str) -> Store:
        """A replica's own connection to the store."""
        return self.store.connect()

    def parts_of(self, node_id: str) -> agent_app.Parts:
        """The simulated outside of one node."""
        return agent_app.Parts(
            SimHypervisor(self.world, node_id),
            SimVolumes(self.world, node_id),
            SimHostFacts(self.world, node_id),
            SimTunnel(self.world, node_id),
            StateDirectory(self.directory / "state" / node_id),
        )

    async def stop(self) -> None:
        """Agents first; each daemon puts away what it has."""
        for daemon in (*self.agents.values(), *self.schedulers.values()):
            daemon.shutdown.requested.set()
        tasks = [daemon.task for daemon in (*self.agents.values(), *self.schedulers.values())]
        if tasks:
            await asyncio.wait(tasks)

    async def _launch(self, name: str, run: RunDaemon) -> Daemon:
        shutdown = Shutdown()
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        task: asyncio.Task[None] = self._group.create_task(run(shutdown, port.set_result), name=name)
        async with asyncio.timeout(START_TIMEOUT_S):
            both: set[asyncio.Future[int] | asyncio.Task[None]] = {port, task}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        return Daemon(name, task, port.result(), shutdown)

    def _tls(self, kind: PrincipalKind, name: str) -> ServerTls:
        return ServerTls(TlsFiles.in_directory(self._certificate(kind, name)), clock=self._clock)

    def _certificate(self, kind: PrincipalKind, name: str) -> Path:
        directory = self.directory / "tls" / kind.value / name
        if not directory.exists():
            pki.write(pki.issue(self._ca, Principal(CLUSTER, kind, name), clock=self._clock), directory)
        return directory


MakeCluster = Callable[[Path, DevOptions, asyncio.TaskGroup, SimWorld, Clock], DevCluster]


@asynccontextmanager
async def dev_cluster(
    directory: Path, options: DevOptions = DevOptions(), clock: Clock | None = None, kind: MakeCluster = DevCluster
) -> AsyncIterator[DevCluster]:
    """A cluster that runs inside the block; `kind` makes one with other parts."""
    clock = clock or SystemClock()
    async with SimWorld(clock, options.times) as world, asyncio.TaskGroup() as group:
        cluster = kind(directory, options, group, world, clock)
        try:
            await cluster.start()
            yield cluster
        finally:
            await cluster.stop()
