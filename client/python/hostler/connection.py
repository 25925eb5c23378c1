"""Which replica a call goes to, and what happens when that one does not answer.

One channel per endpoint; the one that answered last is asked first. A call that found nobody, or whose answer did not come, is asked again of
the next replica: every call of the API may be repeated (reads; mutations because each carries one request_id). All of it is bounded by a
deadline, and after each full round by a pause. Nothing here knows what is asked.
"""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import grpc
import grpc.aio

from hostler.api.cluster.v1 import flavors_pb2_grpc, nodes_pb2_grpc, operations_pb2_grpc, vms_pb2_grpc, volumes_pb2_grpc
from hostler.cancellation import cancellation_kept
from hostler.context import variables
from hostler.errors import DeadlineExceeded, HostlerError, InvalidRequest, NotFound, Reason, Unavailable, Violation
from hostler.rpc_status import from_rpc_error

if TYPE_CHECKING:
    from hostler.api.cluster.v1.flavors_pb2_grpc import FlavorServiceAsyncStub
    from hostler.api.cluster.v1.nodes_pb2_grpc import NodeServiceAsyncStub
    from hostler.api.cluster.v1.operations_pb2_grpc import OperationServiceAsyncStub
    from hostler.api.cluster.v1.vms_pb2_grpc import VMServiceAsyncStub
    from hostler.api.cluster.v1.volumes_pb2_grpc import VolumeServiceAsyncStub

SERVER_NAME = "scheduler.hostler.internal"
"""What every replica's certificate says, whatever address is dialled."""

CALL_S = 15.0
"""A call with all its repeats, unless the settings say otherwise."""
MAX_CALL_S = 300.0
"""Servers end a unary call after this."""
ATTEMPTS_IN_TIME = 3
"""A replica that hangs gets this part of the time: enough is left to ask two others."""
RECONNECT_S = 60.0
"""A stream that nobody could continue for so long is given up; a restart of all replicas takes seconds."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
"""Between rounds over all replicas; doubled each time."""
MAX_ENDPOINTS = 16

MAX_MESSAGE_BYTES = 16 << 20
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A dead peer is found within 20 s also while nothing is asked of it.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A replica that restarts is found again within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_http_proxy", 0),
)

Q = TypeVar("Q")
A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the cluster is and who we are. `cert`, `key` and `ca` are PEM files; all three, or `insecure` and none is used.

    `call_s`: how long one call may take with all its repeats.
    """

    endpoints: tuple[str, ...]
    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    insecure: bool = False
    call_s: float = CALL_S


