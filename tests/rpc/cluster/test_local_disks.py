"""A VM with disks in a local pool moves while it runs: whose the files are, what they are charged, and that none is lost or left lying."""

import asyncio
import json
from dataclasses import replace

import grpc.aio
import pytest

from client import CALL_S, Client
from devcluster.cluster import DevCluster, DevOptions
from hostler.api.cluster.v1 import nodes_pb2, operations_pb2, vms_pb2, volumes_pb2
from hostler.api.type.v1 import operation_pb2, vm_pb2, volume_pb2
from nodeagent.adapters.sim_hypervisor import SimHypervisor
from nodeagent.adapters.sim_migration import MigrationFault
from scheduler.engine import liveness, owed_removals
from tests.rpc.brisk import BRISK
from tests.rpc.cluster.test_fence import fence, power_off
from tests.rpc.cluster.test_migration import claims

Operation = operation_pb2.Operation
SUCCEEDED, FAILED, CANCELLED = Operation.SUCCEEDED, Operation.FAILED, Operation.CANCELLED
FOUND_S = 20.0
LOOK_S = 0.02
REAP_S = 1.5
"""Until a source that migrated away is gone: long enough to be told from a handoff that does not wait for it, on a busy machine."""
BIG_MIB = 2048
"""Takes the simulated link two seconds."""


@pytest.fixture
def options() -> DevOptions:
    return replace(BRISK, pool_mib=8192, times=replace(BRISK.times, reap_s=REAP_S))


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owed_removals, "LOOK_S", 0.05)


async def made(client: Client, vm_id: str = "db", size_mib: int = 64, node: str = "n1", volume: str = "") -> vm_pb2.VM:
    """A VM that runs, with a disk of its own in the local pool of its node (or that volume)."""
    new = vm_pb2.VM.Disk(new_volume=vm_pb2.VM.NewVolume(pool="pools/local", size_mib=size_mib))
    disk = vm_pb2.VM.Disk(volume=f"volumes/{volume}") if volume else new
    vm = vm_pb2.VM(disks=[disk], vcpus=1, memory_mib=512, nics=[vm_pb2.VM.Nic(network="networks/br0")])
    request = vms_pb2.CreateVMRequest(vm_id=vm_id, vm=vm, node=f"nodes/{node}")
    done = await client.wait(await client.vms.CreateVM(request, timeout=CALL_S))
    assert done.state == SUCCEEDED, done.error.message
    return done.vm


def files(cluster: DevCluster) -> dict[str, list[str]]:
    """Volumes' files in the local pools, by node."""
    found = {
        node: [path for path in host.pools["local"].files if path.startswith("volumes/")] for node, host in cluster.world.hosts.items()
    }
    return {node: paths for node, paths in found.items() if paths}


async def only_on(cluster: DevCluster, *nodes: str) -> None:
    """Wait until these nodes alone have one file each."""
    async with asyncio.timeout(FOUND_S):
        while {node: len(paths) for node, paths in files(cluster).items()} != dict.fromkeys(nodes, 1):  # noqa: ASYNC110 files are not watched
            await asyncio.sleep(LOOK_S)


def charged(cluster: DevCluster) -> dict[str, int]:
    """MiB of the local pools that are claimed, by node, straight from the store."""
    found = {}
    for item in cluster.store.keyspace().list("/hostler/state/ledger/", 0):
        found[item.key.rpartition("/")[2]] = json.loads(item.value)["claimed"].get("pool_mib/local", 0)
    return {node: mib for node, mib in found.items() if mib}


async def volume(client: Client, name: str = "db-disk0") -> volume_pb2.Volume:
    return await client.volumes.GetVolume(volumes_pb2.GetVolumeRequest(name=f"volumes/{name}"), timeout=CALL_S)


async def moved(client: Client, to: str = "n2", vm_id: str = "db") -> Operation:
    done = await client.wait(await client.migrate(vm_id, to))
    assert done.state == SUCCEEDED, done.error.message
    return done


