"""What this process knows of a handoff from here beyond its journal: lost with the process, and found again by looking."""

import asyncio
from dataclasses import dataclass, field, replace

from hostler.model.domain import DomainSpec
from hostler.model.owner import OwnerRead
from nodeagent.core.definitions import Outgoing
from nodeagent.core.observed import Locks, MigrationProgress
from nodeagent.core.outgoing import Copying
from nodeagent.core.precopy import Course
from nodeagent.engine.host_state import HostState

TICK_S = 0.5
"""While nothing happens, look again this often: bounds how late an abort is noticed and how old a progress figure is."""


@dataclass(slots=True)
class Run:
    """One handoff while it runs in this process; what is not here is in the journal."""

    handoff: Outgoing
    spec: DomainSpec
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    owner: OwnerRead | None = None
    copying: Copying = Copying.NOT_BEGUN
    failed_s: float = 0.0
    copy_task: "asyncio.Task[None] | None" = None
    arrival_task: "asyncio.Task[None] | None" = None
    told_task: "asyncio.Task[None] | None" = None
    arrived: bool = False
    leaving: bool = False
    dead: bool = False
    """Found without a process while it was leaving: libvirt has ended QEMU, and takes its time to say so."""
    looked_about_s: float = 0.0
    locks: Locks | None = None
    lockless: bool = False
    seen: MigrationProgress | None = None
    course: Course | None = None
    given_up: bool = False
    ended: bool = False

    async def keep(self, state: HostState, **changes: object) -> None:
        """The handoff with these changes, in the journal."""
        self.handoff = replace(self.handoff, **changes)  # type: ignore[arg-type]
        await state.keep_outgoing(self.handoff)

    def note(self, state: HostState, **changes: object) -> None:
        """The handoff with these changes, in memory alone: figures and words that may be lost."""
        self.handoff = replace(self.handoff, **changes)  # type: ignore[arg-type]
        state.note_outgoing(self.handoff)
