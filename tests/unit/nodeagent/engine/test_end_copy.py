"""EndCopy on one host: the owner record, read at that moment, has the last word."""

from pathlib import Path

import pytest

from hostler.errors import Conflict
from hostler.model.domain import DomainSpec, ServiceClass
from hostler.model.owner import Owner, OwnerRead, OwnerState
from hostler.server.clock import SystemClock
from nodeagent.adapters.sim_host_facts import SimHostFacts
from nodeagent.adapters.sim_hypervisor import SimHypervisor
from nodeagent.adapters.sim_volumes import SimVolumes
from nodeagent.adapters.sim_world import SimTimes, SimWorld
from nodeagent.adapters.state_directory import StateDirectory
from nodeagent.core.definitions import Command, Definition
from nodeagent.core.ledger import CapacityCap
from nodeagent.core.observed import CopyTag
from nodeagent.engine.host_state import HostState
from nodeagent.engine.observer import Observer
from nodeagent.engine.vms import HostVMs, Offer

SPEC = DomainSpec("uid-1", "web-1", 1, 0, 64, ServiceClass.BURSTABLE)


class Says:
    """An authority with one record, or none."""

    def __init__(self, owner: Owner | None) -> None:
        self._owner = owner

    async def owner(self, vm_uid: str) -> OwnerRead | None:
        return None if self._owner is None else OwnerRead(vm_uid, self._owner, 7, 7)

    async def await_commit(self, vm_uid: str, operation_id: str) -> OwnerRead | None:
        raise NotImplementedError

    async def commit_handoff(self, vm_uid: str, operation_id: str, owner_revision: int) -> OwnerRead:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("owner", "ends", "keeps"),
    [
        (Owner(1, "h1", "boot:1", OwnerState.RUNNING), False, True),
        (Owner(1, "h1", "boot:1", OwnerState.HANDOFF, "op", "h2"), False, True),
        (Owner(2, "h1", "boot:1", OwnerState.COMMITTED, "op"), False, True),
        (Owner(1, "h1", "boot:1", OwnerState.STOPPED), True, True),
        (Owner(2, "h2", "boot:1", OwnerState.RUNNING), True, False),
        (None, True, False),
    ],
)
async def test_only_a_copy_that_the_record_forbids_is_ended(owner: Owner | None, ends: bool, keeps: bool, tmp_path: Path) -> None:
    """A guest that is ended by an order that was right a moment ago; or a definition of another's VM that stays charged."""
    clock = SystemClock()
    async with SimWorld(clock, SimTimes()) as world:
        world.add_host("h1")
        hypervisor, state = SimHypervisor(world, "h1"), HostState(StateDirectory(tmp_path))
        volumes, facts, offer = SimVolumes(world, "h1"), SimHostFacts(world, "h1"), Offer(CapacityCap(), 256)
        vms = HostVMs("h1", hypervisor, volumes, facts, Says(owner), state, Observer(hypervisor), offer, clock)
        await state.keep_definition(Definition(SPEC, 1, "op-0"))
        await hypervisor.create_paused(SPEC, CopyTag("uid-1", 1, "op-0"), {})
        await hypervisor.resume("uid-1")
        command = Command("", "uid-1", 2, 7)
        if ends:
            await vms.end_copy(command)
        else:
            with pytest.raises(Conflict):
                await vms.end_copy(command)
        assert world.guest("uid-1").executing == (() if ends else ("h1",))
        assert ("uid-1" in state.definitions) == keeps
