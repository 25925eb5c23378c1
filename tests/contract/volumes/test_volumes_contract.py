"""What the engine takes for granted of volumes, wherever they are kept."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hostler.model.domain import VolumeSpec
from nodeagent.ports import PoolFull, PoolMissing, ProbeOutcome, VolumeRemoved
from tests.contract.volumes.subject import LOCAL, SHARED, Subject, directories, simulated

UID, OTHER_UID = "11111111-2222-4333-8444-555555555555", "11111111-2222-4333-8444-666666666666"
HUGE_MIB = 1 << 36 >> 20 << 10
"""64 TiB."""


@pytest.fixture(params=[simulated, directories], ids=["sim", "directory"])
async def subject(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    async with request.param(tmp_path) as opened, asyncio.timeout(60):
        yield opened


def empty(size_mib: int = 16, uid: str = UID, pool_id: str = SHARED, image_format: str = "qcow2") -> VolumeSpec:
    return VolumeSpec(uid, pool_id, size_mib, "", image_format)


def of_image(name: str, size_mib: int = 0, uid: str = UID) -> VolumeSpec:
    return VolumeSpec(uid, SHARED, size_mib, name)


async def test_pools_are_seen_alike_by_hosts_that_share_them_and_only_then(subject: Subject) -> None:
    """The fingerprint is how placement knows that two pools of one name are one file system."""
    first, second = [{pool.pool_id: pool for pool in await host.pools()} for host in subject.hosts]
    assert set(first) == {SHARED, LOCAL}
    assert first[SHARED].fingerprint == second[SHARED].fingerprint
    assert len({first[LOCAL].fingerprint, second[LOCAL].fingerprint, first[SHARED].fingerprint}) == 3
    assert (first[SHARED].shared, first[LOCAL].shared) == (True, False)
    assert all(0 < pool.free_mib <= pool.total_mib for pool in first.values())
    assert all(pool.ofd_locks for pool in first.values())


async def test_a_volume_that_was_removed_comes_back_only_if_it_is_asked_for(subject: Subject) -> None:
    """A VM that can never come back to a node with its local disk, or a late request that makes a removed one anew."""
    host = subject.hosts[0]
    await host.ensure(empty())
    await host.remove(empty())
    with pytest.raises(VolumeRemoved):
        await host.ensure(empty())
    await host.readmit(empty())
    await host.readmit(empty())
    assert await host.ensure(empty()) == 16


@pytest.mark.parametrize("image_format", ["qcow2", "raw"])
async def test_the_size_of_a_volume_is_told_as_the_guest_sees_it_and_as_it_is_stored(subject: Subject, image_format: str) -> None:
    """A copy into a file of another size, or one that is foretold to take no time."""
    host = subject.hosts[0]
    with pytest.raises(PoolMissing):
        await host.size(SHARED, UID, image_format)
    await host.ensure(empty(16, image_format=image_format))
    size = await host.size(SHARED, UID, image_format)
    assert size.size_bytes == 16 << 20
    assert 0 <= size.allocated_bytes <= 16 << 20


@pytest.mark.parametrize("image_format", ["qcow2", "raw"])
async def test_a_volume_is_made_once_and_again_is_the_same(subject: Subject, image_format: str) -> None:
    """A repeat that made it anew would wipe a disk."""
    host = subject.hosts[0]
    assert await host.ensure(empty(16, image_format=image_format)) == 16
    before = await host.identity(SHARED, UID, image_format)
    assert await host.ensure(empty(16, image_format=image_format)) == 16
    assert await host.identity(SHARED, UID, image_format) == before
    assert await host.uids(SHARED) == (UID,)
    assert host.path(SHARED, UID, image_format).endswith(f"{UID}.{image_format}")


async def test_a_volume_of_an_image_has_its_size_or_the_larger_one_asked_for(subject: Subject) -> None:
    """Size 0 means the image's; a guest must get the disk that was paid for."""
    host = subject.hosts[0]
    await subject.add_image("debian-12", 24)
    assert [pool.images for pool in await host.pools() if pool.pool_id == SHARED] == [{"debian-12": 24}]
    assert await host.ensure(of_image("debian-12")) == 24
    assert await host.ensure(of_image("debian-12", 40, OTHER_UID)) == 40


async def test_a_volume_smaller_than_its_image_is_refused(subject: Subject) -> None:
    """Cut off, the guest's file system would be broken from the first boot."""
    await subject.add_image("debian-12", 24)
    with pytest.raises(PoolFull):
        await subject.hosts[0].ensure(of_image("debian-12", 8))
    assert await subject.hosts[0].uids(SHARED) == ()


async def test_what_does_not_fit_is_refused_and_leaves_nothing(subject: Subject) -> None:
    """A partial file would be taken for the volume by the repeat."""
    with pytest.raises(PoolFull):
        await subject.hosts[0].ensure(empty(HUGE_MIB))
    assert await subject.hosts[0].uids(SHARED) == ()
    with pytest.raises(PoolMissing):
        await subject.hosts[0].identity(SHARED, UID, "qcow2")


async def test_pools_and_images_that_are_not_there_are_missing(subject: Subject) -> None:
    """A "no" of its own: the caller asked the wrong host, nothing is broken."""
    host = subject.hosts[0]
    for call in (host.ensure(empty(pool_id="nope")), host.remove(empty(pool_id="nope")), host.uids("nope"), host.ensure(of_image("nope"))):
        with pytest.raises(PoolMissing):
            await call
    with pytest.raises(PoolMissing):
        host.path("nope", UID, "qcow2")


