"""One channel to an etcd cluster: where it leads, how long each call may take, and when a call may be made again.

A write is sent at most once: first the channel must be READY (otherwise nothing was sent, which is StoreUnavailable), then one call whose failure
is OutcomeUnknown unless etcd's answer proves otherwise; only "no leader" (proved not applied) is tried on another member. A read may be
repeated, so it gets a second member while its deadline lasts. gRPC's own retries are limited to calls the server never saw.
Every stream is opened by `stream`, which cancels it in the end: grpc.aio frees no stream that is merely dropped.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Any

import grpc

from hostler.cancellation import cancellation_kept
from hostler.channel_options import RECONNECT
from hostler.server.clock import Clock
from scheduler.adapters.etcd_wire import REQUIRE_LEADER, Method, Request, Response, is_no_leader, read_failure, write_failure
from scheduler.ports import OutcomeUnknown, StoreUnavailable

CONNECT_DEADLINE_S = 1.5
"""For the channel to become ready, where it is not known to have failed; so that "unreachable" is said within 2 s."""

READ_DEADLINE_S = 2.0
"""One read in all. A healthy member answers in milliseconds; an election at etcd's default timings takes about 1 s."""

READ_ATTEMPT_S = 1.0
"""One attempt of a read, so that a hung member costs half of the deadline and another is asked."""

WRITE_DEADLINE_S = 3.0
"""For the reply to a write: an election fits in, so that fewer writes end with an unknown outcome."""

MAX_ATTEMPTS = 3
"""Of a call that may be repeated: the usual number of members."""

MAX_RECEIVE_BYTES = 32 << 20
"""A refused transaction answers up to 128 values of 64 KiB (8 MiB); gRPC's default is 4 MiB."""

KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS = 10_000, 5_000
"""etcd answers pings more often than every 5 s (--grpc-keepalive-min-time) with GOAWAY."""

OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.lb_policy_name", "round_robin"),
    *RECONNECT,
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
    ("grpc.max_send_message_length", MAX_RECEIVE_BYTES),
    ("grpc.enable_http_proxy", 0),  # the store is never behind the environment's web proxy
    ("grpc.use_local_subchannel_pool", 1),  # two stores in one process share no connection and no backoff
)


class StoreClosed(StoreUnavailable):
    """`close` was called, before the call or while it was under way."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files for mutual TLS. `server_name` is a name that every member's certificate carries; needed when there are several endpoints."""

    ca: Path
    cert: Path
    key: Path
    server_name: str = ""


@dataclass(frozen=True, slots=True)
class EtcdConfig:
    """Where etcd is: `host:port` per member. Several must be IP addresses of one family; a single one may be a name. No `tls`: plain text."""

    endpoints: tuple[str, ...]
    tls: TlsFiles | None = None


def target(config: EtcdConfig) -> str:
    """The gRPC target of the members. Raises ValueError for endpoints that one target cannot hold."""
    if not config.endpoints:
        raise ValueError("etcd needs at least one endpoint, as host:port")
    hosts = [_host(endpoint) for endpoint in config.endpoints]
    families = {_family(host) for host in hosts}
    if families == {"dns"} and len(hosts) == 1:
        return f"dns:///{config.endpoints[0]}"
    if len(families) > 1 or families == {"dns"}:
        raise ValueError("several etcd endpoints must be IP addresses of one family (or one DNS name that stands for all)")
    if config.tls is not None and len(hosts) > 1 and not config.tls.server_name:
        raise ValueError("several etcd endpoints with TLS need server_name: a name that every member's certificate carries")
    return f"{families.pop()}:{','.join(config.endpoints)}"


def _host(endpoint: str) -> str:
    host, colon, port = endpoint.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not bare or not colon or not port.isdecimal() or "/" in host or (":" in bare) != (host != bare):
        raise ValueError(f"etcd endpoint {endpoint!r} is not host:port (an IPv6 address in brackets, no scheme)")
    return bare


def _family(host: str) -> str:
    try:
        return "ipv4" if isinstance(ip_address(host), IPv4Address) else "ipv6"
    except ValueError:
        return "dns"


def open_channel(config: EtcdConfig) -> grpc.aio.Channel:
    """Reads the certificates; connects later. Raises ValueError, OSError (a certificate that cannot be read)."""
    where = target(config)
    if config.tls is None:
        return grpc.aio.insecure_channel(where, options=OPTIONS)
    tls = config.tls
    credentials = grpc.ssl_channel_credentials(tls.ca.read_bytes(), tls.key.read_bytes(), tls.cert.read_bytes())
    name = tls.server_name or _host(config.endpoints[0])
    return grpc.aio.secure_channel(where, credentials, options=(*OPTIONS, ("grpc.ssl_target_name_override", name)))


