"""One host's domains: creation, execution, signals, and what a hypervisor that does not answer looks like."""

import asyncio

import pytest

from nodeagent.core.observed import CopyTag, Power
from nodeagent.ports import EventKind, HypervisorRefused, HypervisorUnavailable
from tests.contract.hypervisor.rig import Capability, ContractVM, Rig, hear, needs, until

REBOOT_S = 90.0
"""An emulated guest shuts down and boots in a few seconds each."""
STILL_S = 0.5
"""A guest that executes counts several times within it."""
MARGIN_S = 1.0
"""Scheduling on a busy machine, on top of a call's own deadline."""


async def started(rig: Rig, epoch: int = 1, *, small: bool = False) -> ContractVM:
    """A VM that runs on host 0."""
    vm = await rig.new_vm(small=small)
    await rig.hypervisor(0).create_paused(vm.spec, CopyTag(vm.uid, epoch, "op-start"), vm.disk_paths[0])
    await rig.hypervisor(0).resume(vm.uid)
    return vm


async def advances(rig: Rig, vm: ContractVM) -> None:
    """Fails unless the guest's counter moves."""
    before = await rig.ticks(vm)

    async def moved() -> bool:
        return await rig.ticks(vm) > before

    await until(rig, moved, "the guest's counter moves")


async def power(rig: Rig, vm: ContractVM, host: int = 0) -> Power | None:
    view = await rig.hypervisor(host).domain(vm.uid)
    return view.power if view is not None else None


async def test_a_created_domain_is_paused_and_is_the_vm_asked_for(rig: Rig) -> None:
    """A domain that executes at once would run before the owner record was read."""
    vm = await rig.new_vm()
    view = await rig.hypervisor(0).create_paused(vm.spec, CopyTag(vm.uid, 3, "op-a"), vm.disk_paths[0])
    assert view.power is Power.PAUSED
    assert view.uuid == vm.uid
    assert (view.vcpus, view.memory_mib) == (vm.spec.vcpus, vm.spec.memory_mib)
    assert await rig.hypervisor(0).domain(vm.uid) == view


async def test_the_tag_comes_back_as_it_was_given(rig: Rig) -> None:
    """Epoch or operation lost: a stale copy would be taken for the right one."""
    vm = await rig.new_vm()
    tag = CopyTag(vm.uid, 7, "0b1e5f5e-5d52-4d3c-9f37-6a3f0c1d2e4f")
    await rig.hypervisor(0).create_paused(vm.spec, tag, vm.disk_paths[0])
    assert [view.tag for view in await rig.hypervisor(0).domains() if view.uuid == vm.uid] == [tag]


async def test_a_second_creation_is_refused_and_leaves_the_first_alone(rig: Rig) -> None:
    """A repeat that replaced the domain would kill a running guest."""
    vm = await started(rig)
    before = await rig.hypervisor(0).domain(vm.uid)
    with pytest.raises(HypervisorRefused):
        await rig.hypervisor(0).create_paused(vm.spec, CopyTag(vm.uid, 2, "op-b"), vm.disk_paths[0])
    assert await rig.hypervisor(0).domain(vm.uid) == before


async def test_resume_makes_it_running_and_may_be_repeated(rig: Rig) -> None:
    """A repeat that fails would turn a lost reply into a failed start."""
    vm = await started(rig)
    assert await power(rig, vm) is Power.RUNNING
    await rig.hypervisor(0).resume(vm.uid)
    assert await power(rig, vm) is Power.RUNNING


async def test_what_is_not_there_is_refused_or_none(rig: Rig) -> None:
    """Absence must be an answer, never an unavailability: it is evidence."""
    vm = await rig.new_vm()
    assert await rig.hypervisor(0).domain(vm.uid) is None
    for act in (rig.hypervisor(0).resume, rig.hypervisor(0).reset, rig.hypervisor(0).reboot, rig.hypervisor(0).press_power_button):
        with pytest.raises(HypervisorRefused):
            await act(vm.uid)


