"""What a host answers in the mode it was not started in; and what one of a cluster shows of the VMs it holds."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from pathlib import Path

import pytest

from client import Client
from devcluster.cluster import DevCluster, dev_cluster
from hostler.api.node.v1 import operations_pb2, vms_pb2, volumes_pb2
from hostler.api.type.v1 import vm_pb2
from hostler.errors import FailedPrecondition, PermissionDenied, Reason
from hostler.internal.v1 import agent_pb2, agent_pb2_grpc, peer_pb2, peer_pb2_grpc
from hostler.server import channels
from hostler.server.clock import SystemClock
from hostler.server.identity import PrincipalKind
from hostler.server.tls import TlsFiles, load
from tests.rpc.brisk import BRISK
from tests.rpc.nodeagent.host import CALL_S, HostClient, LoneHost, refused, watching


async def test_standalone_nobody_commands_the_host(host: LoneHost) -> None:
    """A scheduler or a peer that is served by a host which belongs to no cluster."""
    scheduler = agent_pb2_grpc.AgentServiceStub(host.client(PrincipalKind.SCHEDULER, "s1").channel)
    error = await refused(scheduler.StartVM(agent_pb2.StartVMRequest(), timeout=CALL_S))
    assert (type(error), error.reason) == (FailedPrecondition, Reason.MODE_STANDALONE)
    peer = peer_pb2_grpc.PeerServiceStub(host.client(PrincipalKind.NODE, "h2").channel)
    assert (await refused(peer.AwaitArrival(peer_pb2.AwaitArrivalRequest(), timeout=CALL_S))).reason is Reason.MODE_STANDALONE
    user = agent_pb2_grpc.AgentServiceStub(host.client().channel)
    assert isinstance(await refused(user.StartVM(agent_pb2.StartVMRequest(), timeout=CALL_S)), PermissionDenied)
    assert isinstance(await refused(host.client(PrincipalKind.NODE, "h2").create("web-1")), PermissionDenied)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[DevCluster]:
    async with dev_cluster(tmp_path, replace(BRISK, nodes=2, replicas=1)) as running:
        yield running


@pytest.fixture
async def scheduler(cluster: DevCluster) -> AsyncIterator[Client]:
    material = load(TlsFiles.in_directory(cluster.user_certificate()), clock=SystemClock())
    channel = channels.to_scheduler(material, cluster.endpoints[0])
    client = Client(channel)
    await client.until_ready(2)
    yield client
    await channel.close()


@pytest.fixture
async def node(cluster: DevCluster) -> AsyncIterator[HostClient]:
    """The host n1, asked directly."""
    material = load(TlsFiles.in_directory(cluster.user_certificate()), clock=SystemClock())
    channel = channels.to_node(material, "n1", f"127.0.0.1:{cluster.agents['n1'].port}")
    yield HostClient(channel)
    await channel.close()


async def test_in_a_cluster_every_mutation_is_the_scheduler_s(cluster: DevCluster, node: HostClient) -> None:
    """A VM changed behind the scheduler's back, or a refusal that does not say where to go."""
    volume_requests = (volumes_pb2.CreateVolumeRequest(), volumes_pb2.DeleteVolumeRequest())
    calls: list[Awaitable[object]] = [
        node.create("web-1"),
        node.start("web-1"),
        node.stop("web-1"),
        node.delete("web-1"),
        node.vms.RebootVM(vms_pb2.RebootVMRequest(name="vms/web-1"), timeout=CALL_S),
        node.volumes.CreateVolume(volume_requests[0], timeout=CALL_S),
        node.volumes.DeleteVolume(volume_requests[1], timeout=CALL_S),
        node.volumes.ListVolumes(volumes_pb2.ListVolumesRequest(), timeout=CALL_S),
        node.operations.ListOperations(operations_pb2.ListOperationsRequest(), timeout=CALL_S),
        node.operations.WatchOperation(operations_pb2.WatchOperationRequest(name="operations/a"), timeout=CALL_S).read(),
    ]
    for call in calls:
        error = await refused(call)
        assert (type(error), error.reason) == (FailedPrecondition, Reason.MODE_CLUSTER)
        assert error.fix.startswith("Ask the scheduler: ")
        assert cluster.endpoints[0] in error.fix


async def test_in_a_cluster_a_host_shows_what_it_holds(cluster: DevCluster, scheduler: Client, node: HostClient) -> None:
    """A host that hides, invents or mixes up its VMs."""
    made = await scheduler.made("web-1", node="nodes/n1")
    await scheduler.made("web-2", node="nodes/n2")
    seen = await node.vm_list()
    assert [vm.name for vm in seen.vms] == ["vms/web-1"]
    vm = await node.vm("web-1")
    assert (vm.uid, vm.state, vm.epoch, vm.node, vm.memory_mib) == (made.uid, vm_pb2.VM.RUNNING, made.epoch, "nodes/n1", made.memory_mib)
    await scheduler.wait(await scheduler.migrate("web-1", to="n2"))
    told = []
    async with watching(node, seen.resume_token) as call:
        async for event in call:
            told.append(event.deleted or vm_pb2.VM.State.Name(event.updated.state))
            if event.deleted:
                break
    assert told[-1] == "vms/web-1"


async def test_in_a_cluster_a_hung_hypervisor_makes_reads_stale(cluster: DevCluster, scheduler: Client, node: HostClient) -> None:
    """A read that hangs with the hypervisor, or shows what may not be true any more as true."""
    await scheduler.made("web-1", node="nodes/n1")
    assert not (await node.vm("web-1")).stale
    cluster.world.hosts["n1"].hang()
    async with asyncio.timeout(5):
        vm = await node.vm("web-1")
    assert (vm.state, vm.stale) == (vm_pb2.VM.RUNNING, True)
    cluster.world.hosts["n1"].unhang()
