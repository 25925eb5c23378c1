"""A simulated cluster, the SDK connected to both of its replicas, and the command line as its users start it."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from devcluster.cluster import DevCluster, dev_cluster
from hostler.api.type.v1.node_pb2 import Node
from hostler.cluster import Cluster, connect
from hostler.watch import Updated
from tests.rpc.brisk import BRISK
from tests.rpc.sdk import warm

CLI_S = 30.0


@pytest.fixture(autouse=True)
def without_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What whoever runs the tests connects to is not ours."""
    for name in [name for name in os.environ if name.startswith("HOSTLER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOSTLER_CONFIG", os.devnull)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[DevCluster]:
    """Ready; at its end no VM may ever have had two running copies or two writers."""
    async with dev_cluster(tmp_path, BRISK) as running:
        yield running
        running.world.assert_one_writer()


Connect = Callable[..., Any]


@pytest.fixture
async def connected(cluster: DevCluster) -> AsyncIterator[Connect]:
    """`await connected(endpoints)`: another Cluster, closed at the end."""
    tls = cluster.user_certificate()
    async with AsyncExitStack() as stack:

        async def open_one(endpoints: tuple[str, ...], call_s: float = 15.0) -> Cluster:
            one = connect(endpoints, cert=tls / "tls.crt", key=tls / "tls.key", ca=tls / "ca.crt", call_s=call_s)
            return await stack.enter_async_context(one)

        yield open_one


@pytest.fixture
async def sdk(cluster: DevCluster, connected: Connect) -> Cluster:
    """Asks s1 first, then s2; every node is ready."""
    both: Cluster = await connected(cluster.endpoints)
    await until_ready(both, len(cluster.agents))
    return both


QUIET_S = 0.15
"""A watch of nodes that is quiet for so long is begun anew: each begins with how things are now."""


async def until_ready(sdk: Cluster, nodes: int) -> None:
    """Watch the nodes until so many are ready."""
    async with asyncio.timeout(CLI_S):
        while not await _seen_ready(sdk, nodes):
            pass


async def _seen_ready(sdk: Cluster, nodes: int) -> bool:
    ready: set[str] = set()
    events = sdk.watch_nodes()
    try:
        while len(ready) < nodes:
            event = await asyncio.wait_for(anext(events), QUIET_S)
            if isinstance(event, Updated):
                (ready.add if event.resource.health == Node.READY else ready.discard)(event.resource.name)
    except TimeoutError:
        return False
    finally:
        await events.aclose()
    return True


DISK: dict[str, Any] = {"vcpus": 1, "memory_mib": 512, "image": "guest", "pool": "shared", "size_mib": 64, "networks": ["br0"]}
"""What most VMs here are."""


async def made(sdk: Cluster, name: str, **more: Any) -> Any:  # noqa: ANN401
    """A VM that runs."""
    return (await (await sdk.create_vm(name, **{**DISK, **more})).wait(CLI_S)).vm


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:  # noqa: ANN401
        return json.loads(self.out)


@dataclass(frozen=True, slots=True)
class Cli:
    """`hostler`, in a process of its own, with the environment that `hostler dev` prints."""

    environment: dict[str, str]
    cold: bool = False
    """Start it as a shell does, imports and all."""

    async def start(self, *arguments: str) -> "asyncio.subprocess.Process | warm.Command":
        if not self.cold:
            return await warm.start(arguments, self.environment)
        return await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("hostler")),
            *arguments,
            env=self.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def __call__(self, *arguments: str) -> Ran:
        process = await self.start(*arguments)
        try:
            async with asyncio.timeout(CLI_S):
                out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
                await process.wait()
        return Ran(process.returncode or 0, out.decode(), err.decode())


def environment(**more: str) -> dict[str, str]:
    """Ours without any HOSTLER_ variable."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HOSTLER_")}
    return kept | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "COLUMNS": "100", "HOSTLER_CONFIG": os.devnull} | more


@pytest.fixture
async def cli(cluster: DevCluster, sdk: Cluster) -> Cli:
    tls = cluster.user_certificate()
    return Cli(
        environment(
            HOSTLER_ENDPOINT=",".join(cluster.endpoints),
            HOSTLER_CERT=str(tls / "tls.crt"),
            HOSTLER_KEY=str(tls / "tls.key"),
            HOSTLER_CA=str(tls / "ca.crt"),
        )
    )
