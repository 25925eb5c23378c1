"""The `Tunnel` port: mutually authenticated TLS 1.3 between the two hosts of one handoff, so that libvirtd never listens on the network.

The destination listens on a port of its own for each operation and lets in exactly the node that the handoff names: a certificate of the cluster
whose only URI is `spiffe://<cluster>/node/<source>`. ALPN says which of three streams a connection is: libvirt's, QEMU's memory, or QEMU's disks
where local ones are copied along (NBD, a connection for each disk). There is nothing else to ask for, so a source can reach that libvirtd and
those two sockets of one QEMU, for as long as the operation is open, and nothing more. The source opens a unix socket for each stream and
connects when somebody connects to it.

QEMU's sockets have one path on both hosts, because libvirt names each once: `<directory>/<operation>.qemu` and `.disks`. On the source the agent
listens there, on the destination QEMU creates them. So the directory belongs to root and to QEMU's group, which may write to it; guests of one host
share that group, and confinement (sVirt, AppArmor) is what keeps one QEMU from another's socket.
"""

import asyncio
import contextlib
import errno
import os
import re
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import structlog

from hostler.server.identity import IdentityError, Principal, PrincipalKind, parse_only_principal
from hostler.server.tls import TlsFiles, client_context, server_context
from nodeagent.adapters.tls_splice import StreamCut, splice
from nodeagent.ports import MigrationSockets, TunnelFailed

LIBVIRT_ALPN = "hostler-libvirt"
QEMU_ALPN = "hostler-qemu"
DISKS_ALPN = "hostler-disks"

HANDSHAKE_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 10.0
CONNECTIONS_PER_OPERATION = 24
"""libvirt and QEMU need one each, and QEMU one for each of a VM's 16 disks at most; the rest is for retries. Counts from accept to end, so a
stranger holds a place for one handshake at most."""
CONNECTIONS = 96
"""Of all operations together (two each way at once): each is a thread, made when it is needed."""
UNUSED_LISTENER_S = 300.0
"""A listener that nobody came to is closed: the source connects within seconds of being told where."""
CLOSE_TIMEOUT_S = 5.0
"""For threads to notice that their sockets were shut down."""
DEAD_PEER_MS = 20_000
"""A peer that acknowledges nothing for so long is gone; libvirt's own keepalive is a little faster."""
ACCEPT_RETRY_S = 1.0
"""After a failed accept: no file descriptors or no memory, which pass or need a person."""

UNIX_PATH_MAX = 107
_OPERATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}")

S = TypeVar("S", bound=socket.socket)

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Opened:
    """One end of one operation: what listens, and the sockets that are connected now."""

    endpoint: str = ""
    listeners: list[socket.socket] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)
    accepting: list["asyncio.Task[None]"] = field(default_factory=list)
    connections: set["asyncio.Task[None]"] = field(default_factory=set)
    sockets: set[socket.socket] = field(default_factory=set)
    used: bool = False
    closed: bool = False