async def test_the_disk_goes_with_the_guest_and_leaves_nothing_behind(client: Client, cluster: DevCluster) -> None:
    """A guest that is moved to an empty disk, a record that names the old node, a file or a charge that stays there."""
    before = await made(client)
    boot_id = cluster.world.guest(before.uid).boot_id
    done = await moved(client)
    assert cluster.world.guest(before.uid).boot_id == boot_id
    assert (await client.vm("db")).node == (await volume(client)).node == "nodes/n2"
    assert (claims(cluster), charged(cluster)) == ({"n2": {"db"}}, {"n2": 64})
    assert done.migration.bytes_transferred > 64 << 20
    assert done.migration.downtime_ms < REAP_S * 1000, "it waited for the hypervisor's word, though the source's own lock tells"
    await only_on(cluster, "n2")
    await moved(client, "n1")
    await only_on(cluster, "n1")
    await client.wait(await client.delete("db"))
    assert (files(cluster), charged(cluster)) == ({}, {})


@pytest.mark.slow
async def test_a_volume_with_a_charge_of_its_own_takes_it_along(client: Client, cluster: DevCluster) -> None:
    """Space that is charged twice after a move, or not at all, because the volume was made apart from its VM."""
    request = volumes_pb2.CreateVolumeRequest(volume_id="data", volume=volume_pb2.Volume(pool="pools/local", node="nodes/n1", size_mib=96))
    await client.wait(await client.volumes.CreateVolume(request, timeout=CALL_S))
    await made(client, volume="data")
    assert charged(cluster) == {"n1": 96}
    await moved(client)
    await only_on(cluster, "n2")
    assert (charged(cluster), (await volume(client, "data")).node) == ({"n2": 96}, "nodes/n2")
    await moved(client, "n3")
    await client.wait(await client.delete("db"))
    await only_on(cluster, "n3")
    assert charged(cluster) == {"n3": 96}
    await client.wait(await client.volumes.DeleteVolume(volumes_pb2.DeleteVolumeRequest(name="volumes/data"), timeout=CALL_S))
    assert (files(cluster), charged(cluster)) == ({}, {})


async def test_a_node_without_room_in_its_pool_is_not_chosen(client: Client, cluster: DevCluster) -> None:
    """A copy that runs into a full pool, half an hour later."""
    await made(client, "other", 8000, "n2")
    await made(client, size_mib=BIG_MIB)
    with pytest.raises(grpc.aio.AioRpcError) as full:
        await client.migrate("db", "n2")
    assert full.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "pool local" in str(full.value.details())
    await client.wait(await client.migrate("db"))
    assert (await client.vm("db")).node == "nodes/n3"


async def test_a_vm_that_is_off_keeps_its_local_disk(client: Client, cluster: DevCluster) -> None:
    """A move of the ownership alone, away from the disk."""
    await made(client)
    await client.wait(await client.vms.StopVM(vms_pb2.StopVMRequest(name="vms/db", force=True), timeout=CALL_S))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.migrate("db")
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "and the VM is off" in str(refused.value.details())


async def test_a_dry_run_tells_what_is_copied_and_what_is_in_the_way(client: Client, cluster: DevCluster) -> None:
    """Hours of copying that nobody was told of, or a file that is written over because it has the right name."""
    await made(client, size_mib=BIG_MIB)
    dry = vms_pb2.MigrateVMRequest(name="vms/db", destination_node="nodes/n2", validate_only=True)
    would = await client.vms.MigrateVM(dry, timeout=CALL_S)
    assert all(check.ok for check in would.migration.checks), would.migration.checks
    assert would.migration.forecast.disk_bytes == BIG_MIB << 20
    assert would.migration.forecast.seconds > BIG_MIB / 1024
    (path,) = files(cluster)["n1"]
    cluster.world.hosts["n2"].pools["local"].create(path, BIG_MIB)
    would = await client.vms.MigrateVM(dry, timeout=CALL_S)
    assert [check.name for check in would.migration.checks if not check.ok] == ["disks"]
    done = await client.wait(await client.migrate("db", "n2"))
    assert (done.state, "has a file of db-disk0 already" in done.error.message) == (FAILED, True)
    assert set(files(cluster)) == {"n1", "n2"}, "what was there before is not removed"


async def test_a_cancelled_copy_leaves_no_file(client: Client, cluster: DevCluster) -> None:
    """A half of a disk that fills the pool of a node for ever; or worse, the source's file gone."""
    vm = await made(client, size_mib=BIG_MIB)
    operation = await client.migrate("db", "n2")
    await client.until_phase(operation, "COPYING")
    await only_on(cluster, "n1", "n2")
    await client.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=operation.name), timeout=CALL_S)
    assert (await client.wait(operation)).state == CANCELLED
    await only_on(cluster, "n1")
    assert cluster.world.guest(vm.uid).executing == ("n1",)
    assert (charged(cluster), (await volume(client)).node) == ({"n1": BIG_MIB}, "nodes/n1")
    await moved(client)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [MigrationFault.FAILS_MIDWAY, MigrationFault.FINISH_REPLY_LOST, MigrationFault.RESULT_LOST])
