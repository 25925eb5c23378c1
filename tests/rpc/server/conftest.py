"""A real server on loopback with a generic service `t.Echo`, and clients with whatever certificate a test wants."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from hostler import rpc_status
from hostler.errors import Conflict, HostlerError, Reason
from hostler.server import pki
from hostler.server.clock import Clock, SystemClock, SystemIds
from hostler.server.identity import Principal, PrincipalKind, current_principal
from hostler.server.interceptors import RpcLimits
from hostler.server.rpc_chain import Handler
from hostler.server.server import RpcServer, build_server
from hostler.server.tls import ServerTls, TlsFiles, channel_credentials, load, server_name_options

CLUSTER = "lab"
SERVER = Principal(CLUSTER, PrincipalKind.NODE, "n1")
ALICE = Principal(CLUSTER, PrincipalKind.USER, "alice")
NODE2 = Principal(CLUSTER, PrincipalKind.NODE, "n2")
SECRET = "hunter2-in-an-exception"
ACCESS = {
    f"/t.Echo/{name}": frozenset({"user", "node"})
    for name in ("WhoAmI", "Refuse", "RefuseInGroup", "Break", "BreakStream", "Wait", "Watch", "Large", "Count", "Each")
} | {"/t.Echo/NodesOnly": frozenset({"node"})}


@dataclass
class Echo:
    """What the handlers did, and gates that tests open."""

    entered: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    how: str = ""

    def handlers(self) -> dict[str, Handler]:
        unary = (self.who_am_i, self.refuse, self.refuse_in_group, self.break_, self.wait, self.nodes_only, self.not_in_table)
        names = ("WhoAmI", "Refuse", "RefuseInGroup", "Break", "Wait", "NodesOnly", "NotInTable")
        streams = {"Watch": self.watch, "BreakStream": self.break_stream, "Large": self.large}
        return (
            {name: grpc.unary_unary_rpc_method_handler(f) for name, f in zip(names, unary, strict=True)}
            | {name: grpc.unary_stream_rpc_method_handler(f) for name, f in streams.items()}
            | {"Count": grpc.stream_unary_rpc_method_handler(self.count), "Each": grpc.stream_stream_rpc_method_handler(self.each)}
        )

    async def who_am_i(self, _request: bytes, _context: object) -> bytes:
        return current_principal().uri.encode()

    async def nodes_only(self, request: bytes, _context: object) -> bytes:
        return request

    async def not_in_table(self, request: bytes, _context: object) -> bytes:
        return request

    async def refuse(self, _request: bytes, _context: object) -> bytes:
        raise Conflict(Reason.ETAG_MISMATCH, "Somebody was first.", "Read it again.", retry_after_s=1.5)

    async def refuse_in_group(self, request: bytes, context: object) -> bytes:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.refuse(request, context))
        return request

    async def break_(self, _request: bytes, _context: object) -> bytes:
        raise ValueError(SECRET)

    async def break_stream(self, _request: bytes, _context: object) -> AsyncIterator[bytes]:
        yield b"first"
        raise ValueError(SECRET)

    async def wait(self, request: bytes, _context: object) -> bytes:
        return await self._rest(request)

    async def watch(self, _request: bytes, _context: object) -> AsyncIterator[bytes]:
        yield b"first"
        yield await self._rest(b"last")

    async def large(self, _request: bytes, _context: object) -> AsyncIterator[bytes]:
        self.entered.set()
        task = asyncio.current_task()
        try:
            while True:
                yield bytes(1 << 20)
        finally:
            self.how = "closed in place" if asyncio.current_task() is task else "closed by another task"
            self.ended.set()

    async def count(self, requests: AsyncIterator[bytes], _context: object) -> bytes:
        return str(len([r async for r in requests])).encode()

    async def each(self, requests: AsyncIterator[bytes], _context: object) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request.upper()

    async def _rest(self, value: bytes) -> bytes:
        self.entered.set()
        try:
            await self.gate.wait()
            self.how = "finished"
            return value
        except asyncio.CancelledError:
            self.how = "cancelled"
            raise
        finally:
            self.ended.set()


@dataclass
class Running:
    server: RpcServer
    echo: Echo
    port: int


@dataclass(frozen=True)
class World:
    """One CA and the means to make certificates, servers and clients."""

    directory: Path
    ca: pki.CertificateAuthority
    clock: Clock

    def files(
        self, principal: Principal, *, ca: pki.CertificateAuthority | None = None, clock: Clock | None = None, days: int = 30
    ) -> TlsFiles:
        issued = pki.issue(ca or self.ca, principal, days=days, clock=clock or self.clock)
        directory = self.directory / issued.principal.id / f"{id(issued):x}"
        pki.write(issued, directory)
        return TlsFiles.in_directory(directory)

    @asynccontextmanager
    async def serving(self, *, files: TlsFiles | None = None, limits: RpcLimits | None = None) -> AsyncIterator[Running]:
        server, echo = build_server(cluster=CLUSTER, access=ACCESS, clock=self.clock, ids=SystemIds(), limits=limits or RpcLimits()), Echo()
        server.grpc_server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.Echo", echo.handlers()),))
        port = server.listen("127.0.0.1:0", ServerTls(files or self.files(SERVER), clock=self.clock))
        await server.start()
        await server.set_serving(True)
        try:
            yield Running(server, echo, port)
        finally:
            await server.stop(0)

    @asynccontextmanager
    async def channel(self, port: int, principal: Principal = ALICE, *, server: Principal = SERVER) -> AsyncIterator[Any]:
        credentials = channel_credentials(load(self.files(principal), clock=self.clock))
        async with dial(port, credentials, server) as channel:
            yield channel


def dial(port: int, credentials: grpc.ChannelCredentials, server: Principal = SERVER) -> Any:  # noqa: ANN401 the stubs cannot type raw bytes calls
    assert server.dns_name is not None
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=server_name_options(server.dns_name))


def plain_channel(target: str) -> Any:  # noqa: ANN401 as above
    return grpc.aio.insecure_channel(target)


async def refused(call: Any) -> HostlerError:  # noqa: ANN401 unary calls and stream reads alike
    """The error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return rpc_status.from_rpc_error(caught.value)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("pki"), pki.create_ca(CLUSTER), SystemClock())
