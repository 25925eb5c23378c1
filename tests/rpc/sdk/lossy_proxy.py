"""A TCP proxy that can swallow what the server answers, cut everybody off (how an answer is lost after the deed was done), and be far away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

CHUNK = 1 << 16


@dataclass(slots=True)
class LossyProxy:
    """`endpoint` leads to `port` of loopback; everything takes `delay_s` each way."""

    port: int
    swallow_answers: bool = False
    delay_s: float = 0.0
    endpoint: str = ""
    _writers: list[asyncio.StreamWriter] = field(default_factory=list)
    _server: asyncio.Server | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers += [writer, up_writer]
        try:
            await asyncio.gather(self._pump(reader, up_writer, answers=False), self._pump(up_reader, writer, answers=True))
        except ConnectionError:
            writer.transport.abort()
            up_writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        while data := await reader.read(CHUNK):
            if not (answers and self.swallow_answers):
                await asyncio.sleep(self.delay_s)
                writer.write(data)
                await writer.drain()
        writer.close()

    def cut(self) -> None:
        """Nobody gets through any more."""
        if self._server is not None:
            self._server.close()
        self.break_off()

    def break_off(self) -> None:
        """Who is connected is cut off, and may connect again."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()


@asynccontextmanager
async def lossy_proxy(port: int, delay_s: float = 0.0) -> AsyncIterator[LossyProxy]:
    proxy = LossyProxy(port, delay_s=delay_s)
    proxy._server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.endpoint = f"127.0.0.1:{proxy._server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        proxy.cut()
