"""Locks and live migration: what the handoff's safety argument takes for granted of any hypervisor."""

import asyncio
from dataclasses import replace

import pytest

from nodeagent.core.observed import CopyTag, Locks, MigrationProgress, Power
from nodeagent.ports import EventKind, HypervisorRefused, HypervisorUnavailable, Limits, LiveMigration, Reception, Tune
from tests.contract.hypervisor.rig import Capability, ContractVM, Rig, hear, needs, until
from tests.contract.hypervisor.test_domains import advances, power, started

OPERATION = "0d9f1a52-3b77-4a55-8f0e-0c8f6f1c7a01"
SLOW_MIB_S = 16
"""Slow enough for a copy to be seen, and stopped, on its way."""
TIMEOUT_S = 90.0


def new_tag(vm: ContractVM) -> CopyTag:
    return CopyTag(vm.uid, 2, OPERATION)


async def migrate(rig: Rig, vm: ContractVM, mib_s: int = 0) -> None:
    sockets = await rig.connect(OPERATION)
    async with asyncio.timeout(TIMEOUT_S):
        await rig.hypervisor(0).migrate(LiveMigration(new_tag(vm), vm.disk_paths[1], sockets, Limits(mib_s)))


async def locks(rig: Rig, vm: ContractVM, host: int) -> Locks:
    return await rig.hypervisor(host).locks(tuple(vm.disk_paths[host].values()))


async def copying(rig: Rig, vm: ContractVM) -> MigrationProgress:
    """Wait until the copy is on its way."""
    seen: list[MigrationProgress] = []

    async def on_its_way() -> bool:
        progress = await rig.hypervisor(0).migration_progress(vm.uid)
        if progress is not None and progress.bytes_done > 0:
            seen.append(progress)
        return bool(seen)

    await until(rig, on_its_way, "the copy begins")
    return seen[-1]


async def arrived(rig: Rig, vm: ContractVM) -> None:
    async def paused_there() -> bool:
        return await power(rig, vm, 1) is Power.PAUSED

    await until(rig, paused_there, "the copy arrives", TIMEOUT_S)


@needs(Capability.LOCKS)
async def test_locks_are_held_while_it_runs_and_free_once_it_is_gone(rig: Rig) -> None:
    """If a writer could not be seen, a commit could be asked for while the source writes."""
    vm = await started(rig)
    assert await locks(rig, vm, 0) is Locks.HELD
    await rig.hypervisor(0).destroy(vm.uid)
    assert await locks(rig, vm, 0) is Locks.FREE


@needs(Capability.LOCKS, Capability.SIGNALS)
async def test_a_frozen_writer_still_holds_its_locks(rig: Rig) -> None:
    """Freezing must not look like switching over."""
    vm = await started(rig)
    rig.hypervisor(0).freeze(vm.uid)
    assert await locks(rig, vm, 0) is Locks.HELD


@needs(Capability.LOCKS, Capability.MIGRATION)
async def test_locks_are_seen_from_the_other_host(rig: Rig) -> None:
    """The storage's lock is the second barrier only if it excludes across hosts."""
    vm = await started(rig)
    assert await locks(rig, vm, 1) is Locks.HELD

    async def start_there() -> None:
        await rig.hypervisor(1).create_paused(vm.spec, new_tag(vm), vm.disk_paths[1])
        await rig.hypervisor(1).resume(vm.uid)

    with pytest.raises(HypervisorRefused):
        await start_there()


@needs(Capability.MIGRATION)
async def test_a_copy_arrives_paused_with_the_new_tag_and_the_source_is_gone(rig: Rig) -> None:
    """A copy that runs on arrival, or carries the old epoch, breaks the handoff."""
    vm = await started(rig)
    await migrate(rig, vm)
    view = await rig.hypervisor(1).domain(vm.uid)
    assert view is not None
    assert (view.power, view.tag) == (Power.PAUSED, new_tag(vm))
    assert await rig.hypervisor(0).domain(vm.uid) is None


@needs(Capability.MIGRATION, Capability.OWNERS)
async def test_a_copy_whose_images_were_taken_from_it_is_resumed(rig: Rig) -> None:
    """A guest that stands still for ever: the source's libvirt took its end for a crash, and gave its images back to root."""
    vm = await started(rig)
    await migrate(rig, vm)
    await rig.take_images(1, vm)
    await rig.hypervisor(1).resume(vm.uid)
    assert await power(rig, vm, 1) is Power.RUNNING


