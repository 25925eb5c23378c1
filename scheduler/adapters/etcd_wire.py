"""How the store port's values look on etcd's wire, and which of etcd's errors prove that nothing was written.

Keys are UTF-8; bytes that are not, written by somebody else under a prefix of ours, survive the way in and out (surrogateescape) instead of
breaking a listing. A transaction carries one read per guard in its failure branch, so that a refusal says in the same round trip what
stands there now.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import grpc
from google.protobuf.message import Message

from hostler.internal.etcd.v1 import wire_pb2 as wire
from scheduler.ports import (
    Committed,
    Compare,
    KeyDeleted,
    KeyEvent,
    KeyPut,
    KeyValue,
    LeaseLost,
    OutcomeUnknown,
    Put,
    Refused,
    RevisionCompacted,
    SameCreation,
    StoreUnavailable,
    TxnResult,
    Write,
)

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


@dataclass(frozen=True, slots=True)
class Method(Generic[Request, Response]):
    """One method of etcd: its path and its messages."""

    path: str
    request: type[Request]
    response: type[Response]


RANGE = Method("/etcdserverpb.KV/Range", wire.RangeRequest, wire.RangeResponse)
TXN = Method("/etcdserverpb.KV/Txn", wire.TxnRequest, wire.TxnResponse)
WATCH = Method("/etcdserverpb.Watch/Watch", wire.WatchRequest, wire.WatchResponse)
LEASE_GRANT = Method("/etcdserverpb.Lease/LeaseGrant", wire.LeaseGrantRequest, wire.LeaseGrantResponse)
LEASE_REVOKE = Method("/etcdserverpb.Lease/LeaseRevoke", wire.LeaseRevokeRequest, wire.LeaseRevokeResponse)
LEASE_KEEP_ALIVE = Method("/etcdserverpb.Lease/LeaseKeepAlive", wire.LeaseKeepAliveRequest, wire.LeaseKeepAliveResponse)
STATUS = Method("/etcdserverpb.Maintenance/Status", wire.StatusRequest, wire.StatusResponse)

REQUIRE_LEADER = (("hasleader", "true"),)
"""A member that knows no leader refuses at once, before it looks at the request, instead of keeping the caller waiting."""

NO_LEADER = "etcdserver: no leader"
"""That refusal. etcd has no other place that answers this text, so the request it answers was not applied."""

REFUSED_BEFORE_APPLYING = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
"""etcd checks form, identity and permission before it writes. RESOURCE_EXHAUSTED is not here: "database space exceeded" is also what its
applier returns after a write that crossed the quota. UNAVAILABLE and DEADLINE_EXCEEDED say nothing about the write."""

ALL_KEYS = b"\0"


def key_bytes(key: str) -> bytes:
    return key.encode(errors="surrogateescape")


def _key_text(key: bytes) -> str:
    return key.decode(errors="surrogateescape")


def prefix_range(prefix: str) -> tuple[bytes, bytes]:
    """[first, end) of all keys that begin with `prefix`; the empty prefix is every key."""
    first = key_bytes(prefix)
    stem = first.rstrip(b"\xff")
    if not stem:
        return first or ALL_KEYS, ALL_KEYS
    return first, stem[:-1] + bytes([stem[-1] + 1])


def after(key: bytes) -> bytes:
    """The smallest key greater than `key`."""
    return key + b"\0"


def key_value(item: wire.KeyValue) -> KeyValue:
    return KeyValue(_key_text(item.key), item.value, item.create_revision, item.mod_revision, item.version, item.lease)


def key_event(event: wire.Event) -> KeyEvent:
    if event.type == wire.Event.DELETE:
        return KeyDeleted(_key_text(event.kv.key), event.kv.mod_revision)
    return KeyPut(key_value(event.kv))


def txn_request(compares: Sequence[Compare], writes: Sequence[Write]) -> wire.TxnRequest:
    return wire.TxnRequest(
        compare=[_compare(compare) for compare in compares],
        success=[_write(write) for write in writes],
        failure=[wire.RequestOp(request_range=wire.RangeRequest(key=key_bytes(compare.key))) for compare in compares],
    )


def txn_result(response: wire.TxnResponse) -> TxnResult:
    if response.succeeded:
        return Committed(response.header.revision)
    ranges = (answer.response_range.kvs for answer in response.responses)
    return Refused(response.header.revision, tuple(key_value(kvs[0]) if kvs else None for kvs in ranges))


def _compare(compare: Compare) -> wire.Compare:
    key = key_bytes(compare.key)
    if isinstance(compare, SameCreation):
        return wire.Compare(target=wire.Compare.CREATE, key=key, create_revision=compare.create_revision)
    return wire.Compare(target=wire.Compare.MOD, key=key, mod_revision=compare.mod_revision)


def _write(write: Write) -> wire.RequestOp:
    if isinstance(write, Put):
        return wire.RequestOp(request_put=wire.PutRequest(key=key_bytes(write.key), value=write.value, lease=write.lease_id))
    return wire.RequestOp(request_delete_range=wire.DeleteRangeRequest(key=key_bytes(write.key)))


def is_no_leader(error: grpc.aio.AioRpcError) -> bool:
    return error.code() is grpc.StatusCode.UNAVAILABLE and error.details() == NO_LEADER


def read_failure(error: grpc.aio.AioRpcError) -> Exception:
    """What a failed read is on the port. OUT_OF_RANGE is a revision compacted or in the future."""
    if error.code() is grpc.StatusCode.OUT_OF_RANGE:
        return RevisionCompacted(0)
    return StoreUnavailable(_text(error))


def write_failure(error: grpc.aio.AioRpcError) -> Exception:
    """What a failed write is on the port: StoreUnavailable only where it is proved that it was not applied."""
    if error.code() is grpc.StatusCode.NOT_FOUND:
        return LeaseLost(_text(error))
    if is_no_leader(error) or error.code() in REFUSED_BEFORE_APPLYING:
        return StoreUnavailable(_text(error))
    return OutcomeUnknown(_text(error))


def _text(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name}: {error.details()}"
