"""What a placement is asked for: one VM, what it costs, what it must be able to reach, and where it may not go.

The caller has looked everything up (flavor, volumes, owner); a placement reads this and the view alone. What a node is charged is built here and
nowhere else, so that the filter, the claim and the hint cannot disagree.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from hostler.model.cost import charge, cpu_floor_milli
from hostler.model.domain import ServiceClass
from hostler.model.quantities import Quantities, at_least_zero, is_memory, memory_key, plus, pool_key
from scheduler.core.placement.cells import memory_mib


class Purpose(StrEnum):
    """Why a node is looked for."""

    CREATE = "CREATE"
    MIGRATE = "MIGRATE"


@dataclass(frozen=True, slots=True)
class LocalVolume:
    """An existing volume in a pool of one node: the VM can run nowhere else."""

    volume_id: str
    pool_id: str
    node_id: str


@dataclass(frozen=True)
class PlacementRequest:
    """One VM that wants a node. Sizes in MiB, CPU in thousandths; empty means "no such wish".

    local_mib, shared_mib: new space in local pools (charged to the node) and in shared pools (charged to the pool), by pool.
    fingerprints: pool -> fingerprint of the file system that holds existing volumes; "" where any pool of that name will do.
    images: (pool, image) pairs. excluded: node -> why not there, as the user will read it.
    acceleration: of the node that runs the VM now; a running guest cannot change it.
    stored_charge: the charge of a VM that exists, which is never computed again; its memory moves to the cell chosen.
    """

    vm_id: str
    vcpus: int
    memory_mib: int
    service_class: ServiceClass
    cpu_floor_milli: int = 0
    purpose: Purpose = Purpose.CREATE
    local_mib: Mapping[str, int] = field(default_factory=dict)
    shared_mib: Mapping[str, int] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    local_volumes: tuple[LocalVolume, ...] = ()
    images: tuple[tuple[str, str], ...] = ()
    networks: tuple[str, ...] = ()
    only_node_id: str = ""
    excluded: Mapping[str, str] = field(default_factory=dict)
    acceleration: str = ""
    stored_charge: Quantities = field(default_factory=dict)

    @cached_property
    def pool_ids(self) -> tuple[str, ...]:
        """Every pool that the node must have, in order."""
        named = {*self.local_mib, *self.shared_mib, *self.fingerprints}
        return tuple(sorted(named | {volume.pool_id for volume in self.local_volumes} | {pool_id for pool_id, _ in self.images}))

    @cached_property
    def local_pool_ids(self) -> frozenset[str]:
        """Pools that must be the node's own."""
        return frozenset(self.local_mib) | {volume.pool_id for volume in self.local_volumes}

    def charge_in(self, cell: int) -> Quantities:
        """What the node is charged if the VM's memory comes from this NUMA cell."""
        if not cell:
            return self._charge
        return {memory_key(cell) if is_memory(key) else key: amount for key, amount in self._charge.items()}

    @cached_property
    def _charge(self) -> Quantities:
        """In cell 0."""
        return plus(self._machine(0), {pool_key(pool_id): mib for pool_id, mib in self.local_mib.items()})

    @cached_property
    def memory_charged_mib(self) -> int:
        """Overhead included."""
        return memory_mib(self._charge)

    @cached_property
    def shared_charge(self) -> Mapping[str, Quantities]:
        """What each shared pool is charged, by pool."""
        charges = {pool_id: at_least_zero({pool_key(pool_id): mib}) for pool_id, mib in sorted(self.shared_mib.items())}
        return {pool_id: quantities for pool_id, quantities in charges.items() if quantities}

    def _machine(self, cell: int) -> Quantities:
        if self.stored_charge:
            rest = {key: amount for key, amount in self.stored_charge.items() if not is_memory(key)}
            return plus(rest, {memory_key(cell): memory_mib(self.stored_charge)})
        floor_milli = cpu_floor_milli(self.service_class, self.vcpus, self.cpu_floor_milli)
        return charge(self.vcpus, floor_milli, self.memory_mib, cell)
