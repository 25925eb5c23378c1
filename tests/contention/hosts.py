"""The hosts of the race: ten of ten slots, each short of an eleventh by a little of one quantity, so that whoever counts wrong by one is caught.

Which quantity ends first differs: memory of the only cell, memory of two cells (their rests together would hold one more), CPU, or the local pool.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from devcluster.cluster import DevCluster
from hostler.api.type.v1 import vm_pb2
from hostler.server.identity import PrincipalKind
from nodeagent.adapters.sim_storage import SimFileSystem

SLOTS_PER_NODE = 10
MEMORY_MIB = 512
SLOT_MEMORY_MIB = 585
"""512 of RAM, 1 of page tables, 64 of QEMU and 8 of its one vCPU. Written down, not computed: the formula's own mistakes are to be noticed too."""
SLOT_CPU_MILLI = 100
SLOT_POOL_MIB = 64
SHARED_MIB = 1
"""A second disk in the shared pool: one ledger that creates on all nodes compare."""
SHARED_EVERY = 10
"""One in ten VMs has it: if all had, they would be decided one by one, and nobody would race for a node."""

RESERVE_MIB = 256
IMAGE_MIB = 64
AMPLE = 3 * SLOTS_PER_NODE
"""Slots of whatever does not end first."""


@dataclass(frozen=True, slots=True)
class HostSize:
    """One simulated host, as it is built."""

    cpu_milli: int
    memory_mib_by_cell: Mapping[int, int]
    pool_mib: int

    @property
    def offer(self) -> Mapping[str, int]:
        """What its VMs can have at most: the host's reserve is of cell 0, the pool's image is no volume."""
        memory = {f"memory_mib/{cell}": mib - (RESERVE_MIB if cell == 0 else 0) for cell, mib in self.memory_mib_by_cell.items()}
        return {"cpu_milli": self.cpu_milli, "pool_mib/local": self.pool_mib - IMAGE_MIB, **memory}


def _size(cpu_milli: int = 0, cells: Mapping[int, int] | None = None, pool_mib: int = 0) -> HostSize:
    """`cells` and the others without reserve and image; 0 and None: ample."""
    cells = cells or {0: AMPLE * SLOT_MEMORY_MIB}
    memory = {cell: mib + (RESERVE_MIB if cell == 0 else 0) for cell, mib in cells.items()}
    return HostSize(cpu_milli or AMPLE * SLOT_CPU_MILLI, memory, (pool_mib or AMPLE * SLOT_POOL_MIB) + IMAGE_MIB)


ONE_CELL = _size(cells={0: (SLOTS_PER_NODE + 1) * SLOT_MEMORY_MIB - 1})
TWO_CELLS = _size(cells=dict.fromkeys((0, 1), SLOTS_PER_NODE // 2 * SLOT_MEMORY_MIB + SLOT_MEMORY_MIB // 2 + 1))
LITTLE_CPU = _size(cpu_milli=(SLOTS_PER_NODE + 1) * SLOT_CPU_MILLI - 1)
SMALL_POOL = _size(pool_mib=(SLOTS_PER_NODE + 1) * SLOT_POOL_MIB - 1)

SIZES: Mapping[str, HostSize] = {
    f"n{number}": size for number, size in enumerate([*3 * [ONE_CELL], *3 * [TWO_CELLS], *2 * [LITTLE_CPU], *2 * [SMALL_POOL]], 1)
}
OFFERS: Mapping[str, Mapping[str, int]] = {node_id: size.offer for node_id, size in SIZES.items()}
SLOTS = SLOTS_PER_NODE * len(SIZES)


def wanted(number: int) -> vm_pb2.VM:
    """The VM of one slot."""
    local = vm_pb2.VM.NewVolume(pool="pools/local", size_mib=SLOT_POOL_MIB)
    shared = vm_pb2.VM.NewVolume(pool="pools/shared", size_mib=SHARED_MIB)
    volumes = [local, shared] if number % SHARED_EVERY == 0 else [local]
    disks = [vm_pb2.VM.Disk(new_volume=volume) for volume in volumes]
    return vm_pb2.VM(vcpus=1, memory_mib=MEMORY_MIB, disks=disks, nics=[vm_pb2.VM.Nic(network="networks/br0")])


class Hosts(DevCluster):
    """The hosts and their agents, in this process; the schedulers they talk to are others."""

    schedulers_at: tuple[str, ...] = ()

    @property
    def endpoints(self) -> tuple[str, ...]:
        return self.schedulers_at

    async def start(self) -> None:
        """Only what needs no scheduler: certificates can be issued, hosts are up without agents."""
        shared = SimFileSystem("shared", self.options.pool_mib, shared=True)
        for node_id, size in SIZES.items():
            local = SimFileSystem(f"local-{node_id}", size.pool_mib)
            local.add_image("guest", IMAGE_MIB)
            pools = {"shared": shared, "local": local}
            self.world.add_host(node_id, cpu_milli=size.cpu_milli, memory_mib_by_cell=size.memory_mib_by_cell, pools=pools)

    def scheduler_certificate(self, name: str) -> Path:
        """The directory of a replica's tls.crt, tls.key and ca.crt."""
        return self._certificate(PrincipalKind.SCHEDULER, name)

    async def start_agents(self, schedulers_at: tuple[str, ...]) -> None:
        self.schedulers_at = schedulers_at
        for node_id in SIZES:
            await self.start_agent(node_id)
