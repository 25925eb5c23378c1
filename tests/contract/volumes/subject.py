"""Volumes of two hosts that share one pool and have one each, simulated and on real directories."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hostler.server.manual_clock import ManualClock
from nodeagent.adapters.directory_volumes import DirectoryPool, DirectoryVolumes
from nodeagent.adapters.sim_storage import SimFileSystem
from nodeagent.adapters.sim_volumes import SimVolumes
from nodeagent.adapters.sim_world import SimWorld
from nodeagent.ports import Volumes

SHARED, LOCAL = "shared", "local"
MIB = 1 << 20


class Subject(Protocol):
    """`hosts` are two hosts' Volumes."""

    hosts: tuple[Volumes, Volumes]

    async def add_image(self, name: str, size_mib: int) -> None:
        """Into the shared pool."""


@dataclass
class SimSubject:
    hosts: tuple[Volumes, Volumes]
    shared: SimFileSystem

    async def add_image(self, name: str, size_mib: int) -> None:
        self.shared.add_image(name, size_mib)


@dataclass
class DirectorySubject:
    hosts: tuple[Volumes, Volumes]
    shared: Path

    async def add_image(self, name: str, size_mib: int) -> None:
        await self.hosts[0].pools()
        await qemu_img("create", "-q", "-f", "qcow2", str(self.shared / "images" / f"{name}.qcow2"), str(size_mib * MIB))


async def qemu_img(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec("qemu-img", *arguments, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()


@asynccontextmanager
async def simulated(_: Path) -> AsyncIterator[Subject]:
    async with SimWorld(ManualClock()) as world:
        shared = SimFileSystem("fs-shared", 65536, shared=True)
        for node_id in ("n1", "n2"):
            world.add_host(node_id, pools={SHARED: shared, LOCAL: SimFileSystem(f"fs-{node_id}", 65536)})
        yield SimSubject((SimVolumes(world, "n1"), SimVolumes(world, "n2")), shared)


@asynccontextmanager
async def directories(root: Path) -> AsyncIterator[Subject]:
    shared, locals_ = root / "shared", [root / "local-1", root / "local-2"]
    for folder in (shared, *locals_):
        folder.mkdir()

    def host(local: Path) -> DirectoryVolumes:
        return DirectoryVolumes({SHARED: DirectoryPool(shared, True), LOCAL: DirectoryPool(local, False)})

    yield DirectorySubject((host(locals_[0]), host(locals_[1])), shared)
