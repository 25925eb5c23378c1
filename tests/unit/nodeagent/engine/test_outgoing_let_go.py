"""A handoff that was ended with the others of its host acts no more on what has come to be there since."""

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from hostler.model.copy import Stage
from hostler.model.domain import DomainSpec, ServiceClass
from hostler.model.owner import Owner, OwnerRead, OwnerState
from hostler.server.manual_clock import ManualClock
from nodeagent.adapters.state_directory import StateDirectory
from nodeagent.core.definitions import Definition, Outgoing
from nodeagent.core.observed import Power
from nodeagent.engine.host_state import HostState
from nodeagent.engine.observer import Observer
from nodeagent.engine.outgoing import OutgoingHandoffs

UID = "uid-1"
LEFT_OFF = Outgoing("op-1", UID, 2, 7, "n2", "n2:7500", "n2:9000", (), 0, Stage.COPYING)


class Libvirt:
    """Answers when it may; remembers who was killed."""

    def __init__(self) -> None:
        self.asked, self.may_answer, self.killed = asyncio.Event(), asyncio.Event(), list[str]()

    async def domain(self, vm_uid: str) -> Any:  # noqa: ANN401 a DomainView
        self.asked.set()
        await self.may_answer.wait()
        return SimpleNamespace(power=Power.PAUSED)

    async def recorded_ending(self, vm_uid: str, mark: str) -> None:
        return None

    async def kill(self, vm_uid: str) -> None:
        self.killed.append(vm_uid)

    def is_frozen(self, vm_uid: str) -> bool:
        return False


class Stopped:
    """The owner record, as it was while the host was fenced; everything else that a run needs to come and go."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    async def owner(self, vm_uid: str) -> OwnerRead:
        return OwnerRead(vm_uid, Owner(2, "n1", "boot-1:1", OwnerState.STOPPED), 9, 9)

    async def pools(self) -> tuple[object, ...]:
        return ()

    async def leave(self, operation_id: str) -> None:
        return

    async def close_outgoing(self, operation_id: str) -> None:
        self.closed.set()


async def test_a_guest_started_since_is_not_killed_by_a_handoff_that_was_let_go(tmp_path: Path) -> None:
    """A fenced host comes back, its VM is started there again, and the old handoff, which had read STOPPED before, kills the new guest; or it
    drops the new guest's definition."""
    state, libvirt, world = HostState(StateDirectory(tmp_path)), Libvirt(), cast(Any, Stopped())
    spec = DomainSpec(UID, "web-1", 1, 0, 64, ServiceClass.BURSTABLE)
    await state.keep_definition(Definition(spec, 2, "op-0"))
    await state.keep_outgoing(LEFT_OFF)
    hypervisor = cast(Any, libvirt)
    outgoing = OutgoingHandoffs("n1", hypervisor, world, world, world, world, state, Observer(hypervisor), ManualClock())
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        running = group.create_task(outgoing.run(), name="outgoing handoffs")
        await libvirt.asked.wait()  # it has read STOPPED, and looks at the domain
        await state.end_handoffs_of(UID)
        await state.keep_definition(Definition(spec, 3, "op-2"))
        libvirt.may_answer.set()
        await world.closed.wait()
        running.cancel()
    assert libvirt.killed == []
    assert state.definitions[UID].epoch == 3
    state.note_outgoing(replace(LEFT_OFF, bytes_done=1))
    assert state.outgoing["op-1"].stage is Stage.ABORTED, "figures that come late undo the end"
