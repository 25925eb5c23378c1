"""When a difference between a domain and its definition counts: not while somebody works on the VM, not at one glance, not by silence."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from hostler.model.copy import Stage
from hostler.model.domain import DomainSpec, ServiceClass
from hostler.server.clock import SystemClock
from nodeagent.adapters.local_authority import LocalAuthority
from nodeagent.adapters.sim_host import SimHost
from nodeagent.adapters.sim_host_facts import SimHostFacts
from nodeagent.adapters.sim_hypervisor import SimHypervisor
from nodeagent.adapters.sim_volumes import SimVolumes
from nodeagent.adapters.sim_world import SimWorld
from nodeagent.adapters.state_directory import StateDirectory
from nodeagent.core.definitions import Definition, Outgoing
from nodeagent.core.ledger import CapacityCap
from nodeagent.core.observed import CopyTag, DomainShape
from nodeagent.engine import drift
from nodeagent.engine.drift import DriftWatch
from nodeagent.engine.host_state import HostState
from nodeagent.engine.observer import Observer
from nodeagent.engine.vms import HostVMs, Offer

VM = "vm-1"


@pytest.fixture(autouse=True)
def confirmed_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "CONFIRM_S", 0.01)


class CountingHypervisor(SimHypervisor):
    """Counts the looks, and can undo an edit after the first."""

    looks = 0
    undo: DomainShape | None = None

    async def shapes(self) -> Mapping[str, DomainShape | None]:
        self.looks += 1
        seen = await super().shapes()
        if (made := self.undo) is not None:
            self._host.change_by_hand(VM, lambda _: made)
        return seen


@dataclass(slots=True)
class Scene:
    sim: SimHost
    hypervisor: CountingHypervisor
    state: HostState
    vms: HostVMs
    watch: DriftWatch

    def halve(self) -> None:
        self.sim.change_by_hand(VM, lambda shape: replace(shape, memory_mib=shape.memory_mib // 2))


@asynccontextmanager
async def stage(directory: Path) -> AsyncIterator[Scene]:
    """One host with one running guest."""
    clock = SystemClock()
    async with SimWorld(clock) as world:
        sim = world.add_host("h1")
        hypervisor, state = CountingHypervisor(world, "h1"), HostState(StateDirectory(directory))
        observer = Observer(hypervisor)
        vms = HostVMs(
            "h1", hypervisor, SimVolumes(world, "h1"), SimHostFacts(world, "h1"), LocalAuthority("h1"), state, observer,
            Offer(CapacityCap(), 256), clock,
        )  # fmt: skip
        spec = DomainSpec(VM, "web-1", 1, 0, 64, ServiceClass.BURSTABLE)
        await state.keep_definition(Definition(spec, 1, "op-0"))
        await hypervisor.create_paused(spec, CopyTag(VM, 1, "op-0"), {})
        await hypervisor.resume(VM)
        yield Scene(sim, hypervisor, state, vms, DriftWatch(hypervisor, vms, state, observer, clock))


async def test_a_new_finding_takes_a_second_look_and_an_old_one_does_not(tmp_path: Path) -> None:
    """A step of the agent itself, caught half-way, that is told to everybody; or a look that costs double for ever."""
    async with stage(tmp_path) as on:
        on.halve()
        await on.watch.look()
        assert (len(on.vms.drift[VM]), on.hypervisor.looks) == (1, 2)
        await on.watch.look()
        assert (len(on.vms.drift[VM]), on.hypervisor.looks) == (1, 3)


async def test_what_is_gone_at_the_second_look_was_nothing(tmp_path: Path) -> None:
    """As above: the difference lasted for one glance."""
    async with stage(tmp_path) as on:
        on.hypervisor.undo = on.sim.domains[VM].made
        on.halve()
        await on.watch.look()
        assert on.vms.drift == {}


async def test_a_vm_that_somebody_works_on_is_left_out(tmp_path: Path) -> None:
    """A start, a reboot or a handoff that is told as somebody's hand edit."""
    async with stage(tmp_path) as on:
        on.halve()
        async with on.state.vm_lock(VM):
            await on.watch.look()
        assert on.vms.drift == {}
        leaving = Outgoing("op-1", VM, 1, 1, "h2", "", "", (), 0, Stage.COPYING)
        on.state.note_outgoing(leaving)
        await on.watch.look()
        assert on.vms.drift == {}
        on.state.note_outgoing(replace(leaving, stage=Stage.ABORTED))
        await on.watch.look()
        assert len(on.vms.drift[VM]) == 1


async def test_a_domain_that_does_not_answer_keeps_what_was_found(tmp_path: Path) -> None:
    """A hand edit that is called undone because nobody could look."""
    async with stage(tmp_path) as on:
        on.halve()
        await on.watch.look()
        found = on.vms.drift
        on.sim.hang(VM)
        await on.watch.look()
        assert on.vms.drift == found
        on.sim.unhang(VM)
        await on.state.drop_definition(VM)
        await on.watch.look()
        assert on.vms.drift == {}


async def test_a_definition_that_changed_under_the_look_is_not_compared(tmp_path: Path) -> None:
    """A VM that was started anew while libvirt was asked: what was seen is the old domain, what is expected the new one."""
    async with stage(tmp_path) as on:
        on.halve()
        on.sim.hang()
        async with asyncio.TaskGroup() as group:
            group.create_task(on.watch.look(), name="look")
            await asyncio.sleep(0)
            await on.state.keep_definition(replace(on.state.definitions[VM], epoch=2))
            on.sim.unhang()
        assert on.vms.drift == {}
