"""The wire's edges: where a prefix ends, keys that are not text, where a channel leads, and which errors prove that nothing was written."""

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.internal.etcd.v1 import wire_pb2 as wire
from scheduler.adapters.etcd_channels import EtcdConfig, targets
from scheduler.adapters.etcd_wire import key_bytes, key_value, prefix_range, read_failure, write_failure
from scheduler.ports import LeaseLost, OutcomeUnknown, RevisionCompacted, StoreUnavailable


def in_range(key: bytes, first: bytes, end: bytes) -> bool:
    """etcd's own reading of a range."""
    return key >= first and (end == b"\0" or key < end)


NEAR_THE_EDGES = st.lists(st.sampled_from([0x00, 0x01, 0x61, 0xFE, 0xFF]), max_size=3).map(bytes)


@given(NEAR_THE_EDGES.filter(bool), NEAR_THE_EDGES)
def test_range_of_a_prefix_is_exactly_the_keys_that_begin_with_it(key: bytes, prefix: bytes) -> None:
    """Also where the prefix ends in 0xff, which has no next byte."""
    text = prefix.decode(errors="surrogateescape")
    first, end = prefix_range(text)
    assert first  # etcd refuses an empty key
    assert in_range(key, first, end) == key.startswith(prefix)


@given(st.binary(max_size=8))
def test_key_of_any_bytes_survives(key: bytes) -> None:
    """One odd key of somebody else's must not break every listing."""
    assert key_bytes(key_value(wire.KeyValue(key=key)).key) == key


def failure(code: grpc.StatusCode, details: str = "") -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_failed_write_is_unknown_unless_it_is_proved_undone(code: grpc.StatusCode) -> None:
    """The list of proofs is short; a status nobody thought of must end as unknown."""
    proofs = {"INVALID_ARGUMENT", "FAILED_PRECONDITION", "PERMISSION_DENIED", "UNAUTHENTICATED", "UNIMPLEMENTED"}
    wanted = StoreUnavailable if code.name in proofs else LeaseLost if code.name == "NOT_FOUND" else OutcomeUnknown
    assert type(write_failure(failure(code))) is wanted


def test_no_leader_is_proof_and_a_timeout_is_not() -> None:
    """Both are UNAVAILABLE; only the first is said before the request is looked at."""
    code = grpc.StatusCode.UNAVAILABLE
    assert type(write_failure(failure(code, "etcdserver: no leader"))) is StoreUnavailable
    assert type(write_failure(failure(code, "etcdserver: request timed out"))) is OutcomeUnknown
    assert type(write_failure(failure(code, "etcdserver: leader changed"))) is OutcomeUnknown


def test_failed_read_did_not_happen() -> None:
    """A revision the store does not have is another answer than silence."""
    assert type(read_failure(failure(grpc.StatusCode.OUT_OF_RANGE))) is RevisionCompacted
    assert type(read_failure(failure(grpc.StatusCode.UNAVAILABLE))) is StoreUnavailable


@pytest.mark.parametrize(
    ("endpoints", "wanted"),
    [
        (("10.0.0.1:2379",), ("ipv4:10.0.0.1:2379",)),
        (("10.0.0.1:2379", "10.0.0.2:2379"), ("ipv4:10.0.0.1:2379", "ipv4:10.0.0.2:2379")),
        (("[fd00::1]:2379", "10.0.0.2:2379"), ("ipv6:[fd00::1]:2379", "ipv4:10.0.0.2:2379")),
        (("a.example:2379", "b.example:2379"), ("dns:///a.example:2379", "dns:///b.example:2379")),
    ],
)
def test_every_endpoint_has_a_channel_of_its_own(endpoints: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    """A member left out is a member that cannot take over."""
    assert targets(EtcdConfig(endpoints)) == wanted


@pytest.mark.parametrize(
    "config",
    [
        EtcdConfig(()),
        EtcdConfig(("10.0.0.1",)),
        EtcdConfig(("http://10.0.0.1:2379",)),
        EtcdConfig(("fd00::1:2379",)),
        EtcdConfig(("10.0.0.1:2379", "10.0.0.1:2379")),
    ],
)
def test_endpoints_that_cannot_work_are_refused_at_the_start(config: EtcdConfig) -> None:
    """Better than a store that silently uses the first, or counts one member twice."""
    with pytest.raises(ValueError, match="etcd"):
        targets(config)
