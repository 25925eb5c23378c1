"""Which server a call goes to, and what happens when that one does not answer: the same for a cluster's replicas and for a single host.

One channel per endpoint; the one that answered last is asked first. A call that found nobody, or whose answer did not come, is asked again of
the next replica: every call of the API may be repeated (reads; mutations because each carries one request_id). All of it is bounded by a
deadline, and after each full round by a pause. When a full round found nobody, `diagnosis` says why; what no repeat can change ends the call
there. Nothing here knows what is asked: the stubs are `Api.stubs`, whatever they are.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio

from hostler import channel_options, credentials, diagnosis
from hostler.cancellation import cancellation_kept
from hostler.errors import DeadlineExceeded, HostlerError, Internal, NotFound, PermissionDenied, Reason, Unauthenticated, Unavailable
from hostler.rpc_status import DETAILS_KEY, from_rpc_error
from hostler.server.identity import PrincipalKind
from hostler.settings import Settings

ATTEMPTS_IN_TIME = 3
"""A replica that hangs gets this part of the time: enough is left to ask two others."""
RECONNECT_S = 60.0
"""A stream that nobody could continue for so long is given up; a restart of all replicas takes seconds."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
"""Between rounds over all replicas; doubled each time."""

MAX_MESSAGE_BYTES = 16 << 20
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    *channel_options.OPTIONS,
)

Q = TypeVar("Q")
A = TypeVar("A")
S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Api(Generic[S]):
    """One kind of server. `vms`, `volumes` and `operations` are the generated modules of its messages: a cluster and a host have the same ones twice.

    `who`: what such a server is called in sentences; `unreachable`: the reason when none answers.
    """

    stubs: Callable[[grpc.aio.Channel], S]
    vms: Any
    volumes: Any
    operations: Any
    who: str
    unreachable: Reason


@dataclass(frozen=True, slots=True, eq=False)
class Replica(Generic[S]):
    """One endpoint's channel and stubs. A single host is its only replica."""

    endpoint: str
    channel: grpc.aio.Channel
    stubs: S


class Connection(Generic[S]):
    """Channels to all replicas of one cluster, or to one host. Made and closed in one event loop."""

    def __init__(self, settings: Settings, api: Api[S]) -> None:
        """Raises InvalidRequest if a certificate file cannot be used. Nothing is dialled yet."""
        pem = credentials.read(settings)
        channels = [(endpoint, _channel(endpoint, settings, pem)) for endpoint in settings.endpoints]
        self._replicas = [Replica(endpoint, channel, api.stubs(channel)) for endpoint, channel in channels]
        self._preferred = 0
        self.settings = settings
        self.api = api

    @property
    def replica(self) -> Replica[S]:
        """Who is asked next."""
        return self._replicas[self._preferred]

    @property
    def endpoints(self) -> tuple[str, ...]:
        return self.settings.endpoints

    def avoid(self, replica: Replica[S]) -> None:
        """Ask the next one from now on; of several callers that met the same failure only the first moves on."""
        if self.replica is replica:
            self._preferred = (self._preferred + 1) % len(self._replicas)

    def refused(self, replica: Replica[S], error: grpc.aio.AioRpcError) -> HostlerError:
        """The error behind a failed call, as this server's user should read it."""
        refused = from_rpc_error(error, unreachable=self.api.unreachable)
        if error.code() is grpc.StatusCode.UNIMPLEMENTED and _unexplained(error):
            return _with_cause(self._stranger(replica), error)
        if isinstance(refused, PermissionDenied) and refused.reason is Reason.IDENTITY_NOT_ALLOWED:
            return _with_cause(self._not_a_user(refused), error)
        return refused

    async def call(self, pick: "Callable[[S], grpc.aio.UnaryUnaryMultiCallable[Q, A]]", request: Q, *, already_gone: A | None = None) -> A:
        """The answer of the first replica that gives one. Raises HostlerError: the refusal, or Unavailable when the time has passed.

        `already_gone`: the answer when a repeat finds nothing there any more; for deletions that keep no operation to answer with.
        """
        attempts, repeated = Attempts(self, self.settings.call_s), False
        while True:
            replica = self.replica
            try:
                with cancellation_kept():
                    return await pick(replica.stubs)(request, timeout=min(self.settings.call_s / ATTEMPTS_IN_TIME, attempts.left_s))
            except grpc.aio.AioRpcError as error:
                refused = self.refused(replica, error)
            if repeated and already_gone is not None and isinstance(refused, NotFound):
                return already_gone
            await attempts.failed(replica, refused)
            repeated = True

    async def stream(
        self, replica: Replica[S], begin: "Callable[[S], grpc.aio.UnaryStreamCall[Any, A]]", quiet_s: float
    ) -> AsyncGenerator[A]:
        """What that replica tells, for ever. Raises HostlerError when it tells no more: Unavailable also when it was silent for `quiet_s`."""
        call = begin(replica.stubs)
        try:
            while True:
                async with asyncio.timeout(quiet_s):
                    with cancellation_kept():
                        answer: Any = await call.read()
                if answer is grpc.aio.EOF:
                    raise Unavailable(self.api.unreachable, "The server ended the watch.")
                yield answer
        except TimeoutError as error:
            raise Unavailable(self.api.unreachable, f"The server was silent for {quiet_s:g} s.") from error
        except grpc.aio.AioRpcError as error:
            raise self.refused(replica, error) from error
        finally:
            call.cancel()

    async def close(self) -> None:
        for replica in self._replicas:
            await replica.channel.close()

    def _stranger(self, replica: Replica[S]) -> HostlerError:
        return Internal(
            Reason.INTERNAL,
            f"The server at {replica.endpoint} does not know this call: it is no {self.api.who} of Hostler's, or one of another version.",
            "Check the address; use client and server of the same version.",
        )

    def _not_a_user(self, refused: HostlerError) -> HostlerError:
        """Only users command; whoever uses a daemon's certificate is told what it is."""
        principal = None if self.settings.insecure else credentials.judged(self.settings).principal
        if principal is None or principal.kind is PrincipalKind.USER:
            return refused
        return PermissionDenied(
            refused.reason,
            f"{self.settings.cert} is the certificate of {principal.kind} {principal.id}, and only users may ask this.",
            "Use a user's certificate: `hostler pki issue user NAME`.",
            metadata=refused.metadata,
        )


