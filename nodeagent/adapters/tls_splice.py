"""Carries one byte stream between a local unix socket and a TLS connection, both ways, in a thread of its own, until both directions ended.

A thread and not the event loop: a migration moves hundreds of MiB a second, and the loop that answers heartbeats must not stand in line behind
that. Encryption happens inside calls that release the GIL, and one thread does both directions because an SSL object is not for two.

On the TLS side bytes travel in frames, a 4-byte length and that many bytes; length 0 ends the direction. Python's `ssl` cannot say "I have
nothing more to send, go on sending" (its `unwrap` reads too, and fails on data that is still under way), and libvirt and QEMU both use that. It also
tells an end from a connection that was cut: only the first is passed on as an end of file.
"""

import contextlib
import select
import socket
import ssl
import struct

FRAME_BYTES = 256 << 10
"""Largest frame, and so the buffer of each direction: one system call's worth, 16 TLS records."""

_HEADER = struct.Struct("!I")


class StreamCut(Exception):
    """The other end of the TLS connection went away, or sent what is not a frame, before the streams ended."""


def splice(plain: socket.socket, tls: ssl.SSLSocket) -> None:
    """Returns when both directions have ended in good order. Raises StreamCut, OSError. Closes nothing; `shutdown` on either socket ends it."""
    plain.setblocking(False)
    tls.setblocking(False)
    outbound, inbound = _Outbound(plain, tls), _Inbound(plain, tls)
    while not (outbound.ended and inbound.ended):
        outbound.move()
        inbound.move()
        if not (outbound.ended and inbound.ended):
            _wait(plain, tls, outbound.waits | inbound.waits, watch_tls=inbound.ended)


_PLAIN_IN, _PLAIN_OUT, _TLS_IN, _TLS_OUT = 1, 2, 4, 8
"""What a direction waits for, as bits."""


def _wait(plain: socket.socket, tls: ssl.SSLSocket, waits: int, *, watch_tls: bool) -> None:
    """Sockets are registered for what is waited for: one that hung up after its last byte would be reported for ever.

    `watch_tls`: nothing more comes from there, so nobody would notice that it was cut. In good order it is closed only after our own last frame.
    """
    poll = select.poll()
    if waits & 3:
        poll.register(plain, _poll_bits(waits & 3))
    if waits >> 2 or watch_tls:
        poll.register(tls, _poll_bits(waits >> 2) | (select.POLLRDHUP if watch_tls else 0))
    for fd, seen in poll.poll():
        if watch_tls and fd == tls.fileno() and seen & (select.POLLRDHUP | select.POLLHUP | select.POLLERR):
            raise StreamCut("the connection was cut")


def _poll_bits(wanted: int) -> int:
    return (select.POLLIN if wanted & 1 else 0) | (select.POLLOUT if wanted & 2 else 0)


class _Outbound:
    """From the unix socket to TLS."""

    def __init__(self, plain: socket.socket, tls: ssl.SSLSocket) -> None:
        self._plain, self._tls = plain, tls
        self._buffer = memoryview(bytearray(_HEADER.size + FRAME_BYTES))
        self._frame = self._buffer[:0]
        self._last = False
        self.ended = False
        self.waits = 0

    def move(self) -> None:
        """As far as it goes without waiting; then `waits` says for what."""
        self.waits = 0
        while not self.ended and not self.waits:
            if self._frame:
                self._send()
            elif self._last:
                self.ended = True
            else:
                self._receive()

    def _receive(self) -> None:
        try:
            size = self._plain.recv_into(self._buffer[_HEADER.size :])
        except BlockingIOError:
            self.waits = _PLAIN_IN
            return
        _HEADER.pack_into(self._buffer, 0, size)
        self._frame = self._buffer[: _HEADER.size + size]
        self._last = size == 0

    def _send(self) -> None:
        try:
            self._frame = self._frame[self._tls.send(self._frame) :]
        except ssl.SSLWantWriteError:
            self.waits = _TLS_OUT
        except ssl.SSLWantReadError:
            self.waits = _TLS_IN


class _Inbound:
    """From TLS to the unix socket."""

    def __init__(self, plain: socket.socket, tls: ssl.SSLSocket) -> None:
        self._plain, self._tls = plain, tls
        self._buffer = memoryview(bytearray(FRAME_BYTES))
        self._begin = self._end = 0
        self._frame_left = 0
        self._cut = False
        self.ended = False
        self.waits = 0

    def move(self) -> None:
        self.waits = 0
        while not self.ended and not self.waits:
            self._fill()
            self._drain()

    def _fill(self) -> None:
        """Take what TLS has, which is 16 KiB at most with each call. What came before a cut may be all there is, and is passed on first."""
        if self._begin == self._end:
            self._begin = self._end = 0
        elif self._frame_left == 0 and self._end - self._begin < _HEADER.size:
            self._compact()
        while self._end < FRAME_BYTES and not self._cut:
            try:
                size = self._tls.recv_into(self._buffer[self._end :])
            except ssl.SSLWantReadError:
                self.waits = 0 if self._can_drain() else _TLS_IN
                return
            except ssl.SSLWantWriteError:
                self.waits = 0 if self._can_drain() else _TLS_OUT
                return
            except (ssl.SSLEOFError, ConnectionError):
                size = 0
            self._cut = size == 0
            self._end += size
        if self._cut and not self._can_drain():
            raise StreamCut("the connection ended in the middle of a stream")

    def _can_drain(self) -> bool:
        held = self._end - self._begin
        return held > 0 and (self._frame_left > 0 or held >= _HEADER.size)

    def _compact(self) -> None:
        held = bytes(self._buffer[self._begin : self._end])
        self._buffer[: len(held)] = held
        self._begin, self._end = 0, len(held)

    def _drain(self) -> None:
        """Pass on what is there; stops at a receiver that is slower, so that at most one buffer is ever held."""
        while self._can_drain() and not self.ended:
            if self._frame_left == 0:
                self._take_header()
                continue
            size = min(self._frame_left, self._end - self._begin)
            try:
                sent = self._plain.send(self._buffer[self._begin : self._begin + size])
            except BlockingIOError:
                self.waits = _PLAIN_OUT
                return
            self._begin += sent
            self._frame_left -= sent

    def _take_header(self) -> None:
        (size,) = _HEADER.unpack_from(self._buffer, self._begin)
        self._begin += _HEADER.size
        if size > FRAME_BYTES:
            raise StreamCut("a frame was larger than any frame is")
        self._frame_left = size
        if size == 0:
            self.ended = True
            # Fails if whoever had the unix socket is gone; that shows as an end of the other direction.
            with contextlib.suppress(OSError):
                self._plain.shutdown(socket.SHUT_WR)