@needs(Capability.MIGRATION)
async def test_the_events_of_a_migration_come_in_order(rig: Rig) -> None:
    """SWITCHED is the last moment of the source's execution, STOPPED_MIGRATED the proof that it will not execute again."""
    vm = await started(rig)
    source, destination = rig.hypervisor(0).events(), rig.hypervisor(1).events()
    await migrate(rig, vm)
    async with asyncio.timeout(TIMEOUT_S):
        at_source = await hear(source, vm.uid, EventKind.STOPPED_MIGRATED, EventKind.STOPPED, EventKind.CRASHED)
        at_destination = await hear(destination, vm.uid, EventKind.ARRIVED)
    assert at_source[-2:] == [EventKind.SWITCHED, EventKind.STOPPED_MIGRATED]
    assert EventKind.RESUMED not in at_destination
    await source.aclose()
    await destination.aclose()


@needs(Capability.MIGRATION, Capability.LOCKS)
async def test_between_switchover_and_resume_nobody_holds_a_lock(rig: Rig) -> None:
    """Held by the source: it can still write. Held by the destination: it did not wait for the commit."""
    vm = await started(rig)
    events = rig.hypervisor(1).events()
    async with asyncio.TaskGroup() as group:
        moving = group.create_task(migrate(rig, vm), name="migrate")
        async with asyncio.timeout(TIMEOUT_S):
            await hear(events, vm.uid, EventKind.ARRIVED)
        assert await locks(rig, vm, 0) is Locks.FREE
        await moving
    await events.aclose()
    assert await locks(rig, vm, 1) is Locks.FREE
    await rig.hypervisor(1).resume(vm.uid)
    assert await locks(rig, vm, 1) is Locks.HELD
    assert await power(rig, vm, 1) is Power.RUNNING


@needs(Capability.MIGRATION, Capability.GUEST)
async def test_the_guest_goes_on_where_it_was(rig: Rig) -> None:
    """A counter that begins again is a cold start, not a migration."""
    vm = await started(rig, small=True)
    await advances(rig, vm)
    before = await rig.ticks(vm)
    await migrate(rig, vm)
    await rig.hypervisor(1).resume(vm.uid)
    assert await rig.ticks(vm) >= before
    await advances(rig, vm)


@needs(Capability.MIGRATION, Capability.SIGNALS, Capability.LOCKS)
async def test_a_switched_source_can_be_frozen_inspected_and_killed_at_once(rig: Rig) -> None:
    """This is the downtime: SIGSTOP, look, commit, SIGKILL, resume there, without waiting for the source's hypervisor."""
    vm = await started(rig)
    source, destination = rig.hypervisor(0), rig.hypervisor(1)
    events = destination.events()

    async def move() -> None:
        try:
            await migrate(rig, vm)
        except (HypervisorRefused, HypervisorUnavailable):
            return  # no verdict: the source was killed under it

    async with asyncio.TaskGroup() as group:
        moving = group.create_task(move(), name="migrate")
        async with asyncio.timeout(TIMEOUT_S):
            await hear(events, vm.uid, EventKind.ARRIVED)
        assert source.freeze(vm.uid)
        assert await power(rig, vm, 0) is Power.SWITCHED
        assert await locks(rig, vm, 0) is Locks.FREE
        await source.kill(vm.uid)
        await destination.resume(vm.uid)
        assert await power(rig, vm, 1) is Power.RUNNING
        await moving
    await events.aclose()
    assert await power(rig, vm, 1) is Power.RUNNING

    async def gone() -> bool:
        return await power(rig, vm, 0) is None

    await until(rig, gone, "the source is gone")


@needs(Capability.MIGRATION)
async def test_progress_never_goes_back_and_ends_with_the_migration(rig: Rig) -> None:
    """Progress that jumps back makes every forecast nonsense."""
    vm = await started(rig)
    assert await rig.hypervisor(0).migration_progress(vm.uid) is None
    seen: list[MigrationProgress] = []
    async with asyncio.TaskGroup() as group:
        moving = group.create_task(migrate(rig, vm, 64), name="migrate")
        while not moving.done():
            progress = await rig.hypervisor(0).migration_progress(vm.uid)
            if progress is not None:
                seen.append(progress)
            await rig.clock.sleep(0.1)
    done = [progress.bytes_done for progress in seen]
    assert done == sorted(done)
    assert done[-1] > 0
    assert all(progress.bytes_done <= progress.bytes_total for progress in seen)
    assert await rig.hypervisor(0).migration_progress(vm.uid) is None


