"""Image locks as QEMU's own tools take them."""

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.adapters import image_locks
from nodeagent.adapters.image_locks import ImageLocks, locks_of
from nodeagent.ports import Locks, StorageUnavailable

F_OFD_SETLK = 37


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = str(tmp_path / "a.qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"], check=True)
    return path


class Holder:
    """qemu-io with the image open, which answers on its prompt."""

    def __init__(self, image: str, *options: str) -> None:
        self.process = subprocess.Popen(["qemu-io", "-f", "qcow2", *options, image], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.says("length", b"1 MiB")

    def says(self, command: str, answer: bytes) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{command}\n".encode())
        self.process.stdin.flush()
        while answer not in (line := self.process.stdout.readline()):
            assert line, "qemu-io ended"

    def end(self) -> None:
        self.process.communicate()


@pytest.fixture
def writer(image: str) -> Iterator[Holder]:
    holder = Holder(image)
    yield holder
    holder.end()


@pytest.fixture
def reader(image: str) -> Iterator[Holder]:
    holder = Holder(image, "-r")
    yield holder
    holder.end()


def test_a_writer_is_seen_and_its_end_too(image: str, writer: Holder) -> None:
    """A writer that is not seen lets a commit happen under it."""
    assert locks_of((image,)) is Locks.HELD
    writer.end()
    assert locks_of((image,)) is Locks.FREE


def test_what_lies_between_the_two_permissions_is_no_writer(image: str) -> None:
    """A job that writes what is there already would be taken for a second owner: the one question for both bytes asks about its byte too."""
    flock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 102, 1, 0)
    with open(image, "rb") as held:
        fcntl.fcntl(held, F_OFD_SETLK, flock)
        assert locks_of((image,)) is Locks.FREE


@pytest.mark.parametrize("byte", [101, 103])
def test_each_permission_to_change_is_seen(image: str, byte: int) -> None:
    """Whoever may only resize changes the image as well."""
    flock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0)
    with open(image, "rb") as held:
        fcntl.fcntl(held, F_OFD_SETLK, flock)
        assert locks_of((image,)) is Locks.HELD
    assert locks_of((image,)) is Locks.FREE


@pytest.mark.usefixtures("reader")
def test_a_reader_is_no_writer(image: str) -> None:
    """A backup would stop every handoff."""
    assert locks_of((image,)) is Locks.FREE


@pytest.mark.usefixtures("writer")
def test_one_writer_decides_whatever_the_others_say(image: str, tmp_path: Path) -> None:
    """The first image's answer alone says nothing about the second."""
    free = str(tmp_path / "b.raw")
    Path(free).touch()
    assert locks_of((free, image)) is Locks.HELD
    assert locks_of((str(tmp_path / "missing"), image)) is Locks.HELD


async def test_what_proves_nothing_is_said_to_prove_nothing(tmp_path: Path) -> None:
    """No disks and missing disks are not free disks."""
    assert await ImageLocks().ask(()) is Locks.UNPROVABLE
    assert await ImageLocks().ask((str(tmp_path / "missing"),)) is Locks.UNPROVABLE


def test_a_link_is_not_followed(image: str, tmp_path: Path) -> None:
    """A link planted in a pool would have another file judged."""
    os.symlink(image, tmp_path / "link")
    with pytest.raises(OSError, match="symbolic links"):
        locks_of((str(tmp_path / "link"),))


async def test_a_file_system_that_hangs_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent must outlive its storage. A FIFO without a writer hangs the open as a dead server would."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    monkeypatch.setattr(image_locks, "LOCK_DEADLINE_S", 0.1)
    with pytest.raises(StorageUnavailable):
        await ImageLocks().ask((str(fifo),))
    os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))  # lets the thread go
