"""Files that a destination makes for disks that are copied along: made only where there is nothing, removed only while they are nobody's disk."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from hostler.errors import Conflict, FailedPrecondition
from hostler.model.copy import Stage
from hostler.model.domain import DiskSpec, DomainSpec, ServiceClass, VolumeSpec
from hostler.model.owner import Owner, OwnerRead, OwnerState
from hostler.server.clock import SystemClock
from nodeagent.adapters.sim_host_facts import SimHostFacts
from nodeagent.adapters.sim_hypervisor import SimHypervisor
from nodeagent.adapters.sim_storage import SimFileSystem
from nodeagent.adapters.sim_tunnel import SimTunnel
from nodeagent.adapters.sim_volumes import SimVolumes
from nodeagent.adapters.sim_world import SimWorld
from nodeagent.adapters.state_directory import StateDirectory
from nodeagent.core.definitions import Command
from nodeagent.core.ledger import CapacityCap
from nodeagent.engine.host_state import HostState
from nodeagent.engine.incoming import IncomingHandoffs
from nodeagent.engine.observer import Observer
from nodeagent.engine.vms import HostVMs, Offer

SPEC = DomainSpec("uid-1", "db", 1, 0, 64, ServiceClass.BURSTABLE, (DiskSpec("vol-1", "local", "qcow2"),))
COPIED = (VolumeSpec("vol-1", "local", 16, ""),)
ELSEWHERE = Owner(1, "h1", "boot:1", OwnerState.RUNNING)
"""What an abort leaves: the source goes on."""


@dataclass
class Says:
    """An authority with one record, or none."""

    now: Owner | None

    async def owner(self, vm_uid: str) -> OwnerRead | None:
        return None if self.now is None else OwnerRead(vm_uid, self.now, 7, 7)

    async def await_commit(self, vm_uid: str, operation_id: str) -> OwnerRead | None:
        raise NotImplementedError

    async def commit_handoff(self, vm_uid: str, operation_id: str, owner_revision: int) -> OwnerRead:
        raise NotImplementedError


@dataclass
class End:
    """The destination `h2`."""

    handoffs: IncomingHandoffs
    pool: SimFileSystem
    state: HostState
    authority: Says

    @property
    def files(self) -> list[str]:
        return list(self.pool.files)

    async def prepare(self, operation_id: str = "op-1") -> None:
        await self.handoffs.prepare(Command(operation_id, "uid-1", 1, 5), SPEC, "h1", COPIED)

    async def abort(self, operation_id: str = "op-1") -> Stage:
        return (await self.handoffs.abort(Command(operation_id, "uid-1", 1, 5))).stage


@asynccontextmanager
async def destination(directory: Path) -> AsyncIterator[End]:
    clock, authority, pool = SystemClock(), Says(ELSEWHERE), SimFileSystem("fs-2", 1024)
    async with SimWorld(clock) as world:
        world.add_host("h2", pools={"local": pool})
        hypervisor, state = SimHypervisor(world, "h2"), HostState(StateDirectory(directory))
        volumes, facts, observer = SimVolumes(world, "h2"), SimHostFacts(world, "h2"), Observer(hypervisor)
        vms = HostVMs("h2", hypervisor, volumes, facts, authority, state, observer, Offer(CapacityCap(), 256), clock)
        tunnel = SimTunnel(world, "h2")
        handoffs = IncomingHandoffs("h2", hypervisor, volumes, facts, authority, tunnel, state, observer, vms, clock)
        yield End(handoffs, pool, state, authority)


async def test_an_abort_removes_what_was_made(tmp_path: Path) -> None:
    """Half a disk that lies there for ever."""
    async with destination(tmp_path) as end:
        await end.prepare()
        await end.prepare()
        assert end.files == ["volumes/vol-1.qcow2"]
        assert await end.abort() is Stage.ABORTED
        assert (end.files, dict(end.state.definitions)) == ([], {})
        assert await end.abort() is Stage.ABORTED


async def test_a_file_that_was_there_before_is_neither_written_over_nor_removed(tmp_path: Path) -> None:
    """Somebody's only copy, gone because it has the name of a volume that is to come."""
    async with destination(tmp_path) as end:
        kept = end.pool.create("volumes/vol-1.qcow2", 16)
        with pytest.raises(FailedPrecondition, match="already"):
            await end.prepare()
        await end.abort()
        assert end.pool.files == {"volumes/vol-1.qcow2": kept}


async def test_what_the_record_gives_to_this_host_is_kept(tmp_path: Path) -> None:
    """The only good copy, removed by an abort that comes after the commit; or after the guest was lost, and is stopped here."""
    async with destination(tmp_path) as end:
        await end.prepare()
        end.authority.now = Owner(2, "h2", "boot:1", OwnerState.COMMITTED, "op-1")
        with pytest.raises(Conflict):
            await end.abort()
        assert end.files
        end.authority.now = Owner(2, "h2", "boot:1", OwnerState.STOPPED)
        await end.abort()
        assert end.files


async def test_no_record_is_no_word(tmp_path: Path) -> None:
    """A volume that outlived its VM, removed because nobody owns the VM any more."""
    async with destination(tmp_path) as end:
        await end.prepare()
        end.authority.now = None
        await end.abort()
        assert end.files


async def test_a_late_abort_leaves_the_next_handoff_its_file(tmp_path: Path) -> None:
    """A copy that loses its file half-way, to a message of the attempt before."""
    async with destination(tmp_path) as end:
        await end.prepare("op-1")
        await end.abort("op-1")
        await end.prepare("op-2")
        await end.abort("op-1")
        assert end.files == ["volumes/vol-1.qcow2"]
        assert await end.abort("op-2") is Stage.ABORTED
        assert end.files == []


async def test_an_arrival_that_was_ended_here_is_cleaned_when_the_abort_comes(tmp_path: Path) -> None:
    """A file that nobody removes, because this host had laid everything down before the scheduler took the move back."""
    async with destination(tmp_path) as end:
        await end.prepare()
        await end.state.end_handoffs_of("uid-1")
        await end.state.drop_definition("uid-1")
        assert end.files
        await end.abort()
        assert end.files == []
