"""The stage of the race: a real etcd that forgets nothing, three replicas as processes, ten simulated hosts, and users' connections."""

import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from client import Client
from devcluster.cluster import DevOptions, dev_cluster
from hostler.server import channels
from hostler.server.clock import SystemClock
from hostler.server.tls import TlsFiles, load
from hostlerlab.etcd import EtcdCluster
from hostlerlab.supervisor import Supervisor
from tests.contention.clients import Caller, Tally
from tests.contention.hosts import RESERVE_MIB, SIZES, Hosts
from tests.contention.replicas import Replicas
from tests.contract.store.subject import etcd_cluster

CREATES = 1000
REPLICAS = ("s1", "s2", "s3")
USERS = 12
"""One caller may have 128 calls at once at a replica: with twelve of them a thousand calls fit, also when one replica has all that two had."""

FORGETS_NOTHING = ("--auto-compaction-retention", "0")


@dataclass(slots=True)
class Stage:
    """Everything that takes part."""

    etcd: EtcdCluster
    replicas: Replicas
    hosts: Hosts
    callers: list[Caller]
    tally: Tally


@pytest.fixture
def seed() -> int:
    """Of the kills: SEED=17 in the environment, else always the same ones."""
    return int(os.environ.get("SEED", "1"))


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdCluster]:
    with etcd_cluster(tmp_path / "etcd", 1, extra=FORGETS_NOTHING) as cluster:
        yield cluster


@pytest.fixture
async def stage(etcd: EtcdCluster, tmp_path: Path) -> AsyncIterator[Stage]:
    """All nodes ready, nobody has asked for anything yet."""
    options = DevOptions(reserve_mib=RESERVE_MIB, images={})
    async with Supervisor(tmp_path / "units") as supervisor, dev_cluster(tmp_path / "hosts", options, kind=Hosts) as hosts:
        assert isinstance(hosts, Hosts)
        places = dict(zip(REPLICAS, (f"127.0.0.1:{port}" for port in _free_ports(len(REPLICAS))), strict=True))
        replicas = Replicas(supervisor, tmp_path, etcd.endpoints[0], places)
        await replicas.start([hosts.scheduler_certificate(name) for name in REPLICAS])
        await hosts.start_agents(tuple(places.values()))
        tally = Tally(CREATES)
        users = [_connections(hosts.user_certificate(f"user-{number}"), places) for number in range(USERS)]
        callers = [Caller(clients, number, tally) for number, clients in enumerate(users)]
        for client in users[0].values():
            await client.until_ready(len(SIZES))
        yield Stage(etcd, replicas, hosts, callers, tally)
        for clients in users:
            for client in clients.values():
                await client.channel.close()


def _connections(certificate: Path, places: dict[str, str]) -> dict[str, Client]:
    material = load(TlsFiles.in_directory(certificate), clock=SystemClock())
    return {name: Client(channels.to_scheduler(material, place)) for name, place in places.items()}


def _free_ports(count: int) -> list[int]:
    """A replica has to come back where it was."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
