"""Directory pools beyond the contract in tests/contract/volumes: what is planted in them, crashes in the middle, full and hung file systems."""

import asyncio
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from hostler.model.domain import VolumeSpec
from nodeagent.adapters import directory_volumes, pool_directory
from nodeagent.adapters.directory_volumes import DirectoryPool, DirectoryVolumes
from nodeagent.ports import PoolFull, PoolMissing, StorageUnavailable
from tests.contract.volumes.subject import MIB, qemu_img

UID = "11111111-2222-4333-8444-555555555555"
EMPTY = VolumeSpec(UID, "p", 16, "")
OF_IMAGE = VolumeSpec(UID, "p", 0, "base")


@pytest.fixture
async def root(tmp_path: Path) -> Path:
    (tmp_path / "pool").mkdir()
    await volumes_of(tmp_path / "pool").pools()
    return tmp_path / "pool"


def volumes_of(root: Path) -> DirectoryVolumes:
    return DirectoryVolumes({"p": DirectoryPool(root, False)})


def files(root: Path) -> set[str]:
    """Everything in the pool that should not be there when it is empty."""
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()} - {".hostler-pool"}


async def test_the_guest_reads_what_the_image_holds(root: Path) -> None:
    """A volume of the right size and the wrong bytes would boot nothing."""
    content = root / "content"
    content.write_bytes(os.urandom(4 * MIB))
    await qemu_img("convert", "-f", "raw", "-O", "qcow2", str(content), str(root / "images" / "base.qcow2"))
    for image_format in ("qcow2", "raw"):
        volume = VolumeSpec(UID, "p", 8, "base", image_format)
        assert await volumes_of(root).ensure(volume) == 8
        path = volumes_of(root).path("p", UID, image_format)
        back = root / f"back-{image_format}"
        await qemu_img("convert", "-f", image_format, "-O", "raw", path, str(back))
        assert back.read_bytes() == content.read_bytes() + bytes(4 * MIB)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


async def test_every_call_of_qemu_img_names_the_format_and_is_limited(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guessed format is how guests have read their host's files, again and again."""
    await qemu_img("create", "-q", "-f", "qcow2", str(root / "images" / "base.qcow2"), "4M")
    tools, calls = tmp_path / "tools", tmp_path / "calls"
    tools.mkdir()
    real = shutil.which("qemu-img")
    (tools / "qemu-img").write_text(f'#!/bin/sh\necho "$(ulimit -t) $*" >> {calls}\nexec {real} "$@"\n')
    (tools / "qemu-img").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    for image_format in ("qcow2", "raw"):
        for image in ("", "base"):
            await volumes_of(root).ensure(VolumeSpec(str(uuid4()), "p", 8, image, image_format))
    said = calls.read_text().splitlines()
    assert [line.split()[1] for line in said] == ["create", "convert", "resize", "convert"]
    assert all("-f qcow2" in line and line.split()[0] != "unlimited" for line in said)
    assert all("-O " in line for line in said if "convert" in line)


async def test_a_raw_volume_is_raw_whatever_its_guest_wrote_into_it(root: Path) -> None:
    """A guest that writes an image's header must not have it believed."""
    volumes, volume = volumes_of(root), VolumeSpec(UID, "p", 4, "", "raw")
    assert await volumes.ensure(volume) == 4
    write_crafted_image(root, Path(volumes.path("p", UID, "raw")))
    assert await volumes.ensure(volume) == 4


def write_crafted_image(root: Path, disk: Path) -> None:
    """Over the disk's first bytes: an image of 1 TiB that names a backing file."""
    image = root.parent / "crafted"
    (root.parent / "secret").write_bytes(bytes(MIB))
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(root.parent / "secret"), str(image), "1T"]
    subprocess.run(command, check=True, timeout=60)
    crafted = image.read_bytes()[:4096]
    disk.write_bytes(crafted + disk.read_bytes()[len(crafted) :])


@pytest.mark.parametrize("kind", ["link", "dangling link", "fifo", "directory", "text"])
async def test_an_image_that_is_not_an_image_is_refused(root: Path, kind: str) -> None:
    """Whoever can write to a shared pool must not make the host read, or wait for, something else."""
    plant(root / "images" / "base.qcow2", root, kind)
    with pytest.raises(PoolMissing):
        async with asyncio.timeout(directory_volumes.LOOK_TIMEOUT_S):
            await volumes_of(root).ensure(OF_IMAGE)
    assert await volumes_of(root).uids("p") == ()


