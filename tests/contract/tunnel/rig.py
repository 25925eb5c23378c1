"""Two real tunnels with real certificates on loopback, joined by services that stand for libvirtd and QEMU."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from hostler.server import pki
from hostler.server.identity import Principal, PrincipalKind
from hostler.server.tls import TlsFiles
from nodeagent.adapters.tls_tunnel import TlsTunnel

CLUSTER = "test"
Service = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def node(node_id: str) -> Principal:
    return Principal(CLUSTER, PrincipalKind.NODE, node_id)


class Pki:
    """A cluster's CA and certificates below one directory."""

    def __init__(self, root: Path, cluster: str = CLUSTER) -> None:
        self._root = root
        self._authority = pki.create_ca(cluster)

    def files(self, principal: Principal) -> TlsFiles:
        folder = self._root / str(principal).replace("/", "-")
        folder.mkdir(exist_ok=True, parents=True)
        pki.write(pki.issue(self._authority, principal, hosts=()), folder)
        return TlsFiles.in_directory(folder)


@dataclass
class TunnelRig:
    """Node n1 is the source, n2 the destination; n3 is a stranger of the same cluster."""

    root: Path
    pki: Pki
    destination: TlsTunnel
    source: TlsTunnel
    stranger: TlsTunnel
    destination_directory: Path

    @asynccontextmanager
    async def serving(self, path: Path, service: Service) -> AsyncIterator[None]:
        """A unix service for as long as the context lasts; then its connections have ended too."""
        running: set[asyncio.Task[None]] = set()

        async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            running.add(task)
            try:
                await service(reader, writer)
            finally:
                writer.close()

        server = await asyncio.start_unix_server(run, path)
        try:
            yield
            if running:
                await asyncio.wait(running)
        finally:
            server.close()
            await server.wait_closed()

    @property
    def libvirt_path(self) -> Path:
        return self.root / "libvirt"


@asynccontextmanager
async def open_rig(unused_listener_s: float = 300.0) -> AsyncIterator[TunnelRig]:
    # Not pytest's directory: its names are longer than a unix socket's may be.
    with tempfile.TemporaryDirectory(prefix="tun") as name:
        root = Path(name)
        authority = Pki(root / "pki")

        def tunnel(node_id: str) -> TlsTunnel:
            return TlsTunnel(
                node(node_id),
                authority.files(node(node_id)),
                listen_host="127.0.0.1",
                directory=root / node_id,
                libvirt_socket=lambda: str(root / "libvirt"),
                qemu_gid=None,
                unused_listener_s=unused_listener_s,
            )

        async with AsyncExitStack() as stack:
            destination, source, stranger = [await stack.enter_async_context(tunnel(node_id)) for node_id in ("n2", "n1", "n3")]
            yield TunnelRig(root, authority, destination, source, stranger, root / "n2")
