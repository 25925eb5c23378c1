"""Runs the daemons as systemd would, on a machine without systemd.

Decision: the units' own semantics, so that what the demo and the tests see of restarts is what an operator will see:
Type=notify (READY=1, WATCHDOG=1, STOPPING=1 from the main process only), Restart=, RestartSec=, WatchdogSec= (SIGABRT,
then SIGKILL), TimeoutStartSec=, TimeoutStopSec=, StartLimitBurst=/IntervalSec=, KillMode=process. What follows from an exit is
a pure function (`after_exit`), as is the next thing to do in a life (`due`). Every change of state is a line with its
reason in `units.jsonl`. Units die with the supervisor (parent-death signal): a killed test run leaves none behind.
"""

import asyncio
import json
import os
import signal
import socket
import struct
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self

from hostlerlab.space import Space

# systemd.service(5), "Restart=": the signals that count as a clean end of a daemon.
CLEAN_SIGNALS = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE})
MAX_MESSAGE_BYTES = 4096
MAX_MESSAGES_PER_WAKE = 64  # one unit must not keep the loop busy; the rest is read on the next turn
MAX_TRANSITIONS = 10_000  # kept in memory for tests; the file has all
MAX_SOCKET_PATH_BYTES = 107  # sockaddr_un.sun_path with its terminating zero
_CREDENTIALS = struct.Struct("iII")


class State(Enum):
    """systemd's states of a service, the ones that can be told apart from outside."""

    INACTIVE = auto()
    ACTIVATING = auto()
    ACTIVE = auto()
    DEACTIVATING = auto()
    AUTO_RESTART = auto()
    FAILED = auto()


@dataclass(frozen=True, slots=True)
class Unit:
    """A service. `argv` must exec, not fork. `space` runs it inside a lab host. `watchdog_s` 0 is off."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    space: Space | None = None
    type: Literal["simple", "notify"] = "notify"
    restart: Literal["no", "on-failure", "always"] = "on-failure"
    restart_s: float = 1.0
    watchdog_s: float = 0.0
    timeout_start_s: float = 30.0
    timeout_stop_s: float = 10.0
    start_limit_burst: int = 5
    start_limit_interval_s: float = 10.0


Forced = Literal["start-timeout", "watchdog"]
Result = Literal["success", "exit-code", "signal", "start-timeout", "watchdog"]


@dataclass(frozen=True, slots=True)
class Stay:
    """The unit is over: INACTIVE after a clean end, FAILED otherwise."""

    state: State
    reason: str


@dataclass(frozen=True, slots=True)
class StartAgain:
    """Start after `delay_s`."""

    delay_s: float
    reason: str


def classify(returncode: int, forced: Forced | None) -> Result:
    """systemd's service result; `returncode` is negative for a signal. What the supervisor did itself comes first."""
    if forced is not None:
        return forced
    if returncode == 0 or -returncode in CLEAN_SIGNALS:
        return "success"
    return "signal" if returncode < 0 else "exit-code"


def after_exit(
    unit: Unit, returncode: int, forced: Forced | None, stopping: bool, starts_s: Sequence[float], now_s: float
) -> Stay | StartAgain:
    """What follows when the main process has ended.

    `starts_s` are the times of all starts so far; `stopping` says that somebody asked for the end. A process that ends badly
    while being stopped leaves FAILED and is not restarted.
    """
    result = classify(returncode, forced)
    how = f"{result} ({_ending(returncode)})"
    wanted = unit.restart == "always" or (unit.restart == "on-failure" and result != "success")
    if stopping or not wanted:
        return Stay(State.INACTIVE if result == "success" else State.FAILED, how)
    recent = [at for at in starts_s if at > now_s - unit.start_limit_interval_s]
    if len(recent) >= unit.start_limit_burst:
        return Stay(State.FAILED, f"{how}, start-limit-hit: {len(recent)} starts in {unit.start_limit_interval_s:g} s")
    return StartAgain(unit.restart_s, how)


def _ending(returncode: int) -> str:
    return signal.Signals(-returncode).name if returncode < 0 else f"status {returncode}"


