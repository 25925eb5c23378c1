"""The SDK when a replica is lost: nothing happens twice, nothing is missed, nobody has to begin again."""

import asyncio
from collections.abc import Callable

import pytest

import hostler
from devcluster.cluster import DevCluster
from hostler.api.cluster.v1 import flavors_pb2, flavors_pb2_grpc
from hostler.cluster import Cluster
from hostler.errors import Reason
from hostler.server import channels
from hostler.server.clock import SystemClock
from hostler.server.tls import TlsFiles, load
from scheduler.core.accept import Accepted
from scheduler.core.records import OperationRecord
from scheduler.core.state import ClusterState
from scheduler.engine.writer import Writer
from tests.rpc.sdk.conftest import CLI_S, DISK, Connect, made, until_ready
from tests.rpc.sdk.lossy_proxy import lossy_proxy


def asked_first(sdk: Cluster, cluster: DevCluster) -> str:
    """The replica that the SDK would ask now."""
    endpoint = sdk._connection.replica.endpoint
    return next(name for name, daemon in cluster.schedulers.items() if endpoint.endswith(f":{daemon.port}"))


async def test_a_wait_survives_the_loss_of_the_replica_it_listens_to(sdk: Cluster, cluster: DevCluster) -> None:
    """A wait that fails, or hangs, because the replica it listens to was killed."""
    vm = await made(sdk, "web-1", memory_mib=4096)
    boot_id = cluster.world.guest(vm.uid).boot_id
    copying = asyncio.Event()

    def heard(operation: hostler.Operation) -> None:
        if operation.phase == "COPYING":
            copying.set()

    handle = await sdk.migrate_vm("web-1")
    listened = asked_first(sdk, cluster)
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(handle.wait(CLI_S, heard), name="wait")
        await copying.wait()
        await cluster.schedulers[listened].kill()
    assert waiting.result().vm.node != vm.node
    assert asked_first(sdk, cluster) != listened
    assert cluster.world.guest(vm.uid).boot_id == boot_id


async def test_an_answer_that_is_lost_makes_one_vm(cluster: DevCluster, connected: Connect) -> None:
    """A repeat under another request_id: a second VM, or an error about a VM that the caller made itself."""
    first, second = cluster.endpoints
    direct: Cluster = await connected((second,))
    await until_ready(direct, len(cluster.agents))
    async with lossy_proxy(int(first.rpartition(":")[2])) as proxy:
        sdk: Cluster = await connected((proxy.endpoint, second))
        assert [vm async for vm in sdk.list_vms()] == []
        proxy.swallow_answers = True
        async with asyncio.TaskGroup() as group:
            creating = group.create_task(sdk.create_vm("web-1", **DISK), name="create")
            uid = await appeared(direct, "vms/web-1")
            assert not creating.done()
            proxy.cut()
        done = await creating.result().wait(CLI_S)
    assert done.vm.uid == uid
    assert [operation.verb async for operation in direct.list_operations()] == ["CreateVM"]


async def test_a_flavor_whose_deletion_was_not_heard_of_is_deleted(cluster: DevCluster, connected: Connect) -> None:
    """A deletion that is reported as "not found", because the SDK itself asked twice."""
    first, second = cluster.endpoints
    direct: Cluster = await connected((second,))
    await direct.create_flavor("small", vcpus=1, memory_mib=64)
    async with lossy_proxy(int(first.rpartition(":")[2])) as proxy:
        sdk: Cluster = await connected((proxy.endpoint, second))
        assert (await sdk.get_flavor("small")).vcpus == 1
        proxy.swallow_answers = True
        async with asyncio.timeout(CLI_S), asyncio.TaskGroup() as group:
            deleting = group.create_task(sdk.delete_flavor("small"), name="delete")
            while [flavor async for flavor in direct.list_flavors()]:
                assert not deleting.done()
            proxy.cut()
    with pytest.raises(hostler.NotFound):
        await direct.delete_flavor("small")


async def appeared(sdk: Cluster, name: str) -> str:
    """The VM's uid, as soon as there is one."""
    events = sdk.watch_vms()
    try:
        async for event in events:
            if isinstance(event, hostler.Updated) and event.resource.name == name:
                return event.resource.uid
    finally:
        await events.aclose()
    raise AssertionError("a watch ended by itself")


async def test_a_replica_that_hangs_does_not_use_up_the_time(cluster: DevCluster, connected: Connect) -> None:
    """A call that waits for its whole deadline on a replica that takes connections and says nothing."""
    async with lossy_proxy(int(cluster.endpoints[0].rpartition(":")[2])) as proxy:
        proxy.swallow_answers = True
        sdk: Cluster = await connected((proxy.endpoint, cluster.endpoints[1]), call_s=3.0)
        assert [flavor async for flavor in sdk.list_flavors()] == []


