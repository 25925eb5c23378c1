"""Gates between two steps of a daemon: a wrapped port stops where a cell of the sweep asks for it, tells that it stands there, and waits.

A gate is armed by a file named `UNIT POINT` in the control directory. The daemon that comes to the point takes the file away (so a gate holds
once), connects to the control socket, says where it stands, and goes on when the other end closes: also when the sweep itself has died. The
product has no hook: its launchers here (`agent`, `scheduler`) wrap what the daemon gets as its ports.
"""

import asyncio
import contextlib
import inspect
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

HYPERVISOR = ("migrate", "freeze", "locks", "kill", "resume", "destroy", "thaw", "abort_migration")
TUNNEL = ("open_outgoing", "open_incoming", "close_outgoing", "close_incoming")
SCHEDULER = ("commit_handoff",)
PEER = ("note_committed",)
"""The calls of an agent's ports that have gates."""

SOCKET = "gate.sock"
LINE_BYTES = 256
STAND_TIMEOUT_S = 30.0
"""From the order of a migration to any of its steps: a migration takes 3 s here."""


class Gates:
    """The daemon's end. `unit` is its name in the lab; `folder` the control directory."""

    def __init__(self, unit: str, folder: Path) -> None:
        self._unit = unit
        self._folder = folder

    def _taken(self, point: str) -> bool:
        try:
            os.unlink(self._folder / f"{self._unit} {point}")
        except FileNotFoundError:
            return False
        return True

    async def at(self, point: str) -> None:
        """Stand here until let go, if the gate is armed."""
        if self._taken(point):
            reader, writer = await asyncio.open_unix_connection(str(self._folder / SOCKET))
            with contextlib.closing(writer):
                writer.write(f"{self._unit} {point}\n".encode())
                await reader.read()

    def at_once(self, point: str) -> None:
        """The same for a call that is not awaited: the whole daemon stands."""
        if self._taken(point):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(self._folder / SOCKET))
                connection.sendall(f"{self._unit} {point}\n".encode())
                while connection.recv(LINE_BYTES):
                    continue


class Gated:
    """A port with a gate before and after each of its calls that `names` lists; the rest is the port's own.

    A gate is called `before NAME` or `after NAME`.
    """

    def __init__(self, port: object, gates: Gates, names: Collection[str]) -> None:
        self._port = port
        self._gates = gates
        self._names = frozenset(names)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 whatever the port has
        call = getattr(self._port, name)
        if name not in self._names:
            return call
        return self._awaited(name, call) if inspect.iscoroutinefunction(call) else self._plain(name, call)

    def _awaited(self, name: str, call: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
        async def gated(*arguments: object, **named: object) -> object:
            await self._gates.at(f"before {name}")
            answer = await call(*arguments, **named)
            await self._gates.at(f"after {name}")
            return answer

        return gated

    def _plain(self, name: str, call: Callable[..., object]) -> Callable[..., object]:
        def gated(*arguments: object, **named: object) -> object:
            self._gates.at_once(f"before {name}")
            answer = call(*arguments, **named)
            self._gates.at_once(f"after {name}")
            return answer

        return gated


class Stand:
    """A daemon that stands at a gate, as the sweep sees it."""

    def __init__(self, unit: str, point: str, writer: asyncio.StreamWriter) -> None:
        self.unit = unit
        self.point = point
        self._writer = writer

    def release(self) -> None:
        """Let it go on; no error if it has died."""
        self._writer.close()


class Control:
    """The sweep's end: arms gates and hears who stands at one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stands: asyncio.Queue[Stand] = asyncio.Queue()
        self._open: list[Stand] = []

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """While the block runs daemons can stand; at its end all go on."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / SOCKET).unlink(missing_ok=True)
        self.disarm()
        server = await asyncio.start_unix_server(self._hear, str(self._folder / SOCKET))
        try:
            yield
        finally:
            self.disarm()
            server.close()

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        unit, _, point = (await reader.readline()).decode().strip().partition(" ")
        stand = Stand(unit, point, writer)
        self._open.append(stand)
        self._stands.put_nowait(stand)

    def arm(self, units: Collection[str], point: str) -> None:
        """The first of these that comes there stands."""
        for unit in units:
            (self._folder / f"{unit} {point}").touch()

    async def standing(self, timeout_s: float = STAND_TIMEOUT_S) -> Stand:
        """Whoever comes to an armed gate; the other gates are disarmed then. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            stand = await self._stands.get()
        for path in self._armed():
            path.unlink(missing_ok=True)
        return stand

    def disarm(self) -> None:
        """No gate holds any more, and who stands goes on."""
        for path in self._armed():
            path.unlink(missing_ok=True)
        for stand in self._open:
            stand.release()
        self._open.clear()
        while not self._stands.empty():
            self._stands.get_nowait()

    def _armed(self) -> list[Path]:
        return [path for path in self._folder.iterdir() if path.name != SOCKET]
