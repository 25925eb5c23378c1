"""The supervisor against systemd's semantics: the decisions as tables, the mechanics with real processes, without root."""

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest

from hostlerlab.supervisor import Forced, Life, Send, StartAgain, State, Stay, Supervisor, Unit, Wait, after_exit, classify, due

TIMEOUT_S = 20.0
UNIT = Unit("u", ["true"], restart_s=1.0, watchdog_s=5.0, timeout_start_s=30.0, start_limit_burst=3, start_limit_interval_s=10.0)

# A daemon: says READY, then beats for the watchdog as often as asked.
DAEMON = """
import os, socket, time, sys
where = os.environ["NOTIFY_SOCKET"]
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sock.connect(where)
print("up", flush=True)
sock.send(b"READY=1")
while True:
    sock.send(b"WATCHDOG=1")
    time.sleep(0.05)
"""
BY_CHILD = """
import os, socket, time
if os.fork() == 0:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.connect(os.environ["NOTIFY_SOCKET"])
    sock.send(b"READY=1")
    print("child done", flush=True)
    os._exit(0)
os.wait()
time.sleep(3600)
"""
BEATS_LONGER_THAN_ITS_WATCHDOG = """
import os, socket, time
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sock.connect(os.environ["NOTIFY_SOCKET"])
sock.send(b"READY=1")
until = time.monotonic() + 2
while time.monotonic() < until:
    sock.send(b"WATCHDOG=1")
    time.sleep(0.05)
"""
STUBBORN = """
import os, signal, socket, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
time.sleep(3600)
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


# ---- decisions ----


@pytest.mark.parametrize(
    ("returncode", "forced", "result"),
    [
        (0, None, "success"),
        (1, None, "exit-code"),
        (-signal.SIGTERM, None, "success"),
        (-signal.SIGHUP, None, "success"),
        (-signal.SIGKILL, None, "signal"),
        (-signal.SIGSEGV, None, "signal"),
        (-signal.SIGKILL, "watchdog", "watchdog"),
        (0, "start-timeout", "start-timeout"),
    ],
)
def test_result_of_an_exit(returncode: int, forced: Forced | None, result: str) -> None:
    """Breaks when a clean end counts as a failure or the other way round."""
    assert classify(returncode, forced) == result


@pytest.mark.parametrize(("restart", "returncode", "again"), [
    ("on-failure", 0, False), ("on-failure", 1, True), ("on-failure", -signal.SIGKILL, True), ("on-failure", -signal.SIGTERM, False),
    ("always", 0, True), ("no", -signal.SIGKILL, False),
])  # fmt: skip
def test_restart_setting(restart: str, returncode: int, again: bool) -> None:
    """Breaks when Restart= does not decide as systemd's table says."""
    unit = Unit("u", ["true"], restart=restart)  # type: ignore[arg-type]
    assert isinstance(after_exit(unit, returncode, None, False, [0.0], 1.0), StartAgain) is again


def test_no_restart_after_a_stop() -> None:
    """Breaks when a unit that somebody stopped comes back, or a bad end while stopping is called clean."""
    assert after_exit(UNIT, -signal.SIGKILL, None, True, [0.0], 1.0) == Stay(State.FAILED, "signal (SIGKILL)")
    assert after_exit(UNIT, 0, None, True, [0.0], 1.0) == Stay(State.INACTIVE, "success (status 0)")


def test_start_limit_counts_only_recent_starts() -> None:
    """Breaks when a crash loop goes on for ever, or rare crashes are added up over hours."""
    crowded = after_exit(UNIT, 1, None, False, [1.0, 2.0, 3.0], 4.0)
    assert isinstance(crowded, Stay)
    assert crowded.state is State.FAILED
    assert "start-limit-hit" in crowded.reason
    assert after_exit(UNIT, 1, None, False, [1.0, 2.0, 3.0], 11.5) == StartAgain(1.0, "exit-code (status 1)")


def test_watchdog_runs_from_the_last_sign_and_only_when_ready() -> None:
    """Breaks when a hung daemon is left alone, or a slow start is shot by the watchdog."""
    life = Life(started_s=0.0, ready=True, last_sign_s=10.0)
    assert due(UNIT, life, 14.9) == Wait(15.0)
    assert due(UNIT, life, 15.0) == Send(signal.SIGABRT, "no WATCHDOG=1 for 5 s", "watchdog")
    assert due(UNIT, Life(started_s=0.0), 29.0) == Wait(30.0)
    assert due(UNIT, Life(started_s=0.0), 30.0) == Send(signal.SIGTERM, "no READY=1 in time", "start-timeout")
    life.stopping_announced = True
    assert due(UNIT, life, 100.0) == Wait(None)


def test_kill_follows_when_the_first_signal_did_not_end_it() -> None:
    """Breaks when a process that ignores SIGTERM or SIGABRT stays."""
    life = Life(started_s=0.0, ready=True, stop_asked=True)
    assert due(UNIT, life, 1.0) == Send(signal.SIGTERM, "stop asked")
    life.kill_at_s = 11.0
    assert due(UNIT, life, 10.9) == Wait(11.0)
    assert due(UNIT, life, 11.0) == Send(signal.SIGKILL, "did not end in time")


# ---- real processes ----


