"""The gRPC server both daemons run: its options, who may connect, health and reflection, and how it starts and stops.

A listener verifies client certificates, or it is a literal loopback address or a unix socket (mode 0600) of a server built with
`insecure=True`; nothing else can be made here. The channel options are the ones measured to matter: without `so_reuseport` 0 two servers
share a port silently, default ping rules answer watchful clients with GOAWAY, connections without an age limit never spread over new
replicas. Requests are small by design (1 MiB), answers are paged (16 MiB is far above a page).

Stopping: health says NOT_SERVING, new calls are refused, streams end, unary calls get the grace, then everything is cancelled.
"""

import ipaddress
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from hostler.server.clock import Clock, IdSource
from hostler.server.draining import Draining
from hostler.server.identity import PrincipalKind
from hostler.server.interceptors import Access, Observer, RolesOf, RpcLimits, ignore, kind_roles, standard_steps
from hostler.server.rpc_chain import StepInterceptor
from hostler.server.startup import StartupError
from hostler.server.tls import ServerTls

MAX_REQUEST_BYTES = 1 << 20
MAX_RESPONSE_BYTES = 16 << 20

ANYBODY = frozenset(kind.value for kind in PrincipalKind)
COMMON_ACCESS: Access = {
    f"/{health.SERVICE_NAME}/Check": ANYBODY,
    f"/{health.SERVICE_NAME}/Watch": ANYBODY,
    f"/{reflection.SERVICE_NAME}/ServerReflectionInfo": ANYBODY,
}
"""What every server serves besides its own services; whoever has a certificate may."""


class ListenError(StartupError):
    """The server cannot listen where it was told to."""


def server_options() -> list[tuple[str, Any]]:
    """gRPC channel arguments; times in ms."""
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
        ("grpc.max_send_message_length", MAX_RESPONSE_BYTES),
        # Soft and hard bound on all headers of a call; rpc_status fits its trailers into the same 8 KiB.
        ("grpc.max_metadata_size", 8 << 10),
        ("grpc.absolute_max_metadata_size", 16 << 10),
        ("grpc.max_concurrent_streams", 1000),
        # Find a dead peer within 40 s, and let clients do so too without calling it abuse.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 0),
        # Connections are made anew, with their certificates checked anew, every half hour; streams resume.
        ("grpc.max_connection_age_ms", 30 * 60_000),
        ("grpc.max_connection_age_grace_ms", 5 * 60_000),
        ("grpc.handshake_timeout_ms", 10_000),
    ]


@dataclass(slots=True)
class RpcServer:
    """A server that is being put together, then runs. `grpc_server` is where servicers are added, before `start`."""

    grpc_server: grpc.aio.Server
    _health: health.aio.HealthServicer
    _services: tuple[str, ...]
    _insecure: bool
    _draining: Draining

    def listen(self, address: str, tls: ServerTls) -> int:
        """Listen on `host:port` (0: any free port) with client certificates demanded; the port. Raises ListenError."""
        return self._bound(address, lambda: self.grpc_server.add_secure_port(address, tls.credentials()))

    def listen_insecure(self, address: str) -> int:
        """Listen without TLS on a loopback address or `unix:/path`, if the server was built for it; the port. Raises ListenError."""
        if not self._insecure:
            raise ListenError(f"refusing to listen on {address} without TLS; set insecure to allow it on loopback")
        if address.startswith("unix:"):
            return self._unix(address)
        if not _is_loopback(address):
            raise ListenError(f"refusing to listen on {address} without TLS; only 127.0.0.1, [::1] and unix sockets may be insecure")
        return self._bound(address, lambda: self.grpc_server.add_insecure_port(address))

    async def start(self) -> None:
        """Serve; health says NOT_SERVING until `set_serving(True)`."""
        await self.set_serving(False)
        await self.grpc_server.start()

    async def set_serving(self, serving: bool) -> None:
        """What health answers, for the server and each of its services."""
        status = health_pb2.HealthCheckResponse
        for name in ("", *self._services):
            await self._health.set(name, status.SERVING if serving else status.NOT_SERVING)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, end streams, give unary calls `grace_s`, cancel the rest, close. Safe to repeat."""
        await self._health.enter_graceful_shutdown()
        self._draining.begin()
        await self.grpc_server.stop(grace_s)

    def _unix(self, address: str) -> int:
        # The socket file must never be open to others, not even between bind and chmod.
        before = os.umask(0o177)
        try:
            return self._bound(address, lambda: self.grpc_server.add_insecure_port(address))
        finally:
            os.umask(before)

    def _bound(self, address: str, bind: Callable[[], int]) -> int:
        try:
            return bind()
        except RuntimeError as err:
            raise ListenError(f"cannot listen on {address}: {_why_not(address)}") from err


def build_server(
    *,
    cluster: str,
    access: Access,
    clock: Clock,
    ids: IdSource,
    insecure: bool = False,
    roles_of: RolesOf = kind_roles,
    limits: RpcLimits = RpcLimits(),  # noqa: B008 frozen
    observe: Observer = ignore,
) -> RpcServer:
    """A server with the standard steps, health and reflection; must be called inside the running loop.

    The services served are those named in `access`; add each to `grpc_server`, then `listen`, `start`.
    """
    everything: Mapping[str, frozenset[str]] = {**COMMON_ACCESS, **access}
    draining = Draining()
    steps = standard_steps(
        cluster=cluster,
        access=everything,
        roles_of=roles_of,
        limits=limits,
        allow_insecure=insecure,
        observe=observe,
        draining=draining,
        clock=clock,
        ids=ids,
    )
    server = grpc.aio.server(
        interceptors=[StepInterceptor(steps)],
        options=server_options(),
        # The last resort against calls that never send their request: they are not yet seen by the steps.
        maximum_concurrent_rpcs=2 * (limits.unary + limits.streams),
    )
    services = tuple(sorted({method.split("/")[1] for method in access}))
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    reflection.enable_server_reflection((*services, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    return RpcServer(server, servicer, services, insecure, draining)


def _is_loopback(address: str) -> bool:
    """Only literals: a name can be made to mean another address."""
    host, _, _ = address.rpartition(":")
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _why_not(address: str) -> str:
    """gRPC does not say; try the same bind once more by hand."""
    try:
        if address.startswith("unix:"):
            path = Path(address.removeprefix("unix:"))
            return "the directory does not exist" if not path.parent.is_dir() else "the socket cannot be made there"
        host, _, port = address.rpartition(":")
        family, kind, _, _, target = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
            probe.listen()
    except (OSError, ValueError) as err:
        return err.strerror or str(err) if isinstance(err, OSError) else "not host:port"
    return "the address was refused"
