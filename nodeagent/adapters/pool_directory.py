"""One directory pool as blocking calls: `volumes/<uid>.<format>`, `images/<name>.qcow2`, and the id file that tells which file system this is.

A volume that is removed leaves an empty file of its name in `removed/` for a week: any host of the pool may have a request to make it still on the
way, and a file that comes after its removal would be nobody's. Marker first, then the file goes; a maker links the file first, then looks for the
marker: whichever order the two hosts meet in, no file stays.

Everything below the pool's root is opened relative to a directory that was opened without following links, is not a link itself, and must be a
regular file. A shared pool is written by hosts that we do not trust more than necessary, and a link planted there must lead nowhere.

Two hosts see the same pool if they read the same id from `.hostler-pool`, made once by whichever host came first. The file system's own ids do
not serve: they differ from mount to mount on FUSE. (So a machine's image must not contain a pool's id file.)
"""

import errno
import fcntl
import os
import re
import stat
import struct
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from nodeagent.adapters.image_locks import F_OFD_GETLK
from nodeagent.adapters.qemu_img import ImageFormat
from nodeagent.core.qcow2_header import HEADER_BYTES, Unusable, inspect

VOLUMES, IMAGES, REMOVED, ID_FILE, PROBE_PREFIX, PART_SUFFIX = "volumes", "images", "removed", ".hostler-pool", ".hostler-probe.", ".part"
REMOVED_KEPT_S, REMOVED_SWEPT_S, SWEPT = 7 * 86_400, 86_400, ".swept"
"""A request is late by its deadline, or as long as the replica that sent it was stopped; a week of markers is looked through once a day."""
DEAD_PART_S = 3600
"""A part that nobody wrote to for so long has no maker any more: makers give up after a tenth of it. By the file system's own clock."""
F_OFD_SETLK = 37
"""Of linux/fcntl.h; Python's fcntl module has the name from 3.12 on only."""
PROBED_BYTE = 101
"""Any byte would do; it is the one that QEMU locks to write."""
MAX_ID_BYTES = 64
MIB = 1 << 20
BLOCK_BYTES = 512
"""Of `st_blocks`, whatever the file system's own blocks are."""

_UID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_VOLUME_UID = re.compile(_UID)
_VOLUME_FILE = re.compile(rf"({_UID})\.(?:qcow2|raw)")
_IMAGE = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_FLOCK = struct.Struct("hhqqi4x")
_SAFELY = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
"""No links, nothing inherited, and no waiting at a FIFO."""


class Descriptor:
    """An open file or directory. Closed at the latest when nobody has it any more: the caller of a blocking call may have given up."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class NotUsable(Exception):
    """A name is none, or a file is not fit to be used. `str()` is one sentence safe to show."""


@dataclass(frozen=True, slots=True)
class PoolIdentity:
    """`fingerprint` is equal on all hosts that see this file system; `ofd_locks`: QEMU's image locks can be asked here; `filesystem`: its type."""

    fingerprint: str
    ofd_locks: bool
    filesystem: str


@dataclass(frozen=True, slots=True)
class Making:
    """A volume being made: `part` in the directory `folder`, and the image to copy with its size, if any."""

    folder: Descriptor
    part: str
    image: Descriptor | None
    image_bytes: int

    @property
    def target(self) -> str:
        """What another program calls the part, given `descriptors`."""
        return f"/proc/self/fd/{self.folder.fileno()}/{self.part}"

    @property
    def source(self) -> str:
        """The image that was inspected, and no other that has its name by now."""
        return f"/proc/self/fd/{self.image.fileno()}" if self.image is not None else ""

    @property
    def descriptors(self) -> tuple[int, ...]:
        return (self.folder.fileno(), *([self.image.fileno()] if self.image is not None else []))

    def close(self) -> None:
        self.folder.close()
        if self.image is not None:
            self.image.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def volume_file(volume_uid: str, image_format: str) -> str:
    """The name of a volume's file. Raises NotUsable: it is not a uid, or not a format that volumes have."""
    if _VOLUME_UID.fullmatch(volume_uid) is None or image_format not in [*ImageFormat]:
        raise NotUsable("There is no such volume.")
    return f"{volume_uid}.{image_format}"


def open_pool(root: Path) -> PoolIdentity:
    """Make what a pool consists of where it is missing, clear what dead makers left, and find out what it is. Raises OSError."""
    with _open_directory(root) as pool:
        for name in (VOLUMES, IMAGES, REMOVED):
            try:
                os.mkdir(name, 0o711, dir_fd=pool.fileno())
            except FileExistsError:
                _open_directory(name, pool).close()
        _sweep_probes(pool)
        identity = PoolIdentity(_read_id(pool), _locks_can_be_asked(pool), filesystem_of(os.fstat(pool.fileno()).st_dev))
    part = new_part("probe")
    begin(root, part, "").close()
    discard(root, part)
    return identity


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image's file as it was last seen: an equal one has not changed since."""

    name: str
    inode: int
    changed_ns: int


