"""Scheduler replicas as processes of their own, supervised as in production: what SIGKILL leaves of one is what a crash leaves."""

import asyncio
import base64
import json
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hostlerlab.cluster import installed
from hostlerlab.processes import Process, identify
from hostlerlab.supervisor import State, Supervisor, Unit

READY_S = 60.0
"""A replica is back within two seconds; beside other work on two cores it can take ten times as long."""

RESTART_S = 0.2
GONE_S = 5.0
LEADER = "/hostler/leader"


@dataclass(frozen=True, slots=True)
class Term:
    """One leadership: whose, and the revision that began it."""

    replica: str
    revision: int


@dataclass(frozen=True, slots=True)
class Killed:
    """One replica's end: the process that it was, and whether it led."""

    replica: str
    pid: int
    led: bool


@dataclass(slots=True)
class Replicas:
    """`places`: host:port by name. They begin with `start` and end with their supervisor."""

    supervisor: Supervisor
    folder: Path
    etcd: str
    places: dict[str, str]
    starts: dict[str, int] = field(default_factory=dict)
    """How often each has been started so far."""
    down: set[str] = field(default_factory=set)
    """Killed, and not seen serving again yet."""
    ended: set[Term] = field(default_factory=set)
    """Leaderships that ended with a kill: their key outlives them by its lease."""

    async def start(self, certificates: Sequence[Path]) -> None:
        for (name, place), tls in zip(self.places.items(), certificates, strict=True):
            config = self.folder / f"{name}.toml"
            config.write_text(
                f'listen = "{place}"\nlog_level = "info"\n\n[etcd]\nendpoints = ["{self.etcd}"]\n\n'
                f'[tls]\ncert = "{tls}/tls.crt"\nkey = "{tls}/tls.key"\nca = "{tls}/ca.crt"\n'
            )
            program = [*installed("hostler-scheduler", name), "--config", str(config)]
            # A replica that is killed as often as it starts must go on being started: no limit of starts.
            unit = Unit(name, program, restart="always", restart_s=RESTART_S, timeout_start_s=READY_S, start_limit_interval_s=0.0)
            await self.supervisor.start(unit)
            self.starts[name] = 1
        for name in self.places:
            await self.back(name)

    def serving(self) -> list[str]:
        return [name for name in self.places if name not in self.down]

    async def leader(self) -> Term | None:
        """Who leads, by the store; None: nobody, or one that is dead and whose lease has not run out."""
        argv = ["env", "ETCDCTL_API=3", "etcdctl", "--endpoints", self.etcd, "get", LEADER, "-w", "json"]
        done = await asyncio.to_thread(subprocess.run, argv, check=True, capture_output=True, timeout=READY_S)
        for kv in json.loads(done.stdout).get("kvs", ()):
            term = Term(base64.b64decode(kv["value"]).decode(), kv["create_revision"])
            return None if term in self.ended else term
        return None

    async def kill(self, name: str, term: Term | None) -> Killed:
        """SIGKILL, at once, and the proof that the process which served is gone; `term`: who led just now. Its restart is awaited by `back`."""
        process = self._process(name)
        led = term is not None and term.replica == name
        self.down.add(name)
        self.starts[name] += 1
        self.supervisor.send_signal(name, signal.SIGKILL)
        gone = await asyncio.to_thread(process.wait, GONE_S)
        if not gone or process.alive():
            raise AssertionError(f"{name}, process {process.pid}, has outlived SIGKILL")
        if term is not None and led:
            self.ended.add(term)
        return Killed(name, process.pid, led)

    async def back(self, name: str) -> None:
        """Until it serves again."""
        await self.supervisor.wait_for_state(name, State.ACTIVE, READY_S, starts=self.starts[name])
        self.down.discard(name)

    def endings(self) -> list[str]:
        """How each process that is no more has ended, as the supervisor saw it."""
        return [change.reason.partition(",")[0] for change in self.supervisor.transitions() if change.state is State.AUTO_RESTART]

    def _process(self, name: str) -> Process:
        process = identify(self.supervisor.pid(name))
        if process is None:
            raise AssertionError(f"{name} has no process")
        return process