async def test_killed_unit_is_started_again_with_the_reason(tmp_path: Path) -> None:
    """Breaks when kill -9 of a daemon is not followed by a new process, or nobody can tell why it was restarted."""
    async with Supervisor(tmp_path) as supervisor:
        await supervisor.start(Unit("d", python(DAEMON), restart_s=0.05))
        await supervisor.wait_for_state("d", State.ACTIVE, TIMEOUT_S)
        first = supervisor.send_signal("d", signal.SIGKILL)
        await supervisor.wait_for_state("d", State.ACTIVE, TIMEOUT_S, starts=2)
        assert supervisor.pid("d") != first
    reasons = [t.reason for t in supervisor.transitions("d") if t.state is State.AUTO_RESTART]
    assert reasons == ["signal (SIGKILL), restart in 0.05 s"]
    assert supervisor.state("d") is State.INACTIVE
    written = [json.loads(line)["state"] for line in (tmp_path / "units.jsonl").read_text().splitlines()]
    assert written == [t.state.name for t in supervisor.transitions()]
    assert supervisor.log_path("d").read_text() == "up\nup\n"


async def test_hung_unit_is_shot_by_the_watchdog_and_restarted(tmp_path: Path) -> None:
    """Breaks when a frozen daemon (SIGSTOP holds SIGABRT back) is not killed and replaced."""
    async with Supervisor(tmp_path) as supervisor:
        await supervisor.start(Unit("d", python(DAEMON), watchdog_s=0.5, timeout_stop_s=0.1, restart_s=0.05))
        await supervisor.wait_for_state("d", State.ACTIVE, TIMEOUT_S)
        supervisor.send_signal("d", signal.SIGSTOP)
        await supervisor.wait_for_state("d", State.ACTIVE, TIMEOUT_S, starts=2)
        states = [(t.state, t.reason) for t in supervisor.transitions("d")]
    assert (State.DEACTIVATING, "no WATCHDOG=1 for 0.5 s: SIGABRT") in states
    assert (State.AUTO_RESTART, "watchdog (SIGKILL), restart in 0.05 s") in states


async def test_beating_unit_is_left_alone(tmp_path: Path) -> None:
    """Breaks when WATCHDOG=1 does not hold the watchdog off."""
    async with Supervisor(tmp_path) as supervisor:
        await supervisor.start(Unit("d", python(BEATS_LONGER_THAN_ITS_WATCHDOG), watchdog_s=1.0))
        ended = await supervisor.wait_for_state("d", State.INACTIVE, TIMEOUT_S)
    assert ended.reason == "success (status 0)"
    assert [t.state for t in supervisor.transitions("d")] == [State.ACTIVATING, State.ACTIVE, State.INACTIVE]


async def test_clean_end_is_not_restarted(tmp_path: Path) -> None:
    """Breaks when a one-shot that is done is run again."""
    async with Supervisor(tmp_path) as supervisor:
        await supervisor.start(Unit("d", ["true"], type="simple", restart_s=0.05))
        ended = await supervisor.wait_for_state("d", State.INACTIVE, TIMEOUT_S)
    assert ended.reason == "success (status 0)"
    assert len([t for t in supervisor.transitions("d") if t.state is State.ACTIVE]) == 1


async def test_crash_loop_ends_in_failed(tmp_path: Path) -> None:
    """Breaks when StartLimitBurst does not stop a unit that dies at once, or stops it too early."""
    async with Supervisor(tmp_path) as supervisor:
        unit = Unit("d", ["false"], type="simple", restart_s=0.01, start_limit_burst=3, start_limit_interval_s=60)
        await supervisor.start(unit)
        ended = await supervisor.wait_for_state("d", State.FAILED, TIMEOUT_S)
    assert "start-limit-hit: 3 starts" in ended.reason
    assert len([t for t in supervisor.transitions("d") if t.state is State.ACTIVE]) == 3


async def test_ready_of_another_process_does_not_count(tmp_path: Path) -> None:
    """Breaks when a child of the daemon can declare it ready (NotifyAccess=main), or a unit never ready is left alone."""
    async with Supervisor(tmp_path) as supervisor:
        await supervisor.start(Unit("d", python(BY_CHILD), restart="no", timeout_start_s=1.0))
        ended = await supervisor.wait_for_state("d", State.FAILED, TIMEOUT_S)
    assert ended.reason == "start-timeout (SIGTERM)"
    assert "child done" in supervisor.log_path("d").read_text()
    assert State.ACTIVE not in [t.state for t in supervisor.transitions("d")]


async def test_stop_kills_what_ignores_sigterm(tmp_path: Path) -> None:
    """Breaks when stopping hangs on a deaf process or leaves it behind."""
    async with Supervisor(tmp_path) as supervisor:
        await supervisor.start(Unit("d", python(STUBBORN), timeout_stop_s=0.2))
        await supervisor.wait_for_state("d", State.ACTIVE, TIMEOUT_S)
        async with asyncio.timeout(TIMEOUT_S):
            await supervisor.stop("d")
        assert supervisor.state("d") is State.FAILED
        with pytest.raises(ProcessLookupError):
            supervisor.pid("d")


async def test_leaving_stops_everything_last_started_first(tmp_path: Path) -> None:
    """Breaks when a demo that ends leaves daemons, or takes etcd away from under those that still need it."""
    async with Supervisor(tmp_path) as supervisor:
        for name in ("first", "second"):
            await supervisor.start(Unit(name, python(DAEMON)))
            await supervisor.wait_for_state(name, State.ACTIVE, TIMEOUT_S)
    ends = [t.unit for t in supervisor.transitions() if t.state is State.INACTIVE]
    assert ends == ["second", "first"]
