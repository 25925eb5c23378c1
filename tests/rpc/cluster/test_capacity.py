"""Promise 1 through the API: what was accepted is never oversubscribed, however many ask at once and whichever replica they ask."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace

import grpc
import pytest

from client import Client
from devcluster.cluster import DevCluster, DevOptions
from hostler.api.type.v1 import operation_pb2
from hostler.errors import NoCapacity
from hostler.rpc_status import from_rpc_error
from tests.rpc.brisk import BRISK

Connect = Callable[[str], Client]
SLOTS = 6
"""Two VMs of 512 MiB (585 with overhead) fit on each of three nodes that offer 1,536 - 256 MiB."""


@pytest.fixture
def options() -> DevOptions:
    return replace(BRISK, memory_mib=1536, reserve_mib=256)


async def test_many_creates_on_two_replicas_fill_the_cluster_exactly(client: Client, connect: Connect, cluster: DevCluster) -> None:
    """Two deciders that both spend the last slot, or one that gives up a slot which is free."""
    replicas = [client, connect("s2")]

    async def create(index: int) -> operation_pb2.Operation | NoCapacity:
        try:
            return await replicas[index % 2].create(f"web-{index}")
        except grpc.aio.AioRpcError as error:
            refusal = from_rpc_error(error)
            assert isinstance(refusal, NoCapacity), refusal
            return refusal

    answers = await asyncio.gather(*(create(index) for index in range(20)))
    accepted = [answer for answer in answers if isinstance(answer, operation_pb2.Operation)]
    assert len(accepted) == SLOTS
    for refusal in (answer for answer in answers if isinstance(answer, NoCapacity)):
        assert {violation.field for violation in refusal.violations} == {"nodes/n1", "nodes/n2", "nodes/n3"}
    done = await asyncio.gather(*(client.wait(operation) for operation in accepted))
    assert [one.state for one in done] == [operation_pb2.Operation.SUCCEEDED] * SLOTS
    assert_ledgers_are_sums_of_claims(cluster)


async def test_one_mib_decides(client: Client, cluster: DevCluster) -> None:
    """A limit that is off by one: refused although it fits, or accepted although it does not."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.create("big", memory_mib=1280)
    refusal = from_rpc_error(caught.value)
    largest = int(refusal.metadata["largest_memory_mib"])
    with pytest.raises(grpc.aio.AioRpcError):
        await client.create("big", memory_mib=largest + 1)
    await client.made("big", memory_mib=largest)
    assert_ledgers_are_sums_of_claims(cluster)


async def test_a_repeat_over_the_other_replica_makes_one_vm(client: Client, connect: Connect, cluster: DevCluster) -> None:
    """A client that lost the answer and asks another replica again gets a second VM, or an error."""
    first = await client.create("web-1", request_id="r-1")
    again = await connect("s2").create("web-1", request_id="r-1")
    assert again.name == first.name
    await client.wait(first)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.create("web-2", request_id="r-1")
    assert from_rpc_error(caught.value).reason.value == "REQUEST_ID_REUSED"
    assert_ledgers_are_sums_of_claims(cluster)


def assert_ledgers_are_sums_of_claims(cluster: DevCluster) -> None:
    """Straight from the store: every ledger is the sum of its claims, and never above what is allocatable."""
    items = {item.key: json.loads(item.value or b"{}") for item in cluster.store.keyspace().list("/hostler/state/", 0)}
    sums: dict[str, dict[str, int]] = {}
    for key, claim in items.items():
        if "/claim/" in key:
            node = sums.setdefault(claim["node_id"], {})
            for quantity, amount in claim["charged"].items():
                node[quantity] = node.get(quantity, 0) + amount
    for key, ledger in items.items():
        if "/ledger/" in key:
            assert ledger["claimed"] == sums.get(key.rpartition("/")[2], {}), key
            assert all(amount <= ledger["allocatable"].get(quantity, 0) for quantity, amount in ledger["claimed"].items()), key