class TlsTunnel:
    """The tunnels of one host. Use as an async context manager: at its end everything is closed.

    `listen_host` is the address to listen on, `advertise_host` the one that other hosts reach it at if that is another; `ports` the range to
    listen in (both ends included), (0, 0): any. `directory` is made if it is not there; `qemu_gid` is the group that QEMU runs as, None: QEMU
    runs as this very user (development).
    """

    def __init__(
        self,
        me: Principal,
        files: TlsFiles,
        *,
        listen_host: str,
        advertise_host: str = "",
        directory: Path,
        libvirt_socket: Callable[[], str],
        qemu_gid: int | None,
        ports: tuple[int, int] = (0, 0),
        unused_listener_s: float = UNUSED_LISTENER_S,
    ) -> None:
        self._me = me
        self._files = files
        self._listen_host = listen_host
        self._advertise_host = advertise_host or listen_host
        self._directory = directory
        self._libvirt_socket = libvirt_socket
        self._qemu_gid = qemu_gid
        self._ports = ports
        self._unused_listener_s = unused_listener_s
        self._incoming: dict[str, _Opened] = {}
        self._outgoing: dict[str, _Opened] = {}
        self._lock = asyncio.Lock()
        self._group: asyncio.TaskGroup | None = None
        self._threads = ThreadPoolExecutor(CONNECTIONS, "tunnel")

    async def __aenter__(self) -> Self:
        _make_directory(self._directory, self._qemu_gid)
        _sweep(self._directory)
        self._group = await asyncio.TaskGroup().__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for operation_id in list(self._incoming):
            await self.close_incoming(operation_id)
        for operation_id in list(self._outgoing):
            await self.close_outgoing(operation_id)
        group, self._group = self._group, None
        self._threads.shutdown(wait=False)
        if group is not None:
            await group.__aexit__(kind, error, trace)

    # ---- destination

    async def open_incoming(self, operation_id: str, source_node_id: str) -> str:
        """See the port."""
        with _failing():
            return await self._open_incoming(operation_id, source_node_id)

    async def _open_incoming(self, operation_id: str, source_node_id: str) -> str:
        """Raises OSError if no port of the range is free, ValueError for ids that are none."""
        qemu_path, disks_path = self._path(operation_id, "qemu"), self._path(operation_id, "disks")
        source = Principal(self._me.cluster, PrincipalKind.NODE, source_node_id)
        async with self._lock:
            known = self._incoming.get(operation_id)
            if known is not None:
                return known.endpoint
            context = server_context(self._files)
            context.set_alpn_protocols([LIBVIRT_ALPN, QEMU_ALPN, DISKS_ALPN])
            context.num_tickets = 0
            targets: dict[str, Callable[[], str]] = {
                LIBVIRT_ALPN: self._libvirt_socket,
                QEMU_ALPN: lambda: str(qemu_path),
                DISKS_ALPN: lambda: str(disks_path),
            }

            def serve(connection: socket.socket, hold: _Hold) -> None:
                tls = _handshake(context, connection, source, None, hold)
                target = targets.get(tls.selected_alpn_protocol() or "")
                if target is None:
                    raise IdentityError("The connection does not say which stream it is.")
                opened.used = True
                splice(_connect_unix(target(), hold), tls)

            listener = _listen_tcp(self._listen_host, self._ports)
            opened = _Opened(_endpoint(self._advertise_host, listener.getsockname()[1]), [listener], [qemu_path, disks_path])
            self._incoming[operation_id] = opened
            self._accept(operation_id, opened, listener, serve)
            opened.accepting.append(self._task(self._close_if_unused(operation_id, opened), f"unused tunnel {operation_id}"))
            return opened.endpoint

    async def close_incoming(self, operation_id: str) -> None:
        await self._close(self._incoming.pop(operation_id, None))

    async def _close_if_unused(self, operation_id: str, opened: _Opened) -> None:
        await asyncio.sleep(self._unused_listener_s)
        (own,) = [task for task in opened.accepting if task is asyncio.current_task()]
        if not opened.used and self._incoming.get(operation_id) is opened:
            log.warning("tunnel closed: the source never came", operation=operation_id)
            del self._incoming[operation_id]
            opened.accepting.remove(own)
            await self._close(opened)

    # ---- source

    async def open_outgoing(self, operation_id: str, endpoint: str, destination_node_id: str) -> MigrationSockets:
        """See the port; nothing is connected before somebody connects to a socket."""
        with _failing():
            return await self._open_outgoing(operation_id, endpoint, destination_node_id)

    async def _open_outgoing(self, operation_id: str, endpoint: str, destination_node_id: str) -> MigrationSockets:
        """Raises OSError, ValueError for ids or endpoints that are none."""
        host, port = _parse_endpoint(endpoint)
        destination = Principal(self._me.cluster, PrincipalKind.NODE, destination_node_id)
        streams = {LIBVIRT_ALPN: "libvirt", QEMU_ALPN: "qemu", DISKS_ALPN: "disks"}
        paths = {alpn: self._path(operation_id, kind) for alpn, kind in streams.items()}
        async with self._lock:
            if operation_id not in self._outgoing:
                opened = _Opened()
                try:
                    for alpn, path in paths.items():
                        serve = self._dialler(alpn, host, port, destination)
                        listener = _listen_unix(path, self._qemu_gid)
                        opened.listeners.append(listener)
                        opened.paths.append(path)
                        self._accept(operation_id, opened, listener, serve)
                except (OSError, ValueError):
                    await self._close(opened)
                    raise
                self._outgoing[operation_id] = opened
        return MigrationSockets(str(paths[LIBVIRT_ALPN]), str(paths[QEMU_ALPN]), str(paths[DISKS_ALPN]))

    def _dialler(self, alpn: str, host: str, port: int, destination: Principal) -> "Serve":
        context = client_context(self._files)
        context.set_alpn_protocols([alpn])

        def serve(connection: socket.socket, hold: _Hold) -> None:
            tls = _handshake(context, _connect_tcp(host, port, hold), destination, destination.dns_name, hold)
            if tls.selected_alpn_protocol() != alpn:
                raise IdentityError("The destination does not know this stream.")
            splice(connection, tls)

        return serve

    async def close_outgoing(self, operation_id: str) -> None:
        await self._close(self._outgoing.pop(operation_id, None))

    # ---- both

    def _path(self, operation_id: str, kind: str) -> Path:
        """Raises ValueError: the id becomes part of a path, or the path is longer than a socket's may be."""
        path = self._directory / f"{operation_id}.{kind}"
        if _OPERATION.fullmatch(operation_id) is None or len(os.fsencode(path)) > UNIX_PATH_MAX:
            raise ValueError("not an operation id, or the tunnel's directory has too long a name")
        return path

    def _accept(self, operation_id: str, opened: _Opened, listener: socket.socket, serve: "Serve") -> None:
        opened.accepting.append(self._task(self._accept_all(operation_id, opened, listener, serve), f"tunnel {operation_id}"))

    async def _accept_all(self, operation_id: str, opened: _Opened, listener: socket.socket, serve: "Serve") -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as err:
                log.error("tunnel cannot accept", operation=operation_id, error=str(err))
                await asyncio.sleep(ACCEPT_RETRY_S)
                continue
            if len(opened.connections) >= CONNECTIONS_PER_OPERATION:
                log.warning("tunnel connection refused: too many", operation=operation_id)
                connection.close()
                continue
            task = self._task(self._carry(operation_id, opened, connection, serve), f"tunnel connection {operation_id}")
            opened.connections.add(task)
            task.add_done_callback(opened.connections.discard)

    async def _carry(self, operation_id: str, opened: _Opened, connection: socket.socket, serve: "Serve") -> None:
        hold = _Hold(opened)
        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, hold.run, serve, connection)
        except (OSError, StreamCut, IdentityError) as err:
            log.info("tunnel connection ended", operation=operation_id, error=f"{type(err).__name__}: {err}")
        except Exception:
            log.exception("tunnel connection failed", operation=operation_id)

    async def _close(self, opened: _Opened | None) -> None:
        """Nothing new comes in, what is connected is cut, and the threads that carried it have ended."""
        if opened is None:
            return
        opened.closed = True
        for task in opened.accepting:
            task.cancel()
        await asyncio.gather(*opened.accepting, return_exceptions=True)
        for listener in opened.listeners:
            listener.close()
        for sock in list(opened.sockets):
            _cut(sock)
        if opened.connections:
            _, late = await asyncio.wait(opened.connections, timeout=CLOSE_TIMEOUT_S)
            for task in late:
                log.error("tunnel connection does not end", task=task.get_name())
        for path in opened.paths:
            path.unlink(missing_ok=True)

    def _task(self, work: Coroutine[object, object, None], name: str) -> "asyncio.Task[None]":
        if self._group is None:
            raise RuntimeError("the tunnel is not running: use `async with`")
        return self._group.create_task(work, name=name)


