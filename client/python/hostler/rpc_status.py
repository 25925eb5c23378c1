"""How every `HostlerError` looks on the wire, and back: the one table from class to gRPC status code and google.rpc details.

Sent always: `ErrorInfo{reason, domain "hostler.dev", metadata}`. The fix travels as `metadata["fix"]` (a sentence, so not a `Help` link,
and one place to look for it in every language); `metadata` keys `fix` and `violations_omitted` belong to this module. Violations travel in
the detail made for their code: `PreconditionFailure` (FAILED_PRECONDITION), `QuotaFailure` (RESOURCE_EXHAUSTED), else `BadRequest`.
`retry_after_s` is `RetryInfo`.

All of it is HTTP/2 trailer text: a client drops a call whose trailers pass 8 KiB, so long messages are cut and violations that do not fit
are counted instead. Writing never fails, reading never raises: a status without usable details still gives the class of its code.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from hostler.errors import (
    AlreadyExists,
    Conflict,
    DeadlineExceeded,
    FailedPrecondition,
    HostlerError,
    Internal,
    InvalidRequest,
    NoCapacity,
    NotFound,
    OutOfRange,
    PermissionDenied,
    Reason,
    Unauthenticated,
    Unavailable,
    Violation,
)

DOMAIN = "hostler.dev"
DETAILS_KEY = "grpc-status-details-bin"

MAX_MESSAGE_BYTES = 480
"""grpc-message is percent-encoded (up to three times as long): 1.4 KiB of the 8 KiB at most."""

MAX_STATUS_BYTES = 4096
"""The serialized Status is sent as base64: 5.5 KiB of the 8 KiB."""

MAX_METADATA_ENTRIES = 12
MAX_METADATA_VALUE_BYTES = 160
"""With keys of 64 bytes at most, these stay below MAX_STATUS_BYTES together with the message and the fix."""

MAX_RETRY_AFTER_S = 3600.0
"""A hint beyond an hour is no hint."""

_CODE_OF: dict[type[HostlerError], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    NotFound: grpc.StatusCode.NOT_FOUND,
    AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    Conflict: grpc.StatusCode.ABORTED,
    NoCapacity: grpc.StatusCode.RESOURCE_EXHAUSTED,
    OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    Internal: grpc.StatusCode.INTERNAL,
}
_CLASS_OF: dict[int, type[HostlerError]] = {code.value[0]: cls for cls, code in _CODE_OF.items()}
# Cut off by the peer: like a deadline, the outcome must be read back.
_CLASS_OF[grpc.StatusCode.CANCELLED.value[0]] = DeadlineExceeded

# What is assumed when a code comes without a reason, which is what proxies and gRPC itself send. Anything else: Reason.INTERNAL.
_PLAIN_REASON: dict[type[HostlerError], Reason] = {
    InvalidRequest: Reason.FIELD_INVALID,
    Unauthenticated: Reason.IDENTITY_MISSING,
    PermissionDenied: Reason.IDENTITY_NOT_ALLOWED,
    NoCapacity: Reason.TOO_MANY_REQUESTS,
    OutOfRange: Reason.REVISION_UNKNOWN,
    Unavailable: Reason.SCHEDULER_UNAVAILABLE,
    DeadlineExceeded: Reason.DEADLINE,
}


def code_of(err: HostlerError) -> grpc.StatusCode:
    """The gRPC code of an error's class, or of the nearest one it is derived from; none in the table is a bug and goes out as INTERNAL."""
    return next((_CODE_OF[kind] for kind in type(err).__mro__ if kind in _CODE_OF), grpc.StatusCode.INTERNAL)


def to_status(err: HostlerError) -> status_pb2.Status:
    """The whole error as a google.rpc.Status of at most MAX_STATUS_BYTES."""
    info = error_details_pb2.ErrorInfo(reason=err.reason.value, domain=DOMAIN)
    for key, value in list(err.metadata.items())[:MAX_METADATA_ENTRIES]:
        info.metadata[_clean(key, 64)] = _clean(value, MAX_METADATA_VALUE_BYTES)
    if err.fix:
        info.metadata["fix"] = _clean(err.fix, MAX_MESSAGE_BYTES)
    details: list[Message] = [info]
    if err.retry_after_s is not None and math.isfinite(err.retry_after_s):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(min(max(err.retry_after_s, 0.0), MAX_RETRY_AFTER_S) * 1e9))
        details.append(retry)
    return _fitted(code_of(err), _clean(err.message, MAX_MESSAGE_BYTES), details, info, err)


