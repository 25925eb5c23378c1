"""A whole simulated cluster for each test that asks: real daemons and gRPC, an embedded store, simulated hosts that watch for two writers."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc.aio
import pytest

from client import Client
from devcluster.cluster import DevCluster, DevOptions, dev_cluster
from hostler.server import channels
from hostler.server.clock import SystemClock
from hostler.server.tls import TlsFiles, load
from tests.rpc.brisk import BRISK

Connect = Callable[[str], Client]


@pytest.fixture
def options() -> DevOptions:
    return BRISK


@pytest.fixture
async def cluster(tmp_path: Path, options: DevOptions) -> AsyncIterator[DevCluster]:
    """Ready; at its end no VM may ever have had two running copies or two writers."""
    async with dev_cluster(tmp_path, options) as running:
        yield running
        running.world.assert_one_writer()


@pytest.fixture
async def connect(cluster: DevCluster) -> AsyncIterator[Connect]:
    """A client of the replica of that name."""
    material = load(TlsFiles.in_directory(cluster.user_certificate()), clock=SystemClock())
    opened: list[grpc.aio.Channel] = []

    def open_one(replica_id: str) -> Client:
        opened.append(channels.to_scheduler(material, f"127.0.0.1:{cluster.schedulers[replica_id].port}"))
        return Client(opened[-1])

    yield open_one
    for channel in opened:
        await channel.close()


@pytest.fixture
async def client(connect: Connect, cluster: DevCluster) -> Client:
    """A client of replica s1, once every node is ready."""
    first = connect("s1")
    await first.until_ready(len(cluster.agents))
    return first
