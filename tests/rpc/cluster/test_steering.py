"""A migration's limits through the API: set, changed while it copies, kept over a change of the driving replica, measured, and a copy that stalls."""

from collections.abc import Callable

import pytest
from grpc.aio import AioRpcError

from client import CALL_S, Client
from devcluster.cluster import DevCluster
from hostler.api.cluster.v1 import operations_pb2, vms_pb2
from hostler.api.type.v1 import operation_pb2, vm_pb2
from hostler.errors import FailedPrecondition, Reason
from hostler.rpc_status import from_rpc_error
from nodeagent.adapters.sim_world import GuestBehaviour
from nodeagent.core import precopy

Connect = Callable[[str], Client]
LOOKED_AT_MIB = 2048
"""A copy of this takes the simulated link two seconds: the agent, which looks twice a second, sees it on its way."""
SUCCEEDED, FAILED = operation_pb2.Operation.SUCCEEDED, operation_pb2.Operation.FAILED


async def migrate(client: Client, vm_id: str, bandwidth_mib_s: int, max_downtime_ms: int = 0) -> operation_pb2.Operation:
    request = vms_pb2.MigrateVMRequest(name=f"vms/{vm_id}", bandwidth_mib_s=bandwidth_mib_s, max_downtime_ms=max_downtime_ms)
    return await client.vms.MigrateVM(request, timeout=CALL_S)


async def tune(client: Client, name: str, **limits: int) -> operation_pb2.Operation:
    return await client.operations.TuneMigration(operations_pb2.TuneMigrationRequest(name=name, **limits), timeout=CALL_S)  # type: ignore[arg-type]


async def refused(client: Client, name: str, **limits: int) -> Reason:
    with pytest.raises(AioRpcError) as caught:
        await tune(client, name, **limits)
    error = from_rpc_error(caught.value)
    assert isinstance(error, FailedPrecondition)
    return error.reason


async def test_a_crawling_copy_is_let_go(client: Client, cluster: DevCluster) -> None:
    """A limit that was set too low would leave nothing but to cancel and begin again."""
    await client.made("web-1", memory_mib=LOOKED_AT_MIB)
    operation = await migrate(client, "web-1", 1)
    await client.until_phase(operation, "COPYING")
    changed = await tune(client, operation.name, bandwidth_mib_s=0, max_downtime_ms=700)
    assert (changed.migration.bandwidth_mib_s, changed.migration.max_downtime_ms) == (0, 700)
    done = await client.wait(operation)  # at 1 MiB/s it would take minutes
    assert done.state == SUCCEEDED, done.error.message
    assert done.migration.max_downtime_ms == 700
    assert done.migration.downtime_ms > 0
    assert done.migration.downtime_exceeded == (done.migration.downtime_ms > 700)
    assert done.migration.iterations >= 1
    assert await refused(client, operation.name, bandwidth_mib_s=1) is Reason.NOT_TUNABLE


async def test_limits_outlive_the_replica_that_took_them(client: Client, connect: Connect, cluster: DevCluster) -> None:
    """A change that only the driver of the moment knew of would be lost with it."""
    await client.made("web-1")
    operation = await migrate(client, "web-1", 1)
    copying = await client.until_phase(operation, "COPYING")
    victim = copying.phases[-1].driver.partition("@")[0]
    survivor = connect("s2" if victim == "s1" else "s1")
    await tune(connect(victim), operation.name, bandwidth_mib_s=512)
    await cluster.schedulers[victim].kill()
    done = await survivor.wait(operation)
    assert done.state == SUCCEEDED, done.error.message
    assert done.migration.bandwidth_mib_s == 512


async def test_one_limit_is_changed_and_the_other_stays(client: Client) -> None:
    """A change of the bandwidth that silently gave the guest another downtime."""
    await client.made("web-1")
    operation = await migrate(client, "web-1", 2, 900)
    changed = await tune(client, operation.name, bandwidth_mib_s=1024)
    assert (changed.migration.bandwidth_mib_s, changed.migration.max_downtime_ms) == (1024, 900)
    assert (await client.wait(operation)).state == SUCCEEDED


@pytest.mark.slow
async def test_a_busy_guest_is_slowed_and_arrives(client: Client, cluster: DevCluster) -> None:
    """A busy guest that never arrives, or one that was slowed and nobody is told."""
    vm = await client.made("web-1")
    cluster.world.behave(vm.uid, GuestBehaviour(dirty_mib_s=400, working_set_mib=200))
    operation = await migrate(client, "web-1", 256)
    told = [now.progress async for now in client.follow(operation) if now.HasField("progress")]
    done = await client.wait(operation)
    assert done.state == SUCCEEDED, done.error.message
    assert 50 <= done.migration.throttle_percent <= precopy.MOST_PERCENT
    assert done.migration.iterations > 2
    assert max(one.dirty_bytes_per_s for one in told) > 100 << 20
    assert max(one.throttle_percent for one in told) == done.migration.throttle_percent
    percents = [one.percent for one in told]
    assert percents == sorted(percents)


@pytest.mark.slow
async def test_a_copy_that_cannot_end_says_so_and_the_guest_stays(
    client: Client, cluster: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest held at a tenth of its speed for half an hour, and then "it took too long"."""
    monkeypatch.setattr(precopy, "STALL_S", 1.0)
    vm = await client.made("web-1")
    cluster.world.behave(vm.uid, GuestBehaviour(dirty_mib_s=100_000, working_set_mib=128))
    done = await client.wait(await migrate(client, "web-1", 256))
    after = await client.vm("web-1")
    assert done.state == FAILED
    assert "does not converge" in done.error.message
    assert "--max-downtime" in done.error.message
    assert (after.node, after.epoch, after.state) == (vm.node, vm.epoch, vm_pb2.VM.RUNNING)
    assert cluster.world.guest(vm.uid).executing == (vm.node.removeprefix("nodes/"),)
