"""Live migration through the API, with faults: who owns the VM afterwards, and that it always ends."""

import asyncio
from collections.abc import Callable

import pytest

from client import CALL_S, Client
from devcluster.cluster import DevCluster
from hostler.api.cluster.v1 import operations_pb2, vms_pb2
from hostler.api.type.v1 import operation_pb2, vm_pb2
from nodeagent.adapters.sim_migration import MigrationFault

Connect = Callable[[str], Client]
SUCCEEDED, FAILED, CANCELLED = (operation_pb2.Operation.SUCCEEDED, operation_pb2.Operation.FAILED, operation_pb2.Operation.CANCELLED)


def claims(cluster: DevCluster) -> dict[str, set[str]]:
    """Which VMs are charged to which node, straight from the store."""
    found: dict[str, set[str]] = {}
    for item in cluster.store.keyspace().list("/hostler/state/claim/", 0):
        node_id, vm_id = item.key.removeprefix("/hostler/state/claim/").split("/")
        found.setdefault(node_id, set()).add(vm_id)
    return found


async def test_a_moved_vm_runs_on_its_new_node_under_a_new_epoch(client: Client, cluster: DevCluster) -> None:
    """A migration that leaves the guest restarted, charged twice, or owned by the wrong node."""
    before = await client.made("web-1")
    boot_id = cluster.world.guest(before.uid).boot_id
    done = await client.wait(await client.migrate("web-1"))
    assert done.state == SUCCEEDED, done.error.message
    after = await client.vm("web-1")
    guest = cluster.world.guest(before.uid)
    assert after.node != before.node
    assert after.epoch == before.epoch + 1
    assert after.state == vm_pb2.VM.RUNNING
    assert f"nodes/{guest.executing[0]}" == after.node
    assert guest.boot_id == boot_id
    assert claims(cluster) == {after.node.removeprefix("nodes/"): {"web-1"}}
    assert done.migration.bytes_transferred > 0
    assert done.migration.downtime_ms > 0


async def test_killing_the_driving_replica_while_memory_is_copied(client: Client, connect: Connect, cluster: DevCluster) -> None:
    """An operation that dies with its driver, or is begun again from the start by the next one."""
    vm = await client.made("web-1", memory_mib=4096)
    boot_id = cluster.world.guest(vm.uid).boot_id
    operation = await client.migrate("web-1")
    copying = await client.until_phase(operation, "COPYING")
    driving = copying.phases[-1].driver
    victim = driving.partition("@")[0]
    other = connect("s2" if victim == "s1" else "s1")
    await cluster.schedulers[victim].kill()
    done = await other.wait(operation)
    assert done.state == SUCCEEDED, done.error.message
    drivers = {entry.phase: entry.driver for entry in done.phases}
    assert drivers["COPYING"] == driving
    assert drivers["COMMITTED"] != driving
    assert cluster.world.guest(vm.uid).boot_id == boot_id


@pytest.mark.parametrize("end", ["source", "destination"])
async def test_killing_an_agent_while_memory_is_copied(end: str, client: Client, cluster: DevCluster) -> None:
    """A guest that is lost, or left in limbo, because the agent of one end was restarted."""
    vm = await client.made("web-1", memory_mib=4096)
    boot_id = cluster.world.guest(vm.uid).boot_id
    operation = await client.migrate("web-1")
    copying = await client.until_phase(operation, "COPYING")
    node = copying.migration.source_node if end == "source" else copying.migration.destination_node
    node_id = node.removeprefix("nodes/")
    port = cluster.agents[node_id].port
    await cluster.agents[node_id].kill()
    await cluster.start_agent(node_id, port)
    done = await client.wait(operation)
    after, guest = await client.vm("web-1"), cluster.world.guest(vm.uid)
    assert after.state == vm_pb2.VM.RUNNING
    assert guest.boot_id == boot_id
    assert guest.executing == (after.node.removeprefix("nodes/"),)
    assert after.node == (copying.migration.destination_node if done.state == SUCCEEDED else copying.migration.source_node)
    assert claims(cluster) == {after.node.removeprefix("nodes/"): {"web-1"}}