@needs(Capability.MIGRATION)
async def test_a_running_copy_is_tuned(rig: Rig) -> None:
    """A limit that cannot be changed while it copies leaves nothing but to cancel and begin again."""
    vm = await started(rig)
    async with asyncio.TaskGroup() as group:
        moving = group.create_task(migrate(rig, vm, 1), name="migrate")
        await copying(rig, vm)
        assert not moving.done()
        await rig.hypervisor(0).tune_migration(vm.uid, Tune(throttle_percent=60))
        await rig.hypervisor(0).tune_migration(vm.uid, Tune(bandwidth_mib_s=0, max_downtime_ms=2000))
        begin_s = rig.clock.monotonic_s()
        await moving
    assert rig.clock.monotonic_s() - begin_s < 30, "at 1 MiB/s it would have taken minutes"
    assert await power(rig, vm, 1) is Power.PAUSED


@needs(Capability.MIGRATION)
async def test_what_a_guest_asks_of_a_host_is_known_and_a_like_host_gives_it(rig: Rig) -> None:
    """A look before the migration that forbids what works, or that does not look at all."""
    vm = await started(rig)
    guest = await rig.hypervisor(0).guest_facts(vm.uid)
    assert guest is not None
    assert guest.machine
    assert guest.cpu_xml
    assert "disk/virtio" in guest.devices
    assert await rig.hypervisor(1).reception(guest) == Reception()
    assert "pc-q35-99.9" in (await rig.hypervisor(1).reception(replace(guest, machine="pc-q35-99.9"))).machine_refused
    odd = await rig.hypervisor(1).reception(replace(guest, devices=(*guest.devices, "disk/punchcard")))
    assert odd.devices_missing == ("disk/punchcard",)
    strange = replace(guest, cpu_xml="<cpu mode='custom' match='exact'><model fallback='forbid'>strange</model></cpu>")
    assert (await rig.hypervisor(1).reception(strange)).cpu_refused
    assert await rig.hypervisor(1).guest_facts(vm.uid) is None


@needs(Capability.MIGRATION)
async def test_the_dirty_rate_of_a_running_guest_is_measured(rig: Rig) -> None:
    """A forecast from a figure that is always the same."""
    vm = await started(rig)
    rate = await rig.hypervisor(0).dirty_rate(vm.uid)
    assert rate is not None
    assert 0 <= rate < 1 << 40
    with pytest.raises(HypervisorRefused):
        await rig.hypervisor(1).dirty_rate(vm.uid)


@needs(Capability.MIGRATION)
async def test_what_is_not_copied_cannot_be_tuned(rig: Rig) -> None:
    """A change that goes nowhere must not look like one that was made."""
    vm = await started(rig)
    with pytest.raises(HypervisorRefused):
        await rig.hypervisor(0).tune_migration(vm.uid, Tune(bandwidth_mib_s=64))


@needs(Capability.MIGRATION)
async def test_an_aborted_migration_leaves_the_source_running_and_nothing_else(rig: Rig) -> None:
    """An abort that left a copy behind would leave something to resume by mistake."""
    vm = await started(rig)
    async with asyncio.TaskGroup() as group:
        moving = group.create_task(_refused(rig, vm, SLOW_MIB_S), name="migrate")
        await copying(rig, vm)
        await rig.hypervisor(0).abort_migration(vm.uid)
        await moving
    assert await power(rig, vm, 0) is Power.RUNNING

    async def nothing_there() -> bool:
        return await power(rig, vm, 1) is None

    await until(rig, nothing_there, "the destination's half is gone")


@needs(Capability.MIGRATION)
async def test_aborting_what_is_not_there_is_no_error(rig: Rig) -> None:
    """The engine aborts by what should be, not by what is."""
    vm = await started(rig)
    await rig.hypervisor(0).abort_migration(vm.uid)
    assert await power(rig, vm, 0) is Power.RUNNING


