"""Real etcd for tests and the demo: one or three members on loopback, each its own process.

Decision: a member is described by data (`members`, `argv`), so that the supervisor can run it as a unit, and `EtcdCluster`
runs members directly for tests, without root and without a lab. Heartbeat and election are slower than etcd's defaults,
because three members beside emulated guests on two cores lose elections otherwise. Members die with the thread that
started them (parent-death signal), so a killed test run leaves nothing; start them from a thread that stays.
"""

import json
import shutil
import signal
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from hostlerlab.processes import identify
from hostlerlab.shell import wait_for

HEARTBEAT_MS = 200
ELECTION_MS = 2000
READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
HEALTH_TIMEOUT_S = 2.0
SIZES = (1, 3)


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files. The server certificate must name 127.0.0.1; clients must present one signed by `ca` when `require_client`."""

    ca: Path
    server_cert: Path
    server_key: Path
    client_cert: Path
    client_key: Path
    require_client: bool = True


@dataclass(frozen=True, slots=True)
class Member:
    """One member: where it keeps its data and where it listens."""

    name: str
    data_dir: Path
    client_url: str
    peer_url: str


def members(folder: Path, size: int, *, tls: bool = False) -> tuple[Member, ...]:
    """`size` members (1 or 3) on ports that are free now."""
    if size not in SIZES:
        raise ValueError(f"an etcd lab cluster has {SIZES} members, not {size}")
    ports = _free_ports(2 * size)
    scheme = "https" if tls else "http"
    return tuple(
        Member(f"e{i + 1}", folder / f"e{i + 1}", f"{scheme}://127.0.0.1:{ports[2 * i]}", f"http://127.0.0.1:{ports[2 * i + 1]}")
        for i in range(size)
    )


def argv(member: Member, cluster: Sequence[Member], tls: Tls | None = None, extra: Sequence[str] = ()) -> list[str]:
    """The command line of one member of `cluster`. The same line starts it anew and again: its data directory decides."""
    line = [
        *("etcd", "--name", member.name, "--data-dir", str(member.data_dir)),
        *("--listen-client-urls", member.client_url, "--advertise-client-urls", member.client_url),
        *("--listen-peer-urls", member.peer_url, "--initial-advertise-peer-urls", member.peer_url),
        *("--initial-cluster", ",".join(f"{m.name}={m.peer_url}" for m in cluster), "--initial-cluster-state", "new"),
        *("--heartbeat-interval", str(HEARTBEAT_MS), "--election-timeout", str(ELECTION_MS)),
        *("--experimental-watch-progress-notify-interval", "5s"),  # the only progress of a 3.4 server that is in order with its events
        *("--logger", "zap", "--log-level", "warn", "--log-outputs", "stderr"),
    ]
    if tls is not None:
        line += ["--cert-file", str(tls.server_cert), "--key-file", str(tls.server_key)]
        # A trusted CA alone already makes etcd demand a client certificate.
        line += ["--client-cert-auth", "--trusted-ca-file", str(tls.ca)] if tls.require_client else []
    return [*line, *extra]


class EtcdCluster:
    """A running cluster; also a context manager. Single members can be killed, stopped (SIGSTOP) and started again."""

    def __init__(self, folder: Path, size: int = 1, *, tls: Tls | None = None, extra: Sequence[str] = ()) -> None:
        self.folder = folder
        self.tls = tls
        self.members = members(folder, size, tls=tls is not None)
        self._extra = tuple(extra)
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def client_urls(self) -> tuple[str, ...]:
        return tuple(m.client_url for m in self.members)

    @property
    def endpoints(self) -> tuple[str, ...]:
        """host:port of every member, as gRPC wants them."""
        return tuple(url.split("//", 1)[1] for url in self.client_urls)

    def start(self) -> None:
        """Start every member that is not running and wait until each answers a linearizable health check."""
        for member in self.members:
            self.start_member(member.name)
        for member in self.members:
            self.wait_healthy(member.name)

    def start_member(self, name: str) -> int:
        """Start one member (with the data it had); its pid. Does not wait: two of three are needed for an answer."""
        running = self._running.get(name)
        if running is not None and running.poll() is None:
            return running.pid
        member = self._member(name)
        self.folder.mkdir(parents=True, exist_ok=True)
        member.data_dir.mkdir(mode=0o700, exist_ok=True)
        line = ["setpriv", "--pdeathsig", "KILL", shutil.which("etcd") or "etcd"]
        with open(self.folder / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                [*line, *argv(member, self.members, self.tls, self._extra)[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._running[name] = process
        return process.pid

    def wait_healthy(self, name: str, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until a member answers /health, which reads through consensus."""
        process = self._running[name]
        wait_for(f"etcd {name} (log {self.folder / name}.log)", lambda: self.healthy(name) or process.poll() is not None, timeout_s)
        if process.poll() is not None:
            raise RuntimeError(f"etcd {name} exited with {process.returncode}: {self._last_words(name)}")

    def healthy(self, name: str) -> bool:
        """True when the member sees a leader and can read."""
        url = self._member(name).client_url + "/health"
        try:
            with urllib.request.urlopen(url, timeout=HEALTH_TIMEOUT_S, context=self._client_context()) as reply:
                return bool(json.load(reply)["health"] == "true")
        except (urllib.error.URLError, OSError):
            return False

    def _client_context(self) -> ssl.SSLContext | None:
        if self.tls is None:
            return None
        context = ssl.create_default_context(cafile=str(self.tls.ca))
        context.load_cert_chain(self.tls.client_cert, self.tls.client_key)
        return context

    def pid(self, name: str) -> int:
        return self._running[name].pid

    def signal_member(self, name: str, number: signal.Signals) -> None:
        """Send a signal to one member: SIGSTOP and SIGCONT to freeze it (returns when it is), SIGKILL is `kill_member`."""
        member = self._running[name]
        member.send_signal(number)
        if number is signal.SIGSTOP and (process := identify(member.pid)) is not None:
            wait_for(f"etcd member {name} to stop", process.stopped, STOP_TIMEOUT_S)

    def kill_member(self, name: str) -> None:
        """SIGKILL one member and reap it; its data stays."""
        process = self._running.pop(name)
        process.kill()
        process.wait(STOP_TIMEOUT_S)

    def stop(self) -> None:
        """End all members: SIGTERM (and SIGCONT, for frozen ones), SIGKILL when that takes too long."""
        for process in self._running.values():
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self._running.values():
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(STOP_TIMEOUT_S)
        self._running.clear()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _member(self, name: str) -> Member:
        return next(m for m in self.members if m.name == name)

    def _last_words(self, name: str) -> str:
        return "\n".join((self.folder / f"{name}.log").read_text().splitlines()[-5:])


def _free_ports(count: int) -> list[int]:
    """Ports free now. All are held together while choosing, so they differ; another process may still take one after."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
