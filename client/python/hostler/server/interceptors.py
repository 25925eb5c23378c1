"""What happens around every RPC of both daemons, from the outside in:

1. errors: a `HostlerError` becomes its status; anything else is logged with its traceback under an incident id, and the client is told that
   id and nothing more. Cancellation passes.
2. log: ids bound to the log context, one line per call at its end, and an observer for metrics.
3. authentication: the one URI in the client's verified certificate is the principal; its cluster must be ours.
4. authorization: one table from method to roles; a method that is not in it is refused to everybody.
5. draining (`draining`): nothing new once the server is stopping.
6. deadline: unary calls always have one, the client's up to a cap, or ours. Streams live until the connection's age limit.
7. load: so many calls at once, in all and per principal, so that one caller cannot take the server from the others.
"""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import structlog

from hostler import rpc_status
from hostler.errors import DeadlineExceeded, HostlerError, Internal, NoCapacity, PermissionDenied, Reason, Unauthenticated
from hostler.server.clock import Clock, IdSource
from hostler.server.draining import Draining
from hostler.server.identity import IdentityError, Principal, current_principal, enter_principal, insecure_principal, parse_only_principal
from hostler.server.rpc_chain import Call, Step

log = structlog.get_logger(__name__)

CORRELATION_KEY = "x-request-id"
"""Metadata with which a caller may name its call in our log; not the `request_id` of the API, which makes calls idempotent."""
_CORRELATION = re.compile(r"[A-Za-z0-9._-]{1,64}")

Access = Mapping[str, frozenset[str]]
"""Full method name to the roles that may call it. A method that is absent is refused."""

RolesOf = Callable[[Principal], frozenset[str]]
"""The roles of a caller. The standing rule is `kind_roles`: node, scheduler or user."""

Observer = Callable[[str, grpc.StatusCode, float], None]
"""Told of each finished call: method, code, seconds."""


def kind_roles(principal: Principal) -> frozenset[str]:
    """The kind alone: "node", "scheduler" or "user"."""
    return frozenset((principal.kind.value,))


def ignore(_method: str, _code: grpc.StatusCode, _duration_s: float) -> None:
    """The observer of a server without metrics."""


@dataclass(frozen=True, slots=True)
class RpcLimits:
    """`per_principal` bounds one caller, the others bound the server."""

    default_deadline_s: float = 30.0
    max_deadline_s: float = 300.0
    unary: int = 512
    unary_per_principal: int = 128
    streams: int = 4096
    streams_per_principal: int = 64
    retry_after_s: float = 1.0


def standard_steps(
    *,
    cluster: str,
    access: Access,
    roles_of: RolesOf = kind_roles,
    limits: RpcLimits = RpcLimits(),
    allow_insecure: bool = False,
    observe: Observer = ignore,
    draining: Draining,
    clock: Clock,
    ids: IdSource,
) -> tuple[Step, ...]:
    """All steps in their order. `allow_insecure`: callers without TLS are `user/insecure-local`."""
    return (
        errors(ids),
        logged(clock, ids, observe),
        authenticated(cluster, allow_insecure),
        authorized(access, roles_of),
        draining.step,
        deadline(limits),
        bounded(limits),
    )


def errors(ids: IdSource) -> Step:
    """Turn whatever is raised into a status that is fit for the client."""

    @asynccontextmanager
    async def step(call: Call) -> AsyncIterator[None]:
        try:
            yield
        except grpc.aio.AbortError:
            raise  # The handler has already said everything (gRPC's own health service does it so).
        except Exception as err:
            await _abort(call, refusal_in(err) or _incident(err, ids))

    return step


def refusal_in(err: Exception) -> HostlerError | None:
    """The HostlerError that `err` is, or the first one if it is a TaskGroup's group of nothing else; None: something broke."""
    if isinstance(err, HostlerError):
        return err
    if isinstance(err, ExceptionGroup):
        inner = [refusal_in(leaf) for leaf in err.exceptions]
        return inner[0] if None not in inner else None
    return None


def _incident(err: Exception, ids: IdSource) -> Internal:
    incident = ids.uuid()
    log.error("incident", incident=incident, exc_info=err)
    fix = f"Give the incident id {incident} to whoever runs it; its log has the story."
    return Internal(Reason.INTERNAL, "Something broke inside the server.", fix, metadata={"incident": incident})


async def _abort(call: Call, err: HostlerError) -> None:
    status = rpc_status.to_status(err)
    await call.context.abort(
        rpc_status.code_of(err), status.message, trailing_metadata=((rpc_status.DETAILS_KEY, status.SerializeToString()),)
    )


