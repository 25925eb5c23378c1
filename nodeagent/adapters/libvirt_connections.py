"""Connections to one libvirtd: a call has one to itself, idle ones are kept, dead ones are given up.

libvirt's client must never be called by two threads at once, nor ping while a call waits: before libvirt 10.3 whoever interrupts the thread that
polls leaves a pointer into that thread's stack behind, and the next call on the connection follows it (CVE-2024-4418; docs/decisions/0020). So a
connection carries one call, and no keepalive: the deadline of the call is its caller's, and that libvirtd hangs is found on the connection for
events, where nothing is called (`libvirt_events`). After kill -9 the error is an "internal" one, so `isAlive()` is asked.
All of this blocks and runs in the threads of `libvirt_calls`, which also bounds how many connections there are.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import libvirt

from nodeagent.adapters import libvirt_errors
from nodeagent.ports import HypervisorUnavailable

T = TypeVar("T")

IDLE_MAX = 8
"""Connections kept for the next call; opening one takes a few ms, and calls are seldom more at once."""
OPEN_DEADLINE_S = 4.0
"""How long a thread waits for another thread that is opening a connection: a hung libvirtd accepts and says nothing."""


def open_connection(uri: str) -> libvirt.virConnect:
    """Blocks as long as libvirtd does. Raises HypervisorUnavailable."""
    try:
        return libvirt.open(uri)
    except libvirt.libvirtError as err:
        libvirt_errors.answer(err, "connect", alive=False)
        raise HypervisorUnavailable("libvirt cannot be reached") from err


class ConnectionPool:
    """Connections to `uri`. Thread-safe."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._idle: list[libvirt.virConnect] = []
        self._closed = False
        self._guard = threading.Lock()
        self._opening = threading.Lock()

    def call(self, what: str, work: Callable[[libvirt.virConnect], T]) -> T:
        """`work(connection)`; a libvirtError that it lets out becomes HypervisorRefused or HypervisorUnavailable (`what` is for the log)."""
        with self._borrowed() as connection:
            try:
                return work(connection)
            except libvirt.libvirtError as err:
                raise libvirt_errors.answer(err, what, bool(connection.isAlive())) from err

    def close(self) -> None:
        """Close what is idle now, and the rest when its calls come back."""
        with self._guard:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    @contextmanager
    def _borrowed(self) -> Iterator[libvirt.virConnect]:
        connection = self._take() or self._open()
        try:
            yield connection
        finally:
            self._give_back(connection)

    def _take(self) -> libvirt.virConnect | None:
        while True:
            with self._guard:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if connection.isAlive():
                return connection
            connection.close()

    def _open(self) -> libvirt.virConnect:
        if not self._opening.acquire(timeout=OPEN_DEADLINE_S):
            raise HypervisorUnavailable("libvirt does not answer")
        try:
            return self._take() or open_connection(self._uri)  # somebody may have given one back meanwhile
        finally:
            self._opening.release()

    def _give_back(self, connection: libvirt.virConnect) -> None:
        with self._guard:
            keep = not self._closed and len(self._idle) < IDLE_MAX and bool(connection.isAlive())
            if keep:
                self._idle.append(connection)
        if not keep:
            connection.close()
