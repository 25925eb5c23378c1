"""One standalone host as a user's program meets it: a real agent on real gRPC with TLS, over a simulated hypervisor whose steps can be held up."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest

from hostler.api.node.v1 import (
    host_pb2,
    host_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
    vms_pb2,
    vms_pb2_grpc,
    volumes_pb2,
    volumes_pb2_grpc,
)
from hostler.api.type.v1 import node_pb2, operation_pb2, vm_pb2, volume_pb2
from hostler.errors import HostlerError
from hostler.model.domain import DomainSpec, VolumeSpec
from hostler.rpc_status import from_rpc_error
from hostler.server import channels, pki
from hostler.server.clock import SystemClock
from hostler.server.identity import Principal, PrincipalKind
from hostler.server.startup import Shutdown
from hostler.server.tls import ServerTls, TlsFiles, load
from nodeagent import app
from nodeagent.adapters.sim_host import SimHost
from nodeagent.adapters.sim_host_facts import SimHostFacts
from nodeagent.adapters.sim_hypervisor import SimHypervisor
from nodeagent.adapters.sim_storage import SimFileSystem
from nodeagent.adapters.sim_tunnel import SimTunnel
from nodeagent.adapters.sim_volumes import SimVolumes
from nodeagent.adapters.sim_world import SimTimes, SimWorld
from nodeagent.adapters.state_directory import StateDirectory
from nodeagent.core.ledger import CapacityCap
from nodeagent.core.observed import CopyTag, DomainView
from nodeagent.engine.vms import Offer

CLUSTER, NODE = "lone", "h1"
CALL_S, WAIT_S = 10.0, 20
FAST = SimTimes(destroy_s=0.01, shutdown_s=0.02)
MEMORY_MIB, RESERVE_MIB, CPU_MILLI, POOL_MIB = 2048, 256, 4000, 8192
IMAGES_MIB = 64 + 1500
"""In each of the two pools."""


class Gates:
    """Places where the host's work can be held up: `shut(place)`, then `reached(place)` waits until somebody stands there."""

    def __init__(self) -> None:
        self._shut: dict[str, tuple[asyncio.Event, asyncio.Event]] = {}

    def shut(self, place: str) -> None:
        self._shut[place] = (asyncio.Event(), asyncio.Event())

    def open(self, place: str) -> None:
        self._shut.pop(place)[1].set()

    async def reached(self, place: str) -> None:
        async with asyncio.timeout(CALL_S):
            await self._shut[place][0].wait()

    async def through(self, place: str) -> None:
        if place in self._shut:
            reached, opened = self._shut[place]
            reached.set()
            await opened.wait()


class GatedVolumes(SimVolumes):
    """SimVolumes that may be held up after a file was made or removed."""

    def __init__(self, world: SimWorld, gates: Gates) -> None:
        super().__init__(world, NODE)
        self._gates = gates

    async def ensure(self, volume: VolumeSpec) -> int:
        size_mib = await super().ensure(volume)
        await self._gates.through("volume made")
        return size_mib

    async def remove(self, volume: VolumeSpec) -> None:
        await super().remove(volume)
        await self._gates.through("volume removed")


class GatedHypervisor(SimHypervisor):
    """SimHypervisor that may be held up after an act of its own."""

    def __init__(self, world: SimWorld, gates: Gates) -> None:
        super().__init__(world, NODE)
        self._gates = gates

    async def create_paused(self, spec: DomainSpec, tag: CopyTag, disk_paths: Mapping[str, str]) -> DomainView:
        view = await super().create_paused(spec, tag, disk_paths)
        await self._gates.through("created paused")
        return view

    async def resume(self, vm_uid: str) -> None:
        await super().resume(vm_uid)
        await self._gates.through("resumed")

    async def destroy(self, vm_uid: str) -> None:
        await super().destroy(vm_uid)
        await self._gates.through("destroyed")