async def test_destroy_waits_until_it_is_gone_and_may_be_repeated(rig: Rig) -> None:
    """A destroy that returns early lets the next start meet the old process."""
    vm = await started(rig)
    await rig.hypervisor(0).destroy(vm.uid)
    assert await rig.hypervisor(0).domain(vm.uid) is None
    await rig.hypervisor(0).destroy(vm.uid)


@needs(Capability.UNMANAGED)
async def test_a_domain_of_somebody_else_is_seen_without_a_tag(rig: Rig) -> None:
    """Not seen, it would not be subtracted from what the host can promise."""
    uuid = await rig.add_unmanaged(0)
    (stranger,) = [view for view in await rig.hypervisor(0).domains() if view.uuid == uuid]
    assert stranger.tag is None
    assert stranger.vcpus >= 1
    assert stranger.memory_mib > 0


@needs(Capability.GUEST)
async def test_a_guest_executes_only_after_resume(rig: Rig) -> None:
    """Created paused must mean that not one instruction runs."""
    vm = await rig.new_vm(small=True)
    await rig.hypervisor(0).create_paused(vm.spec, CopyTag(vm.uid, 1, "op-start"), vm.disk_paths[0])
    await rig.clock.sleep(STILL_S)
    assert await rig.ticks(vm) == 0
    await rig.hypervisor(0).resume(vm.uid)
    await advances(rig, vm)


@needs(Capability.GUEST)
async def test_the_power_button_ends_a_guest_that_listens(rig: Rig) -> None:
    """Without it every stop would be a power cut."""
    vm = await started(rig)
    await advances(rig, vm)
    await rig.hypervisor(0).press_power_button(vm.uid)

    async def gone() -> bool:
        return await power(rig, vm) is None

    await until(rig, gone, "the guest powers off")


@needs(Capability.GUEST)
async def test_reset_keeps_the_domain_and_the_guest_runs_again(rig: Rig) -> None:
    """A reset that made a new domain would lose its tag and its process."""
    vm = await started(rig, small=True)
    await advances(rig, vm)
    before = await rig.hypervisor(0).domain(vm.uid)
    await rig.hypervisor(0).reset(vm.uid)
    assert await rig.hypervisor(0).domain(vm.uid) == before
    await advances(rig, vm)


@needs(Capability.GUEST)
async def test_a_reset_is_told(rig: Rig) -> None:
    """Whoever resets a guest that does not reboot must hear that it did."""
    vm, hypervisor = await started(rig, small=True), rig.hypervisor(0)
    await advances(rig, vm)
    events = hypervisor.events()
    async with asyncio.timeout(REBOOT_S):
        await hypervisor.reset(vm.uid)
        await hear(events, vm.uid, EventKind.REBOOTED)
    await events.aclose()


@needs(Capability.GUEST)
async def test_a_guests_own_reboot_is_told(rig: Rig) -> None:
    """Whoever asks a guest to reboot must hear that it did, or will reset it."""
    vm, hypervisor = await started(rig), rig.hypervisor(0)
    await advances(rig, vm)
    events = hypervisor.events()
    async with asyncio.timeout(REBOOT_S):
        await hypervisor.reboot(vm.uid)
        await hear(events, vm.uid, EventKind.REBOOTED)
    await events.aclose()
    await advances(rig, vm)


@needs(Capability.SIGNALS, Capability.GUEST)
async def test_a_frozen_guest_does_not_execute_until_it_is_thawed(rig: Rig) -> None:
    """The inspection before the commit is worth nothing if the source executes during it."""
    vm = await started(rig, small=True)
    await advances(rig, vm)
    hypervisor = rig.hypervisor(0)
    assert not hypervisor.is_frozen(vm.uid)
    assert hypervisor.freeze(vm.uid)
    assert hypervisor.is_frozen(vm.uid)
    frozen_at = await rig.ticks(vm)
    await rig.clock.sleep(STILL_S)
    assert await rig.ticks(vm) == frozen_at
    assert hypervisor.thaw(vm.uid)
    assert not hypervisor.is_frozen(vm.uid)
    await advances(rig, vm)


