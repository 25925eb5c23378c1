"""Hostler itself on a lab: etcd, scheduler replicas and one agent per host, as supervised units with their own certificates.

Decision: what an operator would write by hand is written here: one TOML file per daemon, certificates made by `hostler pki`, units with the
restart and watchdog settings of deploy/systemd. The daemons are started as the programs that are installed; nothing of theirs is imported.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hostlerlab.etcd import EtcdCluster
from hostlerlab.hosts import LIBVIRT_SOCKET, LOCAL_POOL, SHARED_POOL, STATE_DIR, Host
from hostlerlab.lab import Lab
from hostlerlab.supervisor import State, Supervisor, Unit

CLUSTER = "lab"
GATEWAY = "10.91.7.1"
"""The lab bridge's own address: schedulers listen here, so that hosts reach them."""
SCHEDULER_PORT = 7900
AGENT_PORT = 7500
READY_TIMEOUT_S = 60.0
PKI_TIMEOUT_S = 60.0

Launch = Callable[[str, str], Sequence[str]]
"""(program, unit) -> the command line that starts it, without its settings."""


def installed(program: str, unit: str) -> Sequence[str]:
    """The programs beside this Python, as they are."""
    return [str(Path(sys.executable).with_name(program))]


@dataclass(frozen=True, slots=True)
class Daemons:
    """How the cluster's daemons are run. `watchdog_s` as in the units of deploy/systemd; 0: a daemon that a test has frozen is left alone."""

    launch: Launch = installed
    watchdog_s: float = 20.0


@dataclass(frozen=True, slots=True)
class Offer:
    """What each agent offers of its host: less than the host's caps, so that a demonstration fills it with a few small VMs."""

    cpu_milli: int
    memory_mib: int


@dataclass(slots=True)
class LabCluster:
    """A running cluster. `unit` names: s1.. for replicas, n1.. for agents."""

    lab: Lab
    folder: Path
    etcd: EtcdCluster
    supervisor: Supervisor
    replicas: tuple[str, ...]
    offer: Offer
    daemons: Daemons = Daemons()
    shared_locks: str = "probed"
    units: dict[str, Unit] = field(default_factory=dict)

    @property
    def endpoints(self) -> tuple[str, ...]:
        """host:port of every scheduler replica."""
        return tuple(f"{GATEWAY}:{SCHEDULER_PORT + index}" for index in range(len(self.replicas)))

    @property
    def user_tls(self) -> Path:
        """Directory of the administrator's certificate."""
        return self.folder / "tls" / "user-admin"

    def environment(self) -> dict[str, str]:
        """What `hostler` needs to find the cluster."""
        tls = self.user_tls
        return {
            "HOSTLER_ENDPOINT": ",".join(self.endpoints),
            "HOSTLER_CERT": str(tls / "tls.crt"),
            "HOSTLER_KEY": str(tls / "tls.key"),
            "HOSTLER_CA": str(tls / "ca.crt"),
        }

    def log_text(self, unit: str) -> str:
        """Everything the unit has logged."""
        return self.supervisor.log_path(unit).read_text(errors="replace")

    async def start(self) -> None:
        """Replicas, then agents; returns when all say that they are ready."""
        self._certificates()
        for index, replica in enumerate(self.replicas):
            self.units[replica] = self._scheduler(replica, index)
            await self.supervisor.start(self.units[replica])
        for replica in self.replicas:
            await self.supervisor.wait_for_state(replica, State.ACTIVE, READY_TIMEOUT_S)
        for host in self.lab.hosts.values():
            self.units[host.name] = self._agent(host)
            await self.supervisor.start(self.units[host.name])
        for host in self.lab.hosts.values():
            await self.supervisor.wait_for_state(host.name, State.ACTIVE, READY_TIMEOUT_S)

    def _certificates(self) -> None:
        wanted = [("user", "admin"), *(("scheduler", r) for r in self.replicas), *(("node", h) for h in self.lab.hosts)]
        _issue(self.folder, wanted)

    def _scheduler(self, replica: str, index: int) -> Unit:
        config, members = self.folder / f"{replica}.toml", self.etcd.endpoints
        first = index % len(members)  # each replica turns to another member first, as deploy/systemd/scheduler.toml advises
        config.write_text(
            f'listen = "{GATEWAY}:{SCHEDULER_PORT + index}"\n\n{_tls(self.folder, "scheduler", replica)}\n'
            f"[etcd]\nendpoints = {_list([*members[first:], *members[:first]])}\n"
        )
        program = [*self.daemons.launch("hostler-scheduler", replica), "--config", str(config)]
        return Unit(replica, program, restart_s=1.0, watchdog_s=self.daemons.watchdog_s, restart="always")

    def _agent(self, host: Host) -> Unit:
        role = f'tunnel_host = "{host.address}"\nschedulers = {_list(self.endpoints)}\n'
        return _agent(self.folder, host, self.offer, role, self.daemons, self.shared_locks)


