"""The SDK against a running cluster: what its users rely on when all is well, and the class of every no."""

import asyncio

import pytest

import hostler
from devcluster.cluster import DevCluster
from hostler.cluster import Cluster
from nodeagent.adapters.sim_migration import MigrationFault
from tests.rpc.sdk.conftest import CLI_S, DISK, Connect, made


async def test_create_migrate_stop_and_delete(sdk: Cluster) -> None:
    """A method that sends another request than its name says, or a handle that does not wait for the end."""
    await sdk.create_flavor("small", vcpus=2, memory_mib=256, service_class="guaranteed")
    creating = await sdk.create_vm(
        "web-1", flavor="small", image="guest", pool="shared", networks=["br0"], node="n2", labels={"tier": "web"}
    )
    vm = (await creating.wait(CLI_S)).vm
    assert (vm.vcpus, vm.memory_mib, vm.node, dict(vm.labels)) == (2, 256, "nodes/n2", {"tier": "web"})
    assert vm.state == hostler.VM.RUNNING
    heard: list[hostler.Operation] = []
    moved = await (await sdk.migrate_vm("web-1", "n3")).wait(CLI_S, heard.append)
    assert (moved.migration.source_node, moved.migration.destination_node, moved.vm.node) == ("nodes/n2", "nodes/n3", "nodes/n3")
    assert heard[-1].done
    assert "COPYING" in {entry.phase for entry in heard[-1].phases}
    assert (await (await sdk.stop_vm("vms/web-1", force=True)).wait(CLI_S)).vm.state == hostler.VM.STOPPED
    assert (await (await sdk.start_vm("web-1")).wait(CLI_S)).vm.state == hostler.VM.RUNNING
    assert (await (await sdk.reboot_vm("web-1", force=True)).wait(CLI_S)).vm.state == hostler.VM.RUNNING
    await (await sdk.delete_vm("web-1", force=True)).wait(CLI_S)
    assert [vm async for vm in sdk.list_vms()] == []
    assert [one.verb async for one in sdk.list_operations(target="vms/web-1")] == [
        "DeleteVM", "RebootVM", "StartVM", "StopVM", "MigrateVM", "CreateVM",
    ]  # fmt: skip


async def test_no_start_volumes_cordon_and_pages(sdk: Cluster) -> None:
    """A VM that starts although it must not; a list that ends after its first page; a cordoned node that is used."""
    await (await sdk.create_volume("data", pool="shared", size_mib=32)).wait(CLI_S)
    assert (await sdk.cordon_node("n1")).state == hostler.Node.CORDONED
    names = [f"web-{index}" for index in range(3)]
    for name in names:
        await made(sdk, name, start=False, volumes=["data"] if name == "web-0" else [])
    listed = [vm async for vm in sdk.list_vms(page_size=1)]
    assert [vm.name for vm in listed] == [f"vms/{name}" for name in names]
    assert {vm.state for vm in listed} == {hostler.VM.STOPPED}
    assert "nodes/n1" not in {vm.node for vm in listed}
    assert [disk.volume for disk in listed[0].disks] == ["volumes/web-0-disk0", "volumes/data"]
    assert (await sdk.get_volume("data")).vm == "vms/web-0"
    assert (await sdk.uncordon_node("n1")).state == hostler.Node.ACTIVE
    assert [node.name async for node in sdk.list_nodes(page_size=2)] == ["nodes/n1", "nodes/n2", "nodes/n3"]
    with pytest.raises(hostler.FailedPrecondition):
        await sdk.delete_volume("data")


async def test_validate_only_changes_nothing(sdk: Cluster) -> None:
    """A dry run that makes the VM."""
    would = await sdk.create_vm("web-1", **DISK, validate_only=True)
    assert would.name == ""
    assert (await would.wait()).target == "vms/web-1"
    assert [vm async for vm in sdk.list_vms()] == []


