"""What makes a mutation accepted: the operation's identity, the repeat of a request, and the first entry of the journal.

The operation's id is derived from the caller and its request_id. So a repeat meets the record of the first, whichever replica it reaches; with
another body it is refused.
"""

import base64
import hashlib
from dataclasses import dataclass, replace

from hostler.errors import FailedPrecondition, Reason
from scheduler.core.records import (
    OperationRecord,
    OperationState,
    PhaseEntry,
    StoredError,
    Verb,
    VMRecord,
    VolumeRecord,
    operation_key,
)
from scheduler.core.state import ClusterState
from scheduler.core.transaction import Transaction

ACCEPTED = "ACCEPTED"
DONE = "DONE"


@dataclass(frozen=True, slots=True)
class Request:
    """Who asks for what: identity, idempotency key, digest of the body, and the wall time it is accepted at."""

    principal: str
    request_id: str
    digest: str
    now_ms: int

    @property
    def operation_id(self) -> str:
        seed = f"{self.principal}\n{self.request_id}".encode()
        return base64.b32encode(hashlib.blake2b(seed, digest_size=15).digest()).decode().lower()


@dataclass(frozen=True, slots=True)
class Accepted:
    """A mutation that may be: its operation, and the transaction that makes it durable. A repeat has an empty transaction."""

    operation: OperationRecord
    transaction: Transaction


def repeat_of(state: ClusterState, request: Request) -> OperationRecord | None:
    """The operation that this very request has already made; raises FailedPrecondition if its body was another."""
    kept = state.operations.get(request.operation_id)
    if kept is None:
        return None
    if kept.record.digest != request.digest:
        raise FailedPrecondition(
            Reason.REQUEST_ID_REUSED,
            "This request_id was used before, with another request.",
            "Make a new request_id for every new request.",
        )
    return kept.record


def begin(request: Request, verb: Verb, target_id: str, reason: str) -> OperationRecord:
    """The first entry of the journal."""
    return OperationRecord(
        operation_id=request.operation_id,
        verb=verb,
        target_id=target_id,
        state=OperationState.PENDING,
        phase=ACCEPTED,
        reason=reason,
        phases=(PhaseEntry(ACCEPTED, request.now_ms, ""),),
        principal=request.principal,
        request_id=request.request_id,
        digest=request.digest,
        create_ms=request.now_ms,
        update_ms=request.now_ms,
    )


def journal(operation: OperationRecord) -> Transaction:
    """Write a new operation, which must not exist."""
    key = operation_key(operation.operation_id)
    return Transaction({key: 0}, {key: operation})


def enter(operation: OperationRecord, phase: str, reason: str, driver: str, now_ms: int) -> OperationRecord:
    """The operation in its next phase; the same phase again changes its reason alone."""
    phases = operation.phases
    if phase != operation.phase:
        phases = (*phases, PhaseEntry(phase, now_ms, driver))
    return replace(operation, state=OperationState.RUNNING, phase=phase, reason=reason, phases=phases, update_ms=now_ms)


def succeed(
    operation: OperationRecord, driver: str, now_ms: int, vm: VMRecord | None = None, volume: VolumeRecord | None = None
) -> OperationRecord:
    """Done; `vm` or `volume` as it is then."""
    done = enter(operation, DONE, "", driver, now_ms)
    return replace(done, state=OperationState.SUCCEEDED, final_vm=vm, final_volume=volume)


def fail(operation: OperationRecord, error: StoredError, driver: str, now_ms: int) -> OperationRecord:
    """Not done and rolled back; CANCELLED if it was asked for."""
    done = enter(operation, DONE, error.message, driver, now_ms)
    state = OperationState.CANCELLED if operation.cancel_requested else OperationState.FAILED
    return replace(done, state=state, error=error)