@asynccontextmanager
async def lab_cluster(
    lab: Lab,
    folder: Path,
    etcd_members: int = 3,
    replicas: Sequence[str] = ("s1", "s2"),
    offer: Offer = Offer(500, 1024),
    daemons: Daemons = Daemons(),
    shared_locks: str = "probed",
) -> AsyncIterator[LabCluster]:
    """A new cluster on a lab that is up: nothing is kept of an earlier one. Its daemons end with the block (guests do not).

    `shared_locks`: "none" declares the shared pool to have no locks.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)  # noqa: ASYNC240 once, before anything runs
    for host in lab.hosts.values():
        host.run(["rm", "-rf", str(STATE_DIR / "agent")])
    etcd = EtcdCluster(folder / "etcd", etcd_members)
    etcd.start()
    try:
        async with Supervisor(folder / "units") as supervisor:
            cluster = LabCluster(lab, folder, etcd, supervisor, tuple(replicas), offer, daemons, shared_locks)
            await cluster.start()
            yield cluster
    finally:
        etcd.stop()


@dataclass(slots=True)
class LoneHost:
    """One host with its agent, commanded by users: no scheduler, no etcd. The unit is named like the host."""

    host: Host
    folder: Path
    supervisor: Supervisor

    def environment(self) -> dict[str, str]:
        """What `hostler` needs to find the host."""
        tls = self.folder / "tls" / "user-admin"
        return {
            "HOSTLER_NODE_ENDPOINT": f"{self.host.name}@{self.host.address}:{AGENT_PORT}",
            "HOSTLER_CERT": str(tls / "tls.crt"),
            "HOSTLER_KEY": str(tls / "tls.key"),
            "HOSTLER_CA": str(tls / "ca.crt"),
        }


@asynccontextmanager
async def lone_host(host: Host, folder: Path, offer: Offer = Offer(500, 1024)) -> AsyncIterator[LoneHost]:
    """A new standalone agent on a host that is up; it ends with the block, guests do not."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)  # noqa: ASYNC240 once, before anything runs
    host.run(["rm", "-rf", str(STATE_DIR / "agent")])
    _issue(folder, [("user", "admin"), ("node", host.name)])
    async with Supervisor(folder / "units") as supervisor:
        await supervisor.start(_agent(folder, host, offer, 'mode = "standalone"\n'))
        await supervisor.wait_for_state(host.name, State.ACTIVE, READY_TIMEOUT_S)
        yield LoneHost(host, folder, supervisor)


def _agent(folder: Path, host: Host, offer: Offer, role: str, daemons: Daemons = Daemons(), shared_locks: str = "probed") -> Unit:
    """`role`: the settings by which it is part of a cluster, or alone."""
    config = folder / f"{host.name}.toml"
    config.write_text(
        f'listen = "{host.address}:{AGENT_PORT}"\nadvertise = "{host.address}:{AGENT_PORT}"\n{role}'
        f'state_dir = "{STATE_DIR}/agent"\nlibvirt_socket = "{LIBVIRT_SOCKET}"\n\n'
        f"{_tls(folder, 'node', host.name)}\n"
        f"[capacity]\ncpu_milli = {offer.cpu_milli}\nmemory_mib = {offer.memory_mib}\n\n"
        f'[pools.shared]\npath = "{SHARED_POOL}"\nshared = true\nlocks = "{shared_locks}"\n\n[pools.local]\npath = "{LOCAL_POOL}"\n'
    )
    program = [*daemons.launch("hostler-nodeagent", host.name), "--config", str(config)]
    return Unit(host.name, program, restart_s=0.5, watchdog_s=daemons.watchdog_s, restart="always", space=host.space)


def _issue(folder: Path, wanted: Sequence[tuple[str, str]]) -> None:
    """A certificate in `tls/KIND-NAME` for each, by one authority."""
    ca = folder / "ca"
    if not ca.exists():
        _hostler("pki", "init", CLUSTER, "--dir", str(ca))
    for kind, name in wanted:
        out = folder / "tls" / f"{kind}-{name}"
        if not out.exists():
            _hostler("pki", "issue", kind, name, "--ca", str(ca), "--out", str(out))


def _tls(folder: Path, kind: str, name: str) -> str:
    out = folder / "tls" / f"{kind}-{name}"
    return f'[tls]\ncert = "{out}/tls.crt"\nkey = "{out}/tls.key"\nca = "{out}/ca.crt"\n'


def _list(values: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{value}"' for value in values) + "]"


def _hostler(*arguments: str) -> None:
    """The installed command line; its message is the reason when it fails."""
    program = Path(sys.executable).with_name("hostler")
    result = subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=PKI_TIMEOUT_S, check=False, env=os.environ | {"NO_COLOR": "1"}
    )
    if result.returncode != 0:
        raise RuntimeError(f"hostler {' '.join(arguments)}: {result.stderr.strip()}")