def images(root: Path) -> tuple[ImageFile, ...]:
    """The image files by name, whatever is in them."""
    found = []
    with _subfolder(root, IMAGES) as folder:
        for file_name in sorted(os.listdir(folder.fileno())):
            name = file_name.removesuffix(".qcow2")
            if name == file_name or not _IMAGE.fullmatch(name):
                continue
            try:
                about = os.stat(file_name, dir_fd=folder.fileno(), follow_symlinks=False)
            except FileNotFoundError:
                continue
            found.append(ImageFile(name, about.st_ino, about.st_ctime_ns))
    return tuple(found)


def image_mib(root: Path, name: str) -> int:
    """The guest's view of an image's size, rounded up; 0: it cannot be used, or is gone."""
    with _subfolder(root, IMAGES) as folder:
        try:
            with _regular(folder, f"{name}.qcow2") as file:
                return -(-_qcow2_bytes(file, f"Image {name}") // MIB) if file is not None else 0
        except NotUsable:
            return 0


def volume_uids(root: Path) -> tuple[str, ...]:
    with _subfolder(root, VOLUMES) as folder:
        found = [_VOLUME_FILE.fullmatch(name) for name in sorted(os.listdir(folder.fileno()))]
    return tuple(match[1] for match in found if match is not None)


def volumes_allocated_bytes(root: Path) -> int:
    """What volumes take of the file system now, those being made included: a volume is claimed before it is made, and dead parts are swept."""
    allocated = 0
    with _subfolder(root, VOLUMES) as folder, os.scandir(folder.fileno()) as entries:
        for entry in entries:
            if _VOLUME_FILE.fullmatch(entry.name) is None and not entry.name.endswith(PART_SUFFIX):
                continue
            try:
                about = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISREG(about.st_mode):
                allocated += about.st_blocks * BLOCK_BYTES
    return allocated


def inode(root: Path, name: str) -> int | None:
    """Of a volume's file; None: there is none. Raises NotUsable, OSError; likewise below."""
    with _subfolder(root, VOLUMES) as folder, _regular(folder, name) as file:
        return os.fstat(file.fileno()).st_ino if file is not None else None


def volume_bytes(root: Path, name: str) -> int | None:
    """The guest's view of a volume's size; None: there is none."""
    with _subfolder(root, VOLUMES) as folder, _regular(folder, name) as file:
        if file is None:
            return None
        return os.fstat(file.fileno()).st_size if name.endswith(".raw") else _qcow2_bytes(file, "The volume")


def allocated_bytes(root: Path, name: str) -> int | None:
    """What a volume's file takes of the file system; None: there is none."""
    with _subfolder(root, VOLUMES) as folder, _regular(folder, name) as file:
        return None if file is None else os.fstat(file.fileno()).st_blocks * BLOCK_BYTES


def remove_volume(root: Path, name: str) -> None:
    with _subfolder(root, REMOVED) as removed:
        _open(name, os.O_WRONLY | os.O_CREAT, removed).close()
        os.fsync(removed.fileno())
        _sweep_removed(removed, name)
    _unlink(root, name)


def readmit(root: Path, name: str) -> None:
    """Its removal is forgotten."""
    with _subfolder(root, REMOVED) as removed:
        try:
            os.unlink(name, dir_fd=removed.fileno())
        except FileNotFoundError:
            return
        os.fsync(removed.fileno())


def was_removed(root: Path, name: str) -> bool:
    with _subfolder(root, REMOVED) as removed:
        try:
            os.stat(name, dir_fd=removed.fileno(), follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True


def _unlink(root: Path, name: str) -> None:
    with _subfolder(root, VOLUMES) as folder:
        try:
            os.unlink(name, dir_fd=folder.fileno())
        except FileNotFoundError:
            return
        os.fsync(folder.fileno())


def new_part(name: str) -> str:
    """A name for the part of a volume that is nobody else's: another host may be making the same volume."""
    return f"{name}.{uuid.uuid4().hex}{PART_SUFFIX}"


def begin(root: Path, part: str, image_name: str) -> Making:
    """An empty part, and the image opened and found fit. Parts of dead makers are cleared on the way."""
    image, image_bytes = _open_image(root, image_name) if image_name else (None, 0)
    making = Making(_subfolder(root, VOLUMES), part, image, image_bytes)
    _open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, making.folder).close()
    _sweep(making.folder, part)
    return making


def grow_raw(making: Making, size_bytes: int) -> None:
    """A raw part of that size, sparse."""
    with _open(making.part, os.O_RDWR, making.folder) as file:
        os.ftruncate(file.fileno(), size_bytes)


def finish(root: Path, making: Making, name: str) -> bool:
    """The part is on disk, then it has the volume's name. If another host was faster its file stays, and ours goes. False: it was removed
    meanwhile."""
    _link(making, name)
    if was_removed(root, name):
        _unlink(root, name)
        return False
    return True


def _link(making: Making, name: str) -> None:
    with _open(making.part, os.O_RDWR, making.folder) as file:
        os.fsync(file.fileno())
    folder = making.folder.fileno()
    try:
        os.link(making.part, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        return
    os.fsync(folder)


def discard(root: Path, part: str) -> None:
    """Whatever happened, no part stays."""
    with _subfolder(root, VOLUMES) as folder:
        try:
            os.unlink(part, dir_fd=folder.fileno())
        except FileNotFoundError:
            return


# ---- below a directory


def _open_directory(name: Path | str, parent: Descriptor | None = None) -> Descriptor:
    """The pool's root itself may be a link, made by its administrator; nothing below it may."""
    if parent is None:
        return Descriptor(os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    return Descriptor(os.open(name, os.O_RDONLY | os.O_DIRECTORY | _SAFELY, dir_fd=parent.fileno()))


def _subfolder(root: Path, name: str) -> Descriptor:
    with _open_directory(root) as pool:
        return _open_directory(name, pool)


def _open(name: str, flags: int, folder: Descriptor, mode: int = 0o600) -> Descriptor:
    return Descriptor(os.open(name, flags | _SAFELY, mode, dir_fd=folder.fileno()))


@contextmanager
def _regular(folder: Descriptor, name: str) -> Iterator[Descriptor | None]:
    """The file, if it is there. Raises NotUsable if it is anything but a regular file."""
    file = _open_regular(folder, name)
    try:
        yield file
    finally:
        if file is not None:
            file.close()


def _open_regular(folder: Descriptor, name: str) -> Descriptor | None:
    try:
        file = _open(name, os.O_RDONLY, folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise NotUsable(f"{name} is not a regular file.") from error
        raise
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise NotUsable(f"{name} is not a regular file.")
    return file


def _open_image(root: Path, image_name: str) -> tuple[Descriptor, int]:
    """The image and its size in bytes as a guest sees it."""
    if _IMAGE.fullmatch(image_name) is None:
        raise NotUsable("There is no such image.")
    with _subfolder(root, IMAGES) as folder:
        file = _open_regular(folder, f"{image_name}.qcow2")
    if file is None:
        raise NotUsable(f"There is no image {image_name} in this pool.")
    try:
        return file, _qcow2_bytes(file, f"Image {image_name}")
    except (NotUsable, OSError):
        file.close()
        raise


def _qcow2_bytes(file: Descriptor, what: str) -> int:
    verdict = inspect(os.pread(file.fileno(), HEADER_BYTES, 0))
    if isinstance(verdict, Unusable):
        raise NotUsable(f"{what} cannot be used: {verdict.reason}.")
    return verdict.virtual_bytes


# ---- parts


def _sweep(folder: Descriptor, fresh: str) -> None:
    """Remove parts that are far older than `fresh`, by the file system's clock: hosts' clocks may differ."""
    now_s = os.stat(fresh, dir_fd=folder.fileno(), follow_symlinks=False).st_mtime
    for name in os.listdir(folder.fileno()):
        if name.endswith(PART_SUFFIX) and name != fresh:
            try:
                if now_s - os.stat(name, dir_fd=folder.fileno(), follow_symlinks=False).st_mtime > DEAD_PART_S:
                    os.unlink(name, dir_fd=folder.fileno())
            except FileNotFoundError:
                continue


def _sweep_removed(removed: Descriptor, fresh: str) -> None:
    """Once a day, by whichever host comes first, markers that no late request can meet any more go. Ages are of the file system's own clock."""
    now_s = _mtime_s(removed, fresh) or 0.0
    if now_s - (_mtime_s(removed, SWEPT) or 0.0) < REMOVED_SWEPT_S:
        return
    with _open(SWEPT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, removed) as swept:
        os.write(swept.fileno(), b"\n")
    for name in os.listdir(removed.fileno()):
        if now_s - (_mtime_s(removed, name) or now_s) > REMOVED_KEPT_S:
            with suppress(FileNotFoundError):  # another host looks through them too
                os.unlink(name, dir_fd=removed.fileno())


def _mtime_s(folder: Descriptor, name: str) -> float | None:
    try:
        return os.stat(name, dir_fd=folder.fileno(), follow_symlinks=False).st_mtime
    except FileNotFoundError:
        return None


# ---- the probe of locks between two hosts


def probe_file(probe_id: str) -> str:
    """Raises NotUsable: not a UUID."""
    if _VOLUME_UID.fullmatch(probe_id) is None:
        raise NotUsable("There is no such probe.")
    return f"{PROBE_PREFIX}{probe_id}"


def open_root(root: Path) -> Descriptor:
    """The pool's directory, for another process to open the probe's file in. Raises OSError."""
    return _open_directory(root)


def try_lock(root: Path, name: str) -> tuple[bool, bool] | None:
    """Whether a lock of somebody else's is seen on the probe's file, and whether it could be taken; nothing is kept. None: there is no file."""
    with _open_directory(root) as pool:
        try:
            file = _open(name, os.O_RDWR, pool)
        except FileNotFoundError:
            return None
        with file:
            seen = _lock_seen(file)
            try:
                _set_lock(file, fcntl.F_WRLCK)
            except (BlockingIOError, PermissionError):
                return seen, False
            return seen, True


def remove_probe(root: Path, name: str) -> None:
    with _open_directory(root) as pool:
        try:
            os.unlink(name, dir_fd=pool.fileno())
        except FileNotFoundError:
            return


def _sweep_probes(pool: Descriptor) -> None:
    """Probes are over within a minute; one that is older than a dead part was left behind. By the file system's clock, told by a probe of ours."""
    old = [name for name in os.listdir(pool.fileno()) if name.startswith(PROBE_PREFIX)]
    if not old:
        return
    fresh = f"{PROBE_PREFIX}{uuid.uuid4()}"
    _open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, pool).close()
    try:
        now_s = os.stat(fresh, dir_fd=pool.fileno(), follow_symlinks=False).st_mtime
        for name in old:
            try:
                if now_s - os.stat(name, dir_fd=pool.fileno(), follow_symlinks=False).st_mtime > DEAD_PART_S:
                    os.unlink(name, dir_fd=pool.fileno())
            except FileNotFoundError:
                continue
    finally:
        os.unlink(fresh, dir_fd=pool.fileno())


# ---- what a pool is


def filesystem_of(device: int, mountinfo: Path = Path("/proc/self/mountinfo")) -> str:
    """The kernel's name of the type of the file system on that device, "" if it has no mount of its own in the list."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mountinfo.read_text().splitlines():
        mount, _, rest = line.partition(" - ")
        if mount.split(" ")[2] == wanted and rest:
            return rest.split(" ")[0]
    return ""


def _read_id(pool: Descriptor) -> str:
    """Made by whichever host comes first: written beside, then linked, which only one can."""
    known = _id_of(pool)
    if known is not None:
        return known
    beside = f"{ID_FILE}.{uuid.uuid4().hex}"
    with _open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL, pool) as file:
        os.write(file.fileno(), f"{uuid.uuid4()}\n".encode())
        os.fsync(file.fileno())
    try:
        os.link(beside, ID_FILE, src_dir_fd=pool.fileno(), dst_dir_fd=pool.fileno(), follow_symlinks=False)
        os.fsync(pool.fileno())
    except FileExistsError:
        return _read_id(pool)  # another host was faster: its id counts
    finally:
        os.unlink(beside, dir_fd=pool.fileno())
    return _read_id(pool)


def _id_of(pool: Descriptor) -> str | None:
    with _regular(pool, ID_FILE) as file:
        if file is None:
            return None
        text = os.read(file.fileno(), MAX_ID_BYTES).decode("ascii", "replace").strip()
    if _VOLUME_UID.fullmatch(text) is None:
        raise NotUsable(f"{ID_FILE} does not hold an id; if no host uses this pool, remove that file.")
    return text


def _locks_can_be_asked(pool: Descriptor) -> bool:
    """Whether a write lock is seen by another open file while it is held, and not after, as QEMU's are to be.

    One process suffices: these locks belong to open files. A file system that keeps them by process shows none here, and is then not relied on.
    """
    probe = f"{PROBE_PREFIX}{uuid.uuid4().hex}"
    with _open(probe, os.O_RDWR | os.O_CREAT | os.O_EXCL, pool) as holder:
        try:
            with _open(probe, os.O_RDWR, pool) as asker:
                _set_lock(holder, fcntl.F_WRLCK)
                held = _lock_seen(asker)
                _set_lock(holder, fcntl.F_UNLCK)
                return held and not _lock_seen(asker)
        except OSError:
            return False
        finally:
            os.unlink(probe, dir_fd=pool.fileno())


def _set_lock(file: Descriptor, kind: int) -> None:
    fcntl.fcntl(file.fileno(), F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, PROBED_BYTE, 1, 0))


def _lock_seen(file: Descriptor) -> bool:
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, PROBED_BYTE, 1, 0)
    return bool(_FLOCK.unpack(fcntl.fcntl(file.fileno(), F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK)