@dataclass(slots=True)
class Life:
    """One run of the main process. Times are of the loop's monotonic clock, in seconds."""

    started_s: float
    ready: bool = False
    last_sign_s: float = 0.0  # READY=1 or the last WATCHDOG=1
    stop_asked: bool = False
    stopping_announced: bool = False
    kill_at_s: float | None = None  # set when SIGTERM or SIGABRT was sent
    forced: Forced | None = None
    returncode: int | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before `until_s` (None: before something happens)."""

    until_s: float | None


@dataclass(frozen=True, slots=True)
class Send:
    """Send this signal now, for this reason."""

    number: signal.Signals
    reason: str
    forced: Forced | None = None


def due(unit: Unit, life: Life, now_s: float) -> Wait | Send:
    """The next thing the supervisor owes a running process."""
    if life.kill_at_s is not None:
        return Send(signal.SIGKILL, "did not end in time") if now_s >= life.kill_at_s else Wait(life.kill_at_s)
    if life.stop_asked:
        return Send(signal.SIGTERM, "stop asked")
    if not life.ready:
        deadline = life.started_s + unit.timeout_start_s
        return Send(signal.SIGTERM, "no READY=1 in time", "start-timeout") if now_s >= deadline else Wait(deadline)
    # A process that said STOPPING=1 may end on its own; systemd gives it TimeoutStopSec, without watchdog.
    if unit.watchdog_s <= 0 or life.stopping_announced:
        return Wait(None)
    deadline = life.last_sign_s + unit.watchdog_s
    return Send(signal.SIGABRT, f"no WATCHDOG=1 for {unit.watchdog_s:g} s", "watchdog") if now_s >= deadline else Wait(deadline)


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of a unit's state; `at_s` on the loop's monotonic clock, `pid` 0 when no process runs."""

    at_s: float
    unit: str
    state: State
    pid: int
    reason: str


class _Entry:
    """What the supervisor knows of one unit."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.state = State.INACTIVE
        self.pid = 0
        self.pidfd = -1
        self.starts_s: deque[float] = deque(maxlen=unit.start_limit_burst)
        self.life: Life | None = None
        self.stop_asked = False
        self.wake = asyncio.Event()
        self.over = asyncio.Event()
        self.over.set()

    def forget_process(self) -> None:
        """The main process has ended."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
        self.pid, self.pidfd = 0, -1


