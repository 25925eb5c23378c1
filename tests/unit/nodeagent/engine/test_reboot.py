"""RebootVM on one host: the guest is asked, gets its time, and is reset if it does not use it; once, however often it is commanded."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hostler.errors import FailedPrecondition
from hostler.model.domain import DomainSpec, ServiceClass
from hostler.server.clock import SystemClock
from nodeagent.adapters.local_authority import LocalAuthority
from nodeagent.adapters.sim_host_facts import SimHostFacts
from nodeagent.adapters.sim_hypervisor import SimHypervisor
from nodeagent.adapters.sim_volumes import SimVolumes
from nodeagent.adapters.sim_world import GuestBehaviour, SimTimes, SimWorld
from nodeagent.adapters.state_directory import StateDirectory
from nodeagent.core.definitions import Command, Definition
from nodeagent.core.ledger import CapacityCap
from nodeagent.core.observed import CopyTag
from nodeagent.engine import vms as engine
from nodeagent.engine.host_state import HostState
from nodeagent.engine.observer import Observer
from nodeagent.engine.vms import HostVMs, Offer

GRACE_S = 0.4
DEAF, OBEDIENT = "deaf", "obedient"


@pytest.fixture(autouse=True)
def little_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "REBOOT_GRACE_S", GRACE_S)


@asynccontextmanager
async def host(directory: Path) -> AsyncIterator[tuple[SimWorld, HostVMs, Observer]]:
    """One host with two running guests."""
    clock = SystemClock()
    async with SimWorld(clock, SimTimes(shutdown_s=GRACE_S / 4)) as world, asyncio.TaskGroup() as group:
        world.add_host("h1")
        world.behave(DEAF, GuestBehaviour(ignores_power_button=True))
        hypervisor, state = SimHypervisor(world, "h1"), HostState(StateDirectory(directory))
        observer = Observer(hypervisor)
        offer = Offer(CapacityCap(), 256)
        made = HostVMs(
            "h1", hypervisor, SimVolumes(world, "h1"), SimHostFacts(world, "h1"), LocalAuthority("h1"), state, observer, offer, clock
        )
        observing = group.create_task(observer.run(), name="observer")
        for uid in (DEAF, OBEDIENT):
            spec = DomainSpec(uid, uid, 1, 0, 64, ServiceClass.BURSTABLE)
            await state.keep_definition(Definition(spec, 1, "op-0"))
            await hypervisor.create_paused(spec, CopyTag(uid, 1, "op-0"), {})
            await hypervisor.resume(uid)
        yield world, made, observer
        observing.cancel()


def command(uid: str, operation_id: str = "op-1") -> Command:
    return Command(operation_id, uid, 1, 7)


async def test_a_guest_that_does_not_listen_is_reset_after_its_time_and_not_before(tmp_path: Path) -> None:
    """A reboot that is said to be done while the guest runs on; or a guest that gets no time to put its data away."""
    async with host(tmp_path) as (world, made, _):
        before, began_s = world.guest(DEAF).boot_id, world.clock.monotonic_s()
        await made.reboot(command(DEAF), force=False)
        assert world.guest(DEAF).boot_id != before
        assert GRACE_S <= world.clock.monotonic_s() - began_s < GRACE_S * 5


async def test_a_guest_that_listens_reboots_once(tmp_path: Path) -> None:
    """Reset on top of its own reboot, in the middle of its start."""
    async with host(tmp_path) as (world, made, observer):
        await made.reboot(command(OBEDIENT), force=False)
        boot_id = world.guest(OBEDIENT).boot_id
        assert observer.seen(OBEDIENT).reboots == 1
        await made.reboot(command(OBEDIENT), force=False)
        await asyncio.sleep(GRACE_S)
        assert (world.guest(OBEDIENT).boot_id, observer.seen(OBEDIENT).reboots) == (boot_id, 1)
        await made.reboot(command(OBEDIENT, "op-2"), force=False)
        assert world.guest(OBEDIENT).boot_id != boot_id


async def test_a_repeat_after_a_lost_call_does_not_begin_the_wait_anew(tmp_path: Path) -> None:
    """A caller with less patience than the grace period, under whom the guest would be asked for ever."""
    async with host(tmp_path) as (world, made, _):
        before, calls = world.guest(DEAF).boot_id, 0
        async with asyncio.timeout(GRACE_S * 10):
            while world.guest(DEAF).boot_id == before:
                calls += 1
                try:
                    async with asyncio.timeout(GRACE_S / 3):
                        await made.reboot(command(DEAF), force=False)
                except TimeoutError:
                    continue
        assert calls > 1
        once = world.guest(DEAF).boot_id
        await made.reboot(command(DEAF), force=False)
        assert world.guest(DEAF).boot_id == once


async def test_while_one_guest_has_its_time_others_are_served(tmp_path: Path) -> None:
    """One slow guest that holds up its whole host."""
    async with host(tmp_path) as (world, made, _), asyncio.TaskGroup() as group:
        slow = group.create_task(made.reboot(command(DEAF), force=False), name="slow")
        before = world.guest(OBEDIENT).boot_id
        await made.reboot(command(OBEDIENT), force=True)
        assert world.guest(OBEDIENT).boot_id != before
        assert not slow.done()


async def test_a_guest_that_is_not_running_is_not_rebooted(tmp_path: Path) -> None:
    """A reboot that starts what somebody stopped."""
    async with host(tmp_path) as (_, made, _observer):
        await made.stop(command(OBEDIENT), 0)
        with pytest.raises(FailedPrecondition):
            await made.reboot(command(OBEDIENT, "op-2"), force=False)


async def test_a_forced_reboot_that_comes_again_to_the_next_process_is_done_already(tmp_path: Path) -> None:
    """A guest reset a second time, minutes later, by a command that came twice."""
    async with host(tmp_path) as (world, made, observer):
        await made.reboot(command(OBEDIENT), force=True)
        boot_id = world.guest(OBEDIENT).boot_id
        again = HostVMs(
            "h1",
            SimHypervisor(world, "h1"),
            SimVolumes(world, "h1"),
            SimHostFacts(world, "h1"),
            LocalAuthority("h1"),
            HostState(StateDirectory(tmp_path)),
            observer,
            Offer(CapacityCap(), 256),
            world.clock,
        )
        await again.reboot(command(OBEDIENT), force=True)
        assert world.guest(OBEDIENT).boot_id == boot_id