async def test_every_no_has_its_class_and_reason(sdk: Cluster) -> None:
    """A refusal that arrives as a bare RPC error, or without what it concerns."""
    await made(sdk, "web-1")
    with pytest.raises(hostler.NotFound) as gone:
        await sdk.get_vm("web-9")
    assert gone.value.reason is hostler.Reason.VM_NOT_FOUND
    with pytest.raises(hostler.AlreadyExists):
        await sdk.create_vm("web-1", **DISK)
    with pytest.raises(hostler.InvalidRequest) as invalid:
        await sdk.create_vm("Web_1", **DISK)
    assert [violation.field for violation in invalid.value.violations] == ["vm_id"]
    with pytest.raises(hostler.NoCapacity) as full:
        await sdk.create_vm("big", **{**DISK, "memory_mib": 99999})
    assert [violation.field for violation in full.value.violations] == ["nodes/n1", "nodes/n2", "nodes/n3"]
    assert full.value.fix
    with pytest.raises(hostler.FailedPrecondition) as running:
        await sdk.delete_vm("web-1")
    assert running.value.reason is hostler.Reason.VM_RUNNING
    with pytest.raises(hostler.Conflict):
        await sdk.delete_vm("web-1", force=True, etag="1")
    with pytest.raises(hostler.InvalidRequest, match="none of guaranteed"):
        await sdk.create_flavor("odd", vcpus=1, memory_mib=64, service_class="gold")


@pytest.mark.parametrize(
    ("fault", "cancel", "reason"),
    [
        (MigrationFault.FAILS_MIDWAY, False, hostler.Reason.MIGRATION_FAILED),
        (MigrationFault.STALLS, True, hostler.Reason.OPERATION_CANCELLED),
    ],
)
async def test_an_operation_that_ends_badly_raises_why(
    fault: MigrationFault, cancel: bool, reason: hostler.Reason, sdk: Cluster, cluster: DevCluster
) -> None:
    """A failed or cancelled operation that `wait` returns as if it were done."""
    vm = await made(sdk, "web-1")
    cluster.world.script_migration(vm.uid, fault)
    handle = await sdk.migrate_vm("web-1")
    if cancel:
        async for operation in sdk.watch_operation(handle.name):
            if operation.phase == "COPYING":
                break
        handle = await sdk.cancel_operation(handle.name)
    with pytest.raises(hostler.OperationFailed) as failed:
        await handle.wait(CLI_S)
    assert failed.value.reason is reason
    assert isinstance(failed.value.__cause__, hostler.HostlerError)
    assert failed.value.operation.done
    assert failed.value.metadata["operation"] == handle.name
    assert (await sdk.get_vm("web-1")).node == vm.node


async def test_a_wait_that_times_out_leaves_the_operation_alone(sdk: Cluster, cluster: DevCluster) -> None:
    """A timeout that cancels the operation, or that does not say which one goes on."""
    vm = await made(sdk, "web-1")
    cluster.world.script_migration(vm.uid, MigrationFault.STALLS)
    handle = await sdk.migrate_vm("web-1")
    with pytest.raises(hostler.DeadlineExceeded) as late:
        await handle.wait(0.2)
    assert late.value.metadata["operation"] == handle.name
    operation = await handle.refresh()
    assert (operation.done, operation.cancellable) == (False, True)


async def test_nobody_answers(cluster: DevCluster, connected: Connect) -> None:
    """A call that is tried for ever."""
    nobody = await connected(("127.0.0.1:1", "127.0.0.1:2"), call_s=0.5)
    async with asyncio.timeout(5):
        with pytest.raises(hostler.Unavailable, match="None of 2 schedulers") as nobody_there:
            await nobody.get_vm("web-1")
    assert nobody_there.value.metadata["endpoints"] == "127.0.0.1:1,127.0.0.1:2"


async def test_a_missing_setting_is_named() -> None:
    """A connection without TLS because a file was not given."""
    with pytest.raises(hostler.InvalidRequest, match="The key is not set"):
        hostler.connect("127.0.0.1:1", cert="tls.crt", ca="ca.crt")
    with pytest.raises(hostler.InvalidRequest, match="not host:port"):
        hostler.connect("localhost", insecure=True)