class _Hold:
    """The sockets of one connection: known to `close_*` while they are open, so that it can cut them, and closed when their thread ends."""

    def __init__(self, opened: _Opened) -> None:
        self._opened = opened
        self._mine: list[socket.socket] = []

    def __call__(self, sock: S) -> S:
        self._mine.append(sock)
        self._opened.sockets.add(sock)
        if self._opened.closed:
            raise ConnectionAbortedError("the tunnel was closed")
        return sock

    def run(self, serve: "Serve", connection: socket.socket) -> None:
        """In a thread."""
        try:
            serve(self(connection), self)
        finally:
            for sock in self._mine:
                self._opened.sockets.discard(sock)
                sock.close()


@contextlib.contextmanager
def _failing() -> Iterator[None]:
    """What the kernel, the certificates or the names refuse, as the port's exception."""
    try:
        yield
    except (OSError, ValueError) as err:
        log.warning("tunnel cannot be opened", error=f"{type(err).__name__}: {err}")
        raise TunnelFailed(f"{type(err).__name__}: {err}") from err


Serve = Callable[[socket.socket, _Hold], None]
"""What is done with an accepted connection, in a thread, until it ends."""


def _handshake(context: ssl.SSLContext, tcp: socket.socket, expected: Principal, server_hostname: str | None, hold: _Hold) -> ssl.SSLSocket:
    """TLS with exactly `expected` at the other end. Raises OSError (ssl.SSLError, TimeoutError among them), IdentityError."""
    _tune(tcp)
    tcp.settimeout(HANDSHAKE_TIMEOUT_S)
    tls = hold(
        context.wrap_socket(
            tcp,
            server_side=server_hostname is None,
            server_hostname=server_hostname,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        )
    )
    tls.do_handshake()
    certificate: dict[str, Any] = tls.getpeercert() or {}
    if parse_only_principal([value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]) != expected:
        raise IdentityError("The other end is not the node of this handoff.")
    return tls


