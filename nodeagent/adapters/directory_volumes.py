"""Volumes as qcow2 files in directories: a local file system, or one that many hosts mount.

A pool has `volumes/<uid>.qcow2` and `images/<name>.qcow2`. Names of files are made from uids and checked image names only, so nothing from the
API becomes part of a path; links are not followed. A volume is made beside its place and renamed, whole or not at all. `qemu-img` is always told
the format, and runs with limits; an image's header is inspected first (`core.qcow2_header`).

Two hosts agree on a pool by the id file `.hostler-pool` in it, and on a volume by that id and the inode. Blocking calls run in threads with a
deadline: a network file system can hang.
"""

import asyncio
import errno
import fcntl
import os
import re
import stat
import struct
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from hostler.model.domain import VolumeSpec
from nodeagent.core.qcow2_header import HEADER_BYTES, Unusable, inspect
from nodeagent.ports import HypervisorUnavailable, PoolFull, PoolMissing, PoolView

VOLUMES, IMAGES, ID_FILE, PROBE_FILE = "volumes", "images", ".hostler-pool", ".hostler-lock-probe"
LOOK_TIMEOUT_S = 5.0
"""A look at a directory; a file system that takes longer hangs."""

COPY_TIMEOUT_S = 280.0
"""Below the deadline of the call that asks for it (300 s)."""

COPIES_MAX = 2
"""Image copies at once: more only move the disk's heads."""

LIMITED = ("prlimit", "--cpu=60", f"--as={2 << 30}", "--")
"""What a crafted image may make qemu-img take. Set by a program, not between fork and exec: gRPC's threads do not survive a fork that runs Python."""

MIB = 1 << 20
_UID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_IMAGE = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_FLOCK = struct.Struct("hhqqi4x")
T = TypeVar("T")
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DirectoryPool:
    """Where a pool is, and whether other hosts see the same file system there."""

    path: Path
    shared: bool


@dataclass(slots=True)
class _Opened:
    fingerprint: str
    ofd_locks: bool


