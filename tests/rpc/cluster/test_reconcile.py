"""ReconcileVM: it finds what the nodes have, changes nothing unasked, and ends a guest only by leave."""

import grpc.aio
import pytest

from client import CALL_S, Client
from devcluster.cluster import DevCluster
from hostler.api.cluster.v1 import vms_pb2
from hostler.api.type.v1 import vm_pb2
from hostler.model.domain import DomainSpec, ServiceClass
from nodeagent.adapters.sim_hypervisor import SimHypervisor
from nodeagent.core.observed import CopyTag

Action = vms_pb2.Reconciliation.Action


async def reconciled(client: Client, vm_id: str, *, apply: bool = False, destructive: bool = False) -> vms_pb2.Reconciliation:
    request = vms_pb2.ReconcileVMRequest(name=f"vms/{vm_id}", apply=apply, allow_destructive=destructive)
    return await client.vms.ReconcileVM(request, timeout=CALL_S)


async def test_a_vm_that_is_as_its_record_says(client: Client, cluster: DevCluster) -> None:
    vm = await client.made("web-1")
    found = await reconciled(client, "web-1", apply=True, destructive=True)
    assert (found.consistent, found.reason, list(found.actions)) == (True, "", [])
    assert [(copy.node, copy.power, copy.owner, copy.epoch) for copy in found.copies] == [(vm.node, "ON", True, vm.epoch)]
    assert cluster.world.guest(vm.uid).executing == (vm.node.removeprefix("nodes/"),)


async def test_a_stray_guest_is_found_and_ended_by_leave_alone(client: Client, cluster: DevCluster) -> None:
    """A guest that somebody started by hand on another node, unseen; or one that is ended without leave."""
    vm = await client.made("web-1")
    home = vm.node.removeprefix("nodes/")
    await client.wait(await client.vms.StopVM(vms_pb2.StopVMRequest(name=vm.name, force=True), timeout=CALL_S))
    away = next(node_id for node_id in cluster.agents if node_id != home)
    spec = DomainSpec(vm.uid, "web-1", 1, 0, 512, ServiceClass.BURSTABLE)
    by_hand = SimHypervisor(cluster.world, away)
    await by_hand.create_paused(spec, CopyTag(vm.uid, vm.epoch, "by-hand"), {})
    await by_hand.resume(vm.uid)
    found = await reconciled(client, "web-1")
    assert [(one.node, one.verb, one.destructive, one.state) for one in found.actions] == [
        (f"nodes/{away}", "END_COPY", True, Action.PROPOSED)
    ]
    assert not found.consistent
    withheld = await reconciled(client, "web-1", apply=True)
    assert [one.state for one in withheld.actions] == [Action.WITHHELD]
    assert cluster.world.guest(vm.uid).executing == (away,)
    done = await reconciled(client, "web-1", apply=True, destructive=True)
    assert [one.state for one in done.actions] == [Action.DONE]
    assert cluster.world.guest(vm.uid).executing == ()
    assert (await reconciled(client, "web-1")).consistent


async def test_a_guest_paused_by_hand_goes_on(client: Client, cluster: DevCluster) -> None:
    """A guest that stands still for ever although its record says that it runs."""
    vm = await client.made("web-1")
    home = vm.node.removeprefix("nodes/")
    cluster.world.hosts[home].suspend_by_hand(vm.uid)
    assert cluster.world.guest(vm.uid).executing == ()
    done = await reconciled(client, "web-1", apply=True)
    assert [(one.verb, one.state) for one in done.actions] == [("RESUME", Action.DONE)]
    assert cluster.world.guest(vm.uid).executing == (home,)


async def test_an_unknown_vm_is_not_found(client: Client) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await reconciled(client, "nobody")
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_node_that_does_not_answer_is_named(client: Client, cluster: DevCluster) -> None:
    """Silence that is taken for absence."""
    vm = await client.made("web-1")
    home = vm.node.removeprefix("nodes/")
    await cluster.agents[home].kill()
    found = await reconciled(client, "web-1", apply=True, destructive=True)
    assert home in found.reason
    assert list(found.actions) == []
    assert vm.state == vm_pb2.VM.RUNNING
    assert cluster.world.guest(vm.uid).executing == (home,)