class Attempts:
    """When to ask the next replica, how long to pause, and when to give up."""

    def __init__(self, connection: Connection[Any], limit_s: float) -> None:
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
        self._findings: tuple[diagnosis.Finding | None, ...] = ()

    async def failed(self, replica: Replica[Any], error: HostlerError) -> None:
        """Return when the next attempt may be made. Raises `error` if another replica would say the same, or the limit is reached."""
        if not _transient(error):
            raise error
        self._connection.avoid(replica)
        self._failures += 1
        rounds, rest = divmod(self._failures, len(self._connection.endpoints))
        if not rest and not self._findings and _unheard(error):
            self._findings = await diagnosis.findings(self._connection.settings)
            if all(found is not None and found.lasting for found in self._findings):
                raise self._given_up(error)
        pause_s = 0.0 if rest else min(LONGEST_PAUSE_S, max(error.retry_after_s or 0.0, FIRST_PAUSE_S * 2.0 ** (rounds - 1)))
        if pause_s >= self.left_s or self.left_s <= 0.001:
            raise self._given_up(error)
        await asyncio.sleep(pause_s)

    def _given_up(self, error: HostlerError) -> HostlerError:
        cause = error.__cause__
        if not isinstance(cause, grpc.aio.AioRpcError) or not _unheard(error):
            return error
        asked, api = self._connection.endpoints, self._connection.api
        metadata = {"endpoints": ",".join(asked)}
        if any(self._findings):
            message, fix = diagnosis.told(self._findings, self._connection.settings, api.who)
            if all(found is not None and found.ours for found in self._findings):
                return _with_cause(Unauthenticated(Reason.IDENTITY_MISSING, message, fix, metadata=metadata), cause)
            return _with_cause(Unavailable(api.unreachable, message, fix, metadata=metadata), cause)
        who = f"The {api.who} at {asked[0]} did not answer" if len(asked) == 1 else f"None of {len(asked)} {api.who}s answered"
        told = Unavailable(
            api.unreachable,
            f"{who} within {self._limit_s:g} s.",
            "Check the addresses and the certificates, then repeat with the same request_id.",
            metadata={**metadata, "detail": cause.details() or ""},
        )
        return _with_cause(told, cause)


def _transient(error: HostlerError) -> bool:
    """Whether asking again, of another replica, may bring another answer."""
    return isinstance(error, Unavailable | DeadlineExceeded) or error.reason in (Reason.TOO_MANY_REQUESTS, Reason.CLAIM_CONFLICT)


def _unheard(error: HostlerError) -> bool:
    """Whether no server said this: gRPC did, for want of one."""
    cause = error.__cause__
    return isinstance(cause, grpc.aio.AioRpcError) and isinstance(error, Unavailable | DeadlineExceeded) and _unexplained(cause)


def _unexplained(error: grpc.aio.AioRpcError) -> bool:
    return all(key != DETAILS_KEY for key, _ in error.trailing_metadata() or ())


def _with_cause(error: HostlerError, cause: BaseException) -> HostlerError:
    error.__cause__ = cause
    return error


def _channel(endpoint: str, settings: Settings, pem: credentials.Pem | None) -> grpc.aio.Channel:
    if pem is None:
        return grpc.aio.insecure_channel(endpoint, options=OPTIONS)
    tls = grpc.ssl_channel_credentials(pem.ca, pem.key, pem.cert)
    named = [("grpc.ssl_target_name_override", settings.server_name)] if settings.server_name else []
    return grpc.aio.secure_channel(endpoint, tls, options=[*OPTIONS, *named])
