"""The records of what the API shows and a daemon keeps: VMs, volumes, and the journal of operations. One shape for both daemons.

The scheduler keeps them in its store, a standalone node agent in its own files. Everything here has been decided; nothing can be measured again.
Times are milliseconds of wall clock: to be shown, never to be decided on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

from hostler import errors
from hostler.errors import HostlerError
from hostler.model.domain import DomainSpec
from hostler.model.owner import Owner

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Kept(Generic[R]):
    """A record, and the revision at which it was last written."""

    record: R
    revision: int


class Observed(StrEnum):
    """What the VM was doing when its owner last said something that matters."""

    CREATING = "CREATING"
    STOPPED = "STOPPED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    DELETING = "DELETING"
    CRASHED = "CRASHED"


class MoveFallback(StrEnum):
    """What a drain may do with a VM that cannot be moved while it runs; meanings in proto hostler.api.type.v1.VM.MoveFallback."""

    STAY = "STAY"
    RESTART = "RESTART"


@dataclass(frozen=True, slots=True)
class VMRecord:
    """A VM. `operation_id` is the one operation that may change it now, empty when none is. `own_volumes` go when it goes.

    `drift`: what its host last found changed past Hostler.
    """

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
    drift: tuple[str, ...] = ()
    move_fallback: MoveFallback = MoveFallback.STAY


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
    FENCE_NODE = "FenceNode"
    DRAIN_NODE = "DrainNode"


class OperationState(StrEnum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


ENDED = frozenset({OperationState.SUCCEEDED, OperationState.FAILED, OperationState.CANCELLED})


@dataclass(frozen=True, slots=True)
class StoredError:
    """A refusal as stored: the class of the taxonomy by name, and its parts. `violations`: field and description of each."""

    kind: str
    reason: str
    message: str
    fix: str = ""
    violations: tuple[tuple[str, str], ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(error: HostlerError) -> "StoredError":
        """A class derived from one of the taxonomy is stored as that one."""
        kind = next(kind for kind in type(error).__mro__ if kind.__module__ == HostlerError.__module__)
        violations = tuple((violation.field, violation.description) for violation in error.violations)
        return StoredError(kind.__name__, error.reason.value, error.message, error.fix, violations, dict(error.metadata))

    def refusal(self) -> HostlerError:
        """The error that was stored; what a newer version has stored and this one does not know is Internal, and says so in `metadata`."""
        kind = getattr(errors, self.kind, errors.Internal)
        reason, metadata = errors.Reason.__members__.get(self.reason), dict(self.metadata)
        if reason is None or not issubclass(kind, HostlerError):
            kind, reason, metadata["reason"] = errors.Internal, errors.Reason.INTERNAL, self.reason
        return kind(reason, self.message, self.fix, tuple(errors.Violation(*violation) for violation in self.violations), metadata)


@dataclass(frozen=True, slots=True)
class PhaseEntry:
    phase: str
    enter_ms: int
    driver: str


class Priority(StrEnum):
    """Which migration goes first when several wait for the same node."""

    LOW = "LOW"
    NORMAL = "NORMAL"
    HIGH = "HIGH"


@dataclass(frozen=True, slots=True)
class Migration:
    """What a MigrateVM operation knows beyond its phase. `disks` are (volume uid, identity, path) as the destination sees them; identity "": the
    disk is copied along.

    `cold`: the VM is off, and changes its owner without a copy. `named`: whoever asked has chosen the destination.
    `bandwidth_mib_s` 0: no limit; `max_downtime_ms` 0: DEFAULT_DOWNTIME_MS.
    """

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
    cold: bool = False
    priority: Priority = Priority.NORMAL
    named: bool = False
    max_downtime_ms: int = 0
    throttle_percent: int = 0
    iterations: int = 0


class DrainState(StrEnum):
    """What a drain has done with one VM; meanings in proto hostler.api.type.v1.Operation.DrainMetadata.State."""

    PLANNED = "PLANNED"
    MOVING = "MOVING"
    MOVED = "MOVED"
    BLOCKED = "BLOCKED"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"


@dataclass(frozen=True, slots=True)
class DrainEntry:
    """One VM of a drain. `operation_id` is what moves it now, or did last; `steps` counts those, `tries` the moves that have failed.

    `restart`: it is stopped, moved and started; `stopped`: the first of it is done, so it is to be started whatever happens.
    """

    vm_id: str
    state: DrainState
    destination_node_id: str = ""
    operation_id: str = ""
    reason: str = ""
    fix: str = ""
    steps: int = 0
    tries: int = 0
    restart: bool = False
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Drain:
    """What a DrainNode operation knows: how many it moves at once, and each VM in the order in which they go."""

    parallel: int
    entries: tuple[DrainEntry, ...] = ()


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
    expired: bool = False
    """It was its deadline that asked it to stop."""
    deadline_ms: int = 0
    """Wall milliseconds; 0: none."""
    leave_stopped: bool = False
    migration: Migration | None = None
    stop: Stop | None = None
    drain: Drain | None = None
    error: StoredError | None = None
    final_vm: VMRecord | None = None
    final_volume: VolumeRecord | None = None

    @property
    def done(self) -> bool:
        return self.state in ENDED
