"""One suite, two stores: `subject` is a client of the store in memory or of a real etcd, with a prefix of its own for each test."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from hostlerlab.etcd import EtcdCluster
from hostlerlab.shell import run
from scheduler.adapters.etcd_channels import EtcdConfig
from scheduler.adapters.etcd_store import EtcdStore
from scheduler.adapters.memory_store import MemoryServer
from scheduler.ports import Store
from tests.contract.store.subject import PROGRESS_INTERVAL_S, Subject, etcd_cluster, metric


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """One member, for the whole run."""
    with etcd_cluster(tmp_path_factory.mktemp("etcd"), 1) as cluster:
        yield cluster


@pytest.fixture(params=["memory", pytest.param("etcd", marks=pytest.mark.etcd)])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    prefix = f"{request.node.originalname}/"
    opened: list[Store] = []

    def keep(store: Store) -> Store:
        opened.append(store)
        return store

    if request.param == "memory":
        server = MemoryServer()

        def connect() -> Store:
            return keep(server.connect(progress_interval_s=PROGRESS_INTERVAL_S))

        yield Subject(connect(), prefix, connect, server.compact, lambda: server.watches)
    else:
        cluster: EtcdCluster = request.getfixturevalue("etcd")

        def connect_etcd() -> Store:
            return keep(EtcdStore(EtcdConfig(cluster.endpoints), progress_interval_s=PROGRESS_INTERVAL_S))

        def compact(revision: int) -> None:
            run(["etcdctl", "--endpoints", cluster.endpoints[0], "compaction", str(revision)], env={"ETCDCTL_API": "3"})

        yield Subject(connect_etcd(), prefix, connect_etcd, compact, lambda: metric(cluster, "etcd_debugging_mvcc_watcher_total"))
    async with asyncio.timeout(10):
        for store in opened:
            await store.close()
