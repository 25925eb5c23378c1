"""A hand edit on a host of a cluster, as the cluster's API shows it; and that no operation of Hostler itself is taken for one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import grpc.aio
import pytest

from client import WAIT_S, Client
from devcluster.cluster import DevCluster
from hostler.api.cluster.v1 import vms_pb2
from hostler.api.type.v1 import operation_pb2, vm_pb2
from nodeagent.core.observed import NicShape
from nodeagent.engine import drift, link

if TYPE_CHECKING:
    Watch = grpc.aio.UnaryStreamCall[vms_pb2.WatchVMsRequest, vms_pb2.WatchVMsResponse]

SUCCEEDED = operation_pb2.Operation.SUCCEEDED


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tenths of a second where the product takes its time; set before the agents start."""
    monkeypatch.setattr(drift, "PERIOD_S", 0.1)
    monkeypatch.setattr(drift, "PAUSE_S", 0.02)
    monkeypatch.setattr(drift, "CONFIRM_S", 0.02)
    monkeypatch.setattr(link, "REPEAT_S", 0.5)


@asynccontextmanager
async def watching(client: Client) -> AsyncIterator["Watch"]:
    call = client.vms.WatchVMs(vms_pb2.WatchVMsRequest(), timeout=WAIT_S)
    try:
        yield call
    finally:
        call.cancel()


async def shown(client: Client, *words: str) -> vm_pb2.VM:
    """Watch until some VM's only finding has these words; without words: until one has none."""
    async with watching(client) as call:
        async for event in call:
            found = event.updated.drift
            if event.HasField("updated") and (all(word in found[0] for word in words) if words and found else words == tuple(found)):
                return event.updated
    raise AssertionError(f"not shown within {WAIT_S} s: {words}")


async def test_a_hand_edit_comes_up_and_clears_itself(client: Client, cluster: DevCluster) -> None:
    """A hand edit that stays on its host."""
    made = await client.made("web-1")
    host = cluster.world.hosts[made.node.removeprefix("nodes/")]
    host.change_by_hand(made.uid, lambda shape: replace(shape, nics=()))
    edited = await shown(client, "network card", "taken out")
    assert edited.state == vm_pb2.VM.RUNNING
    nics = tuple(NicShape(nic.mac_address, nic.network.removeprefix("networks/")) for nic in edited.nics)
    host.change_by_hand(made.uid, lambda shape: replace(shape, nics=nics))
    await shown(client)


async def test_what_was_seen_during_an_operation_is_not_missed(client: Client, cluster: DevCluster) -> None:
    """A finding that a stop made an end of, told for ever because the host said so while the operation had the VM in hand."""
    made = await client.made("web-1")
    host = cluster.world.hosts[made.node.removeprefix("nodes/")]
    host.change_by_hand(made.uid, lambda shape: replace(shape, memory_mib=64))
    await shown(client, "64 MiB of memory")
    stopped = await client.wait(await client.vms.StopVM(vms_pb2.StopVMRequest(name="vms/web-1", force=True)))
    assert stopped.state == SUCCEEDED
    assert (await shown(client)).state == vm_pb2.VM.STOPPED


async def test_power_taken_by_hand_is_the_reason_of_the_state(client: Client, cluster: DevCluster) -> None:
    """`virsh destroy` that is told as a guest which powered off by itself."""
    made = await client.made("web-1")
    cluster.world.hosts[made.node.removeprefix("nodes/")].destroy_by_hand(made.uid)
    seen = await shown(client, "power was taken", "hostler vm start web-1")
    assert seen.state == vm_pb2.VM.STOPPED
    assert "past Hostler" in seen.reason


async def test_a_life_with_a_migration_has_no_drift(client: Client, cluster: DevCluster) -> None:
    """A VM that is marked while it is made, moved or rebooted, because its domain is paused, gone or under another epoch for a moment."""
    async with watching(client) as call:
        await client.made("web-1")
        for _ in range(2):
            done = await client.wait(await client.migrate("web-1"))
            assert done.state == SUCCEEDED, done.error.message
        await client.wait(await client.vms.RebootVM(vms_pb2.RebootVMRequest(name="vms/web-1", force=True)))
        await client.wait(await client.delete("web-1"))
        async for event in call:
            assert list(event.updated.drift) == []
            if event.deleted:
                return
