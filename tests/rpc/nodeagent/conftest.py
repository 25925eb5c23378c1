"""A standalone host for each test that asks."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from tests.rpc.nodeagent.host import MEMORY_MIB, HostClient, LoneHost, lone_host


@pytest.fixture
def cells() -> Mapping[int, int]:
    """MiB of memory by NUMA cell."""
    return {0: MEMORY_MIB}


@pytest.fixture
async def host(tmp_path: Path, cells: Mapping[int, int]) -> AsyncIterator[LoneHost]:
    async with lone_host(tmp_path, cells) as running:
        yield running


@pytest.fixture
async def client(host: LoneHost) -> HostClient:
    return host.client()
