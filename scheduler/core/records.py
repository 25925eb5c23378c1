"""Every record in the store, as values: what the cluster has decided, and nothing that can be measured again.

Keys, all built here, lie under STATE, which replicas watch:
  vm/<vm>             spec, owner, epoch          claim/<node>/<vm>   one VM's share of one node
  ledger/<node>       the node's sums             pool/<pool>         the sums of a shared pool
  node/<node>         what a node said            volume/<volume>, flavor/<flavor>
  op/<id>             the journal             owed/<node>/<uid>   a volume's file that a node has to remove as soon as it can be asked
The two kinds of sums are the only capacity compares. Heartbeats (`HEARTBEATS`) and the leader's key (`LEADER`) lie outside STATE. Values are
JSON, so that an operator reads them with etcdctl. Times are milliseconds of wall clock: to be shown, never to be decided on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from hostler.model.domain import ServiceClass, VolumeSpec
from hostler.model.quantities import Quantities
from hostler.model.records import ENDED as ENDED
from hostler.model.records import Drain as Drain
from hostler.model.records import DrainEntry as DrainEntry
from hostler.model.records import DrainState as DrainState
from hostler.model.records import Migration as Migration
from hostler.model.records import MoveFallback as MoveFallback
from hostler.model.records import Observed as Observed
from hostler.model.records import OperationRecord as OperationRecord
from hostler.model.records import OperationState as OperationState
from hostler.model.records import PhaseEntry as PhaseEntry
from hostler.model.records import Stop as Stop
from hostler.model.records import StoredError as StoredError
from hostler.model.records import Verb as Verb
from hostler.model.records import VMRecord as VMRecord
from hostler.model.records import VolumeRecord as VolumeRecord
from hostler.model.records import VolumeState as VolumeState

ROOT = "/hostler/"
STATE = ROOT + "state/"
HEARTBEATS = ROOT + "hb/"
LEADER = ROOT + "leader"
TICK = STATE + "tick"
"""Written, empty, by every transaction that writes under STATE, compared by none: its revision is that of the newest state."""


def vm_key(vm_id: str) -> str:
    return f"{STATE}vm/{vm_id}"


def claim_key(node_id: str, vm_id: str) -> str:
    return f"{STATE}claim/{node_id}/{vm_id}"


def ledger_key(node_id: str) -> str:
    return f"{STATE}ledger/{node_id}"


def shared_pool_key(pool_id: str) -> str:
    return f"{STATE}pool/{pool_id}"


def node_key(node_id: str) -> str:
    return f"{STATE}node/{node_id}"


def volume_key(volume_id: str) -> str:
    return f"{STATE}volume/{volume_id}"


def flavor_key(flavor_id: str) -> str:
    return f"{STATE}flavor/{flavor_id}"


def operation_key(operation_id: str) -> str:
    return f"{STATE}op/{operation_id}"


def owed_key(node_id: str, volume_uid: str) -> str:
    return f"{STATE}owed/{node_id}/{volume_uid}"


class NodeState(StrEnum):
    """What may be done with a node."""

    ACTIVE = "ACTIVE"
    CORDONED = "CORDONED"
    """Keeps its VMs, takes no new ones."""
    FENCED = "FENCED"
    """A person has proved that it is off: nothing of it runs, and its agent must lay everything down before it is heard again."""


class LocksAcross(StrEnum):
    """Whether a shared pool's locks exclude between this node and others, since the node was booted (`pool_locks`)."""

    UNKNOWN = "UNKNOWN"
    PROVED = "PROVED"
    REFUTED = "REFUTED"


@dataclass(frozen=True, slots=True)
class NodePool:
    """A storage pool as a node reported it. `images`: size in MiB of each by name; `foreign_mib`: what no volume can have.

    `across` and its reason were found out between nodes and are no word of the node's.
    """

    pool_id: str
    shared: bool
    fingerprint: str
    total_mib: int
    ofd_locks: bool
    images: Mapping[str, int] = field(default_factory=dict)
    foreign_mib: int = 0
    filesystem: str = ""
    across: LocksAcross = LocksAcross.UNKNOWN
    across_why: str = ""


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A registered node. `incarnation` = boot id and registration number: survives an agent's restart, changes with the host's."""

    node_id: str
    state: NodeState
    boot_id: str
    registrations: int
    endpoint: str
    total: Quantities
    reserved: Quantities
    unmanaged: Quantities
    pools: tuple[NodePool, ...] = ()
    networks: tuple[str, ...] = ()
    acceleration: str = ""
    hypervisor: str = ""
    agent_version: str = ""
    confinement: str = ""
    unmanaged_count: int = 0
    hypervisor_down: bool = False
    reason: str = ""

    @property
    def incarnation(self) -> str:
        return f"{self.boot_id}:{self.registrations}"


@dataclass(frozen=True, slots=True)
class LedgerRecord:
    """A node's sums (or a shared pool's). Invariant: claimed <= allocatable, key by key, whenever a claim is added.

    `fingerprint`: of a shared pool, which file system its name stands for.
    """

    allocatable: Quantities
    claimed: Quantities = field(default_factory=dict)
    fingerprint: str = ""


class ClaimKind(StrEnum):
    """Why a node is charged."""

    RUN = "RUN"
    """The VM lives here."""
    MIGRATE_IN = "MIGRATE_IN"
    """The VM is on its way here."""
    HOLD = "HOLD"
    """A place for a VM that a drain will move here; `operation_id` is the drain's. The move makes it a MIGRATE_IN."""


@dataclass(frozen=True, slots=True)
class ClaimRecord:
    """One VM's share of one node; `charged` was computed when it was made and is never computed again."""

    vm_id: str
    vm_uid: str
    node_id: str
    kind: ClaimKind
    charged: Quantities
    operation_id: str


@dataclass(frozen=True, slots=True)
class OwedRemoval:
    """A file in a local pool of a node that is no volume any more: deleted while the node was fenced, or left behind by a move."""

    node_id: str
    volume: VolumeSpec


@dataclass(frozen=True, slots=True)
class FlavorRecord:
    flavor_id: str
    vcpus: int
    memory_mib: int
    cpu_floor_milli: int
    service_class: ServiceClass


Record = NodeRecord | LedgerRecord | ClaimRecord | VMRecord | VolumeRecord | FlavorRecord | OperationRecord | OwedRemoval