@needs(Capability.SIGNALS)
async def test_signals_to_a_vm_that_is_not_there_say_so(rig: Rig) -> None:
    """A freeze that pretends to have worked would be followed by an inspection of nothing."""
    vm = await rig.new_vm()
    hypervisor = rig.hypervisor(0)
    assert not hypervisor.freeze(vm.uid)
    assert not hypervisor.thaw(vm.uid)
    assert not hypervisor.is_frozen(vm.uid)
    await hypervisor.kill(vm.uid)


@needs(Capability.SIGNALS)
async def test_kill_ends_a_frozen_domain_within_a_second(rig: Rig) -> None:
    """After the commit the guest waits for exactly this."""
    vm = await started(rig)
    hypervisor = rig.hypervisor(0)
    hypervisor.freeze(vm.uid)
    began_s = rig.clock.monotonic_s()
    await hypervisor.kill(vm.uid)
    assert rig.clock.monotonic_s() - began_s <= 1.0
    assert not hypervisor.is_frozen(vm.uid)

    async def gone() -> bool:
        return await power(rig, vm) is None

    await until(rig, gone, "the hypervisor notices")


@needs(Capability.SIGNALS)
async def test_destroy_ends_a_frozen_domain(rig: Rig) -> None:
    """A stopped process does not answer; its power must still be taken."""
    vm = await started(rig)
    rig.hypervisor(0).freeze(vm.uid)
    await rig.hypervisor(0).destroy(vm.uid)
    assert await rig.hypervisor(0).domain(vm.uid) is None


@needs(Capability.SIGNALS)
async def test_a_frozen_domain_can_be_looked_at_and_delays_nobody(rig: Rig) -> None:
    """The inspection happens while it is frozen, and the host's other VMs must not wait for it."""
    frozen, other = await started(rig), await started(rig)
    hypervisor = rig.hypervisor(0)
    hypervisor.freeze(frozen.uid)
    began_s = rig.clock.monotonic_s()
    assert await power(rig, frozen) is Power.RUNNING
    await hypervisor.reset(other.uid)
    assert rig.clock.monotonic_s() - began_s <= rig.call_deadline_s
    with pytest.raises(HypervisorUnavailable):
        await hypervisor.reset(frozen.uid)
    hypervisor.thaw(frozen.uid)


@needs(Capability.HANG)
async def test_a_hung_domain_is_unavailable_within_the_deadline_and_the_others_answer(rig: Rig) -> None:
    """One stuck QEMU must not take the host's VMs with it."""
    stuck, other = await started(rig), await started(rig)
    await rig.hang(0, stuck)
    began_s = rig.clock.monotonic_s()

    async def ask_stuck() -> None:
        with pytest.raises(HypervisorUnavailable):
            await rig.hypervisor(0).reset(stuck.uid)

    async with asyncio.TaskGroup() as group:
        asking = group.create_task(ask_stuck(), name="ask the stuck one")
        assert await power(rig, other) is Power.RUNNING
        assert not asking.done()
    assert rig.clock.monotonic_s() - began_s <= rig.call_deadline_s + MARGIN_S
    await rig.unhang(0, stuck)
    assert await power(rig, stuck) is Power.RUNNING


@needs(Capability.HANG)
async def test_a_hung_daemon_is_unavailable_within_the_deadline_and_comes_back(rig: Rig) -> None:
    """Without a deadline the agent would hang with it."""
    vm = await started(rig)
    await rig.hang(0, None)
    began_s = rig.clock.monotonic_s()
    with pytest.raises(HypervisorUnavailable):
        await rig.hypervisor(0).domains()
    assert rig.clock.monotonic_s() - began_s <= rig.call_deadline_s + MARGIN_S
    await rig.unhang(0, None)

    async def answers() -> bool:
        try:
            return await power(rig, vm) is Power.RUNNING
        except HypervisorUnavailable:
            return False

    await until(rig, answers, "the daemon answers again")