def logged(clock: Clock, ids: IdSource, observe: Observer) -> Step:
    """One line per call: debug when it went well, warning when something was broken or out of reach, info for every other refusal."""

    @asynccontextmanager
    async def step(call: Call) -> AsyncIterator[None]:
        rpc_id = ids.uuid()
        structlog.contextvars.bind_contextvars(rpc_id=rpc_id, method=call.method, request_id=_correlation(call) or rpc_id)
        began_s = clock.monotonic_s()
        code, reason = grpc.StatusCode.UNKNOWN, ""
        try:
            yield
            code = grpc.StatusCode.OK
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except grpc.aio.AbortError:
            code, reason = call.context.code(), "ABORTED_BY_HANDLER"
            raise
        except Exception as err:
            refusal = refusal_in(err)
            code, reason = (rpc_status.code_of(refusal), refusal.reason.value) if refusal else (grpc.StatusCode.INTERNAL, "INTERNAL")
            raise
        finally:
            took_s = clock.monotonic_s() - began_s
            observe(call.method, code, took_s)
            _say(code, reason, took_s)

    return step


_LOUD = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def _say(code: grpc.StatusCode, reason: str, took_s: float) -> None:
    say = log.debug if code in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED) else log.warning if code in _LOUD else log.info
    say("rpc", code=code.name, reason=reason, duration_ms=round(took_s * 1000, 2))


def _correlation(call: Call) -> str | None:
    for key, value in call.context.invocation_metadata() or ():
        if key == CORRELATION_KEY and isinstance(value, str) and _CORRELATION.fullmatch(value):
            return value
    return None


def authenticated(cluster: str, allow_insecure: bool) -> Step:
    """Find out who calls, for `current_principal` and the log."""
    nobody = insecure_principal(cluster)

    @asynccontextmanager
    async def step(call: Call) -> AsyncIterator[None]:
        principal = _peer(call.context.auth_context(), nobody if allow_insecure else None)
        if principal.cluster != cluster:
            raise PermissionDenied(
                Reason.IDENTITY_NOT_ALLOWED,
                "This certificate belongs to another cluster.",
                "Use a certificate that was issued for this cluster.",
            )
        enter_principal(principal)
        structlog.contextvars.bind_contextvars(principal=str(principal))
        yield

    return step


def _peer(auth: Mapping[str, object], nobody: Principal | None) -> Principal:
    """The principal in gRPC's verdict on the connection. Raises Unauthenticated."""
    if auth.get("transport_security_type") != [b"ssl"]:
        if nobody is not None:
            return nobody
        raise Unauthenticated(Reason.IDENTITY_MISSING, "This server talks to callers with a certificate only.", "Connect with TLS.")
    uris = auth.get("peer_uri", [])
    try:
        return parse_only_principal([uri.decode("ascii") for uri in uris if isinstance(uri, bytes)] if isinstance(uris, list) else [])
    except (IdentityError, UnicodeDecodeError) as err:
        text = str(err) if isinstance(err, IdentityError) else "The certificate's URI is not ASCII."
        raise Unauthenticated(Reason.IDENTITY_MISSING, text, "Use a certificate made with hostler pki issue.") from err


def authorized(access: Access, roles_of: RolesOf) -> Step:
    """Refuse whoever has none of the method's roles."""

    @asynccontextmanager
    async def step(call: Call) -> AsyncIterator[None]:
        principal = current_principal()
        if access.get(call.method, frozenset()).isdisjoint(roles_of(principal)):
            raise PermissionDenied(
                Reason.IDENTITY_NOT_ALLOWED,
                f"{principal} may not call {call.method}.",
                "Use an identity with a role that may.",
            )
        yield

    return step


def deadline(limits: RpcLimits) -> Step:
    """Bound unary calls. When the client's deadline is the shorter one, gRPC itself cancels the call."""

    @asynccontextmanager
    async def step(call: Call) -> AsyncIterator[None]:
        if call.is_stream:
            yield
            return
        remaining_s = call.context.time_remaining()
        limit_s = limits.default_deadline_s if remaining_s is None else min(remaining_s, limits.max_deadline_s)
        timer = asyncio.timeout(limit_s)
        try:
            async with timer:
                yield
        except TimeoutError as err:
            if not timer.expired():
                raise  # The handler's own; it should have been handled there.
            raise DeadlineExceeded(
                Reason.DEADLINE,
                f"The call was not done within {limit_s:g} s.",
                "Read the state back, or repeat with the same request_id and a longer deadline.",
            ) from err

    return step


def bounded(limits: RpcLimits) -> Step:
    """Admit so many at once; unary calls and streams are counted apart."""
    running: Counter[tuple[bool, Principal | None]] = Counter()

    @asynccontextmanager
    async def step(call: Call) -> AsyncIterator[None]:
        total, mine = (call.is_stream, None), (call.is_stream, current_principal())
        most, most_mine = (limits.streams, limits.streams_per_principal) if call.is_stream else (limits.unary, limits.unary_per_principal)
        if running[total] >= most or running[mine] >= most_mine:
            what = "streams" if call.is_stream else "calls"
            raise NoCapacity(
                Reason.TOO_MANY_REQUESTS,
                f"Too many {what} at once.",
                f"At most {most_mine} per caller and {most} in all; wait and repeat.",
                retry_after_s=limits.retry_after_s,
            )
        running.update((total, mine))
        try:
            yield
        finally:
            running.subtract((total, mine))
            if running[mine] == 0:
                del running[mine]

    return step
