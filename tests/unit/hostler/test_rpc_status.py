"""The wire form of errors: nothing is lost on the way, nothing too long is sent, nothing odd can break the reader."""

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from hostler import errors, rpc_status
from hostler.errors import HostlerError, Internal, NotFound, Reason, Unavailable, Violation

CLASSES = [kind for kind in HostlerError.__subclasses__() if kind.__module__ == "hostler.errors"]
TEXT = st.text(max_size=40)
ERRORS = st.builds(
    lambda cls, *args: cls(*args),
    st.sampled_from(CLASSES),
    st.sampled_from(Reason),
    TEXT,
    TEXT,
    st.lists(st.builds(Violation, TEXT, TEXT), max_size=4).map(tuple),
    st.dictionaries(st.text(min_size=1, max_size=10), TEXT, max_size=4).map(lambda d: {f"m{k}": v for k, v in d.items()}),
    st.none() | st.integers(0, 3_600_000).map(lambda ms: ms / 1000),
)
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=600)


def rpc_error(code: grpc.StatusCode, status: bytes | None = None) -> grpc.aio.AioRpcError:
    trailing = grpc.aio.Metadata(*(() if status is None else ((rpc_status.DETAILS_KEY, status),)))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, "connect to 10.0.0.7 failed")


@given(ERRORS)
def test_a_caller_reads_exactly_what_the_server_said(err: HostlerError) -> None:
    wire = rpc_status.to_status(err).SerializeToString()
    back = rpc_status.from_rpc_error(rpc_error(rpc_status.code_of(err), wire))
    assert type(back) is type(err)
    assert (back.reason, back.message, back.fix) == (err.reason, err.message, err.fix)
    assert (back.violations, dict(back.metadata), back.retry_after_s) == (err.violations, dict(err.metadata), err.retry_after_s)


@given(
    st.sampled_from(CLASSES),
    ANY_TEXT,
    ANY_TEXT,
    st.lists(st.builds(Violation, ANY_TEXT, ANY_TEXT), max_size=60).map(tuple),
    st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=30),
    st.floats(),
)
def test_no_error_is_too_long_or_too_odd_for_the_trailers(
    cls: type[HostlerError], message: str, fix: str, violations: tuple[Violation, ...], metadata: dict[str, str], retry: float
) -> None:
    status = rpc_status.to_status(cls(Reason.VM_BUSY, message, fix, violations, metadata, retry))
    assert status.ByteSize() <= rpc_status.MAX_STATUS_BYTES
    assert len(status.message.encode()) <= rpc_status.MAX_MESSAGE_BYTES
    assert rpc_status.from_status(status).reason is Reason.VM_BUSY


def test_violations_that_do_not_fit_are_counted_not_dropped_silently() -> None:
    many = tuple(Violation(f"nodes/node-{i}", "memory: 4096 MiB asked, 12 MiB free") for i in range(5000))
    err = errors.NoCapacity(Reason.NO_FEASIBLE_NODE, "No node fits.", violations=many)
    status = rpc_status.to_status(err)
    back = rpc_status.from_status(status)
    assert status.ByteSize() <= rpc_status.MAX_STATUS_BYTES
    assert len(back.violations) > 10
    assert len(back.violations) + int(back.metadata["violations_omitted"]) == 5000


def test_every_class_of_the_taxonomy_has_a_code_of_its_own() -> None:
    codes = [rpc_status.code_of(cls(Reason.INTERNAL, "x")) for cls in CLASSES]
    assert len(set(codes)) == len(CLASSES) == 12


@pytest.mark.parametrize(
    ("violations", "cls", "detail"),
    [
        ("field_violations", errors.InvalidRequest, error_details_pb2.BadRequest),
        ("violations", errors.FailedPrecondition, error_details_pb2.PreconditionFailure),
        ("violations", errors.NoCapacity, error_details_pb2.QuotaFailure),
    ],
)
def test_other_languages_find_violations_in_the_standard_detail(violations: str, cls: type[HostlerError], detail: type[Message]) -> None:
    status = rpc_status.to_status(cls(Reason.VM_BUSY, "m", "Do it later.", (Violation("vm.name", "is busy"),)))
    packed = [detail.FromString(any_.value) for any_ in status.details if any_.Is(detail.DESCRIPTOR)]
    assert [v.description for v in getattr(packed[0], violations)] == ["is busy"]
    info = error_details_pb2.ErrorInfo.FromString(status.details[0].value)
    assert (info.reason, info.domain, info.metadata["fix"]) == ("VM_BUSY", "hostler.dev", "Do it later.")


@pytest.mark.parametrize("code", list(grpc.StatusCode))
@pytest.mark.parametrize("details", [None, b"", b"\xff\xff\xff", status_pb2.Status(code=99).SerializeToString()])
def test_a_bare_code_from_a_proxy_still_becomes_a_readable_error(code: grpc.StatusCode, details: bytes | None) -> None:
    err = rpc_status.from_rpc_error(rpc_error(code, details))
    assert isinstance(err, HostlerError)
    assert "10.0.0.7" not in str(err) + repr(dict(err.metadata))
    assert isinstance(err.__cause__, grpc.aio.AioRpcError)


def test_nobody_answering_names_who_was_called() -> None:
    plain = rpc_error(grpc.StatusCode.UNAVAILABLE)
    assert rpc_status.from_rpc_error(plain).reason is Reason.SCHEDULER_UNAVAILABLE
    node = rpc_status.from_rpc_error(plain, unreachable=Reason.NODE_UNREACHABLE)
    assert (type(node), node.reason) == (Unavailable, Reason.NODE_UNREACHABLE)


def test_details_of_another_code_than_the_calls_are_not_believed() -> None:
    lie = rpc_status.to_status(NotFound(Reason.VM_NOT_FOUND, "gone")).SerializeToString()
    assert not isinstance(rpc_status.from_rpc_error(rpc_error(grpc.StatusCode.UNAVAILABLE, lie)), NotFound)


def test_a_reason_from_a_newer_server_is_kept_as_text() -> None:
    status = rpc_status.to_status(NotFound(Reason.VM_NOT_FOUND, "gone"))
    info = error_details_pb2.ErrorInfo(reason="STAR_NOT_FOUND", domain="hostler.dev")
    status.details[0].Pack(info)
    back = rpc_status.from_status(status)
    assert (type(back), back.reason, back.metadata["reason"]) == (NotFound, Reason.INTERNAL, "STAR_NOT_FOUND")


def test_a_damaged_detail_does_not_hide_the_rest() -> None:
    status = rpc_status.to_status(Internal(Reason.INTERNAL, "m", retry_after_s=2.5))
    status.details[0].value = b"\xff"
    assert rpc_status.from_status(status).retry_after_s == 2.5