@dataclass(slots=True)
class LoneHost:
    """`start` and `kill` the agent as often as wanted; the world, and what is on disk, stay."""

    directory: Path
    world: SimWorld
    group: asyncio.TaskGroup
    gates: Gates = field(default_factory=Gates)
    port: int = 0
    task: "asyncio.Task[None] | None" = None
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    @property
    def sim(self) -> SimHost:
        return self.world.hosts[NODE]

    async def start(self) -> None:
        parts = app.Parts(
            GatedHypervisor(self.world, self.gates),
            GatedVolumes(self.world, self.gates),
            SimHostFacts(self.world, NODE),
            SimTunnel(self.world, NODE),
            StateDirectory(self.directory / "state"),
        )
        clock = SystemClock()
        tls = ServerTls(TlsFiles.in_directory(self.certificate(PrincipalKind.NODE, NODE)), clock=clock)
        node = app.Node(NODE, tls, f"127.0.0.1:{self.port}", "127.0.0.1:0", (), Offer(CapacityCap(), RESERVE_MIB), clock=clock)
        ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.task = self.group.create_task(app.run(node, parts, Shutdown(), ready.set_result), name="agent")
        async with asyncio.timeout(CALL_S):
            both: set[asyncio.Future[int] | asyncio.Task[None]] = {ready, self.task}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if self.task.done():
            await self.task
        self.port = ready.result()

    async def kill(self) -> None:
        """As kill -9 is: nothing is put away."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])

    async def restart(self) -> None:
        await self.kill()
        await self.start()

    def client(self, kind: PrincipalKind = PrincipalKind.USER, name: str = "alice") -> "HostClient":
        material = load(TlsFiles.in_directory(self.certificate(kind, name)), clock=SystemClock())
        self.channels.append(channels.to_node(material, NODE, f"127.0.0.1:{self.port}"))
        return HostClient(self.channels[-1])

    def certificate(self, kind: PrincipalKind, name: str) -> Path:
        clock, authority = SystemClock(), self.directory / "ca"
        ca = pki.load_ca(authority) if authority.exists() else pki.init_ca(authority, CLUSTER, clock=clock)
        directory = self.directory / "tls" / kind.value / name
        if not directory.exists():
            pki.write(pki.issue(ca, Principal(CLUSTER, kind, name), clock=clock), directory)
        return directory


@asynccontextmanager
async def lone_host(directory: Path, memory_mib_by_cell: Mapping[int, int]) -> AsyncIterator[LoneHost]:
    """A standalone host whose agent answers; at its end no VM may ever have had two running copies or two writers."""
    async with SimWorld(SystemClock(), FAST) as world, asyncio.TaskGroup() as group:
        local, shared = SimFileSystem("local", POOL_MIB), SimFileSystem("shared", POOL_MIB, shared=True)
        for pool in (local, shared):
            pool.add_image("guest", 64)
            pool.add_image("big", 1500)
        world.add_host(NODE, cpu_milli=CPU_MILLI, memory_mib_by_cell=memory_mib_by_cell, pools={"local": local, "shared": shared})
        host = LoneHost(directory, world, group)
        await host.start()
        try:
            yield host
            world.assert_one_writer()
        finally:
            for channel in host.channels:
                await channel.close()
            await host.kill()


@dataclass(slots=True)
class HostClient:
    """Raw stubs, so that these tests do not stand on the SDK."""

    channel: grpc.aio.Channel

    @property
    def vms(self) -> "vms_pb2_grpc.VMServiceAsyncStub":
        return vms_pb2_grpc.VMServiceStub(self.channel)

    @property
    def volumes(self) -> "volumes_pb2_grpc.VolumeServiceAsyncStub":
        return volumes_pb2_grpc.VolumeServiceStub(self.channel)

    @property
    def operations(self) -> "operations_pb2_grpc.OperationServiceAsyncStub":
        return operations_pb2_grpc.OperationServiceStub(self.channel)

    async def create(self, vm_id: str, *, memory_mib: int = 256, **how: object) -> operation_pb2.Operation:
        """A VM with one new disk on the local pool, and a card."""
        disk = vm_pb2.VM.Disk(new_volume=vm_pb2.VM.NewVolume(pool="pools/local", image="guest", size_mib=64))
        vm = vm_pb2.VM(vcpus=1, memory_mib=memory_mib, disks=[disk], nics=[vm_pb2.VM.Nic(network="networks/br0")])
        return await self.vms.CreateVM(vms_pb2.CreateVMRequest(vm_id=vm_id, vm=vm, **how), timeout=CALL_S)  # type: ignore[arg-type]

    async def made(self, vm_id: str, **how: object) -> vm_pb2.VM:
        done = await self.done(await self.create(vm_id, **how))  # type: ignore[arg-type]
        assert done.state == operation_pb2.Operation.SUCCEEDED, done.error.message
        return done.vm

    async def start(self, vm_id: str, **how: object) -> operation_pb2.Operation:
        return await self.vms.StartVM(vms_pb2.StartVMRequest(name=f"vms/{vm_id}", **how), timeout=CALL_S)  # type: ignore[arg-type]

    async def stop(self, vm_id: str, **how: object) -> operation_pb2.Operation:
        return await self.vms.StopVM(vms_pb2.StopVMRequest(name=f"vms/{vm_id}", **how), timeout=CALL_S)  # type: ignore[arg-type]

    async def delete(self, vm_id: str, **how: object) -> operation_pb2.Operation:
        return await self.vms.DeleteVM(vms_pb2.DeleteVMRequest(name=f"vms/{vm_id}", **how), timeout=CALL_S)  # type: ignore[arg-type]

    async def vm(self, vm_id: str) -> vm_pb2.VM:
        return await self.vms.GetVM(vms_pb2.GetVMRequest(name=f"vms/{vm_id}"), timeout=CALL_S)

    async def vm_list(self, size: int = 0, token: str = "") -> vms_pb2.ListVMsResponse:
        return await self.vms.ListVMs(vms_pb2.ListVMsRequest(page_size=size, page_token=token), timeout=CALL_S)

    async def make_volume(self, volume_id: str, size_mib: int, pool: str = "local", image: str = "") -> operation_pb2.Operation:
        volume = volume_pb2.Volume(pool=f"pools/{pool}", size_mib=size_mib, image=image)
        return await self.volumes.CreateVolume(volumes_pb2.CreateVolumeRequest(volume_id=volume_id, volume=volume), timeout=CALL_S)

    async def delete_volume(self, volume_id: str) -> operation_pb2.Operation:
        return await self.volumes.DeleteVolume(volumes_pb2.DeleteVolumeRequest(name=f"volumes/{volume_id}"), timeout=CALL_S)

    async def volume_names(self) -> list[str]:
        answer = await self.volumes.ListVolumes(volumes_pb2.ListVolumesRequest(), timeout=CALL_S)
        return [volume.name.removeprefix("volumes/") for volume in answer.volumes]

    async def done(self, operation: operation_pb2.Operation) -> operation_pb2.Operation:
        request = operations_pb2.WaitOperationRequest(name=operation.name, timeout_s=WAIT_S)
        done = await self.operations.WaitOperation(request, timeout=WAIT_S + CALL_S)
        assert done.done, f"{done.verb} is still in {done.phase}: {done.reason}"
        return done

    async def get(self, operation: operation_pb2.Operation) -> operation_pb2.Operation:
        return await self.operations.GetOperation(operations_pb2.GetOperationRequest(name=operation.name), timeout=CALL_S)

    async def cancel(self, operation: operation_pb2.Operation) -> operation_pb2.Operation:
        return await self.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=operation.name), timeout=CALL_S)

    async def host(self) -> node_pb2.Node:
        return await host_pb2_grpc.HostServiceStub(self.channel).GetHost(host_pb2.GetHostRequest(), timeout=CALL_S)

    async def claimed(self) -> dict[str, int]:
        return {quantity.key: quantity.amount for quantity in (await self.host()).ledger.claimed}

    async def until(self, vm_id: str, state: "vm_pb2.VM.State.ValueType") -> vm_pb2.VM:
        """Watch until the VM is in that state."""
        async with watching(self) as call:
            async for event in call:
                vm: vm_pb2.VM = event.updated
                if vm.name == f"vms/{vm_id}" and vm.state == state:
                    return vm
        raise AssertionError("the watch ended")


if TYPE_CHECKING:
    Watch = grpc.aio.UnaryStreamCall[vms_pb2.WatchVMsRequest, vms_pb2.WatchVMsResponse]


@asynccontextmanager
async def watching(client: HostClient, resume_token: str = "") -> AsyncIterator["Watch"]:
    """A watch of VMs that ends with the block, or breaks off after WAIT_S."""
    call = client.vms.WatchVMs(vms_pb2.WatchVMsRequest(resume_token=resume_token), timeout=WAIT_S)
    try:
        yield call
    finally:
        call.cancel()


async def refused(call: Awaitable[object]) -> HostlerError:
    """What the call is refused with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)
