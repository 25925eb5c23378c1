"""Connections to one libvirtd: opened on demand, few calls on each, given up when they die.

libvirtd works on at most 5 requests of a connection at once and lets the rest wait, so a connection carries at most 4 of ours and another is
opened when all are full: calls stuck on some domains never delay a call on another. Long jobs have a pool of their own. Keepalive finds a
hung libvirtd within 3 s, which ends the calls on the connection; after kill -9 the error is an "internal" one, so `isAlive()` is asked.
All of this blocks and runs in the threads of `libvirt_calls`.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import libvirt

from nodeagent.adapters import libvirt_errors
from nodeagent.ports import HypervisorUnavailable

T = TypeVar("T")

CALLS_PER_CONNECTION = 4
"""libvirtd's max_client_requests is 5; one is left for keepalive's company."""
KEEPALIVE_INTERVAL_S = 1
KEEPALIVE_COUNT = 2
OPEN_DEADLINE_S = 4.0
"""How long a thread waits for another thread that is opening a connection: a hung libvirtd accepts and says nothing."""


def open_connection(uri: str) -> libvirt.virConnect:
    """Open and watch a connection; blocks as long as libvirtd does. Raises HypervisorUnavailable."""
    try:
        connection = libvirt.open(uri)
    except libvirt.libvirtError as err:
        libvirt_errors.answer(err, "connect", alive=False)
        raise HypervisorUnavailable("libvirt cannot be reached") from err
    if not uri.startswith("test:"):  # in process, where there is nothing to keep alive
        connection.setKeepAlive(KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT)
    return connection


@dataclass(slots=True, eq=False)
class _Member:
    connection: libvirt.virConnect
    calls: int = 0
    retired: bool = False


class ConnectionPool:
    """Up to `limit` connections to `uri`. Thread-safe."""

    def __init__(self, uri: str, limit: int) -> None:
        self._uri = uri
        self._limit = limit
        self._members: list[_Member] = []
        self._guard = threading.Lock()
        self._opening = threading.Lock()

    def call(self, what: str, work: Callable[[libvirt.virConnect], T]) -> T:
        """`work(connection)`; a libvirtError that it lets out becomes HypervisorRefused or HypervisorUnavailable (`what` is for the log)."""
        with self._borrowed() as member:
            try:
                return work(member.connection)
            except libvirt.libvirtError as err:
                alive = bool(member.connection.isAlive())
                if not alive:
                    self._retire(member)
                raise libvirt_errors.answer(err, what, alive) from err

    def close(self) -> None:
        """Close what is idle now, and the rest when its calls come back."""
        with self._guard:
            members = list(self._members)
        for member in members:
            self._retire(member)

    @contextmanager
    def _borrowed(self) -> Iterator[_Member]:
        member = self._take() or self._open()
        try:
            yield member
        finally:
            self._give_back(member)

    def _take(self) -> _Member | None:
        with self._guard:
            self._members = [member for member in self._members if member.connection.isAlive()]
            for member in self._members:
                if member.calls < CALLS_PER_CONNECTION:
                    member.calls += 1
                    return member
            if len(self._members) >= self._limit:
                raise HypervisorUnavailable("all connections to libvirt are busy with calls that do not return")
        return None

    def _open(self) -> _Member:
        if not self._opening.acquire(timeout=OPEN_DEADLINE_S):
            raise HypervisorUnavailable("libvirt does not answer")
        try:
            member = self._take()  # somebody else may have opened one meanwhile
            if member is None:
                member = _Member(open_connection(self._uri), calls=1)
                with self._guard:
                    self._members.append(member)
            return member
        finally:
            self._opening.release()

    def _give_back(self, member: _Member) -> None:
        with self._guard:
            member.calls -= 1
            close = member.retired and member.calls == 0
        if close:
            member.connection.close()

    def _retire(self, member: _Member) -> None:
        with self._guard:
            if member in self._members:
                self._members.remove(member)
            close = not member.retired and member.calls == 0
            member.retired = True
        if close:
            member.connection.close()
