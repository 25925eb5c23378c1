"""Raw TLS streams between hosts: both ends are proven, by TLS 1.3, and each can tell who the other is."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from hostler.server import pki
from hostler.server.identity import IdentityError, Principal
from hostler.server.tls import client_context, peer_principal, server_context
from tests.rpc.server.conftest import CLUSTER, NODE2, SERVER, World

HOST = SERVER.dns_name


@asynccontextmanager
async def streaming(world: World) -> AsyncIterator[tuple[int, "asyncio.Queue[Principal]"]]:
    """A server that reports who came, echoes one line and closes."""
    seen: asyncio.Queue[Principal] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.put_nowait(peer_principal(writer.transport))
        writer.write(await reader.readline())
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_context(world.files(SERVER)))
    async with server:
        yield server.sockets[0].getsockname()[1], seen


async def exchange(port: int, context: ssl.SSLContext, server_name: str | None = HOST) -> tuple[bytes, Principal]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=server_name)
    try:
        writer.write(b"hello\n")
        return await reader.readline(), peer_principal(writer.transport)
    finally:
        writer.transport.abort()


async def test_both_ends_know_each_other(world: World) -> None:
    async with streaming(world) as (port, seen):
        answer, server = await exchange(port, client_context(world.files(NODE2)))
        assert (answer, server, await seen.get()) == (b"hello\n", SERVER, NODE2)


async def test_a_client_without_a_certificate_of_our_ca_gets_nothing(world: World) -> None:
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nobody.load_verify_locations(cadata=world.ca.cert_pem.decode())
    stranger = client_context(world.files(NODE2, ca=pki.create_ca(CLUSTER)))
    stranger.load_verify_locations(cadata=world.ca.cert_pem.decode())
    async with streaming(world) as (port, seen):
        for context in (nobody, stranger):
            # In TLS 1.3 the refusal comes after the client thinks it is connected: as an alert, a reset or an end of file.
            try:
                assert (await exchange(port, context))[0] == b""
            except (ssl.SSLError, ConnectionError):
                continue
        assert seen.empty()


async def test_a_server_of_another_name_or_an_old_tls_is_refused(world: World) -> None:
    old = client_context(world.files(NODE2))
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    async with streaming(world) as (port, seen):
        with pytest.raises(ssl.SSLCertVerificationError):
            await exchange(port, client_context(world.files(NODE2)), NODE2.dns_name)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await exchange(port, old)
        assert seen.empty()


async def test_a_stream_without_tls_has_no_peer() -> None:
    with pytest.raises(IdentityError):
        peer_principal(asyncio.BaseTransport())
