"""Whether an image is open for writing anywhere, as the storage itself says: QEMU's own byte-range locks, queried with F_OFD_GETLK.

QEMU holds byte 100+n while it uses permission n of an image and 200+n while it denies it to others (1: write, 3: resize). It drops them all
when a migration switches over and takes them again to run. On network file systems the locks do not show in /proc/PID/fdinfo, but the query
sees them from every host. Only the permissions to write and to resize are asked about: a reader, a backup say, holds bytes 100 and 201
and is not a writer. The query may hang with the file system, so it runs in a thread with a deadline.
"""

import errno
import fcntl
import os
import struct

import structlog

from nodeagent.adapters.libvirt_calls import Calls
from nodeagent.ports import Locks, StorageUnavailable

F_OFD_GETLK = 36
"""Of linux/fcntl.h; Python's fcntl module has the name from 3.12 on only."""
WRITER_BYTES = (101, 103)
LOCK_DEADLINE_S = 3.0
QUERIES_MAX = 16
"""A hung file system holds that many threads, not more."""

log = structlog.get_logger(__name__)
_FLOCK = struct.Struct("hhqqi4x")
_NO_LOCKS = frozenset({errno.ENOLCK, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})


class ImageLocks:
    """The lock queries of one host."""

    def __init__(self) -> None:
        self._calls = Calls(QUERIES_MAX, StorageUnavailable)

    async def ask(self, disk_paths: tuple[str, ...]) -> Locks:
        """HELD if one of the images is open for writing. UNPROVABLE: no images, or their file system has no such locks or fails, or one is missing.

        Raises StorageUnavailable when the file system does not answer in time.
        """
        if not disk_paths:
            return Locks.UNPROVABLE
        try:
            return await self._calls.run(f"locks of {disk_paths[0]}", LOCK_DEADLINE_S, lambda: locks_of(disk_paths))
        except OSError as err:
            log.warning("image locks cannot be asked", path=disk_paths[0], error=err.strerror)
            return Locks.UNPROVABLE


def locks_of(disk_paths: tuple[str, ...]) -> Locks:
    """Blocks with the file system. One writer decides, whatever the other images say."""
    answers = [_writer(path) for path in disk_paths]
    if Locks.HELD in answers:
        return Locks.HELD
    return Locks.UNPROVABLE if Locks.UNPROVABLE in answers else Locks.FREE


def _writer(path: str) -> Locks:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return Locks.UNPROVABLE
    try:
        return Locks.HELD if _is_written(fd) else Locks.FREE
    except OSError as err:
        if err.errno in _NO_LOCKS:
            return Locks.UNPROVABLE
        raise
    finally:
        os.close(fd)


def _is_written(fd: int) -> bool:
    """One question where there is no lock at all, as after a switchover: each is a round trip to the storage, and a guest stands still meanwhile."""
    first, last = min(WRITER_BYTES), max(WRITER_BYTES)
    return _is_locked(fd, first, last - first + 1) and any(_is_locked(fd, byte) for byte in WRITER_BYTES)


def _is_locked(fd: int, byte: int, length: int = 1) -> bool:
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, length, 0)
    return bool(_FLOCK.unpack(fcntl.fcntl(fd, F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK)