class Supervisor:
    """Runs units. An async context manager: leaving it stops all units. `folder` gets log/<unit>.log, units.jsonl and the sockets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._entries: dict[str, _Entry] = {}
        self._transitions: deque[Transition] = deque(maxlen=MAX_TRANSITIONS)
        self._changed = asyncio.Condition()
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        for name in ("log", "notify"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # Units of later layers were started later: stop them first. A stop is bounded by timeout_stop_s and SIGKILL.
        try:
            for name in reversed(self._entries):
                await self.stop(name)
        finally:
            await self._tasks.__aexit__(kind, error, trace)

    # -- commands ---------------------------------------------------------------------------------------------

    async def start(self, unit: Unit) -> None:
        """Start a unit (also one that ended); returns at once, see `wait_for_state`."""
        entry = self._entries.get(unit.name)
        if entry is not None and not entry.over.is_set():
            raise ValueError(f"unit {unit.name} is {entry.state.name}")
        entry = self._entries[unit.name] = _Entry(unit)
        entry.over.clear()
        self._tasks.create_task(self._run(entry), name=f"unit {unit.name}")

    async def stop(self, name: str) -> None:
        """SIGTERM to the main process, SIGKILL after TimeoutStopSec; returns when it is over. No restart follows."""
        entry = self._entries[name]
        entry.stop_asked = True
        if entry.life is not None:
            entry.life.stop_asked = True
        entry.wake.set()
        await entry.over.wait()

    async def restart(self, name: str) -> None:
        """Stop, then start the same unit."""
        unit = self._entries[name].unit
        await self.stop(name)
        await self.start(unit)

    def send_signal(self, name: str, number: signal.Signals) -> int:
        """Send a signal to the main process; the pid it had. SIGKILL, SIGSTOP and SIGCONT are how tests hurt a daemon."""
        pid = self.pid(name)
        fd = self._entries[name].pidfd
        if fd < 0:
            raise ProcessLookupError(f"unit {name}: process {pid} has just ended")
        signal.pidfd_send_signal(fd, number)
        return pid

    # -- looking ----------------------------------------------------------------------------------------------

    def pid(self, name: str) -> int:
        """The main process; raises `ProcessLookupError` when there is none."""
        pid = self._entries[name].pid
        if pid == 0:
            raise ProcessLookupError(f"unit {name} has no process ({self._entries[name].state.name})")
        return pid

    def state(self, name: str) -> State:
        return self._entries[name].state

    def transitions(self, name: str | None = None) -> tuple[Transition, ...]:
        """What happened so far, oldest first."""
        return tuple(t for t in self._transitions if name in (None, t.unit))

    def log_path(self, name: str) -> Path:
        return self.folder / "log" / f"{name}.log"

    async def wait_for_state(self, name: str, state: State, timeout_s: float, *, starts: int = 1) -> Transition:
        """Wait until `name` is in `state` for at least the `starts`-th time. Raises `TimeoutError` with its history, at once when it has FAILED."""

        def reached() -> Transition | None:
            seen = [t for t in self._transitions if t.unit == name and t.state is state]
            return seen[-1] if len(seen) >= starts and self._entries[name].state is state else None

        try:
            async with asyncio.timeout(timeout_s), self._changed:
                while (found := reached()) is None:
                    if self._entries[name].state is State.FAILED:
                        raise TimeoutError
                    await self._changed.wait()
                return found
        except TimeoutError as late:
            history = "; ".join(f"{t.state.name} {t.reason}" for t in self.transitions(name))
            raise TimeoutError(f"unit {name} is not {state.name} after {timeout_s:g} s: {history}; see {self.log_path(name)}") from late

    # -- one unit ---------------------------------------------------------------------------------------------

    async def _run(self, entry: _Entry) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                life = await self._one_life(entry)
                assert life.returncode is not None
                stopping = entry.stop_asked
                match after_exit(entry.unit, life.returncode, life.forced, stopping, tuple(entry.starts_s), loop.time()):
                    case Stay(state, reason):
                        await self._change(entry, state, reason)
                        return
                    case StartAgain(delay_s, reason):
                        await self._change(entry, State.AUTO_RESTART, f"{reason}, restart in {delay_s:g} s")
                        if await self._stopped_within(entry, delay_s):
                            await self._change(entry, State.INACTIVE, "stop asked while waiting for restart")
                            return
        finally:
            entry.over.set()

    async def _stopped_within(self, entry: _Entry, delay_s: float) -> bool:
        entry.wake.clear()
        if not entry.stop_asked:
            try:
                async with asyncio.timeout(delay_s):
                    await entry.wake.wait()
            except TimeoutError:
                return entry.stop_asked
        return entry.stop_asked

    async def _one_life(self, entry: _Entry) -> Life:
        """Start the main process, watch it until it has ended; the state is ACTIVATING, ACTIVE, maybe DEACTIVATING."""
        loop, unit = asyncio.get_running_loop(), entry.unit
        life = entry.life = Life(loop.time(), ready=unit.type == "simple", last_sign_s=loop.time(), stop_asked=entry.stop_asked)
        entry.starts_s.append(life.started_s)
        with _notify_socket(self.folder / "notify" / f"{unit.name}.sock") as notify:
            process = await self._spawn(unit, notify.getsockname())
            entry.pid, entry.pidfd = process.pid, _open_pidfd(process.pid)
            loop.add_reader(notify, self._read_messages, entry, life, notify)
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._wait_exit(entry, life, process), name=f"exit of {unit.name}")
                    await self._change(entry, State.ACTIVE if life.ready else State.ACTIVATING, f"started pid {process.pid}")
                    await self._watch(entry, life, process)
            finally:
                loop.remove_reader(notify)
                if process.returncode is None:
                    process.kill()
                    await process.wait()
                entry.forget_process()
                entry.life = None
        return life

    async def _spawn(self, unit: Unit, notify_path: str) -> asyncio.subprocess.Process:
        env = {"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), "NOTIFY_SOCKET": notify_path, **unit.env}
        if unit.watchdog_s > 0:
            env["WATCHDOG_USEC"] = str(int(unit.watchdog_s * 1_000_000))
        argv = list(unit.argv) if unit.space is None else unit.space.argv(unit.argv, unit.cwd)
        with self._open_log(unit.name) as log:
            return await asyncio.create_subprocess_exec(
                *("setpriv", "--pdeathsig", "KILL", *argv),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                cwd=unit.cwd if unit.space is None else None,
                start_new_session=True,
            )

    def _open_log(self, name: str) -> BinaryIO:
        return open(self.log_path(name), "ab")

    @staticmethod
    async def _wait_exit(entry: _Entry, life: Life, process: asyncio.subprocess.Process) -> None:
        life.returncode = await process.wait()
        entry.forget_process()
        entry.wake.set()

    async def _watch(self, entry: _Entry, life: Life, process: asyncio.subprocess.Process) -> None:
        loop = asyncio.get_running_loop()
        while life.returncode is None:
            entry.wake.clear()
            if life.ready and entry.state is State.ACTIVATING:
                await self._change(entry, State.ACTIVE, "READY=1")
            match due(entry.unit, life, loop.time()):
                case Send(number, reason, forced):
                    life.forced = life.forced or forced
                    life.kill_at_s = loop.time() + entry.unit.timeout_stop_s
                    process.send_signal(number)
                    await self._change(entry, State.DEACTIVATING, f"{reason}: {number.name}")
                case Wait(until_s):
                    try:
                        async with asyncio.timeout_at(until_s):
                            await entry.wake.wait()
                    except TimeoutError:
                        continue

    def _read_messages(self, entry: _Entry, life: Life, notify: socket.socket) -> None:
        """Take sd_notify messages; NotifyAccess=main: from any other process they are dropped."""
        for _ in range(MAX_MESSAGES_PER_WAKE):
            try:
                message, ancillary, _, _ = notify.recvmsg(MAX_MESSAGE_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size))
            except BlockingIOError:
                return
            if _sender(ancillary) != entry.pid:
                continue
            for line in message.decode(errors="replace").splitlines():
                self._take(entry, life, line)

    def _take(self, entry: _Entry, life: Life, line: str) -> None:
        now_s = asyncio.get_running_loop().time()
        match line:
            case "READY=1":
                life.ready, life.last_sign_s = True, now_s
            case "WATCHDOG=1":
                life.last_sign_s = now_s
            case "WATCHDOG=trigger":
                life.last_sign_s = float("-inf")
            case "STOPPING=1":
                life.stopping_announced = True
            case _:  # STATUS= and the rest change nothing
                return
        entry.wake.set()

    def _write(self, change: Transition) -> None:
        record = {"at_s": round(change.at_s, 3), "unit": change.unit, "state": change.state.name, "pid": change.pid}
        with open(self.folder / "units.jsonl", "a") as out:
            out.write(json.dumps({**record, "reason": change.reason}) + "\n")

    async def _change(self, entry: _Entry, state: State, reason: str) -> None:
        at_s = asyncio.get_running_loop().time()
        change = Transition(at_s, entry.unit.name, state, entry.pid, reason)
        self._write(change)
        async with self._changed:
            entry.state = state
            self._transitions.append(change)
            self._changed.notify_all()


@contextmanager
def _notify_socket(path: Path) -> Iterator[socket.socket]:
    """A bound datagram socket that tells its senders' pids; the file is removed at the end."""
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise ValueError(f"path of the notify socket is longer than {MAX_SOCKET_PATH_BYTES} bytes: {path}")
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        listening.bind(str(path))
        try:
            yield listening
        finally:
            path.unlink(missing_ok=True)


def _open_pidfd(pid: int) -> int:
    """-1 when the process has ended and was reaped already (asyncio does that in another thread)."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return -1


def _sender(ancillary: Sequence[tuple[int, int, bytes]]) -> int:
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            pid: int = _CREDENTIALS.unpack(data[: _CREDENTIALS.size])[0]
            return pid
    return 0
