"""The command line, imported once and then forked for each command: what importing it takes is most of what a command takes.

A command is a process of its own as ever, with its arguments, environment, files, signals and exit status; it only begins with the imports done. That
nothing else differs is a test of its own (test_cli_warm.py).

`python -m tests.rpc.sdk.warm FD` serves one socket until it is closed. A request is the arguments and the environment; with it come the ends of four
pipes: the command's stdin, stdout and stderr, and where to say `pid`, then `status` (negative: the signal), a line each.
"""

import asyncio
import atexit
import contextlib
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import NoReturn

LENGTH = struct.Struct("!I")
FILES = 4
QUIET = {"GRPC_VERBOSITY": "NONE"}
"""As `hostler` itself sets it; gRPC reads it when it is imported."""

KEPT_BACK = {signal.SIGINT, signal.SIGTERM}


# ---- the process that is forked


def serve(requests: socket.socket) -> list[str]:
    """Returns in each command's process, with its arguments; the server itself ends here."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who waits for a command is reaped by nobody
    # One that comes between fork and the first line of the command would be lost in what Python does there.
    signal.pthread_sigmask(signal.SIG_BLOCK, KEPT_BACK)
    while request := _request(requests):
        body, files = request
        if os.fork() == 0:
            requests.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return _command(body, files)
        for file in files:
            os.close(file)
    sys.exit(0)


def _request(requests: socket.socket) -> tuple[bytes, list[int]] | None:
    head, files, _, _ = socket.recv_fds(requests, LENGTH.size, FILES)
    if not head:
        return None
    (left,) = LENGTH.unpack(head)
    body = b""
    while len(body) < left:
        body += requests.recv(left - len(body))
    return body, files


def _command(body: bytes, files: list[int]) -> list[str]:
    """Forks the command, and stays behind to tell how it ends."""
    *standard, told = files
    child = os.fork()
    if child:
        for file in standard:
            os.close(file)
        _tell(told, child)
    os.close(told)
    for number, file in enumerate(standard):
        os.dup2(file, number)
        os.close(file)
    asked = json.loads(body)
    os.environ.clear()
    os.environ.update(asked["environment"])
    signal.pthread_sigmask(signal.SIG_UNBLOCK, KEPT_BACK)
    arguments: list[str] = asked["arguments"]
    return arguments


def _tell(told: int, child: int) -> NoReturn:
    # Whoever asked may have gone.
    with contextlib.suppress(BrokenPipeError):
        os.write(told, f"{child}\n".encode())
        _, status = os.waitpid(child, 0)
        os.write(told, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


# ---- whoever asks it


@dataclass(slots=True)
class Pipe:
    """An end to read from."""

    reader: asyncio.StreamReader
    transport: asyncio.ReadTransport


class Command:
    """A command that was started: what the tests use of asyncio.subprocess.Process."""

    def __init__(self, pid: int, told: Pipe, out: Pipe, err: Pipe) -> None:
        self.pid = pid
        self.stdout = out.reader
        self.stderr = err.reader
        self.returncode: int | None = None
        self._pipes = (told, out, err)

    async def wait(self) -> int:
        if self.returncode is None:
            told = self._pipes[0].reader
            self.returncode = int(await told.readline())
            for pipe in self._pipes:
                pipe.transport.close()
        return self.returncode

    async def communicate(self) -> tuple[bytes, bytes]:
        out, err = await asyncio.gather(self.stdout.read(), self.stderr.read())
        await self.wait()
        return out, err

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


async def start(arguments: tuple[str, ...], environment: Mapping[str, str]) -> Command:
    """`hostler ARGUMENTS`, in a process of its own."""
    pipes = [os.pipe() for _ in range(FILES - 1)]
    theirs = [os.open(os.devnull, os.O_RDONLY), *(write for _, write in pipes)]
    try:
        body = json.dumps({"arguments": arguments, "environment": dict(environment)}).encode()
        requests = _server()
        socket.send_fds(requests, [LENGTH.pack(len(body))], theirs)
        requests.sendall(body)
    finally:
        for file in theirs:
            os.close(file)
    out, err, told = [await _opened(read) for read, _ in pipes]
    return Command(int(await told.reader.readline()), told, out, err)


async def _opened(read: int) -> Pipe:
    reader, file = asyncio.StreamReader(), os.fdopen(read, "rb", buffering=0)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), file)
    return Pipe(reader, transport)


@cache
def _server() -> socket.socket:
    """One for each process that tests; it ends with it."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "tests.rpc.sdk.warm", str(theirs.fileno())]
    paths = os.pathsep.join(path for path in sys.path if path)
    server = subprocess.Popen(command, pass_fds=[theirs.fileno()], env={**os.environ, **QUIET, "PYTHONPATH": paths})
    theirs.close()

    def end() -> None:
        ours.close()
        server.wait()

    atexit.register(end)
    return ours


def _main() -> None:
    # Everything that a command may need later: the two ways to connect, and what is imported for the sake of words alone.
    from hostler.cli.app import app, main

    for way in ("hostler.cluster", "hostler.node"):
        import_module(way)
    with contextlib.redirect_stdout(io.StringIO()):
        for words in (["version"], ["vm", "list", "--help"]):
            app(words, standalone_mode=False)
    arguments = serve(socket.socket(fileno=int(sys.argv[1])))
    sys.argv = ["hostler", *arguments]
    sys.modules["__main__"].__package__ = None  # else its help says that it is `python -m` something
    main()


if __name__ == "__main__":
    _main()
