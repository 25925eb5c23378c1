"""What the agent must not forget, as small files: <state_dir>/<kind>/<key>, each replaced whole or not at all, and on disk before `save` returns.

A crash leaves the old file or the new one, never a part: written beside, synced, renamed, and the directory synced. Leftovers of a crash begin with a
dot, are never read, and are removed at the next load.

One agent has it at a time, by a lock that ends with the process: an old one that was stopped by a signal, and wakes beside a new one, would act on
what it decided before.
"""

import asyncio
import fcntl
import itertools
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import structlog

LOCK = ".lock"
KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
PID_DIGITS = 20
MAX_FILE_BYTES = 1 << 20
"""A record is a few KiB; anything larger was not written by us."""

log = structlog.get_logger(__name__)
_writes = itertools.count()
"""Two writes of one file at once must not share the file that is renamed."""


class StateInUse(Exception):
    """Another process has the directory; `pid` as it wrote it, 0: it is not known."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"in use by process {pid}")
        self.pid = pid


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Have the directory, which is made with mode 0700, to this process until the end of the block. Raises StateInUse, OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            said = file.read(PID_DIGITS).strip()
            raise StateInUse(int(said) if said.isdecimal() else 0) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


class StateDirectory:
    """Implements StateFiles below `directory`, which is made with mode 0700."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load(self, kind: str) -> Mapping[str, bytes]:
        """Read at start, before there is anything to wait for. Raises OSError."""
        folder = self._folder(kind)
        files: dict[str, bytes] = {}
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                path.unlink(missing_ok=True)
            elif KEY.fullmatch(path.name) and stat.S_ISREG(path.lstat().st_mode) and path.lstat().st_size <= MAX_FILE_BYTES:
                files[path.name] = path.read_bytes()
            else:
                log.warning("file in the state directory is not ours", path=str(path))
        return files

    async def save(self, kind: str, key: str, value: bytes) -> None:
        await asyncio.to_thread(_replace, self._folder(kind), _checked(key), value)

    async def remove(self, kind: str, key: str) -> None:
        await asyncio.to_thread(_remove, self._folder(kind), _checked(key))

    def _folder(self, kind: str) -> Path:
        folder = self._directory / _checked(kind)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder


def _checked(name: str) -> str:
    """Names are made by us; one that could leave the directory is a bug."""
    if KEY.fullmatch(name) is None:
        raise ValueError(f"not a state file's name: {name!r}")
    return name


def _replace(folder: Path, key: str, value: bytes) -> None:
    beside = folder / f".{key}.{next(_writes)}"
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(value)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(folder / key)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    _sync(folder)


def _remove(folder: Path, key: str) -> None:
    (folder / key).unlink(missing_ok=True)
    _sync(folder)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