@dataclass(slots=True)
class DirectoryVolumes:
    """Implements Volumes over `directories`, by pool id."""

    directories: Mapping[str, DirectoryPool]
    _opened: dict[str, _Opened] = field(default_factory=dict)
    _copies: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(COPIES_MAX))
    _making: dict[str, asyncio.Lock] = field(default_factory=dict)

    async def pools(self) -> tuple[PoolView, ...]:
        """Pools that can be looked at; one that hangs or is not mounted is left out, and said in the log."""
        views = []
        for pool_id in sorted(self.directories):
            try:
                views.append(await self._look(pool_id, partial(self._view, pool_id)))
            except (PoolMissing, HypervisorUnavailable) as error:
                log.warning("pool cannot be used", pool=pool_id, why=error.detail)
        return tuple(views)

    async def ensure(self, volume: VolumeSpec) -> int:
        """Make it if it is not there; one maker per volume."""
        async with self._making.setdefault(volume.volume_uid, asyncio.Lock()):
            there = await self._look(volume.pool_id, lambda: self._size_mib(volume))
            return there if there is not None else await self._make(volume)

    async def remove(self, volume: VolumeSpec) -> None:
        path = self._path(volume.pool_id, volume.volume_uid)
        await self._look(volume.pool_id, lambda: path.unlink(missing_ok=True))

    async def uids(self, pool_id: str) -> tuple[str, ...]:
        folder = self._directory(pool_id) / VOLUMES
        names = await self._look(pool_id, lambda: sorted(path.stem for path in folder.glob("*.qcow2")))
        return tuple(name for name in names if _UID.fullmatch(name))

    def path(self, pool_id: str, volume_uid: str, image_format: str) -> str:
        return str(self._path(pool_id, volume_uid))

    async def identity(self, pool_id: str, volume_uid: str, image_format: str) -> str:
        path = self._path(pool_id, volume_uid)
        return await self._look(pool_id, lambda: f"{self._open_pool(pool_id).fingerprint}:{_regular(path).st_ino}")

    # ---- one volume

    async def _make(self, volume: VolumeSpec) -> int:
        """Copy the image or make an empty one, beside its place; then rename. ENOSPC leaves nothing behind."""
        path = self._path(volume.pool_id, volume.volume_uid)
        part = path.with_suffix(".part")
        size_mib = volume.size_mib
        if volume.image:
            image = self._directory(volume.pool_id) / IMAGES / f"{_checked(_IMAGE, volume.image)}.qcow2"
            image_bytes = await self._look(volume.pool_id, lambda: _image_bytes(image, volume))
            size_mib = max(size_mib, -(-image_bytes // MIB))
            if volume.size_mib and volume.size_mib * MIB < image_bytes:
                raise PoolFull(f"Image {volume.image} needs {-(-image_bytes // MIB)} MiB, the volume has {volume.size_mib}.")
        try:
            if volume.image:
                await self._qemu_img("convert", "-f", "qcow2", "-O", "qcow2", str(image), str(part))
                await self._qemu_img("resize", "-q", "-f", "qcow2", str(part), str(size_mib * MIB))
            else:
                await self._qemu_img("create", "-q", "-f", "qcow2", str(part), str(size_mib * MIB))
            await self._look(volume.pool_id, lambda: _settle(part, path))
        finally:
            await self._look(volume.pool_id, lambda: part.unlink(missing_ok=True))
        return size_mib

    def _size_mib(self, volume: VolumeSpec) -> int | None:
        """The size of the file that is there; None: there is none."""
        self._open_pool(volume.pool_id)
        path = self._path(volume.pool_id, volume.volume_uid)
        try:
            return -(-_image_bytes(path, volume) // MIB)
        except PoolMissing:
            return None

    async def _qemu_img(self, *arguments: str) -> None:
        async with self._copies:
            process = await asyncio.create_subprocess_exec(
                *LIMITED, "qemu-img", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
            )
            try:
                async with asyncio.timeout(COPY_TIMEOUT_S):
                    output, _ = await process.communicate()
            except TimeoutError as error:
                raise HypervisorUnavailable("qemu-img did not end in time") from error
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        if process.returncode != 0:
            text = output.decode(errors="replace")
            log.warning("qemu-img failed", arguments=arguments[:1], output=text[-500:])
            if "No space left" in text:
                raise PoolFull("The pool's file system is full.")
            raise PoolMissing("The volume's image could not be written.")

    # ---- pools

    def _directory(self, pool_id: str) -> Path:
        pool = self.directories.get(pool_id)
        if pool is None:
            raise PoolMissing(f"This host has no pool {pool_id}.")
        return pool.path

    def _path(self, pool_id: str, volume_uid: str) -> Path:
        return self._directory(pool_id) / VOLUMES / f"{_checked(_UID, volume_uid)}.qcow2"

    def _view(self, pool_id: str) -> PoolView:
        opened, pool = self._open_pool(pool_id), self.directories[pool_id]
        space = os.statvfs(pool.path)
        images = sorted(path.stem for path in (pool.path / IMAGES).glob("*.qcow2") if _IMAGE.fullmatch(path.stem))
        return PoolView(
            pool_id,
            pool.shared,
            opened.fingerprint,
            space.f_blocks * space.f_frsize // MIB,
            space.f_bavail * space.f_frsize // MIB,
            opened.ofd_locks,
            tuple(images),
        )

    def _open_pool(self, pool_id: str) -> _Opened:
        """Make what a pool consists of, once; read its id, and find out whether its locks can be asked."""
        if pool_id not in self._opened:
            path = self._directory(pool_id)
            if not path.is_dir():
                raise PoolMissing(f"Pool {pool_id} has no directory on this host; is its file system mounted?")
            for folder in (VOLUMES, IMAGES):
                (path / folder).mkdir(mode=0o711, exist_ok=True)
            self._opened[pool_id] = _Opened(_pool_id(path), _locks_can_be_asked(path / f"{PROBE_FILE}.{uuid.uuid4()}"))
        return self._opened[pool_id]

    async def _look(self, pool_id: str, look: Callable[[], T]) -> T:
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                return await asyncio.to_thread(look)
        except TimeoutError as error:
            raise HypervisorUnavailable(f"the file system of pool {pool_id} does not answer") from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise PoolFull(f"Pool {pool_id} is full.") from error
            raise PoolMissing(f"Pool {pool_id} cannot be used: {error.strerror}.") from error


def _checked(pattern: re.Pattern[str], name: str) -> str:
    if pattern.fullmatch(name) is None:
        raise PoolMissing("There is no such volume or image.")
    return name


def _regular(path: Path) -> os.stat_result:
    """The file, which must be one, and not a link to one."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError as error:
        raise PoolMissing(f"There is no file of volume {path.stem}.") from error
    if not stat.S_ISREG(found.st_mode):
        raise PoolMissing(f"The file of volume {path.stem} is not a regular file.")
    return found


def _image_bytes(path: Path, volume: VolumeSpec) -> int:
    """The guest's view of an image's size, by its own header; the image must be fit to be used."""
    _regular(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        verdict = inspect(os.read(descriptor, HEADER_BYTES))
    finally:
        os.close(descriptor)
    if isinstance(verdict, Unusable):
        raise PoolMissing(f"{path.stem} in pool {volume.pool_id} cannot be used: {verdict.reason}.")
    return verdict.virtual_bytes


def _settle(part: Path, path: Path) -> None:
    """On disk, then under its name."""
    descriptor = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchmod(descriptor, 0o600)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    part.rename(path)


def _pool_id(path: Path) -> str:
    """The pool's id, made by whichever host comes first: written beside, then linked, which only one can."""
    id_file = path / ID_FILE
    if not id_file.exists():
        beside = path / f"{ID_FILE}.{uuid.uuid4()}"
        beside.write_text(f"{uuid.uuid4()}\n")
        try:
            os.link(beside, id_file)
        except FileExistsError:
            log.info("another host made the pool's id", path=str(path))
        finally:
            beside.unlink(missing_ok=True)
    return id_file.read_text().strip()


def _locks_can_be_asked(probe: Path) -> bool:
    """Whether a write lock on byte 101 is seen by a second open file, as QEMU's are."""
    first = os.open(probe, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    second = os.open(probe, os.O_RDWR | os.O_CLOEXEC)
    try:
        lock = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 101, 1, 0)
        fcntl.fcntl(first, fcntl.F_OFD_SETLK, lock)
        answer = fcntl.fcntl(second, fcntl.F_OFD_GETLK, lock)
        return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
    except OSError:
        return False
    finally:
        os.close(second)
        os.close(first)
        probe.unlink(missing_ok=True)
