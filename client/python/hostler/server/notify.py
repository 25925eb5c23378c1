"""Tell systemd how the daemon is doing (sd_notify), with one datagram each; without NOTIFY_SOCKET nothing is sent.

READY=1 goes out when the daemon can serve, not when it started; WATCHDOG=1 only while `alive()` says that the parts that can hang (the event
loop by getting here at all, a hypervisor thread by its own progress) still move. A datagram that cannot be sent is logged and never stops
the daemon: the supervisor will notice by itself.
"""

import os
import socket
from collections.abc import Callable, Mapping

import structlog

from hostler.server.clock import Clock

log = structlog.get_logger(__name__)

SEND_TIMEOUT_S = 1.0
"""A full socket of a busy systemd must not hold up the event loop for longer."""


class Notifier:
    """The way to the service manager that started this process."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        mine = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        usec = environ.get("WATCHDOG_USEC", "")
        self.watchdog_s: float | None = int(usec) / 1e6 if mine and usec.isdecimal() and int(usec) > 0 else None

    def ready(self, status: str) -> None:
        self._send("READY=1", f"STATUS={status}")

    def stopping(self) -> None:
        self._send("STOPPING=1", "STATUS=shutting down")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={text}")

    async def watchdog(self, clock: Clock, alive: Callable[[], bool]) -> None:
        """For ever: send WATCHDOG=1 twice per watchdog period while `alive()`. Returns at once when no watchdog is wanted."""
        while self.watchdog_s is not None:
            if alive():
                self._send("WATCHDOG=1")
            await clock.sleep(self.watchdog_s / 2)

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        message = "\n".join(line.replace("\n", " ") for line in lines)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(SEND_TIMEOUT_S)
                sock.sendto(message.encode(), self._address)
        except OSError as err:
            log.warning("service manager not told", error=str(err))