@pytest.mark.parametrize("kind", ["link", "dangling link", "fifo", "directory", "text"])
async def test_what_is_planted_in_a_volumes_place_is_refused_and_not_replaced(root: Path, kind: str) -> None:
    """Taken for absent, it would be overwritten; followed, it would be somebody else's file."""
    place = root / "volumes" / f"{UID}.qcow2"
    plant(place, root, kind)
    before = place.lstat()
    with pytest.raises(PoolMissing):
        await volumes_of(root).ensure(EMPTY)
    assert place.lstat() == before
    if kind != "text":
        with pytest.raises(PoolMissing):
            await volumes_of(root).identity("p", UID, "qcow2")


def plant(place: Path, root: Path, kind: str) -> None:
    match kind:
        case "link":
            (root.parent / "secret").write_bytes(b"QFI\xfb" + bytes(200))
            place.symlink_to(root.parent / "secret")
        case "dangling link":
            place.symlink_to(root.parent / "nothing")
        case "fifo":
            os.mkfifo(place)
        case "directory":
            place.mkdir()
        case _:
            place.write_text("root:x:0:0:root:/root:/bin/sh\n" * 10)


@pytest.mark.parametrize("folder", ["volumes", "images"])
async def test_a_pools_directory_that_is_a_link_is_refused(tmp_path: Path, folder: str) -> None:
    """A planted link would move the pool to anywhere on the host."""
    root, elsewhere = tmp_path / "pool", tmp_path / "elsewhere"
    root.mkdir()
    elsewhere.mkdir()
    (root / folder).symlink_to(elsewhere)
    assert await volumes_of(root).pools() == ()
    with pytest.raises(PoolMissing):
        await volumes_of(root).ensure(EMPTY)
    assert list(elsewhere.iterdir()) == []


async def test_removing_a_planted_link_removes_the_link_alone(root: Path) -> None:
    """Following it would delete any file of the host."""
    (root.parent / "secret").write_text("keep")
    (root / "volumes" / f"{UID}.qcow2").symlink_to(root.parent / "secret")
    await volumes_of(root).remove(EMPTY)
    assert (root.parent / "secret").read_text() == "keep"
    assert files(root) & {f"volumes/{UID}.qcow2"} == set()


@pytest.mark.parametrize("uid", ["../images/base", "", "a/b", UID + "\n", "ABCDEFAB" + UID[8:], "x", f"{UID}/../{UID}"])
async def test_uids_that_are_none_never_become_paths(root: Path, uid: str) -> None:
    """They are made by the scheduler; a bug there must not become a file here."""
    volumes = volumes_of(root)
    for call in (
        volumes.ensure(VolumeSpec(uid, "p", 1, "")),
        volumes.remove(VolumeSpec(uid, "p", 1, "")),
        volumes.identity("p", uid, "qcow2"),
    ):
        with pytest.raises(PoolMissing):
            await call
    with pytest.raises(PoolMissing):
        volumes.path("p", UID, "vmdk")
    assert files(root) == set()


async def test_a_crafted_image_makes_no_volume(root: Path) -> None:
    """The backing file would become the guest's disk."""
    (root.parent / "secret").write_bytes(bytes(MIB))
    image = str(root / "images" / "base.qcow2")
    await qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(root.parent / "secret"), image)
    with pytest.raises(PoolMissing, match="backing file"):
        await volumes_of(root).ensure(OF_IMAGE)
    assert files(root) == {"images/base.qcow2"}


async def test_images_are_offered_with_their_size(root: Path) -> None:
    """A volume charged with another size than its image needs, or an image offered that nothing can be made from."""
    volumes, image = volumes_of(root), str(root / "images" / "base.qcow2")

    async def offered() -> dict[str, int]:
        return dict((await volumes.pools())[0].images)

    await qemu_img("create", "-q", "-f", "qcow2", image, str(5 * MIB + 1024))
    await qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/dev/null", "-u", str(root / "images" / "backed.qcow2"), "9M")
    (root / "images" / "text.qcow2").write_text("no image")
    (root / "images" / "link.qcow2").symlink_to(image)
    assert await offered() == {"base": 6}
    await qemu_img("resize", "-q", image, "7M")
    assert await offered() == {"base": 7}


