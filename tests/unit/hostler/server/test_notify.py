"""What systemd is told: each message as one datagram, the watchdog only while alive, and nothing when nobody listens."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostler.server.manual_clock import ManualClock
from hostler.server.notify import Notifier


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        yield sock


def told(systemd: socket.socket) -> list[str]:
    messages = []
    while True:
        try:
            messages.append(systemd.recv(4096).decode())
        except BlockingIOError:
            return messages


def test_each_state_is_one_datagram(systemd: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": systemd.getsockname()})
    notifier.ready("serving\nREADY=0")
    notifier.status("3 VMs")
    notifier.stopping()
    assert told(systemd) == ["READY=1\nSTATUS=serving READY=0", "STATUS=3 VMs", "STOPPING=1\nSTATUS=shutting down"]


def test_an_abstract_socket_is_understood() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        name = f"hostler-test-{os.getpid()}"
        sock.bind(f"\0{name}")
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).status("x")
        assert sock.recv(100) == b"STATUS=x"


def test_nobody_or_a_dead_socket_does_not_disturb_the_daemon(tmp_path: Path) -> None:
    Notifier({}).ready("x")
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready("x")


async def test_the_watchdog_is_fed_twice_per_period_and_only_while_alive(systemd: socket.socket) -> None:
    notifier, clock, alive = Notifier({"NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": "30000000"}), ManualClock(), True
    async with asyncio.TaskGroup() as group:
        task = group.create_task(notifier.watchdog(clock, lambda: alive))
        await clock.until_sleeping(1)
        assert told(systemd) == ["WATCHDOG=1"]
        assert clock.next_wake_s() == 15
        for alive in (True, False, True):
            clock.advance(15)
            await clock.until_sleeping(1)
            assert told(systemd) == ["WATCHDOG=1"] * alive
        task.cancel()


@pytest.mark.parametrize("environ", [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "9", "WATCHDOG_PID": "1"}])
async def test_a_watchdog_nobody_asked_us_for_is_not_fed(environ: dict[str, str]) -> None:
    notifier = Notifier(environ)
    assert notifier.watchdog_s is None
    await notifier.watchdog(ManualClock(), lambda: True)
