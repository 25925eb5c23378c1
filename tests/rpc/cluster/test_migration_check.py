"""The look at both nodes through the API: a dry run tells all and touches nothing, a real migration is refused before anything is touched."""

from dataclasses import replace

import pytest

from client import CALL_S, Client
from devcluster.cluster import DevCluster
from hostler.api.cluster.v1 import vms_pb2
from hostler.api.type.v1 import operation_pb2, vm_pb2
from hostler.rpc_status import from_status
from nodeagent.adapters.sim_world import GuestBehaviour

Forecast = operation_pb2.Operation.MigrationForecast
CheckNames = {"hypervisor", "certificates", "disks", "networks", "copies", "acceleration", "cpu", "machine", "devices", "versions"}


async def dry(client: Client, vm_id: str, to: str, **limits: int) -> operation_pb2.Operation:
    request = vms_pb2.MigrateVMRequest(name=f"vms/{vm_id}", destination_node=f"nodes/{to}", validate_only=True, **limits)  # type: ignore[arg-type]
    return await client.vms.MigrateVM(request, timeout=CALL_S)


def another(cluster: DevCluster, vm: vm_pb2.VM) -> str:
    return next(node_id for node_id in sorted(cluster.agents) if f"nodes/{node_id}" != vm.node)


async def test_a_dry_run_tells_what_it_would_take_and_changes_nothing(client: Client, cluster: DevCluster) -> None:
    """A forecast that charges, moves or journals something, or one without figures."""
    vm = await client.made("web-1")
    cluster.world.behave(vm.uid, GuestBehaviour(dirty_mib_s=300))
    before = [(item.key, item.mod_revision) for item in cluster.store.keyspace().list("/hostler/state/", 0) if "tick" not in item.key]
    would = await dry(client, "web-1", another(cluster, vm), bandwidth_mib_s=128)
    after = [(item.key, item.mod_revision) for item in cluster.store.keyspace().list("/hostler/state/", 0) if "tick" not in item.key]
    assert before == after
    assert would.name == ""
    assert {check.name for check in would.migration.checks} == CheckNames
    assert all(check.ok for check in would.migration.checks)
    told = would.migration.forecast
    assert (told.dirty_bytes_per_s, told.dirty_measured, told.bandwidth_bytes_per_s) == (300 << 20, True, 128 << 20)
    assert told.convergence == Forecast.CONVERGES_THROTTLED
    assert told.throttle_percent > 50
    assert told.seconds > 0
    assert told.downtime_ms > 0


@pytest.mark.parametrize("dry_first", [True, False])
async def test_what_forbids_it_is_told_before_anything_is_touched(dry_first: bool, client: Client, cluster: DevCluster) -> None:
    """A guest whose copy breaks on arrival, because the destination's QEMU is older or knows no such machine."""
    vm = await client.made("web-1")
    to = another(cluster, vm)
    host = cluster.world.hosts[to]
    host.software = replace(host.software, machines=frozenset({"sim-0"}), qemu_version=6_000_000)
    if dry_first:
        would = await dry(client, "web-1", to)
        assert {check.name for check in would.migration.checks if not check.ok} == {"machine", "versions"}
        return
    done = await client.wait(await client.migrate("web-1", to=to))
    assert done.state == operation_pb2.Operation.FAILED
    error = from_status(done.error)
    assert error.reason.value == "NOT_MIGRATABLE"
    assert {violation.field for violation in error.violations} == {"migration.checks.machine", "migration.checks.versions"}
    assert "DESTINATION_READY" not in [entry.phase for entry in done.phases]
    now = await client.vm("web-1")
    assert (now.node, now.epoch, now.state) == (vm.node, vm.epoch, vm_pb2.VM.RUNNING)
    host.software = replace(host.software, machines=frozenset({"sim-1"}), qemu_version=7_002_000)
    again = await client.wait(await client.migrate("web-1", to=to))
    assert again.state == operation_pb2.Operation.SUCCEEDED, again.error.message


@pytest.mark.slow
async def test_a_silent_hypervisor_is_told_in_a_dry_run(client: Client, cluster: DevCluster) -> None:
    """A dry run that hangs, or says yes, because one of the two says nothing."""
    vm = await client.made("web-1")
    to = another(cluster, vm)
    cluster.world.hosts[to].hang()
    would = await dry(client, "web-1", to)
    cluster.world.hosts[to].unhang()
    failed = {check.name: check.message for check in would.migration.checks if not check.ok}
    assert list(failed) == ["hypervisor"]
    assert to in failed["hypervisor"]