def _tune(tcp: socket.socket) -> None:
    """Notice a peer that vanished; send without delay."""
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_PEER_MS)


def _connect_tcp(host: str, port: int, hold: _Hold) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    tcp = hold(socket.socket(family, kind, protocol))
    tcp.settimeout(CONNECT_TIMEOUT_S)
    tcp.connect(address)
    return tcp


def _connect_unix(path: str, hold: _Hold) -> socket.socket:
    plain = hold(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    plain.settimeout(CONNECT_TIMEOUT_S)
    plain.connect(path)
    return plain


def _listen_tcp(host: str, ports: tuple[int, int]) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    first, last = ports
    for port in range(first, last + 1):
        try:
            listener = socket.create_server((address[0], port), family=family, backlog=CONNECTIONS_PER_OPERATION)
        except OSError as err:
            if err.errno != errno.EADDRINUSE or port == last:
                raise
        else:
            listener.setblocking(False)
            return listener
    raise ValueError("the range of ports is empty")


def _listen_unix(path: Path, gid: int | None) -> socket.socket:
    """The directory keeps strangers out; libvirt hands the path to QEMU, so QEMU's group may connect too."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        _give(path, gid, 0o600)
        listener.listen(CONNECTIONS_PER_OPERATION)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _make_directory(directory: Path, gid: int | None) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    _give(directory, gid, 0o700)


def _give(path: Path, gid: int | None, mode: int) -> None:
    """Ours, and as much QEMU's group's as ours if there is one."""
    if gid is not None:
        os.chown(path, -1, gid)
    path.chmod(mode if gid is None else mode | (mode & 0o700) >> 3)


def _sweep(directory: Path) -> None:
    """Sockets of an agent that ended without closing; what some process still listens on, a waiting QEMU say, stays."""
    bound = {line.split(" ", 8)[-1] for line in Path("/proc/net/unix").read_text().splitlines()}
    for path in directory.iterdir():
        if path.suffix in (".qemu", ".libvirt", ".disks") and path.is_socket() and str(path) not in bound:
            path.unlink(missing_ok=True)


def _cut(sock: socket.socket) -> None:
    # The plain socket's shutdown: that of an SSL socket also drops the SSL state under the feet of the thread that uses it.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _endpoint(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _parse_endpoint(endpoint: str) -> tuple[str, int]:
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ValueError("a tunnel's endpoint is host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)