async def test_an_image_that_breaks_the_copy_leaves_nothing(root: Path) -> None:
    """A header that is right says nothing of the rest."""
    image = root / "images" / "base.qcow2"
    await qemu_img("create", "-q", "-f", "qcow2", str(image), "16M")
    content = bytearray(image.read_bytes())
    content[40:48] = (0x30001).to_bytes(8, "big")  # where the first table is: not at a cluster's begin
    image.write_bytes(content)
    with pytest.raises(PoolMissing, match="cannot be copied"):
        await volumes_of(root).ensure(OF_IMAGE)
    assert files(root) == {"images/base.qcow2"}


async def test_parts_of_dead_makers_are_swept_and_those_of_the_living_are_not(root: Path) -> None:
    """Space that a crash took must come back, and another host's copy must not be cut off."""
    dead, alive = root / "volumes" / f"{UID}.qcow2.0.part", root / "volumes" / f"{UID}.qcow2.1.part"
    for part in (dead, alive):
        part.write_bytes(b"half")
    age_s = pool_directory.DEAD_PART_S + 60
    os.utime(dead, (alive.stat().st_mtime - age_s,) * 2)
    await volumes_of(root).pools()
    assert files(root) == {f"volumes/{alive.name}"}
    assert await volumes_of(root).uids("p") == ()


async def until_part(root: Path, making: "asyncio.Future[int]") -> None:
    while not making.done() and not any(name.startswith(f"volumes/{UID}") and name.endswith(".part") for name in files(root)):  # noqa: ASYNC110 a file has no event
        await asyncio.sleep(0)


async def test_a_cancelled_copy_leaves_nothing(root: Path) -> None:
    """Nobody asks again for what was cancelled."""
    await qemu_img("create", "-q", "-f", "qcow2", "-o", "preallocation=full", str(root / "images" / "base.qcow2"), "256M")
    making = asyncio.ensure_future(volumes_of(root).ensure(OF_IMAGE))
    await until_part(root, making)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert files(root) == {"images/base.qcow2"}


def test_the_slower_of_two_makers_gives_way(root: Path) -> None:
    """The faster one's file may be a running guest's disk by now."""
    parts = [pool_directory.new_part(f"{UID}.raw") for _ in range(2)]
    for size, part in enumerate(parts, start=1):
        with pool_directory.begin(root, part, "") as making:
            pool_directory.grow_raw(making, size * MIB)
            assert pool_directory.finish(root, making, f"{UID}.raw")
        pool_directory.discard(root, part)
    assert pool_directory.volume_bytes(root, f"{UID}.raw") == MIB
    assert files(root) == {f"volumes/{UID}.raw"}


def test_what_is_removed_while_it_is_made_does_not_stay(root: Path) -> None:
    """A file that nobody owns: its maker, on another host, finished a moment after the removal."""
    part, name = pool_directory.new_part(f"{UID}.raw"), f"{UID}.raw"
    with pool_directory.begin(root, part, "") as making:
        pool_directory.grow_raw(making, MIB)
        pool_directory.remove_volume(root, name)
        assert not pool_directory.finish(root, making, name)
    pool_directory.discard(root, part)
    assert pool_directory.volume_uids(root) == ()


def test_marks_of_removed_volumes_go_after_a_week_and_are_looked_through_once_a_day(root: Path) -> None:
    """A pool that grows by a file for every volume there ever was; or a listing of thousands for every one that is removed."""
    old, young, later = (f"{UID[:-1]}{digit}.raw" for digit in "123")
    marks = root / pool_directory.REMOVED
    for name in (old, young):
        pool_directory.remove_volume(root, name)
    week_ago_s = os.stat(marks / young).st_mtime - pool_directory.REMOVED_KEPT_S - 1
    os.utime(marks / old, (week_ago_s, week_ago_s))
    pool_directory.remove_volume(root, later)
    assert pool_directory.was_removed(root, old)
    os.utime(marks / pool_directory.SWEPT, (week_ago_s, week_ago_s))
    os.unlink(marks / later)
    pool_directory.remove_volume(root, later)
    assert [pool_directory.was_removed(root, name) for name in (old, young, later)] == [False, True, True]


async def test_a_pools_id_is_made_once_whoever_comes_first(tmp_path: Path) -> None:
    """Two ids for one file system, and no VM could ever move."""
    fingerprints: list[str] = []
    ready = threading.Barrier(8)

    def open_at_once() -> None:
        ready.wait()
        fingerprints.append(pool_directory.open_pool(tmp_path).fingerprint)

    threads = [threading.Thread(target=open_at_once) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fingerprints) == 8
    assert len(set(fingerprints)) == 1
    assert files(tmp_path) == set()


