"""The stage that lab cases stand on: three hosts, and one cluster for all cases of a module."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import real
from hostlerlab.cluster import LabCluster, lab_cluster
from hostlerlab.lab import Lab
from hostlerlab.ready import HOSTS, ready_lab

BUILD = Path("build").resolve()


@pytest.fixture
async def lab() -> Lab:
    """Fresh for each try: one that lost its guest to the emulator leaves a domain that the next try's store does not know."""
    return await asyncio.to_thread(ready_lab, BUILD)


@pytest.fixture(scope="module")
async def cluster() -> AsyncIterator[LabCluster]:
    lab = await asyncio.to_thread(ready_lab, BUILD)
    async with lab_cluster(lab, BUILD / "lab-cluster") as running:
        yield running


@pytest.fixture(scope="module")
async def stage(cluster: LabCluster) -> AsyncIterator[real.Real]:
    made = real.Real(cluster.lab, cluster)
    await made.client("s1").until_ready(HOSTS)
    yield made
    await made.close()
