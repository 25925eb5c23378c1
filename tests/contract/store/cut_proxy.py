"""A TCP proxy in front of one etcd member that can swallow what the server answers, and cut the connections."""

import asyncio
from contextlib import closing

CHUNK_BYTES = 1 << 16


class CutProxy:
    """`mute`: the server's bytes are read and thrown away. `cut`: every connection is closed, new ones work again."""

    def __init__(self, server_endpoint: str) -> None:
        self._host, _, self._port = server_endpoint.rpartition(":")
        self._writers: set[asyncio.StreamWriter] = set()
        self._listener: asyncio.Server | None = None
        self.muted = False

    @property
    def endpoint(self) -> str:
        assert self._listener is not None
        host, port = self._listener.sockets[0].getsockname()
        return f"{host}:{port}"

    async def __aenter__(self) -> "CutProxy":
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._listener is not None
        self._listener.close()
        self.cut()
        await self._listener.wait_closed()

    def mute(self) -> None:
        self.muted = True

    def cut(self) -> None:
        self.muted = False
        for writer in tuple(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._host, int(self._port))
        self._writers |= {writer, far_writer}
        with closing(writer), closing(far_writer):
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._copy(reader, far_writer, from_server=False), name="to etcd")
                    group.create_task(self._copy(far_reader, writer, from_server=True), name="from etcd")
            except* (OSError, _Ended):
                self._writers -= {writer, far_writer}

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, from_server: bool) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            if not (from_server and self.muted):
                writer.write(chunk)
                await writer.drain()
        raise _Ended


class _Ended(Exception):
    """One side closed, so the other is closed too."""
