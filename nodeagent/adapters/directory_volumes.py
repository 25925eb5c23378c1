"""The `Volumes` port over directories: a local file system, or one that many hosts mount (`pool_directory` has what a pool looks like).

Nothing from the API becomes part of a path: files are named after uids and checked image names. A volume is made beside its place, synced and
linked to its name, so it is there whole or not at all, and two hosts that make the same one do not overwrite each other.

A network file system can hang. Every look at a pool runs in a thread of that pool's own, with a deadline, and few at once: a hung pool costs
its own answers and nobody else's. Files belong to root; libvirt hands them to QEMU's user when it starts a domain, and back.
"""

import asyncio
import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from hostler.model.domain import VolumeSpec
from nodeagent.adapters import pool_directory
from nodeagent.adapters.libvirt_calls import Calls
from nodeagent.adapters.lock_holders import LockHolders
from nodeagent.adapters.pool_directory import Making, NotUsable, PoolIdentity
from nodeagent.adapters.qemu_img import ImageFormat, NoSpace, QemuImg, QemuImgFailed
from nodeagent.ports import PoolFull, PoolMissing, PoolView, ProbeOutcome, StorageUnavailable, VolumeRemoved, VolumeSize

LOOK_TIMEOUT_S = 5.0
"""A look at a directory; a file system that takes longer hangs."""
SYNC_TIMEOUT_S = 120.0
"""Writing a copied image to a slow disk: up to a few GiB of it may still be in memory."""
LOOKS_MAX = 8
"""Threads that a hung pool can hold."""

FOREIGN_STEPS = 256
"""What is not ours is told in 256ths of the file system."""

MIB = 1 << 20
T = TypeVar("T")
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DirectoryPool:
    """Where a pool is, and whether other hosts see the same file system there."""

    path: Path
    shared: bool
    relies_on_locks: bool = True
    """False: declared to have none, whatever is found."""


class _Pool:
    """One pool: its threads, and what is known of it since it was first opened."""

    def __init__(self, pool_id: str, directory: DirectoryPool) -> None:
        self.pool_id = pool_id
        self.shared = directory.shared
        self.root = directory.path
        self._relies_on_locks = directory.relies_on_locks
        self._calls = Calls(LOOKS_MAX, StorageUnavailable)
        self._hung = False
        self._identity: PoolIdentity | None = None
        self.complaint = ""
        self._image_mib: dict[pool_directory.ImageFile, int] = {}

    async def look(self, lane: str, look: Callable[[], T], timeout_s: float | None = None) -> T:
        """`look()` in a thread; one at a time in a lane. Raises PoolMissing, PoolFull, StorageUnavailable, at once while an earlier look hangs."""
        if self._hung and self._calls.running:
            raise StorageUnavailable(f"an earlier look at pool {self.pool_id} still hangs")
        self._hung = False
        try:
            return await self._calls.run(f"pool {self.pool_id}: {lane}", timeout_s or LOOK_TIMEOUT_S, look)
        except StorageUnavailable:
            self._hung = True
            raise
        except NotUsable as error:
            raise PoolMissing(str(error)) from error
        except FileNotFoundError as error:
            raise PoolMissing(f"Pool {self.pool_id} has no directory on this host; is its file system mounted?") from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise PoolFull(f"Pool {self.pool_id} is full.") from error
            raise PoolMissing(f"Pool {self.pool_id} cannot be used: {error.strerror}.") from error

    def identity(self) -> PoolIdentity:
        """Blocks. Asked of the file system once; it does not change under a mounted pool."""
        if self._identity is None:
            self._identity = pool_directory.open_pool(self.root)
        return self._identity

    def view(self) -> PoolView:
        """Blocks."""
        identity, ours = self.identity(), pool_directory.volumes_allocated_bytes(self.root)
        space = os.statvfs(self.root)  # after `ours`, so that what grows meanwhile is nobody's rather than free
        taken = (space.f_blocks - space.f_bavail) * space.f_frsize
        return PoolView(
            self.pool_id,
            self.shared,
            identity.fingerprint,
            space.f_blocks * space.f_frsize // MIB,
            space.f_bavail * space.f_frsize // MIB,
            identity.ofd_locks and self._relies_on_locks,
            self._images(),
            _foreign_mib(max(0, taken - ours), space.f_blocks * space.f_frsize),
            identity.filesystem,
        )

    def _images(self) -> dict[str, int]:
        """Blocks. An image is read again when its file has changed."""
        there = pool_directory.images(self.root)
        self._image_mib = {
            file: self._image_mib[file] if file in self._image_mib else pool_directory.image_mib(self.root, file.name) for file in there
        }
        return {file.name: mib for file, mib in self._image_mib.items() if mib}

    def free_bytes(self) -> int:
        """Blocks."""
        space = os.statvfs(self.root)
        return space.f_bavail * space.f_frsize