class EtcdConnection:
    """The calls and streams of one channel. Make it inside a running event loop."""

    def __init__(self, config: EtcdConfig, clock: Clock) -> None:
        self._channel = open_channel(config)
        self._clock = clock
        self._stubs: dict[str, Any] = {}
        self._streams: set[grpc.aio.StreamStreamCall[Any, Any]] = set()
        self._closed = False

    async def read(self, method: Method[Request, Response], request: Request) -> Response:
        """One call that changes nothing. Raises StoreUnavailable, RevisionCompacted."""
        give_up_s = self._clock.monotonic_s() + READ_DEADLINE_S
        for attempt in range(1, MAX_ATTEMPTS + 1):
            await self.until_ready(give_up_s)
            left_s = give_up_s - self._clock.monotonic_s()
            try:
                return await self._call(method, request, min(left_s, READ_ATTEMPT_S))
            except grpc.aio.AioRpcError as error:
                may_repeat = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
                if not may_repeat or attempt == MAX_ATTEMPTS or self._clock.monotonic_s() >= give_up_s:
                    raise read_failure(error) from error
        raise AssertionError("the last attempt returns or raises")

    async def write(self, method: Method[Request, Response], request: Request) -> Response:
        """One call that changes something, sent once. Raises StoreUnavailable, OutcomeUnknown, LeaseLost."""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            await self.until_ready(self._clock.monotonic_s() + CONNECT_DEADLINE_S)
            try:
                return await self._call(method, request, WRITE_DEADLINE_S)
            except grpc.aio.AioRpcError as error:
                if not is_no_leader(error) or attempt == MAX_ATTEMPTS:
                    raise write_failure(error) from error
            except StoreClosed as error:
                raise OutcomeUnknown("the store was closed before the reply") from error
        raise AssertionError("the last attempt returns or raises")

    async def _call(self, method: Method[Request, Response], request: Request, timeout_s: float) -> Response:
        stub = self._stubs.get(method.path)
        if stub is None:
            stub = self._channel.unary_unary(
                method.path, request_serializer=method.request.SerializeToString, response_deserializer=method.response.FromString
            )
            self._stubs[method.path] = stub
        try:
            with cancellation_kept():
                response: Response = await stub(request, timeout=max(timeout_s, 0.0), metadata=REQUIRE_LEADER)
        except asyncio.CancelledError:
            self.raise_if_closed_under_us()
            raise
        return response

    @contextmanager
    def stream(
        self, method: Method[Request, Response], requests: AsyncIterator[Request], timeout_s: float | None = None
    ) -> Iterator["grpc.aio.StreamStreamCall[Request, Response]"]:
        """A stream in both directions, cancelled at the end whatever happens. `requests` is drained by the stream's own task."""
        self.check_open()
        stub: Any = self._channel.stream_stream(
            method.path, request_serializer=method.request.SerializeToString, response_deserializer=method.response.FromString
        )
        call: grpc.aio.StreamStreamCall[Request, Response] = stub(requests, timeout=timeout_s, metadata=REQUIRE_LEADER)
        self._streams.add(call)
        try:
            yield call
        finally:
            call.cancel()
            self._streams.discard(call)

    async def until_ready(self, give_up_s: float) -> None:
        """Return when a member is connected; a channel whose members all failed is not waited for. Raises StoreUnavailable."""
        self.check_open()
        if self._channel.get_state() is grpc.ChannelConnectivity.READY:
            return
        try:
            async with asyncio.timeout(min(CONNECT_DEADLINE_S, give_up_s - self._clock.monotonic_s())):
                while (state := self._channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
                    if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
                        raise StoreUnavailable("no etcd member can be reached")
                    await self._channel.wait_for_state_change(state)
        except TimeoutError as error:
            raise StoreUnavailable(f"no etcd member was reached within {CONNECT_DEADLINE_S} s") from error

    def check_open(self) -> None:
        """Raises StoreUnavailable after `close`."""
        if self._closed:
            raise StoreClosed("the store is closed")

    def raise_if_closed_under_us(self) -> None:
        """Closing cancels calls, which their callers see as CancelledError although nobody cancelled their task: tell the two apart."""
        task = asyncio.current_task()
        if self._closed and (task is None or not task.cancelling()):
            raise StoreClosed("the store was closed")

    async def close(self) -> None:
        """Cancel what is under way and close the channel. Again is no error."""
        self._closed = True
        for call in tuple(self._streams):
            call.cancel()
        await self._channel.close()
