"""The journal of one operation: its identity, the repeat of a request, and how it moves from phase to phase. One rule for both daemons.

The operation's id is derived from the caller and its request_id. So a repeat meets the record of the first, whichever daemon or replica it reaches;
with another body it is refused.
"""

import base64
import hashlib
from dataclasses import dataclass, replace

from hostler.errors import FailedPrecondition, Reason
from hostler.model.records import OperationRecord, OperationState, PhaseEntry, StoredError, Verb, VMRecord, VolumeRecord

ACCEPTED, DONE = "ACCEPTED", "DONE"
VOLUMES, DEFINED, STARTING, ROLLBACK = "VOLUMES", "DEFINED", "STARTING", "ROLLBACK"
STOPPING, REBOOTING, REMOVING = "STOPPING", "REBOOTING", "REMOVING"
RESERVED, DESTINATION_READY, COPYING, COMMITTED, ABORTING = "RESERVED", "DESTINATION_READY", "COPYING", "COMMITTED", "ABORTING"

CLAIMING, MOVING, RELEASING = "CLAIMING", "MOVING", "RELEASING"

CANCELLABLE = frozenset({ACCEPTED, VOLUMES, DEFINED, RESERVED, DESTINATION_READY, COPYING})
"""Phases before the point of no return."""


@dataclass(frozen=True, slots=True)
class Request:
    """Who asks for what: identity, idempotency key, digest of the body, the wall time it is accepted at, and how long it has (0: no limit)."""

    principal: str
    request_id: str
    digest: str
    now_ms: int
    deadline_s: int = 0

    @property
    def operation_id(self) -> str:
        seed = f"{self.principal}\n{self.request_id}".encode()
        return base64.b32encode(hashlib.blake2b(seed, digest_size=15).digest()).decode().lower()


def same_request(operation: OperationRecord, request: Request) -> OperationRecord:
    """The operation that this very request has already made; raises FailedPrecondition if its body was another."""
    if operation.digest != request.digest:
        raise FailedPrecondition(
            Reason.REQUEST_ID_REUSED,
            "This request_id was used before, with another request.",
            "Make a new request_id for every new request.",
        )
    return operation


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
        deadline_ms=request.now_ms + 1000 * request.deadline_s if request.deadline_s else 0,
    )


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
    """Not done and rolled back; CANCELLED if a person asked for it."""
    done = enter(operation, DONE, error.message, driver, now_ms)
    state = OperationState.CANCELLED if operation.cancel_requested and not operation.expired else OperationState.FAILED
    return replace(done, state=state, error=error)


def can_cancel(operation: OperationRecord) -> bool:
    """CreateVM before it starts the VM, MigrateVM before the commit, DrainNode while it begins moves."""
    if operation.verb is Verb.DRAIN_NODE:
        return operation.phase in (ACCEPTED, CLAIMING, MOVING)
    return operation.verb in (Verb.CREATE_VM, Verb.MIGRATE_VM) and operation.phase in CANCELLABLE


def cancelled(operation: OperationRecord) -> OperationRecord | None:
    """The operation, asked to stop; None: it was asked already. Raises FailedPrecondition."""
    if operation.done or not can_cancel(operation):
        raise FailedPrecondition(
            Reason.NOT_CANCELLABLE,
            f"The operation is {operation.state.value if operation.done else 'past its point of no return'}.",
            "It can only be waited for." if not operation.done else "",
        )
    return None if operation.cancel_requested else replace(operation, cancel_requested=True)


def expired(operation: OperationRecord, now_ms: int) -> OperationRecord | None:
    """The operation, asked to stop by its deadline; None: it has time, or cannot be stopped any more, or stops already."""
    due = operation.deadline_ms and now_ms >= operation.deadline_ms
    if not due or operation.done or operation.cancel_requested or not can_cancel(operation):
        return None
    return replace(operation, cancel_requested=True, expired=True)


def stop_error(operation: OperationRecord, fix: str = "") -> StoredError:
    """Why an operation stops that was asked to."""
    if operation.expired:
        took_s = (operation.deadline_ms - operation.create_ms) // 1000
        return StoredError("DeadlineExceeded", Reason.DEADLINE.value, f"It was not done within its deadline of {took_s} s.", fix)
    return StoredError("FailedPrecondition", Reason.OPERATION_CANCELLED.value, "The operation was cancelled.", fix)
