"""What the store tests work with: a store under test, and real etcd members on loopback ports."""

import shutil
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from hostlerlab.etcd import EtcdCluster, Tls
from scheduler.ports import Store

QUICK_ELECTION = ("--heartbeat-interval", "50", "--election-timeout", "500")
"""etcd's shortest lease is one and a half election timeouts: one second here."""

PROGRESS_INTERVAL_S = 0.1


@dataclass(frozen=True, slots=True)
class Subject:
    """A store to test, and what a test must do behind its back."""

    store: Store
    prefix: str
    connect: Callable[[], Store]
    compact: Callable[[int], None]
    watches: Callable[[], int]

    def key(self, name: str) -> str:
        return f"{self.prefix}{name}"


def etcd_cluster(folder: Path, size: int, tls: Tls | None = None, extra: tuple[str, ...] = ()) -> EtcdCluster:
    if shutil.which("etcd") is None:
        pytest.fail("the etcd binary is not installed (Debian: etcd-server); run with -m 'not etcd' to leave these tests out")
    return EtcdCluster(folder, size, tls=tls, extra=(*QUICK_ELECTION, *extra))


def metric(cluster: EtcdCluster, name: str, client_url: str = "") -> int:
    """One figure of a member's metrics (the first member's unless told)."""
    with urllib.request.urlopen(f"{client_url or cluster.client_urls[0]}/metrics", timeout=5) as reply:
        lines = reply.read().decode().splitlines()
    return int(float(next(line for line in lines if line.startswith(f"{name} ")).split()[1]))