@pytest.mark.parametrize("fault", [MigrationFault.FAILS_MIDWAY, MigrationFault.FINISH_REPLY_LOST, MigrationFault.RESULT_LOST])
async def test_an_error_of_the_hypervisor_is_not_a_verdict(fault: MigrationFault, client: Client, cluster: DevCluster) -> None:
    """Two running copies, or a stale one resumed, because the source's libvirt said "error" after the copy had arrived."""
    vm = await client.made("web-1")
    boot_id = cluster.world.guest(vm.uid).boot_id
    cluster.world.script_migration(vm.uid, fault)
    done = await client.wait(await client.migrate("web-1"))
    after, guest = await client.vm("web-1"), cluster.world.guest(vm.uid)
    assert guest.boot_id == boot_id
    assert guest.executing == (after.node.removeprefix("nodes/"),)
    assert (after.node != vm.node) == (done.state == SUCCEEDED)
    assert claims(cluster) == {after.node.removeprefix("nodes/"): {"web-1"}}
    other = "n2" if after.node != "nodes/n2" else "n1"
    again = await client.wait(await client.migrate("web-1", other))
    assert again.state == SUCCEEDED, again.error.message


async def test_cancel_before_the_commit_leaves_the_vm_where_it_was(client: Client, cluster: DevCluster) -> None:
    """A cancelled migration that still moves the VM, or keeps the destination charged."""
    vm = await client.made("web-1", memory_mib=4096)
    cluster.world.script_migration(vm.uid, MigrationFault.STALLS)
    operation = await client.migrate("web-1")
    copying = await client.until_phase(operation, "COPYING")
    assert copying.cancellable
    await client.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=operation.name), timeout=CALL_S)
    done = await client.wait(operation)
    after = await client.vm("web-1")
    assert done.state == CANCELLED
    assert (after.node, after.epoch, after.state) == (vm.node, vm.epoch, vm_pb2.VM.RUNNING)
    assert claims(cluster) == {vm.node.removeprefix("nodes/"): {"web-1"}}


async def test_moves_at_once_all_end_and_nothing_is_charged_twice(client: Client, cluster: DevCluster) -> None:
    """Claims or epochs that get mixed up when several VMs move at the same time."""
    made = [await client.made(f"web-{index}") for index in range(4)]
    operations = [await client.migrate(vm.name.removeprefix("vms/")) for vm in made]
    done = await asyncio.gather(*(client.wait(operation) for operation in operations))
    assert [one.state for one in done] == [SUCCEEDED] * 4, [one.error.message for one in done]
    owners = {f"web-{index}": (await client.vm(f"web-{index}")).node.removeprefix("nodes/") for index in range(4)}
    charged = {vm_id: node_id for node_id, vm_ids in claims(cluster).items() for vm_id in vm_ids}
    assert charged == owners


async def test_a_migration_that_is_not_done_by_its_deadline_is_turned_back(client: Client, cluster: DevCluster) -> None:
    """A copy that goes on for ever although somebody said how long it may; or one that was called cancelled by nobody."""
    vm = await client.made("web-1", memory_mib=4096)
    cluster.world.script_migration(vm.uid, MigrationFault.STALLS)
    request = vms_pb2.MigrateVMRequest(name=vm.name, deadline_s=1)
    operation = await client.vms.MigrateVM(request, timeout=CALL_S)
    assert operation.deadline_time.ToMilliseconds() == operation.create_time.ToMilliseconds() + 1000
    done = await client.wait(operation)
    assert (done.state, done.error.message) == (FAILED, "It was not done within its deadline of 1 s.")
    after = await client.vm("web-1")
    assert (after.node, after.epoch, after.state) == (vm.node, vm.epoch, vm_pb2.VM.RUNNING)
    assert claims(cluster) == {vm.node.removeprefix("nodes/"): {"web-1"}}
