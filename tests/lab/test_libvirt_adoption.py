"""The libvirt adapter and the ends of others: libvirtd dies and comes back, an adapter comes into the middle of a migration."""

import asyncio
import signal
from collections.abc import AsyncIterator

import pytest

from nodeagent.core.observed import CopyTag, Locks, Power
from nodeagent.ports import DomainEvent, EventKind, HypervisorRefused, HypervisorUnavailable, Limits, LiveMigration
from tests.contract.hypervisor import rigs_libvirt
from tests.contract.hypervisor.rig import ContractVM, hear, until
from tests.contract.hypervisor.rigs_libvirt import LibvirtRig, OutsideHypervisor, measured_once

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]
OPERATION = "7c1f2d3e-0a4b-4c5d-8e6f-9a0b1c2d3e4f"
HEAR_S = 60.0
SLOW_MIB_S = 16


@pytest.fixture
async def rig() -> AsyncIterator[LibvirtRig]:
    async with rigs_libvirt.open_rig() as opened:
        assert isinstance(opened, LibvirtRig)
        yield opened


async def started(rig: LibvirtRig) -> ContractVM:
    vm = await rig.new_vm()
    await rig.hypervisor(0).create_paused(vm.spec, CopyTag(vm.uid, 1, "op-start"), vm.disk_paths[0])
    await rig.hypervisor(0).resume(vm.uid)
    return vm


async def hear_kind(events: AsyncIterator[DomainEvent], kind: EventKind) -> None:
    async with asyncio.timeout(HEAR_S):
        async for event in events:
            if event.kind is kind:
                return


async def test_a_libvirtd_that_was_killed_is_found_again_with_its_domains(rig: LibvirtRig) -> None:
    """An agent that has to be restarted with libvirtd, or that loses events for ever, is no agent."""
    vm = await started(rig)
    hypervisor, host = rig.hypervisor(0), rig.hosts[0]
    before = await hypervisor.domain(vm.uid)
    events = hypervisor.events()
    assert host.daemon_process("libvirtd").signal(signal.SIGKILL)
    await hear_kind(events, EventKind.CONNECTION_LOST)
    with pytest.raises(HypervisorUnavailable):
        await hypervisor.domains()
    assert hypervisor.freeze(vm.uid)
    assert hypervisor.thaw(vm.uid)
    await asyncio.to_thread(host.start_libvirt)
    await hear_kind(events, EventKind.CONNECTION_BACK)
    assert await hypervisor.domain(vm.uid) == before
    await hypervisor.destroy(vm.uid)
    async with asyncio.timeout(HEAR_S):
        await hear(events, vm.uid, EventKind.STOPPED)
    await events.aclose()


async def test_an_adapter_that_comes_into_a_migration_adopts_it(rig: LibvirtRig) -> None:
    """A restarted agent that took an arrival for any pause would let the guest wait for ever."""
    vm = await started(rig)
    sockets = await rig.connect(OPERATION)
    tag = CopyTag(vm.uid, 2, OPERATION)
    slow = LiveMigration(tag, vm.disk_paths[1], sockets, Limits(SLOW_MIB_S))
    moving = asyncio.ensure_future(rig.hypervisor(0).migrate(slow))

    async def incoming() -> bool:
        view = await rig.hypervisor(1).domain(vm.uid)
        return view is not None and view.power is Power.INCOMING

    await until(rig, incoming, "the destination waits for the copy")
    acceleration = await measured_once()
    async with (
        OutsideHypervisor(rig.hosts[0], acceleration).connected() as source,
        OutsideHypervisor(rig.hosts[1], acceleration).connected() as destination,
    ):
        events = destination.events()
        assert await source.migration_progress(vm.uid) is not None
        assert await destination.migration_progress(vm.uid) is None
        with pytest.raises(HypervisorRefused):
            await rig.hypervisor(0).migrate(slow)
        async with asyncio.timeout(HEAR_S):
            assert EventKind.ARRIVED in await hear(events, vm.uid, EventKind.ARRIVED, EventKind.SUSPENDED)
        await events.aclose()
    await moving
    assert await rig.hypervisors[1].locks(tuple(vm.disk_paths[1].values())) is Locks.FREE


async def test_two_sources_killed_between_switchover_and_end_wedge_nothing(rig: LibvirtRig) -> None:
    """The commit kills the source under libvirt's feet, every time: the next migration must find everything in order."""
    vm = await started(rig)
    for epoch in (2, 3):
        source, destination = rig.hypervisors
        sockets = await rig.connect(OPERATION)
        events = destination.events()
        migration = LiveMigration(CopyTag(vm.uid, epoch, f"op-{epoch}"), vm.disk_paths[1], sockets, Limits(0))
        moving = asyncio.ensure_future(source.migrate(migration))
        async with asyncio.timeout(HEAR_S):
            await hear(events, vm.uid, EventKind.ARRIVED)
        source.freeze(vm.uid)
        await source.kill(vm.uid)
        await destination.resume(vm.uid)
        async with asyncio.timeout(HEAR_S):
            await asyncio.wait([moving])
        assert moving.exception() is None or isinstance(moving.exception(), HypervisorUnavailable | HypervisorRefused)
        view = await destination.domain(vm.uid)
        assert view is not None
        assert (view.power, view.tag) == (Power.RUNNING, CopyTag(vm.uid, epoch, f"op-{epoch}"))
        assert await source.domain(vm.uid) is None
        await events.aclose()
        await rig.disconnect(OPERATION)
        rig.turn()
