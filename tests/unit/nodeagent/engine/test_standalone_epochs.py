"""What the local authority is told: which VM may run, under which epoch, at each moment of its life and after a restart."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from hostler.model.domain import ServiceClass
from hostler.model.journal import Request
from hostler.model.owner import may_run
from hostler.model.wishes import WishedVM
from hostler.server.clock import SystemClock
from nodeagent.adapters.local_authority import LocalAuthority
from nodeagent.adapters.sim_host_facts import SimHostFacts
from nodeagent.adapters.sim_hypervisor import SimHypervisor
from nodeagent.adapters.sim_volumes import SimVolumes
from nodeagent.adapters.sim_world import SimTimes, SimWorld
from nodeagent.adapters.state_directory import StateDirectory
from nodeagent.core import standalone as decide
from nodeagent.core.ledger import CapacityCap
from nodeagent.engine.host_state import HostState
from nodeagent.engine.journal import Journal
from nodeagent.engine.observer import Observer
from nodeagent.engine.standalone import StandaloneHost
from nodeagent.engine.vms import HostVMs, Offer

VM = WishedVM("web-1", "uid-1", "", 1, 64, 0, ServiceClass.BURSTABLE, (), ())


@asynccontextmanager
async def working(world: SimWorld, directory: Path) -> AsyncIterator[tuple[StandaloneHost, LocalAuthority]]:
    """The engine of a standalone host, without its services."""
    clock, authority, files = SystemClock(), LocalAuthority("h1"), StateDirectory(directory)
    hypervisor, volumes, facts = SimHypervisor(world, "h1"), SimVolumes(world, "h1"), SimHostFacts(world, "h1")
    state, observer = HostState(files), Observer(hypervisor)
    vms = HostVMs("h1", hypervisor, volumes, facts, authority, state, observer, Offer(CapacityCap(), 256), clock)
    journal = Journal(files, clock)
    await journal.recover()
    host = StandaloneHost("h1", journal, vms, volumes, facts, state, observer, authority.epochs, clock, "h")
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(loop(), name=str(loop)) for loop in (observer.run, journal.run, host.run, host.views.run)]
        yield host, authority
        for task in tasks:
            task.cancel()


async def ended(host: StandaloneHost, operation_id: str) -> None:
    while not host.operations.things[operation_id].record.done:
        assert await host.operations.moves_on(host.operations.revision, 10)


async def test_a_vm_may_run_only_while_it_is_meant_to(tmp_path: Path) -> None:
    """A stopped or deleted VM that the authority still lets run, or one that a restart makes run under an older epoch."""
    number = 0

    def request() -> Request:
        nonlocal number
        number += 1
        return Request("spiffe://c/user/alice", f"r-{number}", "", number)

    async with SimWorld(SystemClock(), SimTimes(destroy_s=0.01)) as world:
        world.add_host("h1")
        async with working(world, tmp_path) as (host, authority):
            await ended(host, (await host.create_vm(request(), VM, False)).operation_id)
            assert authority.epochs == {"uid-1": 2}
        async with working(world, tmp_path) as (host, authority):
            assert authority.epochs == {"uid-1": 2}
            stop = request()
            await host.change_vm(stop, lambda records: decide.stop_vm(records, stop, "web-1", "", 0, True), False)
            await ended(host, stop.operation_id)
            assert authority.epochs == {}
            assert await authority.owner("uid-1") is None
            start = request()
            await host.change_vm(start, lambda records: decide.start_vm(records, start, "web-1", ""), False)
            await ended(host, start.operation_id)
            read = await authority.owner("uid-1")
            assert read is not None
            assert may_run(read.owner, "h1", 3)
            assert not may_run(read.owner, "h1", 2)
            delete = request()
            await host.change_vm(delete, lambda records: decide.delete_vm(records, delete, "web-1", "", True), False)
            await ended(host, delete.operation_id)
            assert authority.epochs == {}
        world.assert_one_writer()
