"""The one taxonomy of everything Hostler can say no with, shared by both daemons, the SDK and the CLI.

A *no* that a caller must see is one of the classes below. Each carries a stable `reason` (part of the API, never renamed), a sentence
that is safe to show to anybody, the fix if there is one, and the fields it concerns. How a class looks on the wire is decided once, in
`hostler.rpc_status`. An exception that is not one of these means that something broke; its text never leaves the process.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Reason(StrEnum):
    """Stable machine-readable reasons (google.rpc.ErrorInfo.reason, domain `hostler.dev`)."""

    # The request itself is wrong (INVALID_ARGUMENT)
    FIELD_INVALID = "FIELD_INVALID"
    PAGE_TOKEN_INVALID = "PAGE_TOKEN_INVALID"
    # Who is asking (UNAUTHENTICATED, PERMISSION_DENIED)
    IDENTITY_MISSING = "IDENTITY_MISSING"
    IDENTITY_NOT_ALLOWED = "IDENTITY_NOT_ALLOWED"
    NODE_IDENTITY_MISMATCH = "NODE_IDENTITY_MISMATCH"
    # What the request names (NOT_FOUND, ALREADY_EXISTS)
    VM_NOT_FOUND = "VM_NOT_FOUND"
    VOLUME_NOT_FOUND = "VOLUME_NOT_FOUND"
    NODE_NOT_FOUND = "NODE_NOT_FOUND"
    FLAVOR_NOT_FOUND = "FLAVOR_NOT_FOUND"
    POOL_NOT_FOUND = "POOL_NOT_FOUND"
    IMAGE_NOT_FOUND = "IMAGE_NOT_FOUND"
    NETWORK_NOT_FOUND = "NETWORK_NOT_FOUND"
    OPERATION_NOT_FOUND = "OPERATION_NOT_FOUND"
    VM_EXISTS = "VM_EXISTS"
    VOLUME_EXISTS = "VOLUME_EXISTS"
    FLAVOR_EXISTS = "FLAVOR_EXISTS"
    # The state forbids it (FAILED_PRECONDITION)
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    VM_BUSY = "VM_BUSY"
    VM_NOT_RUNNING = "VM_NOT_RUNNING"
    VM_RUNNING = "VM_RUNNING"
    VM_FROZEN = "VM_FROZEN"
    VOLUME_IN_USE = "VOLUME_IN_USE"
    NODE_NOT_ACTIVE = "NODE_NOT_ACTIVE"
    NODE_FENCED = "NODE_FENCED"
    NODE_DRAINING = "NODE_DRAINING"
    DRAIN_INCOMPLETE = "DRAIN_INCOMPLETE"
    NODE_ANSWERS = "NODE_ANSWERS"
    SAME_NODE = "SAME_NODE"
    NOT_MIGRATABLE = "NOT_MIGRATABLE"
    NOT_CANCELLABLE = "NOT_CANCELLABLE"
    NOT_TUNABLE = "NOT_TUNABLE"
    MODE_STANDALONE = "MODE_STANDALONE"
    MODE_CLUSTER = "MODE_CLUSTER"
    HANDOFF_UNKNOWN = "HANDOFF_UNKNOWN"
    MIGRATION_FAILED = "MIGRATION_FAILED"
    HYPERVISOR_REFUSED = "HYPERVISOR_REFUSED"
    OPERATION_CANCELLED = "OPERATION_CANCELLED"
    # Somebody else was first (ABORTED)
    ETAG_MISMATCH = "ETAG_MISMATCH"
    EPOCH_STALE = "EPOCH_STALE"
    CLAIM_CONFLICT = "CLAIM_CONFLICT"
    # It does not fit (RESOURCE_EXHAUSTED)
    NO_FEASIBLE_NODE = "NO_FEASIBLE_NODE"
    NODE_CAPACITY_EXCEEDED = "NODE_CAPACITY_EXCEEDED"
    POOL_CAPACITY_EXCEEDED = "POOL_CAPACITY_EXCEEDED"
    TOO_MANY_REQUESTS = "TOO_MANY_REQUESTS"
    # Out of what is still known (OUT_OF_RANGE)
    REVISION_COMPACTED = "REVISION_COMPACTED"
    REVISION_UNKNOWN = "REVISION_UNKNOWN"
    # Not now (UNAVAILABLE, DEADLINE_EXCEEDED)
    COMMAND_LATE = "COMMAND_LATE"
    HYPERVISOR_UNAVAILABLE = "HYPERVISOR_UNAVAILABLE"
    POOL_UNAVAILABLE = "POOL_UNAVAILABLE"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    SCHEDULER_UNAVAILABLE = "SCHEDULER_UNAVAILABLE"
    NODE_UNREACHABLE = "NODE_UNREACHABLE"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    DEADLINE = "DEADLINE"
    # Something broke (INTERNAL)
    INTERNAL = "INTERNAL"


@dataclass(frozen=True, slots=True)
class Violation:
    """One field (`vm.spec.memory_mib`, proto names, dotted) and what is wrong with it, ending in what to do instead."""

    field: str
    description: str


@dataclass(eq=False)
class HostlerError(Exception):
    """A refusal that the caller is meant to read.

    `message` and `fix` are complete sentences, free of internal text. `retry_after_s` is set where trying again may help.
    """

    reason: Reason
    message: str
    fix: str = ""
    violations: tuple[Violation, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    retry_after_s: float | None = None

    def __str__(self) -> str:
        return f"{self.message} {self.fix}".strip()


class InvalidRequest(HostlerError):
    """The request can never succeed as written; nothing was changed."""


class Unauthenticated(HostlerError):
    """The caller did not prove who it is."""


class PermissionDenied(HostlerError):
    """The caller is known and may not do this."""


class NotFound(HostlerError):
    """A resource named in the request does not exist (or is not the caller's)."""


class AlreadyExists(HostlerError):
    """The name is taken."""


class FailedPrecondition(HostlerError):
    """The state of the system forbids it until somebody changes that state."""


class Conflict(HostlerError):
    """Somebody else changed the same thing first; read again and repeat."""


class NoCapacity(HostlerError):
    """It does not fit; `violations` name each node or quantity and by how much."""


class OutOfRange(HostlerError):
    """A revision or page is no longer (or not yet) known; list again."""


class Unavailable(HostlerError):
    """A part that is needed does not answer; nothing was changed, retrying may help."""


class DeadlineExceeded(HostlerError):
    """The deadline passed; the outcome must be read back."""


class Internal(HostlerError):
    """Something broke; the server's log has the story under `metadata['incident']`."""


def invalid(*violations: Violation) -> InvalidRequest:
    """The usual answer to bad input: one violation per wrong field, the first one in the message."""
    first = violations[0]
    return InvalidRequest(Reason.FIELD_INVALID, f"{first.field}: {first.description}", violations=violations)
