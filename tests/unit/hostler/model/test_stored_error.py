"""A refusal that ended an operation, read again later: it must say all that it said at first."""

import inspect

import msgspec
import pytest

from hostler import errors
from hostler.errors import FailedPrecondition, HostlerError, Internal, NoCapacity, Reason, Violation
from hostler.model.records import StoredError
from nodeagent.ports import PoolFull

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, HostlerError) and kind is not HostlerError]


def kept(error: HostlerError) -> HostlerError:
    """Through the store and back."""
    return msgspec.json.decode(msgspec.json.encode(StoredError.of(error)), type=StoredError).refusal()


def parts(error: HostlerError) -> tuple[object, ...]:
    return (type(error), error.reason, error.message, error.fix, error.violations, error.metadata)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_kept(kind: type[HostlerError]) -> None:
    """An operation whose error has lost its field, or its class and so its status."""
    error = kind(Reason.POOL_CAPACITY_EXCEEDED, "Too large.", "Make it smaller.", (Violation("a.b", "is large"),), {"free": "7"})
    assert parts(kept(error)) == parts(error)


def test_a_derived_refusal_is_kept_as_what_it_is_derived_from() -> None:
    """A full pool that is told as an internal error, because only the host knows the class."""
    told = kept(PoolFull("Pool nas is full."))
    assert type(told) in (NoCapacity, FailedPrecondition)
    assert told.reason is not Reason.INTERNAL


@pytest.mark.parametrize(
    "stored", [StoredError("Novel", "NO_CAPACITY", "x"), StoredError("NotFound", "NOVEL", "x"), StoredError("Reason", "x", "x")]
)
def test_what_a_newer_version_stored_can_be_read(stored: StoredError) -> None:
    """A list of operations that fails for ever, because one of them was written by a newer replica."""
    told = stored.refusal()
    assert (type(told), told.message) == (Internal, "x")
