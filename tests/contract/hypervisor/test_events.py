"""Events: everybody hears them, in order, and nobody waits for a slow reader."""

import asyncio

from nodeagent.core.observed import CopyTag
from nodeagent.ports import EventKind
from tests.contract.hypervisor.rig import Capability, Rig, hear, needs

HEARING_S = 30.0


async def test_two_readers_hear_the_life_of_a_domain_in_order(rig: Rig) -> None:
    """A shared queue would give each reader half of the story."""
    hypervisor = rig.hypervisor(0)
    vm = await rig.new_vm()
    readers = [hypervisor.events(), hypervisor.events()]
    await hypervisor.create_paused(vm.spec, CopyTag(vm.uid, 1, "op-a"), vm.disk_paths[0])
    await hypervisor.resume(vm.uid)
    await hypervisor.destroy(vm.uid)
    for reader in readers:
        async with asyncio.timeout(HEARING_S):
            heard = await hear(reader, vm.uid, EventKind.STOPPED)
        kept = [kind for kind in heard if kind is not EventKind.SUSPENDED]
        assert kept == [EventKind.STARTED, EventKind.RESUMED, EventKind.STOPPED]
        await reader.aclose()


async def test_a_reader_hears_nothing_from_before_it_came(rig: Rig) -> None:
    """Old events would be taken for new ones after a restart of the agent."""
    hypervisor = rig.hypervisor(0)
    before, after = await rig.new_vm(), await rig.new_vm()
    await hypervisor.create_paused(before.spec, CopyTag(before.uid, 1, "op-a"), before.disk_paths[0])
    await hypervisor.domains()
    reader = hypervisor.events()
    await hypervisor.create_paused(after.spec, CopyTag(after.uid, 1, "op-b"), after.disk_paths[0])
    async with asyncio.timeout(HEARING_S):
        async for event in reader:
            assert event.kind is not EventKind.STARTED or event.vm_uid != before.uid
            if event.vm_uid == after.uid:
                break
    await reader.aclose()


async def test_a_slow_reader_is_told_to_look_again_and_the_other_hears_all(rig: Rig) -> None:
    """An unbounded queue eats the host; a silent drop lets the reader believe what is no longer true."""
    hypervisor = rig.hypervisor(0)
    vm = await rig.new_vm()
    slow, quick = hypervisor.events(), hypervisor.events()
    rounds = rig.queue_events // 2 + 2

    async def count_starts() -> int:
        starts = 0
        async for event in quick:
            starts += event.kind is EventKind.STARTED and event.vm_uid == vm.uid
            if starts == rounds:
                break
        return starts

    async with asyncio.timeout(HEARING_S * 2), asyncio.TaskGroup() as group:
        counting = group.create_task(count_starts(), name="quick reader")
        for _ in range(rounds):
            await hypervisor.create_paused(vm.spec, CopyTag(vm.uid, 1, "op-a"), vm.disk_paths[0])
            await hypervisor.destroy(vm.uid)
    assert counting.result() == rounds
    async with asyncio.timeout(HEARING_S):
        async for event in slow:
            if event.kind is EventKind.CONNECTION_BACK:
                break
    await slow.aclose()
    await quick.aclose()


@needs(Capability.SIGNALS)
async def test_a_process_that_ends_by_itself_is_a_crash(rig: Rig) -> None:
    """Taken for a shutdown, nobody would ever be told why the VM is off."""
    hypervisor = rig.hypervisor(0)
    vm = await rig.new_vm()
    await hypervisor.create_paused(vm.spec, CopyTag(vm.uid, 1, "op-a"), vm.disk_paths[0])
    await hypervisor.resume(vm.uid)
    reader = hypervisor.events()
    await hypervisor.kill(vm.uid)
    async with asyncio.timeout(HEARING_S):
        assert EventKind.CRASHED in await hear(reader, vm.uid, EventKind.CRASHED, EventKind.STOPPED)
    await reader.aclose()