@needs(Capability.MIGRATION)
async def test_a_destination_that_is_not_there_is_an_error_and_the_source_runs(rig: Rig) -> None:
    """Unreachable must fail in the open, with the guest where it was."""
    vm = await started(rig)
    sockets = await rig.connect(OPERATION)
    await rig.disconnect(OPERATION)
    with pytest.raises((HypervisorRefused, HypervisorUnavailable)):
        async with asyncio.timeout(TIMEOUT_S):
            await rig.hypervisor(0).migrate(LiveMigration(new_tag(vm), vm.disk_paths[1], sockets, Limits(0)))
    assert await power(rig, vm, 0) is Power.RUNNING
    assert await power(rig, vm, 1) is None


@needs(Capability.MIGRATION)
async def test_cancelling_the_call_does_not_stop_the_migration(rig: Rig) -> None:
    """An agent that ends in the middle must not take the migration with it, nor believe that it did."""
    vm = await started(rig)
    moving = asyncio.ensure_future(migrate(rig, vm, 128))
    await copying(rig, vm)
    moving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await moving
    await arrived(rig, vm)


@needs(Capability.MIGRATION, Capability.SIGNALS)
async def test_a_source_that_dies_during_the_copy_is_an_error_and_leaves_no_copy(rig: Rig) -> None:
    """Half a guest must never be taken for a guest."""
    vm = await started(rig)
    async with asyncio.TaskGroup() as group:
        moving = group.create_task(_refused(rig, vm, SLOW_MIB_S), name="migrate")
        await copying(rig, vm)
        await rig.hypervisor(0).kill(vm.uid)
        await moving

    async def nothing_there() -> bool:
        return await power(rig, vm, 1) is None

    await until(rig, nothing_there, "the destination's half is gone", TIMEOUT_S)


@needs(Capability.MIGRATION, Capability.SIGNALS)
async def test_that_it_leaves_is_written_down_before_its_process_has_ended(rig: Rig) -> None:
    """On a pool without locks the guest stands still for the seconds that the end of the source's process takes."""
    vm, hypervisor = await started(rig), rig.hypervisor(0)
    mark, events = await hypervisor.record_mark(vm.uid), rig.hypervisor(1).events()

    async def written() -> bool:
        return await hypervisor.recorded_ending(vm.uid, mark) is EventKind.STOPPED_MIGRATED

    async with asyncio.TaskGroup() as group:
        moving = group.create_task(migrate(rig, vm), name="migrate")
        async with asyncio.timeout(TIMEOUT_S):
            await hear(events, vm.uid, EventKind.ARRIVED)
        assert hypervisor.freeze(vm.uid), "it ended before it could be frozen"
        await until(rig, written, "it is written down", TIMEOUT_S)
        assert hypervisor.is_frozen(vm.uid)
        view = await hypervisor.domain(vm.uid)
        assert view is not None
        assert view.power is Power.SWITCHED
        await hypervisor.kill(vm.uid)
        await moving
    await events.aclose()
    assert await written()
    assert await hypervisor.domain(vm.uid) is None


async def _refused(rig: Rig, vm: ContractVM, mib_s: int) -> None:
    with pytest.raises((HypervisorRefused, HypervisorUnavailable)):
        await migrate(rig, vm, mib_s)


@needs(Capability.MIGRATION, Capability.SIGNALS)
async def test_how_it_ended_is_written_down_for_whoever_was_not_there(rig: Rig) -> None:
    """An agent that missed the event would take a guest that migrated away for one that crashed, or the other way round."""
    vm, hypervisor = await started(rig), rig.hypervisor(0)
    mark = await hypervisor.record_mark(vm.uid)
    assert await hypervisor.recorded_ending(vm.uid, mark) is None
    await migrate(rig, vm)
    assert await hypervisor.recorded_ending(vm.uid, mark) is EventKind.STOPPED_MIGRATED
    assert await hypervisor.recorded_ending(vm.uid, await hypervisor.record_mark(vm.uid)) is None
    await rig.hypervisor(1).destroy(vm.uid)
    await hypervisor.create_paused(vm.spec, CopyTag(vm.uid, 3, "op-again"), vm.disk_paths[0])
    assert await hypervisor.recorded_ending(vm.uid, mark) is None
    await hypervisor.kill(vm.uid)

    async def gone() -> bool:
        return await power(rig, vm) is None

    await until(rig, gone, "the hypervisor notices")
    assert await hypervisor.recorded_ending(vm.uid, mark) is not EventKind.STOPPED_MIGRATED