async def test_a_pool_whose_id_is_no_id_is_left_out(root: Path) -> None:
    """Two pools with the same rubbish in the file would be taken for one."""
    (root / ".hostler-pool").write_text("pool\n")
    assert await volumes_of(root).pools() == ()


async def test_a_pool_that_is_not_mounted_is_left_out_and_nothing_is_made_in_its_place(tmp_path: Path) -> None:
    """Made on the root disk, volumes would vanish at the mount."""
    volumes = volumes_of(tmp_path / "not-there")
    assert await volumes.pools() == ()
    with pytest.raises(PoolMissing):
        await volumes.ensure(EMPTY)
    assert files(tmp_path) == set()
    assert not (tmp_path / "not-there").exists()


@pytest.fixture
def hang(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A path on which statvfs does not return before the test is over."""
    over, real = threading.Event(), os.statvfs
    hung = Path("/hung")

    def statvfs(path: Path) -> os.statvfs_result:
        if path.name == "hung":
            over.wait()
        return real(path)

    monkeypatch.setattr(os, "statvfs", statvfs)
    yield hung
    over.set()


async def test_a_pool_that_hangs_costs_its_own_answers_and_nobody_elses(root: Path, hang: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system that went away must not take the agent's inventory, its other pools or its threads with it."""
    monkeypatch.setattr(directory_volumes, "LOOK_TIMEOUT_S", 0.3)
    hung = root.parent / "hung"
    hung.mkdir()
    volumes = DirectoryVolumes({"p": DirectoryPool(root, False), "h": DirectoryPool(hung, True)})
    for _ in range(3):
        assert [pool.pool_id for pool in await volumes.pools()] == ["p"]
    assert await volumes.ensure(EMPTY) == 16
    assert len([thread for thread in threading.enumerate() if "pool h" in thread.name]) == 1
    with pytest.raises(StorageUnavailable, match="storage"):
        await volumes.ensure(VolumeSpec(UID, "h", 1, ""))
    monkeypatch.setattr(directory_volumes, "LOOK_TIMEOUT_S", 30.0)
    async with asyncio.timeout(5):
        assert [pool.pool_id for pool in await volumes.pools()] == ["p"]


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[Path]:
    """A file system of 8 MiB."""
    root = tmp_path / "small"
    root.mkdir()
    mount = await asyncio.create_subprocess_exec("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(root))
    assert await mount.wait() == 0
    yield root
    umount = await asyncio.create_subprocess_exec("umount", str(root))
    assert await umount.wait() == 0


@pytest.mark.lab
async def test_a_file_system_that_fills_up_during_the_copy_is_full_and_as_before(small: Path) -> None:
    """The room was there when it was asked for; it was gone when it was needed."""
    volumes = volumes_of(small)
    await volumes.pools()
    image = small / "images" / "base.qcow2"
    await qemu_img("create", "-q", "-f", "qcow2", str(image), "2M")
    process = await asyncio.create_subprocess_exec(
        "qemu-io", "-f", "qcow2", "-c", "write -P 1 0 2M", str(image), stdout=asyncio.subprocess.DEVNULL
    )
    assert await process.wait() == 0
    space = os.statvfs(small)
    # Room for the guest's 2 MiB, not for the image's own tables.
    (small / "filler").write_bytes(bytes(space.f_bavail * space.f_frsize - 2 * MIB - (64 << 10)))
    with pytest.raises(PoolFull):
        await volumes.ensure(VolumeSpec(UID, "p", 0, "base"))
    assert files(small) == {"images/base.qcow2", "filler"}


@pytest.mark.lab
async def test_what_others_take_of_a_pool_is_not_on_offer(small: Path) -> None:
    """Images and foreign files whose space is promised to volumes; volumes whose space is counted twice."""
    volumes = volumes_of(small)
    (fresh,) = await volumes.pools()
    assert (fresh.total_mib, fresh.foreign_mib) == (8, 1)  # directories and the pool's id, in steps of a MiB
    (small / "images" / "base.qcow2").write_bytes(b"x" * (2 * MIB))
    (small / "somebody-elses").write_bytes(b"x" * MIB)
    (taken,) = await volumes.pools()
    assert taken.foreign_mib == 4
    (small / "volumes" / f"{UID}.raw").write_bytes(b"x" * (2 * MIB))
    (small / "volumes" / f"{UID}.raw.0.part").write_bytes(b"x" * MIB)
    (used,) = await volumes.pools()
    assert (used.foreign_mib, used.free_mib) == (4, taken.free_mib - 3)
