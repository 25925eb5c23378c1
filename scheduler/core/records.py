"""Every record in the store, as values: what the cluster has decided, and nothing that can be measured again.

Keys, all built here, lie under STATE, which replicas watch:
  vm/<vm>             spec, owner, epoch          claim/<node>/<vm>   one VM's share of one node
  ledger/<node>       the node's sums             pool/<pool>         the sums of a shared pool
  node/<node>         what a node said            volume/<volume>, flavor/<flavor>
  op/<id>             the journal
The two kinds of sums are the only capacity compares. Heartbeats (`HEARTBEATS`) and the leader's key (`LEADER`) lie outside STATE. Values are
JSON, so that an operator reads them with etcdctl. Times are milliseconds of wall clock: to be shown, never to be decided on.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from hostler.errors import HostlerError
from hostler.model.domain import DomainSpec, ServiceClass
from hostler.model.owner import Owner
from hostler.model.quantities import Quantities

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


class NodeState(StrEnum):
    """Whether a node takes new VMs."""

    ACTIVE = "ACTIVE"
    CORDONED = "CORDONED"


@dataclass(frozen=True, slots=True)
class NodePool:
    """A storage pool as a node reported it."""

    pool_id: str
    shared: bool
    fingerprint: str
    total_mib: int
    ofd_locks: bool
    images: tuple[str, ...] = ()


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
    """A node's sums (or a shared pool's). Invariant: claimed <= allocatable, key by key, whenever a claim is added."""

    allocatable: Quantities
    claimed: Quantities = field(default_factory=dict)


class ClaimKind(StrEnum):
    """Why a node is charged."""

    RUN = "RUN"
    """The VM lives here."""
    MIGRATE_IN = "MIGRATE_IN"
    """The VM is on its way here."""


@dataclass(frozen=True, slots=True)
class ClaimRecord:
    """One VM's share of one node; `charged` was computed when it was made and is never computed again."""

    vm_id: str
    vm_uid: str
    node_id: str
    kind: ClaimKind
    charged: Quantities
    operation_id: str


class Observed(StrEnum):
    """What the VM was doing when its owner last said something that matters."""

    CREATING = "CREATING"
    STOPPED = "STOPPED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    DELETING = "DELETING"
    CRASHED = "CRASHED"


@dataclass(frozen=True, slots=True)
class VMRecord:
    """A VM. `operation_id` is the one operation that may change it now, empty when none is. `own_volumes` go when it goes."""

    vm_id: str
    uid: str
    flavor_id: str
    domain: DomainSpec
    volume_ids: tuple[str, ...]
    own_volumes: tuple[str, ...]
    owner: Owner
    observed: Observed
    create_ms: int
    labels: dict[str, str] = field(default_factory=dict)
    operation_id: str = ""
    reason: str = ""


class VolumeState(StrEnum):
    CREATING = "CREATING"
    READY = "READY"
    DELETING = "DELETING"


@dataclass(frozen=True, slots=True)
class VolumeRecord:
    """A volume; `node_id` is empty in a shared pool, `vm_id` is empty when no VM uses it. `charged_mib` is what its pool's ledger holds for it."""

    volume_id: str
    uid: str
    pool_id: str
    node_id: str
    size_mib: int
    format: str
    image: str
    state: VolumeState
    create_ms: int
    charged_mib: int
    vm_id: str = ""
    operation_id: str = ""


@dataclass(frozen=True, slots=True)
class FlavorRecord:
    flavor_id: str
    vcpus: int
    memory_mib: int
    cpu_floor_milli: int
    service_class: ServiceClass


class Verb(StrEnum):
    """What operations do, in the words of the API."""

    CREATE_VM = "CreateVM"
    DELETE_VM = "DeleteVM"
    START_VM = "StartVM"
    STOP_VM = "StopVM"
    REBOOT_VM = "RebootVM"
    MIGRATE_VM = "MigrateVM"
    CREATE_VOLUME = "CreateVolume"
    DELETE_VOLUME = "DeleteVolume"


class OperationState(StrEnum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


ENDED = frozenset({OperationState.SUCCEEDED, OperationState.FAILED, OperationState.CANCELLED})


@dataclass(frozen=True, slots=True)
class StoredError:
    """A refusal as stored: the class of the taxonomy by name, and its parts."""

    kind: str
    reason: str
    message: str
    fix: str = ""

    @staticmethod
    def of(error: HostlerError) -> "StoredError":
        return StoredError(type(error).__name__, error.reason.value, error.message, error.fix)


@dataclass(frozen=True, slots=True)
class PhaseEntry:
    phase: str
    enter_ms: int
    driver: str


@dataclass(frozen=True, slots=True)
class Migration:
    """What a MigrateVM operation knows beyond its phase. `disks` are (volume uid, identity, path) as the destination sees them."""

    source_node_id: str
    destination_node_id: str
    destination_incarnation: str
    bandwidth_mib_s: int = 0
    source_epoch: int = 0
    tunnel_endpoint: str = ""
    disks: tuple[tuple[str, str, str], ...] = ()
    bytes_transferred: int = 0
    total_ms: int = 0
    downtime_ms: int = 0
    committed_epoch: int = 0


@dataclass(frozen=True, slots=True)
class Stop:
    """How a StopVM, RebootVM or DeleteVM operation goes about it."""

    grace_s: int = 0
    force: bool = False


@dataclass(frozen=True, slots=True)
class OperationRecord:
    """One accepted mutation: the journal. `digest` is of the request's body, so that a reused request_id is noticed."""

    operation_id: str
    verb: Verb
    target_id: str
    state: OperationState
    phase: str
    reason: str
    phases: tuple[PhaseEntry, ...]
    principal: str
    request_id: str
    digest: str
    create_ms: int
    update_ms: int
    cancel_requested: bool = False
    leave_stopped: bool = False
    migration: Migration | None = None
    stop: Stop | None = None
    error: StoredError | None = None
    final_vm: VMRecord | None = None
    final_volume: VolumeRecord | None = None

    @property
    def done(self) -> bool:
        return self.state in ENDED


Record = NodeRecord | LedgerRecord | ClaimRecord | VMRecord | VolumeRecord | FlavorRecord | OperationRecord