@pytest.mark.parametrize("name", ["../volumes/x", "/etc/passwd", "..", "a/b", "-f", "a\0b", "x" * 64, "UPPER", "json:{}", "nbd:host"])
async def test_image_names_that_are_no_names_are_missing(subject: Subject, name: str) -> None:
    """They come from users, and a file is looked for by them."""
    with pytest.raises(PoolMissing):
        await subject.hosts[0].ensure(of_image(name))
    assert await subject.hosts[0].uids(SHARED) == ()


async def test_removing_is_final_and_may_be_repeated(subject: Subject) -> None:
    """A repeat after a lost reply is no error."""
    host = subject.hosts[0]
    await host.ensure(empty())
    await host.ensure(empty(uid=OTHER_UID))
    for _ in range(2):
        await host.remove(empty())
    assert await host.uids(SHARED) == (OTHER_UID,)


async def test_what_was_removed_is_not_made_again_by_any_host(subject: Subject) -> None:
    """A file that nobody owns any more, made by a request that was late; its first host may not even know of the removal."""
    first, second = subject.hosts
    await first.ensure(empty())
    await second.remove(empty())
    await second.remove(empty(uid=OTHER_UID))
    for host in subject.hosts:
        for uid in (UID, OTHER_UID):
            with pytest.raises(VolumeRemoved):
                await host.ensure(empty(uid=uid))
    assert await first.uids(SHARED) == ()


async def test_a_shared_volume_is_the_same_file_on_both_hosts(subject: Subject) -> None:
    """If this were wrong the handoff would let the guest run on another disk."""
    first, second = subject.hosts
    await first.ensure(empty())
    assert await first.identity(SHARED, UID, "qcow2") == await second.identity(SHARED, UID, "qcow2")
    assert await second.uids(SHARED) == (UID,)
    await first.ensure(empty(uid=OTHER_UID))
    assert await first.identity(SHARED, OTHER_UID, "qcow2") != await second.identity(SHARED, UID, "qcow2")


async def test_local_volumes_of_one_uid_are_different_files(subject: Subject) -> None:
    """Two hosts may both have a pool "local": that does not make it one."""
    for host in subject.hosts:
        await host.ensure(empty(pool_id=LOCAL))
    first, second = [await host.identity(LOCAL, UID, "qcow2") for host in subject.hosts]
    assert first != second


async def test_two_hosts_that_make_one_volume_at_once_make_one_file(subject: Subject) -> None:
    """The slower one must not replace a file that the faster one's guest has open."""
    async with asyncio.TaskGroup() as group:
        made = [group.create_task(host.ensure(empty()), name="ensure") for host in subject.hosts for _ in range(2)]
    assert [one.result() for one in made] == [16] * 4
    first, second = subject.hosts
    assert await first.identity(SHARED, UID, "qcow2") == await second.identity(SHARED, UID, "qcow2")
    assert await first.uids(SHARED) == (UID,)


async def test_what_is_no_volume_is_told_apart_and_volumes_are_not(subject: Subject) -> None:
    """Space promised that images take; or space taken twice, by the claim of a volume and by its file."""

    async def foreign_mib() -> int:
        (pool,) = [pool for pool in await subject.hosts[0].pools() if pool.pool_id == SHARED]
        assert 0 <= pool.foreign_mib <= pool.total_mib
        return pool.foreign_mib

    before = await foreign_mib()
    await subject.hosts[0].ensure(empty(16))
    assert await foreign_mib() <= before + (await subject.hosts[0].pools())[0].total_mib // 256 + 1


PROBE = "11111111-2222-4333-8444-777777777777"


async def test_a_lock_that_one_host_holds_keeps_another_out_until_its_process_is_killed(subject: Subject) -> None:
    """A probe that finds locks where there are none, or none where they are, decides how running VMs change their hosts."""
    holder, asker = subject.hosts
    assert await asker.try_probe(SHARED, PROBE) is ProbeOutcome.MISSING
    assert await holder.hold_probe(SHARED, PROBE) is ProbeOutcome.HELD
    assert await holder.hold_probe(SHARED, PROBE) is ProbeOutcome.HELD
    assert await asker.try_probe(SHARED, PROBE) is ProbeOutcome.REFUSED
    await asker.end_probe(SHARED, PROBE, remove=False)
    assert await asker.try_probe(SHARED, PROBE) is ProbeOutcome.REFUSED, "somebody else's holder was killed"
    await holder.end_probe(SHARED, PROBE, remove=False)
    assert await asker.try_probe(SHARED, PROBE) is ProbeOutcome.TAKEN
    assert await holder.try_probe(SHARED, PROBE) is ProbeOutcome.TAKEN, "the asker kept it"
    await holder.end_probe(SHARED, PROBE, remove=True)
    await holder.end_probe(SHARED, PROBE, remove=True)
    assert await asker.try_probe(SHARED, PROBE) is ProbeOutcome.MISSING


async def test_a_probe_of_no_pool_is_refused(subject: Subject) -> None:
    """A name from the wire that becomes a path."""
    for host in subject.hosts:
        for act in (host.hold_probe("none", PROBE), host.try_probe("none", PROBE), host.end_probe("none", PROBE, remove=True)):
            with pytest.raises(PoolMissing):
                await act