async def test_a_watch_goes_on_without_a_gap(sdk: Cluster, cluster: DevCluster, connected: Connect) -> None:
    """A change that happened while no replica was listened to and is never told, or a listing told again as if it were news."""
    await made(sdk, "web-1")
    events = sdk.watch_vms()
    try:
        async for event in events:
            if isinstance(event, hostler.Bookmark):
                break
        listened = asked_first(sdk, cluster)
        await cluster.schedulers.pop(listened).kill()
        other: Cluster = await connected(cluster.endpoints)
        await made(other, "web-2")
        await (await other.delete_vm("web-1", force=True)).wait(CLI_S)
        told: list[object] = []
        async with asyncio.timeout(CLI_S):
            async for event in events:
                told.append(event)
                if isinstance(event, hostler.Deleted):
                    break
    finally:
        await events.aclose()
    assert [event for event in told if isinstance(event, hostler.Resync)] == []
    updated = [event.resource for event in told if isinstance(event, hostler.Updated)]
    assert any(vm.name == "vms/web-2" for vm in updated)
    assert all(event.resume_token for event in told if isinstance(event, hostler.Updated))
    assert isinstance(told[-1], hostler.Deleted)
    assert told[-1].name == "vms/web-1"


async def test_a_token_that_is_too_old_says_so_and_tells_everything(sdk: Cluster, cluster: DevCluster, connected: Connect) -> None:
    """Changes that are skipped in silence because nobody remembers them."""
    events = sdk.watch_vms()
    first = await anext(events)
    await events.aclose()
    assert isinstance(first, hostler.Bookmark)
    await made(sdk, "web-1")
    young = await cluster.start_scheduler("s3")
    fresh: Cluster = await connected((f"127.0.0.1:{young.port}",))
    again = fresh.watch_vms(first.resume_token)
    try:
        async with asyncio.timeout(CLI_S):
            told = [await anext(again) for _ in range(3)]
    finally:
        await again.aclose()
    assert isinstance(told[0], hostler.Resync)
    assert isinstance(told[1], hostler.Updated)
    assert told[1].resource.name == "vms/web-1"
    assert isinstance(told[2], hostler.Bookmark)


async def test_a_watch_of_nodes_begins_anew_on_another_replica(sdk: Cluster, cluster: DevCluster) -> None:
    """Health that changed between two replicas and is never told, because a token says nothing about health."""
    events = sdk.watch_nodes()
    try:
        async with asyncio.timeout(CLI_S):
            async for event in events:
                if isinstance(event, hostler.Bookmark):
                    break
            await cluster.schedulers[asked_first(sdk, cluster)].kill()
            told = [await anext(events)]
            while not isinstance(told[-1], hostler.Bookmark):
                told.append(await anext(events))
    finally:
        await events.aclose()
    told = told[next(index for index, event in enumerate(told) if isinstance(event, hostler.Resync)) :]
    assert {event.resource.name for event in told if isinstance(event, hostler.Updated)} == {"nodes/n1", "nodes/n2", "nodes/n3"}


async def test_a_storm_of_others_is_waited_out(sdk: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A creation that fails because others were quicker twenty times, although the refusal says when to try again."""
    accept, refused = Writer.accept, list[hostler.Conflict]()

    async def after_a_storm(self: Writer, decide: Callable[[ClusterState], Accepted]) -> OperationRecord:
        if len(refused) < 3:
            refused.append(hostler.Conflict(Reason.CLAIM_CONFLICT, "Too many others.", retry_after_s=0.01))
            raise refused[-1]
        return await accept(self, decide)

    monkeypatch.setattr(Writer, "accept", after_a_storm)
    done = await (await sdk.create_vm("web-1", **DISK)).wait(CLI_S)
    assert (done.vm.name, len(refused)) == ("vms/web-1", 3)


FAR_S = 0.15
"""Each way: further than any two places on Earth."""


async def test_a_cluster_far_away_is_reached_at_the_first_try(cluster: DevCluster, connected: Connect) -> None:
    """A client, or a daemon, that gives up every connection before its handshake has crossed the sea and come back."""
    async with lossy_proxy(int(cluster.endpoints[0].rpartition(":")[2]), FAR_S) as proxy:
        material = load(TlsFiles.in_directory(cluster.user_certificate()), clock=SystemClock())
        async with channels.to_scheduler(material, proxy.endpoint) as channel:
            await flavors_pb2_grpc.FlavorServiceStub(channel).ListFlavors(flavors_pb2.ListFlavorsRequest(), timeout=CLI_S)
        sdk: Cluster = await connected((proxy.endpoint,))
        assert [flavor async for flavor in sdk.list_flavors()] == []
