"""MigrateVM of a VM that is off: who owns it afterwards, what is left where it was, and that it always ends."""

from collections.abc import Callable

import grpc.aio
import msgspec
import pytest

from client import CALL_S, Client
from devcluster.cluster import DevCluster
from hostler.api.cluster.v1 import operations_pb2, vms_pb2
from hostler.api.type.v1 import operation_pb2, vm_pb2
from nodeagent.adapters.sim_hypervisor import SimHypervisor
from nodeagent.adapters.sim_volumes import SimVolumes
from nodeagent.core.definitions import Definition
from nodeagent.core.observed import CopyTag
from tests.rpc.cluster.test_migration import claims

Connect = Callable[[str], Client]
SUCCEEDED, FAILED, CANCELLED = (operation_pb2.Operation.SUCCEEDED, operation_pb2.Operation.FAILED, operation_pb2.Operation.CANCELLED)


async def off(client: Client, vm_id: str, node: str = "nodes/n1") -> vm_pb2.VM:
    """A VM that ran on that node and was stopped."""
    await client.made(vm_id, node=node)
    stopped = await client.wait(await client.vms.StopVM(vms_pb2.StopVMRequest(name=f"vms/{vm_id}", force=True), timeout=CALL_S))
    assert stopped.state == SUCCEEDED, stopped.error.message
    return stopped.vm


def definitions(cluster: DevCluster, node_id: str) -> list[str]:
    """The VMs, by uid, that the node's agent keeps."""
    return [file.name.partition(".")[0] for file in sorted((cluster.directory / "state" / node_id / "vms").glob("*"))]


async def start(client: Client, vm_id: str) -> operation_pb2.Operation:
    return await client.wait(await client.vms.StartVM(vms_pb2.StartVMRequest(name=f"vms/{vm_id}"), timeout=CALL_S))


async def test_one_that_is_off_changes_its_node_without_a_copy(client: Client, cluster: DevCluster) -> None:
    """A VM that is charged twice, is owned by a node that does not know it, or that its old node would still start."""
    before = await off(client, "web-1")
    done = await client.wait(await client.migrate("web-1", "n2"))
    assert done.state == SUCCEEDED, done.error.message
    assert (done.migration.cold, done.migration.bytes_transferred, done.migration.committed_epoch) == (True, 0, before.epoch + 1)
    assert [entry.phase for entry in done.phases] == ["RESERVED", "DEFINED", "COMMITTED", "DONE"]
    after = await client.vm("web-1")
    assert (after.node, after.state, after.epoch, after.operation) == ("nodes/n2", vm_pb2.VM.STOPPED, before.epoch + 1, "")
    assert claims(cluster) == {"n2": {"web-1"}}
    assert (definitions(cluster, "n1"), definitions(cluster, "n2")) == ([], [before.uid])
    started = await start(client, "web-1")
    assert started.state == SUCCEEDED, started.error.message
    assert cluster.world.guest(before.uid).executing == ("n2",)


async def test_it_can_go_and_come_back(client: Client, cluster: DevCluster) -> None:
    """Something left on a node that refuses the VM, or starts an old one, when it returns there."""
    before = await off(client, "web-1")
    for to in ("n2", "n1", "n2"):
        done = await client.wait(await client.migrate("web-1", to))
        assert done.state == SUCCEEDED, done.error.message
    assert (await client.vm("web-1")).epoch == before.epoch + 3
    assert (await start(client, "web-1")).state == SUCCEEDED
    assert claims(cluster) == {"n2": {"web-1"}}


async def test_a_silent_source_proves_nothing_and_the_move_can_be_cancelled(client: Client, cluster: DevCluster) -> None:
    """An owner that is changed though nobody has said that the VM is off, or a VM that is stuck between two nodes."""
    before = await off(client, "web-1")
    port = cluster.agents["n1"].port
    await cluster.agents["n1"].kill()
    operation = await client.until_phase(await client.migrate("web-1", "n2"), "DEFINED")
    assert operation.cancellable
    assert (await client.vm("web-1")).node == "nodes/n1"
    await client.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=operation.name), timeout=CALL_S)
    done = await client.wait(operation)
    assert done.state == CANCELLED
    after = await client.vm("web-1")
    assert (after.node, after.epoch, after.operation) == ("nodes/n1", before.epoch, "")
    assert claims(cluster) == {"n1": {"web-1"}}
    assert definitions(cluster, "n2") == []
    await cluster.start_agent("n1", port)
    await client.until_ready(3)
    assert (await start(client, "web-1")).state == SUCCEEDED


async def test_the_move_waits_for_a_source_that_is_restarted(client: Client, cluster: DevCluster) -> None:
    """A move that is given up because the source's agent was being updated."""
    await off(client, "web-1")
    port = cluster.agents["n1"].port
    await cluster.agents["n1"].kill()
    operation = await client.until_phase(await client.migrate("web-1", "n2"), "DEFINED")
    await cluster.start_agent("n1", port)
    done = await client.wait(operation)
    assert done.state == SUCCEEDED, done.error.message
    assert (definitions(cluster, "n1"), claims(cluster)) == ([], {"n2": {"web-1"}})


async def test_killing_the_driving_replica(client: Client, connect: Connect, cluster: DevCluster) -> None:
    """A move that dies with its driver."""
    await off(client, "web-1")
    port = cluster.agents["n1"].port
    await cluster.agents["n1"].kill()
    operation = await client.until_phase(await client.migrate("web-1", "n2"), "DEFINED")
    driving = operation.phases[-1].driver
    victim = driving.partition("@")[0]
    other = connect("s2" if victim == "s1" else "s1")
    await cluster.schedulers[victim].kill()
    await cluster.start_agent("n1", port)
    done = await other.wait(operation)
    assert done.state == SUCCEEDED, done.error.message
    assert {entry.phase: entry.driver for entry in done.phases}["COMMITTED"] != driving
    assert claims(cluster) == {"n2": {"web-1"}}


async def test_a_domain_on_the_source_forbids_the_move(client: Client, cluster: DevCluster) -> None:
    """A VM that is given to another node while its process still holds its disks, because the record said STOPPED."""
    before = await off(client, "web-1")
    kept = (cluster.directory / "state" / "n1" / "vms").glob("*")
    spec = msgspec.json.decode(next(kept).read_bytes(), type=Definition).spec
    volumes = SimVolumes(cluster.world, "n1")
    paths = {disk.volume_uid: volumes.path(disk.pool_id, disk.volume_uid, disk.format) for disk in spec.disks}
    await SimHypervisor(cluster.world, "n1").create_paused(spec, CopyTag(before.uid, before.epoch, "late"), paths)
    done = await client.wait(await client.migrate("web-1", "n2"))
    assert done.state == FAILED
    assert "n1 still has a domain" in done.error.message
    assert (await client.vm("web-1")).node == "nodes/n1"
    assert claims(cluster) == {"n1": {"web-1"}}


async def test_a_local_volume_stays_where_it_is(client: Client) -> None:
    """A VM whose disks do not come with it."""
    disk = vm_pb2.VM.Disk(new_volume=vm_pb2.VM.NewVolume(pool="pools/local", size_mib=64))
    vm = vm_pb2.VM(disks=[disk], vcpus=1, memory_mib=512)
    made = await client.vms.CreateVM(vms_pb2.CreateVMRequest(vm_id="web-1", vm=vm, leave_stopped=True), timeout=CALL_S)
    assert (await client.wait(made)).state == SUCCEEDED
    with pytest.raises(grpc.aio.AioRpcError, match="which no other node reaches"):
        await client.migrate("web-1")