def settings(
    endpoints: str | Sequence[str] | None = None,
    *,
    cert: str | Path | None = None,
    key: str | Path | None = None,
    ca: str | Path | None = None,
    insecure: bool | None = None,
    call_s: float | None = None,
    context: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """What is not given comes from the context, or from HOSTLER_ENDPOINT, HOSTLER_CERT, HOSTLER_KEY, HOSTLER_CA, HOSTLER_INSECURE: see
    `hostler.context`; `call_s` from HOSTLER_CALL_TIMEOUT, else CALL_S. Raises InvalidRequest; NotFound for the context.
    """
    env = variables(context, os.environ if environment is None else environment)
    given = endpoints if endpoints else env.get("HOSTLER_ENDPOINT", "")
    listed = tuple(part.strip() for part in (given.split(",") if isinstance(given, str) else given) if part.strip())
    if insecure and (cert or key or ca):
        raise _unusable(
            "insecure", "is set together with a certificate", "Give either the certificate, its key and the authority, or insecure."
        )
    if insecure is None:
        # Who names a certificate wants TLS, whatever the surroundings say.
        insecure = not (cert or key or ca) and env.get("HOSTLER_INSECURE", "").lower() in ("1", "true", "yes")
    if not listed:
        raise _unusable(
            "endpoint", "is not set", "Set HOSTLER_ENDPOINT to host:port[,host:port] of the schedulers, or give --endpoint or --context."
        )
    if len(listed) > MAX_ENDPOINTS:
        raise _unusable("endpoint", f"has {len(listed)} entries", f"Name at most {MAX_ENDPOINTS} replicas.")
    for one in listed:
        if not one.rpartition(":")[0] or not one.rpartition(":")[2].isdigit():
            raise _unusable("endpoint", f"{one!r} is not host:port", "Give the scheduler's address and port, as in 10.0.0.1:7443.")
    call_s = call_s or _seconds(env.get("HOSTLER_CALL_TIMEOUT", ""))
    if insecure:
        return Settings(listed, insecure=True, call_s=call_s)
    return Settings(listed, _file("cert", cert, env), _file("key", key, env), _file("ca", ca, env), call_s=call_s)


def _seconds(text: str) -> float:
    try:
        seconds = float(text or CALL_S)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds <= MAX_CALL_S:
        raise _unusable("call timeout", f"{text!r} is no number of seconds", f"Set HOSTLER_CALL_TIMEOUT to at most {MAX_CALL_S:g}.")
    return seconds


def _file(name: str, value: str | Path | None, env: Mapping[str, str]) -> Path:
    path = value or env.get(f"HOSTLER_{name.upper()}", "")
    if not path:
        raise _unusable(name, "is not set", f"Set HOSTLER_{name.upper()} to a PEM file, or give --{name}.")
    return Path(path)


def _unusable(field: str, problem: str, fix: str) -> InvalidRequest:
    return InvalidRequest(Reason.FIELD_INVALID, f"The {field} {problem}.", fix, (Violation(field, problem),))


@dataclass(frozen=True, slots=True, eq=False)
class Replica:
    """One endpoint's channel and stubs."""

    endpoint: str
    channel: grpc.aio.Channel
    vms: "VMServiceAsyncStub"
    nodes: "NodeServiceAsyncStub"
    volumes: "VolumeServiceAsyncStub"
    flavors: "FlavorServiceAsyncStub"
    operations: "OperationServiceAsyncStub"


class Connection:
    """Channels to all replicas of one cluster. Made and closed in one event loop."""

    def __init__(self, settings: Settings) -> None:
        """Raises InvalidRequest if a certificate file cannot be read. Nothing is dialled yet."""
        self._replicas = [_replica(endpoint, settings) for endpoint in settings.endpoints]
        self._preferred = 0
        self._call_s = settings.call_s

    @property
    def replica(self) -> Replica:
        """Who is asked next."""
        return self._replicas[self._preferred]

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(replica.endpoint for replica in self._replicas)

    def avoid(self, replica: Replica) -> None:
        """Ask the next one from now on; of several callers that met the same failure only the first moves on."""
        if self.replica is replica:
            self._preferred = (self._preferred + 1) % len(self._replicas)

    async def call(
        self, pick: "Callable[[Replica], grpc.aio.UnaryUnaryMultiCallable[Q, A]]", request: Q, *, already_gone: A | None = None
    ) -> A:
        """The answer of the first replica that gives one. Raises HostlerError: the refusal, or Unavailable when the time has passed.

        `already_gone`: the answer when a repeat finds nothing there any more; for deletions that keep no operation to answer with.
        """
        attempts, repeated = Attempts(self, self._call_s), False
        while True:
            replica = self.replica
            try:
                with cancellation_kept():
                    return await pick(replica)(request, timeout=min(self._call_s / ATTEMPTS_IN_TIME, attempts.left_s))
            except grpc.aio.AioRpcError as error:
                refused = from_rpc_error(error)
            if repeated and already_gone is not None and isinstance(refused, NotFound):
                return already_gone
            await attempts.failed(replica, refused)
            repeated = True

    async def close(self) -> None:
        for replica in self._replicas:
            await replica.channel.close()


class Attempts:
    """When to ask the next replica, how long to pause, and when to give up."""

    def __init__(self, connection: Connection, limit_s: float) -> None:
        """`limit_s`: without success for so long it is given up."""
        self._connection = connection
        self._limit_s = limit_s
        self.succeeded()

    @property
    def left_s(self) -> float:
        return max(0.001, self._end_s - asyncio.get_running_loop().time())

    def succeeded(self) -> None:
        """A stream brought something: the limit and the pauses begin anew."""
        self._end_s = asyncio.get_running_loop().time() + self._limit_s
        self._failures = 0

    async def failed(self, replica: Replica, error: HostlerError) -> None:
        """Return when the next attempt may be made. Raises `error` if another replica would say the same, or the limit is reached."""
        if not _transient(error):
            raise error
        self._connection.avoid(replica)
        self._failures += 1
        rounds, rest = divmod(self._failures, len(self._connection.endpoints))
        pause_s = 0.0 if rest else min(LONGEST_PAUSE_S, max(error.retry_after_s or 0.0, FIRST_PAUSE_S * 2.0 ** (rounds - 1)))
        if pause_s >= self.left_s or self.left_s <= 0.001:
            raise self._given_up(error)
        await asyncio.sleep(pause_s)

    def _given_up(self, error: HostlerError) -> HostlerError:
        cause = error.__cause__
        if not isinstance(cause, grpc.aio.AioRpcError) or error.reason not in (Reason.SCHEDULER_UNAVAILABLE, Reason.DEADLINE):
            return error
        asked = self._connection.endpoints
        who = f"The scheduler at {asked[0]} did not answer" if len(asked) == 1 else f"None of {len(asked)} schedulers answered"
        told = Unavailable(
            Reason.SCHEDULER_UNAVAILABLE,
            f"{who} within {self._limit_s:g} s.",
            "Check the addresses and the certificates, then repeat with the same request_id.",
            metadata={"endpoints": ",".join(asked), "detail": cause.details() or ""},
        )
        told.__cause__ = cause
        return told


def _transient(error: HostlerError) -> bool:
    """Whether asking again, of another replica, may bring another answer."""
    return isinstance(error, Unavailable | DeadlineExceeded) or error.reason is Reason.TOO_MANY_REQUESTS


def _replica(endpoint: str, settings: Settings) -> Replica:
    channel = _channel(endpoint, settings)
    return Replica(
        endpoint,
        channel,
        vms_pb2_grpc.VMServiceStub(channel),
        nodes_pb2_grpc.NodeServiceStub(channel),
        volumes_pb2_grpc.VolumeServiceStub(channel),
        flavors_pb2_grpc.FlavorServiceStub(channel),
        operations_pb2_grpc.OperationServiceStub(channel),
    )


def _channel(endpoint: str, settings: Settings) -> grpc.aio.Channel:
    if settings.insecure or settings.ca is None or settings.key is None or settings.cert is None:
        return grpc.aio.insecure_channel(endpoint, options=OPTIONS)
    credentials = grpc.ssl_channel_credentials(_read(settings.ca), _read(settings.key), _read(settings.cert))
    return grpc.aio.secure_channel(endpoint, credentials, options=[*OPTIONS, ("grpc.ssl_target_name_override", SERVER_NAME)])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unusable(
            "certificate file", f"{path} cannot be read ({error.strerror})", "Give files that exist and may be read."
        ) from error
