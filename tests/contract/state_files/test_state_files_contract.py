"""What the engine takes for granted of its memory: what was saved is there after any crash, whole, and nobody else reads it."""

import asyncio
import os
import stat
import threading
from pathlib import Path

import pytest

from nodeagent.adapters.state_directory import StateDirectory

KEYS = [f"op-{n}" for n in range(40)]


def at(root: Path) -> StateDirectory:
    """As a new process finds it."""
    return StateDirectory(root / "state")


def stored(root: Path) -> set[str]:
    return {str(path.relative_to(root / "state")) for path in (root / "state").rglob("*") if path.is_file()}


async def test_what_was_saved_is_found_by_the_next_process(tmp_path: Path) -> None:
    """The agent decides by its journal after every restart."""
    files = at(tmp_path)
    assert files.load("vms") == {}
    await files.save("vms", "a", b"1")
    await files.save("vms", "b", b"\x00\xff" * 1000)
    await files.save("outgoing", "a", b"other kind")
    assert at(tmp_path).load("vms") == {"a": b"1", "b": b"\x00\xff" * 1000}
    assert at(tmp_path).load("outgoing") == {"a": b"other kind"}


async def test_saving_again_replaces_and_removing_is_final(tmp_path: Path) -> None:
    """An old record that came back would be an old promise kept."""
    files = at(tmp_path)
    await files.save("vms", "a", b"long old value")
    await files.save("vms", "a", b"new")
    assert at(tmp_path).load("vms") == {"a": b"new"}
    for _ in range(2):
        await files.remove("vms", "a")
    assert at(tmp_path).load("vms") == {}
    assert stored(tmp_path) == set()


async def test_many_writers_at_once_lose_nothing_and_leave_nothing(tmp_path: Path) -> None:
    """Handoffs of many VMs are journaled at the same time, some of them twice."""
    files = at(tmp_path)
    async with asyncio.TaskGroup() as group:
        for key in KEYS * 3:
            group.create_task(files.save("vms", key, key.encode() * 500), name=key)
    assert at(tmp_path).load("vms") == {key: key.encode() * 500 for key in KEYS}
    assert stored(tmp_path) == {f"vms/{key}" for key in KEYS}


async def test_writers_of_one_record_at_once_leave_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that wrote to the same file beside would rename a mixture, or find it gone."""
    files, both, real_sync = at(tmp_path), threading.Barrier(2), os.fsync

    def sync(fd: int) -> None:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            both.wait(10)
        real_sync(fd)

    monkeypatch.setattr(os, "fsync", sync)
    values = [b"1" * 5000, b"2" * 3000]
    async with asyncio.TaskGroup() as group:
        for value in values:
            group.create_task(files.save("vms", "a", value), name="save")
    assert at(tmp_path).load("vms")["a"] in values


async def test_what_a_crash_left_half_written_is_ignored_and_cleared(tmp_path: Path) -> None:
    """Half a record is no record; the whole one before it counts."""
    await at(tmp_path).save("vms", "a", b"whole")
    (tmp_path / "state" / "vms" / ".a.17").write_bytes(b"ha")
    assert at(tmp_path).load("vms") == {"a": b"whole"}
    assert stored(tmp_path) == {"vms/a"}


async def test_a_failed_save_leaves_the_old_value_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk must not cost what was promised before."""
    files = at(tmp_path)
    await files.save("vms", "a", b"old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        await files.save("vms", "a", b"new")
    monkeypatch.undo()
    assert stored(tmp_path) == {"vms/a"}
    assert at(tmp_path).load("vms") == {"a": b"old"}


async def test_file_and_directory_are_synced_before_save_returns_and_in_that_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renamed before its content is on disk, a power cut leaves an empty record under a good name."""
    files, done, real_sync, real_rename = at(tmp_path), [], os.fsync, os.replace
    await files.save("vms", "first", b"makes the directories")

    def sync(fd: int) -> None:
        done.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        real_sync(fd)

    def rename(source: str, target: str) -> None:
        done.append("rename")
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", rename)
    await files.save("vms", "a", b"1")
    assert done == ["file", "rename", "directory"]
    done.clear()
    await files.remove("vms", "a")
    assert done == ["directory"]


async def test_only_the_agent_can_read_it(tmp_path: Path) -> None:
    """Records name VMs, hosts and disks of all tenants."""
    before = os.umask(0)
    try:
        await at(tmp_path).save("vms", "a", b"1")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "state" / "vms" / "a").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "state" / "vms").stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc/passwd", ".hidden", "a\0b", "a b", "x" * 200, "a\n"])
async def test_names_that_could_leave_the_directory_are_refused(tmp_path: Path, name: str) -> None:
    """Keys come from the scheduler."""
    files = at(tmp_path)
    for call in (files.save("vms", name, b"1"), files.remove("vms", name), files.save(name, "a", b"1")):
        with pytest.raises(ValueError, match="name"):
            await call
    with pytest.raises(ValueError, match="name"):
        files.load(name)
    assert stored(tmp_path) == set()


async def test_what_is_not_ours_is_left_where_it_is(tmp_path: Path) -> None:
    """A link, a directory or a giant in the state directory was put there by somebody: not read, not deleted."""
    files = at(tmp_path)
    await files.save("vms", "a", b"1")
    folder = tmp_path / "state" / "vms"
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "directory").mkdir()
    (folder / "not a key").write_bytes(b"?")
    with (folder / "giant").open("wb") as giant:
        giant.truncate(1 << 30)
    assert at(tmp_path).load("vms") == {"a": b"1"}
    assert {path.name for path in folder.iterdir()} == {"a", "link", "directory", "not a key", "giant"}
