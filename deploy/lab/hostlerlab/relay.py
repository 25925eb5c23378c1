"""One half of a tunnel: accepts on one address, connects to another, copies bytes both ways, half-closes as the ends do.

Decision: it stands in for the agents' mutually authenticated tunnel where a host is tried without agents, so it is a
process of its own, started in the host it belongs to. Addresses: `unix:/path` or `tcp:HOST:PORT`.
Run: `python -m hostlerlab.relay LISTEN CONNECT`; prints `ready` on stdout when it listens.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing

CHUNK_BYTES = 1 << 18
MAX_CONNECTIONS = 64  # libvirt opens one or two per migration, QEMU one per channel
SOCKET_MODE = 0o600

Accept = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def serve(listen: str, connect: str) -> None:
    """Relay until cancelled."""
    slots = asyncio.Semaphore(MAX_CONNECTIONS)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with slots:
            with closing(writer):
                await _relay(reader, writer, connect)

    server = await _listen(accept, listen)
    print("ready", flush=True)
    async with server:
        await server.serve_forever()


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connect: str) -> None:
    try:
        far_reader, far_writer = await _open(connect)
    except OSError as refused:
        print(f"{connect}: {refused}", file=sys.stderr, flush=True)
        return
    with closing(far_writer):
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_copy(reader, far_writer), name="relay out")
                group.create_task(_copy(far_reader, writer), name="relay back")
        except* ConnectionError as lost:
            print(f"{connect}: {lost.exceptions[0]!r}", file=sys.stderr, flush=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(CHUNK_BYTES):
        writer.write(chunk)
        await writer.drain()
    writer.write_eof()


async def _listen(accept: Accept, address: str) -> asyncio.Server:
    kind, _, where = address.partition(":")
    if kind == "unix":
        server = await asyncio.start_unix_server(accept, where, limit=CHUNK_BYTES)
        os.chmod(where, SOCKET_MODE)
        return server
    host, _, port = where.rpartition(":")
    return await asyncio.start_server(accept, host, int(port), limit=CHUNK_BYTES)


async def _open(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    kind, _, where = address.partition(":")
    if kind == "unix":
        return await asyncio.open_unix_connection(where, limit=CHUNK_BYTES)
    host, _, port = where.rpartition(":")
    return await asyncio.open_connection(host, int(port), limit=CHUNK_BYTES)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2]))