class DirectoryVolumes:
    """Volumes of one host, in `directories` by pool id."""

    def __init__(self, directories: Mapping[str, DirectoryPool]) -> None:
        self._pools = {pool_id: _Pool(pool_id, directory) for pool_id, directory in directories.items()}
        self._qemu_img = QemuImg()
        self._holders = LockHolders()

    async def pools(self) -> tuple[PoolView, ...]:
        """Pools that can be looked at, by id; one that hangs or is not mounted is left out, and said once in the log."""
        views = await asyncio.gather(*(self._view(self._pools[pool_id]) for pool_id in sorted(self._pools)))
        return tuple(view for view in views if view is not None)

    async def _view(self, pool: _Pool) -> PoolView | None:
        complaint, view = "", None
        try:
            view = await pool.look("view", pool.view)
        except (PoolMissing, PoolFull, StorageUnavailable) as error:
            complaint = error.detail
        if complaint != pool.complaint:
            log.warning("pool cannot be used" if complaint else "pool can be used again", pool=pool.pool_id, why=complaint)
            pool.complaint = complaint
        return view

    async def ensure(self, volume: VolumeSpec) -> int:
        """See the port. Raises StorageUnavailable as well: the file system hangs."""
        pool = self._pool(volume.pool_id)
        name = _file(volume.volume_uid, volume.format)
        size_bytes = await self._size_bytes(pool, name)
        if size_bytes is None:
            if await pool.look(name, lambda: pool_directory.was_removed(pool.root, name)):
                raise VolumeRemoved(volume.volume_uid)
            await self._make(pool, name, volume)
            size_bytes = await self._size_bytes(pool, name)
        if size_bytes is None:
            raise PoolMissing(f"The file of volume {volume.volume_uid} vanished while it was made.")
        return -(-size_bytes // MIB)

    async def remove(self, volume: VolumeSpec) -> None:
        pool, name = self._pool(volume.pool_id), _file(volume.volume_uid, volume.format)

        def remove() -> None:
            pool.identity()
            pool_directory.remove_volume(pool.root, name)

        await pool.look(name, remove)

    async def readmit(self, volume: VolumeSpec) -> None:
        pool, name = self._pool(volume.pool_id), _file(volume.volume_uid, volume.format)

        def readmit() -> None:
            pool.identity()
            pool_directory.readmit(pool.root, name)

        await pool.look(name, readmit)

    async def uids(self, pool_id: str) -> tuple[str, ...]:
        pool = self._pool(pool_id)

        def look() -> tuple[str, ...]:
            pool.identity()
            return pool_directory.volume_uids(pool.root)

        return await pool.look("uids", look)

    def path(self, pool_id: str, volume_uid: str, image_format: str) -> str:
        return str(self._pool(pool_id).root / pool_directory.VOLUMES / _file(volume_uid, image_format))

    async def identity(self, pool_id: str, volume_uid: str, image_format: str) -> str:
        pool, name = self._pool(pool_id), _file(volume_uid, image_format)

        def look() -> tuple[str, int | None]:
            return pool.identity().fingerprint, pool_directory.inode(pool.root, name)

        fingerprint, inode = await pool.look(name, look)
        if inode is None:
            raise PoolMissing(f"Pool {pool_id} has no file of volume {volume_uid}.")
        return f"{fingerprint}:{inode}"

    async def size(self, pool_id: str, volume_uid: str, image_format: str) -> VolumeSize:
        pool, name = self._pool(pool_id), _file(volume_uid, image_format)

        def look() -> tuple[int | None, int | None]:
            pool.identity()
            return pool_directory.volume_bytes(pool.root, name), pool_directory.allocated_bytes(pool.root, name)

        size_bytes, allocated_bytes = await pool.look(name, look)
        if size_bytes is None or allocated_bytes is None:
            raise PoolMissing(f"Pool {pool_id} has no file of volume {volume_uid}.")
        return VolumeSize(size_bytes, allocated_bytes)

    # ---- probing locks

    async def hold_probe(self, pool_id: str, probe_id: str) -> ProbeOutcome:
        pool = self._pool(pool_id)
        name = _probe_file(probe_id)
        with await pool.look("probe", lambda: pool_directory.open_root(pool.root)) as root:
            return ProbeOutcome.HELD if await self._holders.hold(root.fileno(), name) else ProbeOutcome.REFUSED

    async def try_probe(self, pool_id: str, probe_id: str) -> ProbeOutcome:
        pool = self._pool(pool_id)
        name = _probe_file(probe_id)
        match await pool.look("probe", lambda: pool_directory.try_lock(pool.root, name)):
            case None:
                return ProbeOutcome.MISSING
            case (True, False):
                return ProbeOutcome.REFUSED
            case (False, True):
                return ProbeOutcome.TAKEN
            case _:
                return ProbeOutcome.UNCLEAR

    async def end_probe(self, pool_id: str, probe_id: str, *, remove: bool) -> None:
        pool = self._pool(pool_id)
        name = _probe_file(probe_id)
        await self._holders.kill(name)
        if remove:
            await pool.look("probe", lambda: pool_directory.remove_probe(pool.root, name))

    # ---- making one

    async def _make(self, pool: _Pool, name: str, volume: VolumeSpec) -> None:
        """Whole or not at all. The part is named before it exists, so that it is discarded even if its making was cancelled half-way."""
        part = pool_directory.new_part(name)
        try:
            making = await pool.look(name, lambda: pool_directory.begin(pool.root, part, volume.image))
            with making:
                size_bytes = volume.size_mib * MIB or making.image_bytes
                await self._check_size(pool, volume, size_bytes, making.image_bytes)
                await self._fill(pool, name, making, size_bytes, ImageFormat(volume.format))
                if not await pool.look(name, lambda: pool_directory.finish(pool.root, making, name), SYNC_TIMEOUT_S):
                    raise VolumeRemoved(volume.volume_uid)
        except NoSpace as error:
            raise PoolFull(f"Pool {pool.pool_id} is full.") from error
        except QemuImgFailed as error:
            raise PoolMissing(f"Image {volume.image} cannot be copied.") from error
        finally:
            await pool.look(name, lambda: pool_directory.discard(pool.root, part))

    async def _check_size(self, pool: _Pool, volume: VolumeSpec, size_bytes: int, image_bytes: int) -> None:
        if size_bytes <= 0:
            raise ValueError("a volume has a size, or an image that has one")
        if size_bytes < image_bytes:
            raise PoolFull(f"Image {volume.image} needs {-(-image_bytes // MIB)} MiB, the volume has {volume.size_mib}.")
        if size_bytes > await pool.look("space", pool.free_bytes):
            raise PoolFull(f"Pool {pool.pool_id} has no room for {-(-size_bytes // MIB)} MiB.")

    async def _fill(self, pool: _Pool, name: str, making: Making, size_bytes: int, image_format: ImageFormat) -> None:
        tool, target = self._qemu_img, making.target
        if making.source:
            await tool.copy(making.source, target, image_format, making.descriptors)
        elif image_format is ImageFormat.QCOW2:
            await tool.create(target, size_bytes, making.descriptors)
        if image_format is ImageFormat.RAW:
            await pool.look(name, lambda: pool_directory.grow_raw(making, size_bytes))
        elif making.source and size_bytes > making.image_bytes:
            await tool.grow(target, image_format, size_bytes, making.descriptors)

    async def _size_bytes(self, pool: _Pool, name: str) -> int | None:
        def look() -> int | None:
            pool.identity()
            return pool_directory.volume_bytes(pool.root, name)

        return await pool.look(name, look)

    def _pool(self, pool_id: str) -> _Pool:
        pool = self._pools.get(pool_id)
        if pool is None:
            raise PoolMissing(f"This host has no pool {pool_id}.")
        return pool


def _foreign_mib(taken_bytes: int, capacity_bytes: int) -> int:
    """In steps, rounded up: other people's files change all the time, and not every change is worth telling the cluster."""
    step_mib = max(1, capacity_bytes // MIB // FOREIGN_STEPS)
    return min(-(-taken_bytes // (step_mib * MIB)) * step_mib, capacity_bytes // MIB)


def _probe_file(probe_id: str) -> str:
    try:
        return pool_directory.probe_file(probe_id)
    except NotUsable as error:
        raise PoolMissing(str(error)) from error


def _file(volume_uid: str, image_format: str) -> str:
    try:
        return pool_directory.volume_file(volume_uid, image_format)
    except NotUsable as error:
        raise PoolMissing(str(error)) from error