async def test_whatever_becomes_of_the_copy_one_file_is_left_and_it_is_the_newest(
    fault: MigrationFault, client: Client, cluster: DevCluster
) -> None:
    """A guest that goes on at one end with the disk of the other."""
    vm = await made(client)
    cluster.world.script_migration(vm.uid, fault)
    await client.wait(await client.migrate("db", "n2"))
    node = (await volume(client)).node.removeprefix("nodes/")
    await only_on(cluster, node)
    assert cluster.world.guest(vm.uid).executing == (node,)
    assert charged(cluster) == {node: 64}


@pytest.mark.slow
async def test_a_destination_that_loses_its_power_after_the_commit_has_the_disk(client: Client, cluster: DevCluster) -> None:
    """A VM whose only good copy is removed because the guest's memory was lost."""
    await made(client)
    agent = cluster.agents["n2"]
    operation = await client.migrate("db", "n2")
    await client.until_phase(operation, "COMMITTED")
    cluster.world.hosts["n2"].crash_host()
    await agent.kill()
    cluster.world.hosts["n2"].boot_host()
    await cluster.start_agent("n2", agent.port)
    await client.wait(operation)
    await only_on(cluster, "n2")
    assert (await client.vm("db")).node == (await volume(client)).node == "nodes/n2"
    if (await client.vm("db")).state != vm_pb2.VM.RUNNING:
        started = await client.wait(await client.vms.StartVM(vms_pb2.StartVMRequest(name="vms/db"), timeout=CALL_S))
        assert started.state == SUCCEEDED, started.error.message


async def test_a_vm_whose_arrival_was_lost_after_the_commit_can_move_on(
    client: Client, cluster: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A VM that is tied to its node for ever: its disk there was taken for one that is still on its way, because its arrival never ended."""
    resume = SimHypervisor.resume

    async def dies(self: SimHypervisor, vm_uid: str) -> None:
        monkeypatch.setattr(SimHypervisor, "resume", resume)
        cluster.world.hosts["n2"].crash_domain(vm_uid)
        await resume(self, vm_uid)

    await made(client)
    monkeypatch.setattr(SimHypervisor, "resume", dies)
    assert (await client.wait(await client.migrate("db", "n2"))).state == FAILED
    started = await client.wait(await client.vms.StartVM(vms_pb2.StartVMRequest(name="vms/db"), timeout=CALL_S))
    assert (started.state, (await client.vm("db")).node) == (SUCCEEDED, "nodes/n2"), started.error.message
    await only_on(cluster, "n2")
    await moved(client, "n1")
    await only_on(cluster, "n1")


@pytest.mark.slow
async def test_what_a_fenced_destination_has_is_removed_when_it_is_back(
    client: Client, cluster: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that nobody remembers on a node that was off when the move was taken back."""
    monkeypatch.setattr(liveness, "SILENT_AFTER_S", 3.5)
    vm = await made(client, size_mib=BIG_MIB)
    operation = await client.migrate("db", "n2", bandwidth_mib_s=16)
    await client.until_phase(operation, "COPYING")
    port = await power_off(client, cluster, "n2")
    await fence(client, "n2")
    assert (await client.wait(operation)).state == FAILED
    assert set(files(cluster)) == {"n1", "n2"}
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.migrate("db", "n2")
    assert refused.value.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.RESOURCE_EXHAUSTED)
    cluster.world.hosts["n2"].boot_host()
    await cluster.start_agent("n2", port)
    await only_on(cluster, "n1")
    assert cluster.world.guest(vm.uid).executing == ("n1",)


async def test_a_drain_moves_it_too(client: Client, cluster: DevCluster) -> None:
    """A node that cannot be emptied because a VM has a disk there."""
    await made(client)
    await client.made("web", node="nodes/n1")
    request = nodes_pb2.DrainNodeRequest(name="nodes/n1")
    done = await client.wait(await client.nodes.DrainNode(request, timeout=CALL_S))
    assert done.state == SUCCEEDED, done.error.message
    left = (await client.vm("db")).node.removeprefix("nodes/")
    await only_on(cluster, left)
    assert left != "n1"
    assert charged(cluster) == {left: 64}
