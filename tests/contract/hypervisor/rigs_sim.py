"""The simulated hypervisor in virtual time: two hosts that share one pool. Always there."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from uuid import UUID

from hostler.model.domain import DiskSpec, DomainSpec, NicSpec, ServiceClass, VolumeSpec
from hostler.server.manual_clock import ManualClock
from nodeagent.adapters.sim_hypervisor import SimHypervisor
from nodeagent.adapters.sim_storage import SimFileSystem
from nodeagent.adapters.sim_time import keep_moving
from nodeagent.adapters.sim_tunnel import SimTunnel
from nodeagent.adapters.sim_volumes import SimVolumes
from nodeagent.adapters.sim_world import SimWorld
from nodeagent.core.observed import DiskShape, DomainShape
from nodeagent.ports import Hypervisor, MigrationSockets
from tests.contract.hypervisor.rig import Capability, ContractVM, HandEdit, Rig, RigKind

NODES = ("n1", "n2")
POOL, LOCAL_POOL = "shared", "local"


CHANGES: dict[HandEdit, Callable[[DomainShape], DomainShape]] = {
    HandEdit.MEMORY: lambda shape: replace(shape, memory_mib=shape.memory_mib // 2),
    HandEdit.ATTACH_DISK: lambda shape: replace(shape, disks=(*shape.disks, DiskShape("", "/srv/by-hand.raw", "vdb"))),
    HandEdit.LINK_DOWN: lambda shape: replace(shape, nics=tuple(replace(nic, up=False) for nic in shape.nics)),
    HandEdit.DEFINE: lambda shape: replace(shape, persistent=True),
    HandEdit.AUTOSTART: lambda shape: replace(shape, persistent=True, autostart=True),
}


class SimRig:
    """Two hosts of a world."""

    def __init__(self, world: SimWorld, clock: ManualClock) -> None:
        self.world = world
        self.clock = clock
        self.call_deadline_s = 5.0
        self.queue_events = 8
        self._hypervisors = [SimHypervisor(world, node, deadline_s=self.call_deadline_s, queue_events=self.queue_events) for node in NODES]
        self._tunnels = [SimTunnel(world, node) for node in NODES]
        self._volumes = [SimVolumes(world, node) for node in NODES]
        self._serial = itertools.count(1)
        self._made: dict[str, DomainShape] = {}
        self._second: dict[str, str] = {}

    def hypervisor(self, host: int) -> Hypervisor:
        return self._hypervisors[host]

    async def new_vm(self, *, local: bool = False, small: bool = False) -> ContractVM:
        serial, pool = next(self._serial), LOCAL_POOL if local else POOL
        vm_uid, volume_uid = str(UUID(int=serial)), str(UUID(int=1000 + serial))
        for volumes in self._volumes:
            await volumes.ensure(VolumeSpec(volume_uid, pool, 512 if local else 16, ""))
        disks, nics = (DiskSpec(volume_uid, pool, "qcow2"),), (NicSpec("br0", f"52:54:00:00:00:{serial:02x}"),)
        spec = DomainSpec(vm_uid, f"vm{serial}", 1, 100, 512, ServiceClass.BURSTABLE, disks, nics)
        return ContractVM(spec, tuple({volume_uid: volumes.path(pool, volume_uid, "qcow2")} for volumes in self._volumes))

    async def ticks(self, vm: ContractVM, host: int = 0) -> int:
        try:
            return self.world.guest(vm.uid).ticks
        except KeyError:  # it has never executed
            return 0

    async def same_disks(self, vm: ContractVM) -> bool:
        self.world.guest(vm.uid)  # accounts for what was written until now
        (mine,), (theirs,) = (tuple(self.world.file(node, path) for path in vm.disk_paths[at].values()) for at, node in enumerate(NODES))
        return mine is not None and theirs is not None and mine.written == theirs.written > 0

    async def take_images(self, host: int, vm: ContractVM) -> None:
        raise NotImplementedError("simulated files have no owners")

    async def add_unmanaged(self, host: int) -> str:
        return self.world.hosts[NODES[host]].add_unmanaged("somebody-elses")

    async def by_hand(self, host: int, vm: ContractVM, edit: HandEdit) -> None:
        sim = self.world.hosts[NODES[host]]
        match edit:
            case HandEdit.SUSPEND:
                sim.suspend_by_hand(vm.uid)
            case HandEdit.SECOND_USER:
                other = self._second[vm.uid] = sim.add_unmanaged("by-hand")
                (path,) = vm.disk_paths[host].values()
                sim.change_by_hand(other, lambda shape: replace(shape, disks=(DiskShape("", path, "vda"),)))
            case _:
                self._made[vm.uid] = sim.domains[vm.uid].made
                sim.change_by_hand(vm.uid, CHANGES[edit])

    async def undo_by_hand(self, host: int, vm: ContractVM, edit: HandEdit) -> None:
        sim = self.world.hosts[NODES[host]]
        match edit:
            case HandEdit.SUSPEND:
                sim.resume(vm.uid)
            case HandEdit.SECOND_USER:
                sim.destroy_by_hand(self._second.pop(vm.uid))
            case _:
                sim.change_by_hand(vm.uid, lambda _: self._made.pop(vm.uid))

    async def destroy_by_hand(self, host: int, vm: ContractVM) -> None:
        self.world.hosts[NODES[host]].destroy_by_hand(vm.uid)

    async def hang(self, host: int, vm: ContractVM | None) -> None:
        self.world.hosts[NODES[host]].hang(vm.uid if vm else "")

    async def unhang(self, host: int, vm: ContractVM | None) -> None:
        self.world.hosts[NODES[host]].unhang(vm.uid if vm else "")

    async def connect(self, operation_id: str) -> MigrationSockets:
        endpoint = await self._tunnels[1].open_incoming(operation_id, NODES[0])
        return await self._tunnels[0].open_outgoing(operation_id, endpoint, NODES[1])

    async def disconnect(self, operation_id: str) -> None:
        await self._tunnels[1].close_incoming(operation_id)


@asynccontextmanager
async def open_rig() -> AsyncIterator[Rig]:
    clock = ManualClock()
    async with SimWorld(clock) as world, asyncio.TaskGroup() as group:
        pool = SimFileSystem("fs-1", 4096, shared=True)
        for node in NODES:
            world.add_host(node, pools={POOL: pool, LOCAL_POOL: SimFileSystem(f"fs-{node}", 4096)})
        moving = group.create_task(keep_moving(clock), name="virtual time")
        yield SimRig(world, clock)
        moving.cancel()
        world.assert_one_writer()


RIGS = (RigKind("sim", frozenset(Capability) - {Capability.OWNERS}, open_rig),)
