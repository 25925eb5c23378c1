"""A replica that is starting decides nothing before it has read which nodes answer: to it they would all be silent."""

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc.aio
import pytest

from client import Client
from devcluster.cluster import DevCluster
from hostler.api.cluster.v1 import nodes_pb2
from hostler.errors import Unavailable
from hostler.rpc_status import from_rpc_error
from scheduler.core.records import HEARTBEATS
from scheduler.ports import Listing, Store

Connect = Callable[[str], Client]


class _Told:
    """What the replica that is started waits for: `allowed` lets its reading of the heartbeats through."""

    def __init__(self, store_of: Callable[[str], Store]) -> None:
        self.allowed = asyncio.Event()
        self._store_of = store_of

    def store_of(self, replica_id: str) -> Store:
        store = self._store_of(replica_id)
        at_once = store.list

        async def late(prefix: str, *, revision: int = 0) -> Listing:
            if prefix == HEARTBEATS:
                await self.allowed.wait()
            return await at_once(prefix, revision=revision)

        store.list = late  # type: ignore[method-assign]
        return store


@pytest.fixture
async def told(client: Client, connect: Connect, cluster: DevCluster, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[_Told]:
    """s2 has been killed and takes calls again, and has read all but the heartbeats. It is ready at the end."""
    told, port = _Told(cluster.store_of), cluster.schedulers["s2"].port
    monkeypatch.setattr(cluster, "store_of", told.store_of)
    await cluster.schedulers["s2"].kill()
    async with asyncio.TaskGroup() as group:
        group.create_task(cluster.start_scheduler("s2", port), name="s2 starts")
        await connect("s2").channel.channel_ready()
        yield told
        told.allowed.set()


async def test_it_does_not_refuse_for_want_of_nodes(told: _Told, client: Client, connect: Connect) -> None:
    """A create is refused for good, although every node has room, because the replica that was asked has just been restarted."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await connect("s2").create("web-1", request_id="r-1")
    assert isinstance(from_rpc_error(caught.value), Unavailable)
    assert (await client.create("web-1", request_id="r-1")).name


async def test_it_does_not_take_an_answering_node_for_silent(told: _Told, connect: Connect) -> None:
    """A node that runs its guests is fenced, on a mistaken word, because the replica that was asked has just been restarted."""
    request = nodes_pb2.FenceNodeRequest(name="nodes/n1", confirm_powered_off=True)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await connect("s2").nodes.FenceNode(request)
    assert isinstance(from_rpc_error(caught.value), Unavailable)


async def test_it_takes_part_once_it_has(told: _Told, connect: Connect, cluster: DevCluster) -> None:
    """A replica that waits for ever for what it has read."""
    told.allowed.set()
    restarted = connect("s2")
    await restarted.until_ready(len(cluster.agents))
    assert (await restarted.made("web-1")).uid
