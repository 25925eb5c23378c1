"""What a guest waits for between the two hosts, through the real daemons: nobody has to tell the destination, and no word is asked for twice."""

import asyncio
from collections.abc import Callable

import grpc.aio
import pytest

from client import Client
from devcluster.cluster import DevCluster
from hostler.api.type.v1 import operation_pb2
from nodeagent.adapters.grpc_peer import GrpcPeer
from nodeagent.ports import PeerUnavailable
from scheduler.engine.flows import migration
from scheduler.rpc import cluster_link

RUNS_S = 10.0
LONG_S = 60.0
"""Far longer than a guest may wait here."""


@pytest.mark.parametrize("answer_s", [cluster_link.AWAIT_COMMIT_S, 0.05])
async def test_the_destination_needs_nobody_to_tell_it(
    answer_s: float, client: Client, cluster: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest that stands still because the source or the driving replica died with the commit, however often it asks anew."""

    async def lost(*_arguments: object) -> bool:
        raise PeerUnavailable("lost")

    monkeypatch.setattr(GrpcPeer, "note_committed", lost)
    monkeypatch.setattr(migration, "HEAD_START_S", LONG_S)
    monkeypatch.setattr(cluster_link, "AWAIT_COMMIT_S", answer_s)
    vm = await client.made("web-1", memory_mib=2048)
    operation = await client.migrate("web-1")
    copying = await client.until_phase(operation, "COPYING")
    destination = copying.migration.destination_node.removeprefix("nodes/")
    async with asyncio.timeout(RUNS_S):
        while cluster.world.guest(vm.uid).executing != (destination,):  # noqa: ASYNC110 a guest has no event
            await asyncio.sleep(0.01)


async def test_one_connection_between_the_agents_and_none_afterwards(
    client: Client, cluster: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handshake while the guest stands still; or a connection that outlives its handoff."""
    opened: list[grpc.aio.Channel] = []
    connected = GrpcPeer.__init__

    def counting(self: GrpcPeer, connect: Callable[[str, str], grpc.aio.Channel]) -> None:
        def counted(node_id: str, endpoint: str) -> grpc.aio.Channel:
            opened.append(connect(node_id, endpoint))
            return opened[-1]

        connected(self, counted)

    monkeypatch.setattr(GrpcPeer, "__init__", counting)
    await client.made("web-1")
    for node_id in list(cluster.agents):
        await cluster.agents[node_id].kill()
        await cluster.start_agent(node_id)
    await client.until_ready(len(cluster.agents))
    done = await client.wait(await client.migrate("web-1"))
    assert done.state == operation_pb2.Operation.SUCCEEDED, done.error.message
    assert len(opened) == 1
    assert opened[0].get_state() is grpc.ChannelConnectivity.SHUTDOWN
