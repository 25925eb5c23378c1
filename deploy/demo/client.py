"""The cluster's API by its raw stubs: what any program in any language does, without the SDK. For the demonstration and the tests."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import grpc.aio

from hostler.api.cluster.v1 import (
    flavors_pb2,
    flavors_pb2_grpc,
    nodes_pb2,
    nodes_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
    vms_pb2,
    vms_pb2_grpc,
    volumes_pb2_grpc,
)
from hostler.api.type.v1 import node_pb2, operation_pb2, vm_pb2, volume_pb2

CALL_S = 10.0
WAIT_S = 60
FOLLOW_S = 240.0


@dataclass(slots=True)
class Client:
    """The API of one replica, as a user's program sees it."""

    channel: grpc.aio.Channel

    @property
    def vms(self) -> "vms_pb2_grpc.VMServiceAsyncStub":
        return vms_pb2_grpc.VMServiceStub(self.channel)

    @property
    def nodes(self) -> "nodes_pb2_grpc.NodeServiceAsyncStub":
        return nodes_pb2_grpc.NodeServiceStub(self.channel)

    @property
    def volumes(self) -> "volumes_pb2_grpc.VolumeServiceAsyncStub":
        return volumes_pb2_grpc.VolumeServiceStub(self.channel)

    @property
    def operations(self) -> "operations_pb2_grpc.OperationServiceAsyncStub":
        return operations_pb2_grpc.OperationServiceStub(self.channel)

    async def create(
        self,
        vm_id: str,
        memory_mib: int = 512,
        request_id: str = "",
        node: str = "",
        flavor: str = "",
        start: bool = True,
        pool: str = "",
    ) -> operation_pb2.Operation:
        """A VM with one disk on the shared pool, made from the image `guest` (an empty one, if another pool is named), and one card on br0."""
        volume = vm_pb2.VM.NewVolume(pool=f"pools/{pool or 'shared'}", image="" if pool else "guest", size_mib=64)
        disk = vm_pb2.VM.Disk(new_volume=volume)
        vm = vm_pb2.VM(disks=[disk], nics=[vm_pb2.VM.Nic(network="networks/br0")])
        if flavor:
            vm.flavor = f"flavors/{flavor}"
        else:
            vm.vcpus, vm.memory_mib = 1, memory_mib
        request = vms_pb2.CreateVMRequest(vm_id=vm_id, vm=vm, request_id=request_id, node=node, leave_stopped=not start)
        return await self.vms.CreateVM(request, timeout=CALL_S)

    async def delete(self, vm_id: str) -> operation_pb2.Operation:
        """By force if it runs."""
        return await self.vms.DeleteVM(vms_pb2.DeleteVMRequest(name=f"vms/{vm_id}", force=True), timeout=CALL_S)

    async def wait(self, operation: operation_pb2.Operation) -> operation_pb2.Operation:
        """Until it is done."""
        request = operations_pb2.WaitOperationRequest(name=operation.name, timeout_s=WAIT_S)
        done = await self.operations.WaitOperation(request, timeout=WAIT_S + CALL_S)
        assert done.done, f"{done.verb} is still in {done.phase}: {done.reason}"
        return done

    async def made(self, vm_id: str, **how: object) -> vm_pb2.VM:
        """A VM that runs."""
        done = await self.wait(await self.create(vm_id, **how))  # type: ignore[arg-type]
        assert done.state == operation_pb2.Operation.SUCCEEDED, done.error.message
        return done.vm

    async def vm(self, vm_id: str) -> vm_pb2.VM:
        return await self.vms.GetVM(vms_pb2.GetVMRequest(name=f"vms/{vm_id}"), timeout=CALL_S)

    async def migrate(self, vm_id: str, to: str = "", bandwidth_mib_s: int = 0) -> operation_pb2.Operation:
        destination = f"nodes/{to}" if to else ""
        request = vms_pb2.MigrateVMRequest(name=f"vms/{vm_id}", destination_node=destination, bandwidth_mib_s=bandwidth_mib_s)
        return await self.vms.MigrateVM(request, timeout=CALL_S)

    async def follow(self, operation: operation_pb2.Operation) -> AsyncGenerator[operation_pb2.Operation, None]:
        """The operation at every change, until it is done."""
        call = self.operations.WatchOperation(operations_pb2.WatchOperationRequest(name=operation.name), timeout=FOLLOW_S)
        try:
            async for answer in call:
                yield answer.operation
        finally:
            call.cancel()

    async def until_phase(self, operation: operation_pb2.Operation, phase: str) -> operation_pb2.Operation:
        """Until it enters the phase (or is done)."""
        async with aclosing(self.follow(operation)) as followed:
            async for now in followed:
                if now.phase == phase or now.done:
                    return now
        raise AssertionError(f"{operation.name} ended without {phase}")

    async def list_nodes(self) -> list[node_pb2.Node]:
        return list((await self.nodes.ListNodes(nodes_pb2.ListNodesRequest(), timeout=CALL_S)).nodes)

    async def until_ready(self, nodes: int, timeout_s: float = WAIT_S) -> None:
        """Watch the nodes until so many have registered and beat, and what their shared pools' locks can do has been found out."""
        call = self.nodes.WatchNodes(nodes_pb2.WatchNodesRequest(), timeout=timeout_s)
        try:
            async for _ in call:
                if sum(_ready(node, alone=nodes == 1) for node in await self.list_nodes()) == nodes:
                    return
        finally:
            call.cancel()

    async def flavor(self, flavor_id: str, memory_mib: int) -> None:
        flavor = vm_pb2.Flavor(vcpus=1, memory_mib=memory_mib)
        request = flavors_pb2.CreateFlavorRequest(flavor_id=flavor_id, flavor=flavor)
        await flavors_pb2_grpc.FlavorServiceStub(self.channel).CreateFlavor(request, timeout=CALL_S)


def _ready(node: node_pb2.Node, alone: bool) -> bool:
    shared = [pool for pool in node.pools if pool.reach == volume_pb2.Pool.SHARED]
    probed = all(pool.lock_kind != volume_pb2.Pool.LOCK_KIND_UNSPECIFIED for pool in shared)
    return node.health == node_pb2.Node.READY and (probed or alone)
