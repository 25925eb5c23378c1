"""What a node says of itself: its account, its storage, and every VM it holds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from hostler.model.quantities import Quantities


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """A storage pool on one node; sizes in MiB. Shared pools with one fingerprint are one file system. `images`: size of each by name.

    `foreign_mib`: what no volume can have, because images, other files or the file system itself take it. `ofd_locks`: image locks can be asked on
    this node, and were not declared unused; whether they exclude other nodes is not for one node to say. `filesystem`: its type.
    """

    pool_id: str
    shared: bool
    fingerprint: str
    total_mib: int
    free_mib: int
    ofd_locks: bool
    images: Mapping[str, int] = field(default_factory=dict)
    foreign_mib: int = 0
    filesystem: str = ""


class VMPower(StrEnum):
    """What a host knows of a VM's power; meanings in proto hostler.internal.v1.VMStatus.Power."""

    OFF = "OFF"
    ON = "ON"
    PAUSED = "PAUSED"
    CRASHED = "CRASHED"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class VMStatus:
    """One VM on one host. `epoch` is the highest that the host has seen for it; `defined` is whether the host keeps its definition.

    `drift`: where its domain differs from the definition because somebody changed it past Hostler, one sentence each.
    """

    vm_uid: str
    epoch: int
    defined: bool
    power: VMPower
    reason: str = ""
    drift: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeReport:
    """Everything a node says of itself. total - reserved - unmanaged is what claims may sum to."""

    node_id: str
    total: Quantities
    reserved: Quantities
    unmanaged: Quantities
    claimed: Quantities
    pools: tuple[PoolFacts, ...]
    networks: tuple[str, ...]
    acceleration: str
    hypervisor: str
    agent_version: str
    confinement: str
    unmanaged_count: int
    hypervisor_down: bool
    reason: str
    vms: tuple[VMStatus, ...] = field(default=())
