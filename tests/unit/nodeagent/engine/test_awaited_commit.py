"""A destination that waits for its commit with a question of its own: what the answer must say, and what makes it too old to act on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hostler.errors import Unavailable
from hostler.model.copy import Stage
from hostler.model.domain import DomainSpec, ServiceClass
from hostler.model.owner import Owner, OwnerRead, OwnerState
from hostler.server.clock import SystemClock
from nodeagent.adapters.sim_host_facts import SimHostFacts
from nodeagent.adapters.sim_hypervisor import SimHypervisor
from nodeagent.adapters.sim_tunnel import SimTunnel
from nodeagent.adapters.sim_volumes import SimVolumes
from nodeagent.adapters.sim_world import SimTimes, SimWorld
from nodeagent.adapters.state_directory import StateDirectory
from nodeagent.core.definitions import Definition, Incoming
from nodeagent.core.ledger import CapacityCap
from nodeagent.core.observed import CopyTag, Power
from nodeagent.engine.host_state import HostState
from nodeagent.engine.incoming import IncomingHandoffs
from nodeagent.engine.observer import Observer
from nodeagent.engine.vms import HostVMs, Offer
from nodeagent.ports import AuthorityUnavailable

SPEC = DomainSpec("uid-1", "web-1", 1, 0, 64, ServiceClass.BURSTABLE)
COMMITTED = Owner(2, "h2", "boot:1", OwnerState.COMMITTED, "op-2")
WAIT_S = 5.0


class Answers:
    """An authority that answers `await_commit` with each of these in turn; an owner that is no answer is a scheduler that is away."""

    def __init__(self, *owners: Owner | None) -> None:
        self.left = list(owners)
        self.asked = asyncio.Event()
        self.let = asyncio.Event()
        self.let.set()

    async def await_commit(self, vm_uid: str, operation_id: str) -> OwnerRead | None:
        self.asked.set()
        await self.let.wait()
        if not self.left:
            await asyncio.Event().wait()
        owner = self.left.pop(0)
        if owner is None:
            raise AuthorityUnavailable("away")
        return OwnerRead(vm_uid, owner, 7, 7)

    async def owner(self, vm_uid: str) -> OwnerRead | None:
        raise NotImplementedError

    async def commit_handoff(self, vm_uid: str, operation_id: str, owner_revision: int) -> OwnerRead:
        raise NotImplementedError


class Destination:
    """The host h2, on which the copy of op-2 has arrived."""

    def __init__(self, world: SimWorld, authority: Answers, folder: Path) -> None:
        clock = SystemClock()
        self.hypervisor, self.state = SimHypervisor(world, "h2"), HostState(StateDirectory(folder))
        self.observer = Observer(self.hypervisor)
        volumes, facts = SimVolumes(world, "h2"), SimHostFacts(world, "h2")
        vms = HostVMs("h2", self.hypervisor, volumes, facts, authority, self.state, self.observer, Offer(CapacityCap(), 256), clock)
        self.incoming = IncomingHandoffs(
            "h2", self.hypervisor, volumes, facts, authority, SimTunnel(world, "h2"), self.state, self.observer, vms, clock
        )

    async def power(self) -> Power | None:
        domain = await self.hypervisor.domain("uid-1")
        return None if domain is None else domain.power


async def ended(name: str) -> None:
    """Until the task of that name is over. TimeoutError: it is not."""
    tasks = [task for task in asyncio.all_tasks() if task.get_name() == name]
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=WAIT_S)
        assert not late


@asynccontextmanager
async def destination(authority: Answers, folder: Path) -> AsyncIterator[Destination]:
    async with SimWorld(SystemClock(), SimTimes()) as world:
        world.add_host("h2")
        here = Destination(world, authority, folder)
        await here.state.keep_definition(Definition(SPEC, 1, "op-2", incoming=True))
        await here.state.keep_incoming(Incoming("op-2", "uid-1", "h1", 1, Stage.PREPARED))
        await here.hypervisor.create_paused(SPEC, CopyTag("uid-1", 2, "op-2"), {})
        here.observer.seen("uid-1").arrived = True
        async with asyncio.TaskGroup() as group:
            running = group.create_task(here.incoming.run(), name="incoming handoffs")
            await asyncio.sleep(0)
            try:
                yield here
            finally:
                running.cancel()


async def test_a_committed_copy_goes_on_without_being_told(tmp_path: Path) -> None:
    """A guest that stands still until a message comes, of somebody who may have died with the commit."""
    handoff = Owner(1, "h1", "boot:1", OwnerState.HANDOFF, "op-2", "h2")
    async with destination(Answers(handoff, None, handoff, COMMITTED), tmp_path) as here:
        assert await here.incoming.await_arrival("op-2")
        await ended("commit op-2")
        assert here.state.incoming["op-2"].stage is Stage.FINISHED
        assert await here.power() is Power.RUNNING
        assert here.state.definitions["uid-1"].epoch == 2


@pytest.mark.parametrize(
    "owner",
    [
        Owner(2, "h2", "boot:1", OwnerState.COMMITTED, "op-1"),
        Owner(2, "h3", "boot:1", OwnerState.COMMITTED, "op-2"),
        Owner(1, "h1", "boot:1", OwnerState.RUNNING, "op-2"),
        Owner(2, "h2", "boot:1", OwnerState.STOPPED, "op-2"),
        Owner(1, "h1", "boot:1", OwnerState.HANDOFF, "op-3", "h2"),
    ],
)
async def test_any_other_record_lets_nothing_run_and_ends_the_waiting(owner: Owner, tmp_path: Path) -> None:
    """A copy that executes beside its source; or a question that is asked for ever."""
    async with destination(Answers(owner), tmp_path) as here:
        assert await here.incoming.await_arrival("op-2")
        await ended("commit op-2")
        assert await here.power() is Power.PAUSED
        assert here.state.incoming["op-2"].stage is Stage.PREPARED


async def test_an_answer_that_would_have_to_wait_for_its_turn_is_not_acted_on(tmp_path: Path) -> None:
    """A read that is as old as somebody else's turn is long."""
    authority = Answers(COMMITTED)
    authority.let.clear()
    async with destination(authority, tmp_path) as here:
        assert await here.incoming.await_arrival("op-2")
        await authority.asked.wait()
        async with here.state.vm_lock("uid-1"):
            authority.let.set()
            await ended("commit op-2")
        assert await here.power() is Power.PAUSED


async def test_an_agent_that_no_scheduler_has_heard_yet_resumes_nothing_by_itself(tmp_path: Path) -> None:
    """A host that was fenced while no agent ran there, and does not know it yet: its VM may have been started elsewhere."""
    async with destination(Answers(COMMITTED), tmp_path) as here:
        here.state.heard = False
        assert await here.incoming.await_arrival("op-2")
        await ended("commit op-2")
        assert await here.power() is Power.PAUSED
        with pytest.raises(Unavailable):
            await here.incoming.resume_if_committed("op-2")


async def test_a_copy_that_something_happened_to_is_looked_at_again(tmp_path: Path) -> None:
    """A look from before another copy took its place, taken for what is there now: the wrong one would execute."""
    authority = Answers(COMMITTED)
    authority.let.clear()
    async with destination(authority, tmp_path) as here:
        assert await here.incoming.await_arrival("op-2")
        await ended("arrival op-2")
        await here.hypervisor.destroy("uid-1")
        await here.hypervisor.create_paused(SPEC, CopyTag("uid-1", 3, "op-3"), {})
        here.observer.seen("uid-1").events += 1
        authority.let.set()
        await ended("commit op-2")
        assert await here.power() is Power.PAUSED
