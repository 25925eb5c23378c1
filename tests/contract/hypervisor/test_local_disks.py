"""A disk that only one host has is copied along by a migration: what the handoff takes for granted of any hypervisor about it."""

import asyncio

import pytest

from nodeagent.core.observed import CopyTag, Locks, MigrationProgress, Power
from nodeagent.ports import EventKind, HypervisorRefused, HypervisorUnavailable, Limits, LiveMigration
from tests.contract.hypervisor.rig import Capability, ContractVM, Rig, hear, needs, until
from tests.contract.hypervisor.test_domains import power
from tests.contract.hypervisor.test_migrations import OPERATION, SLOW_MIB_S, TIMEOUT_S, copying, locks, new_tag


async def started(rig: Rig) -> ContractVM:
    """A VM that runs on host 0 with a disk of its own there; host 1 has an empty file for it."""
    vm = await rig.new_vm(local=True)
    await rig.hypervisor(0).create_paused(vm.spec, CopyTag(vm.uid, 1, "op-start"), vm.disk_paths[0])
    await rig.hypervisor(0).resume(vm.uid)
    return vm


BOOT_S = 150.0
"""An emulated guest on a machine that does other things too."""


async def counts_on(rig: Rig, vm: ContractVM, host: int) -> int:
    """Wait until that host's disk has a newer count; which it is."""
    before = await rig.ticks(vm, host)

    async def moved() -> bool:
        return await rig.ticks(vm, host) > before

    await until(rig, moved, "the guest writes", BOOT_S)
    return await rig.ticks(vm, host)


async def migrate(rig: Rig, vm: ContractVM, mib_s: int = 0) -> None:
    sockets = await rig.connect(OPERATION)
    copied = frozenset(vm.disk_paths[1])
    async with asyncio.timeout(TIMEOUT_S):
        await rig.hypervisor(0).migrate(LiveMigration(new_tag(vm), vm.disk_paths[1], sockets, Limits(mib_s), copied))


async def no_verdict(rig: Rig, vm: ContractVM, mib_s: int = 0) -> None:
    try:
        await migrate(rig, vm, mib_s)
    except (HypervisorRefused, HypervisorUnavailable):
        return


@needs(Capability.MIGRATION, Capability.GUEST)
async def test_a_guest_takes_its_local_disk_along(rig: Rig) -> None:
    """A guest that arrives without what it wrote before, or while it was copied."""
    vm = await started(rig)
    before = await counts_on(rig, vm, 0)
    await migrate(rig, vm)
    assert await power(rig, vm, 1) is Power.PAUSED
    assert await rig.same_disks(vm)
    await rig.hypervisor(1).resume(vm.uid)
    assert await rig.ticks(vm, 1) >= before
    assert await counts_on(rig, vm, 1) > before


@pytest.mark.slow
@needs(Capability.MIGRATION, Capability.SIGNALS, Capability.LOCKS)
async def test_a_source_whose_own_lock_is_free_has_copied_everything(rig: Rig) -> None:
    """The commit rests on it: frozen, switched over and its file let go of, and yet a write that is not at the destination."""
    vm = await started(rig)
    source, events = rig.hypervisor(0), rig.hypervisor(1).events()
    async with asyncio.TaskGroup() as group:
        moving = group.create_task(no_verdict(rig, vm), name="migrate")
        async with asyncio.timeout(TIMEOUT_S):
            await hear(events, vm.uid, EventKind.ARRIVED)
        assert source.freeze(vm.uid)
        assert await power(rig, vm, 0) is Power.SWITCHED
        assert await locks(rig, vm, 0) is Locks.FREE
        assert await rig.same_disks(vm)
        await source.kill(vm.uid)
        await rig.hypervisor(1).resume(vm.uid)
        await moving
    await events.aclose()
    assert await locks(rig, vm, 1) is Locks.HELD
    assert await power(rig, vm, 1) is Power.RUNNING


@pytest.mark.slow
@needs(Capability.MIGRATION, Capability.LOCKS)
async def test_the_source_holds_its_file_until_the_copy_is_whole(rig: Rig) -> None:
    """A lock that is let go of at the guest's stop, when its last writes are still under way, would prove too much."""
    vm = await started(rig)
    seen: list[Locks] = []
    async with asyncio.TaskGroup() as group:
        moving = group.create_task(migrate(rig, vm), name="migrate")
        while not moving.done():
            free_before = await locks(rig, vm, 0) is Locks.FREE
            if free_before:
                seen.append(Locks.FREE)
                assert await rig.same_disks(vm)
            await rig.clock.sleep(0.01)
    assert seen


@pytest.mark.slow
@needs(Capability.MIGRATION)
async def test_progress_tells_the_bytes_of_the_disk_first(rig: Rig) -> None:
    """A copy of a disk that nobody sees moving is cancelled by somebody."""
    vm = await started(rig)
    seen: list[MigrationProgress] = []
    async with asyncio.TaskGroup() as group:
        moving = group.create_task(migrate(rig, vm, 64), name="migrate")
        while not moving.done():
            progress = await rig.hypervisor(0).migration_progress(vm.uid)
            if progress is not None:
                seen.append(progress)
            await rig.clock.sleep(0.05)
    of_disk = [progress for progress in seen if progress.iteration == 0 and progress.bytes_total > 0]
    assert of_disk
    assert all(progress.remaining_bytes == 0 for progress in of_disk), "no memory is under way yet"
    done = [progress.bytes_done for progress in seen]
    assert done == sorted(done)


@pytest.mark.slow
@needs(Capability.MIGRATION)
async def test_a_disk_of_its_own_is_not_taken_for_a_shared_one(rig: Rig) -> None:
    """Without the copy the guest would go on with an empty disk: it has to be refused, whoever forgot to ask for it."""
    vm = await started(rig)
    sockets = await rig.connect(OPERATION)
    with pytest.raises(HypervisorRefused):
        await rig.hypervisor(0).migrate(LiveMigration(new_tag(vm), vm.disk_paths[1], sockets, Limits()))
    assert await power(rig, vm, 0) is Power.RUNNING
    assert await power(rig, vm, 1) is None


@pytest.mark.slow
@needs(Capability.MIGRATION, Capability.LOCKS)
async def test_an_aborted_copy_leaves_the_source_with_its_disk(rig: Rig) -> None:
    """An abort that took the guest's disk from it, or left the other file open."""
    vm = await started(rig)
    async with asyncio.TaskGroup() as group:
        moving = group.create_task(no_verdict(rig, vm, SLOW_MIB_S), name="migrate")
        await copying(rig, vm)
        await rig.hypervisor(0).abort_migration(vm.uid)
        await moving

    async def nothing_there() -> bool:
        return await power(rig, vm, 1) is None

    await until(rig, nothing_there, "the destination's half is gone")
    assert await power(rig, vm, 0) is Power.RUNNING
    assert await locks(rig, vm, 0) is Locks.HELD
    assert await locks(rig, vm, 1) is Locks.FREE


@pytest.mark.slow
@needs(Capability.MIGRATION, Capability.SIGNALS, Capability.GUEST)
async def test_a_destination_that_dies_while_the_disk_is_copied_costs_nothing(rig: Rig) -> None:
    """A write that was reported done because it reached a copy that is no more."""
    vm = await started(rig)
    async with asyncio.TaskGroup() as group:
        moving = group.create_task(no_verdict(rig, vm, SLOW_MIB_S), name="migrate")
        await copying(rig, vm)
        await rig.hypervisor(1).kill(vm.uid)
        await moving
    assert await power(rig, vm, 0) is Power.RUNNING
    await counts_on(rig, vm, 0)