def from_status(status: status_pb2.Status) -> HostlerError:
    """The error a Status stands for. A reason this version does not know is kept in `metadata["reason"]`."""
    cls = _CLASS_OF.get(status.code, Internal)
    reason, fix, metadata = _PLAIN_REASON.get(cls, Reason.INTERNAL), "", dict[str, str]()
    violations: list[Violation] = []
    retry_after_s: float | None = None
    for detail in _unpacked(status):
        match detail:
            case error_details_pb2.ErrorInfo():
                metadata = dict(detail.metadata)
                fix = metadata.pop("fix", "")
                if detail.domain == DOMAIN and detail.reason in Reason.__members__:
                    reason = Reason[detail.reason]
                else:
                    metadata["reason"] = detail.reason
            case error_details_pb2.RetryInfo():
                retry_after_s = detail.retry_delay.ToNanoseconds() / 1e9
            case error_details_pb2.BadRequest():
                violations += [Violation(v.field, v.description) for v in detail.field_violations]
            case error_details_pb2.PreconditionFailure() | error_details_pb2.QuotaFailure():
                violations += [Violation(v.subject, v.description) for v in detail.violations]
    return cls(reason, status.message, fix, tuple(violations), metadata, retry_after_s)


def from_rpc_error(err: grpc.aio.AioRpcError, *, unreachable: Reason = Reason.SCHEDULER_UNAVAILABLE) -> HostlerError:
    """The error behind a failed call; `err` becomes its `__cause__` (its text may name addresses: for logs, not for callers).

    `unreachable` is the reason when nobody answered: NODE_UNREACHABLE for who calls a node.
    """
    status = _status_in(err.trailing_metadata() or (), err.code())
    result = from_status(status) if status is not None else _plain(err.code(), unreachable)
    result.__cause__ = err
    return result


def _plain(code: grpc.StatusCode, unreachable: Reason) -> HostlerError:
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            return Unavailable(
                unreachable, "The server did not answer.", "Check its address and the certificates, then repeat with the same request_id."
            )
        case grpc.StatusCode.DEADLINE_EXCEEDED | grpc.StatusCode.CANCELLED:
            return DeadlineExceeded(
                Reason.DEADLINE, "The call ended before its answer came.", "Repeat it with the same request_id, or read the state back."
            )
        case grpc.StatusCode.UNIMPLEMENTED:
            return Internal(Reason.INTERNAL, "The server does not know this call.", "Use client and server of the same version.")
    cls = _CLASS_OF.get(code.value[0], Internal)
    return cls(_PLAIN_REASON.get(cls, Reason.INTERNAL), f"The call failed with {code.name} and no further explanation.")


def _status_in(metadata: Iterable[tuple[str, Any]], code: grpc.StatusCode) -> status_pb2.Status | None:
    """The Status in the trailers, unless it is damaged or speaks of another code than the call."""
    for key, value in metadata:
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                status = status_pb2.Status.FromString(value)
            except DecodeError:
                return None
            return status if status.code == code.value[0] else None
    return None


_DETAIL_TYPES: tuple[type[Message], ...] = (
    error_details_pb2.ErrorInfo,
    error_details_pb2.RetryInfo,
    error_details_pb2.BadRequest,
    error_details_pb2.PreconditionFailure,
    error_details_pb2.QuotaFailure,
)


def _unpacked(status: status_pb2.Status) -> list[Message]:
    """The details of a known type that can be parsed."""
    found: list[Message] = []
    for packed in status.details:
        for cls in _DETAIL_TYPES:
            if packed.Is(cls.DESCRIPTOR):
                try:
                    found.append(cls.FromString(packed.value))
                except DecodeError:
                    break
    return found


def _fitted(
    code: grpc.StatusCode, message: str, details: Sequence[Message], info: error_details_pb2.ErrorInfo, err: HostlerError
) -> status_pb2.Status:
    """The Status with as many violations as fit; how many did not is `metadata["violations_omitted"]`."""
    keep = len(err.violations)
    while True:
        if keep < len(err.violations):
            info.metadata["violations_omitted"] = str(len(err.violations) - keep)
        status = status_pb2.Status(code=code.value[0], message=message)
        for detail in (*details, *_violations(code, err, keep)):
            status.details.add().Pack(detail)
        if status.ByteSize() <= MAX_STATUS_BYTES or keep == 0:
            return status if status.code == code.value[0] else None
        # Halving bounds this loop by log2 of the number of violations.
        keep //= 2


def _violations(code: grpc.StatusCode, err: HostlerError, keep: int) -> list[Message]:
    pairs = [(_clean(v.field, 256), _clean(v.description, 512)) for v in err.violations[:keep]]
    if not pairs:
        return []
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        failure = error_details_pb2.PreconditionFailure()
        for subject, text in pairs:
            failure.violations.add(type=err.reason.value, subject=subject, description=text)
        return [failure]
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        quota = error_details_pb2.QuotaFailure()
        for subject, text in pairs:
            quota.violations.add(subject=subject, description=text)
        return [quota]
    bad = error_details_pb2.BadRequest()
    for field, text in pairs:
        bad.field_violations.add(field=field, description=text)
    return [bad]


def _clean(text: str, max_bytes: int) -> str:
    """Text that protobuf accepts (no lone surrogates), cut on a character boundary."""
    raw = text.encode("utf-8", "replace")
    return raw.decode() if len(raw) <= max_bytes else raw[: max_bytes - 3].decode("utf-8", "ignore") + "…"
