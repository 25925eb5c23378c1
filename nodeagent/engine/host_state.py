"""What the agent knows about its VMs and handoffs, in memory and on disk; every change is on disk before it is in memory.

One object per agent, owned by `app`. Locks: `vm_lock` orders everything done to one VM; `ledger_lock` makes look-then-promise one step.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

import msgspec

from hostler.model.copy import Stage
from hostler.model.quantities import Quantities
from nodeagent.core.definitions import Definition, Incoming, Outgoing, Rank
from nodeagent.ports import StateFiles

T = TypeVar("T")

VMS, INCOMING, OUTGOING, GONE, FENCED = "vms", "incoming", "outgoing", "gone", "fenced"
"""Kinds of state files."""
LAYING_DOWN = "laying-down"
"""The one file of its kind, empty: it says all by being there."""
ENDED_STAGES = frozenset({Stage.FINISHED, Stage.ABORTED})
GONE_KEPT = 1024
"""Ranks of VMs that are gone from here. What comes later than a thousand removals after its VM's own is not a late message any more."""
ENDED_KEPT = 128
"""Ended handoffs each way, kept to answer a repeated command; a scheduler that repeats one after so many others has long had its answer."""


class HostState:
    """Definitions by VM uid; handoffs by operation id."""

    def __init__(self, files: StateFiles) -> None:
        self._files = files
        self._definitions = _decoded(files.load(VMS), Definition)
        self._incoming = _decoded(files.load(INCOMING), Incoming)
        self._outgoing = _decoded(files.load(OUTGOING), Outgoing)
        self._gone = _decoded(files.load(GONE), Rank)
        self._vm_locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.ledger_lock = asyncio.Lock()
        self.heard = True
        """False in a cluster until this process has registered: it may have been fenced while no agent ran here, and then knows it only from that."""
        self.incarnation = ""
        """What the cluster calls this host since its last boot or fence; "": it has not said so yet, or there is no cluster."""
        self._laying_down = LAYING_DOWN in files.load(FENCED)
        self.more_charges: Callable[[], Iterable[Quantities]] = tuple
        """What is promised and no definition carries: a standalone host's volumes, and VMs that it has accepted and not defined yet."""

        self.on_definition: Callable[[], None] = _nobody
        """Called when a definition came, changed or went: no event of the hypervisor tells of that."""

    def vm_lock(self, vm_uid: str) -> asyncio.Lock:
        return self._vm_locks[vm_uid]

    def charges(self) -> list[Quantities]:
        """Everything that this host has promised, now."""
        return [*(definition.spec.charged for definition in self._definitions.values()), *self.more_charges()]

    def registered(self, incarnation: str) -> None:
        """The cluster has heard of this process, and says who it is."""
        self.heard, self.incarnation = True, incarnation

    @property
    def laying_down(self) -> bool:
        """The cluster has said that this host was fenced, and what that asks of it is not done yet: no VM is taken in or started."""
        return self._laying_down

    async def begin_laying_down(self) -> None:
        self._laying_down = True
        await self._files.save(FENCED, LAYING_DOWN, b"")

    async def end_laying_down(self) -> None:
        await self._files.remove(FENCED, LAYING_DOWN)
        self._laying_down = False

    @property
    def definitions(self) -> Mapping[str, Definition]:
        return self._definitions

    @property
    def incoming(self) -> Mapping[str, Incoming]:
        return self._incoming

    @property
    def outgoing(self) -> Mapping[str, Outgoing]:
        return self._outgoing

    async def keep_definition(self, definition: Definition) -> None:
        await self._files.save(VMS, definition.spec.vm_uid, msgspec.json.encode(definition))
        self._definitions[definition.spec.vm_uid] = definition
        self.on_definition()

    def gone_rank(self, vm_uid: str) -> Rank:
        """Of the newest command about a VM that was removed here, or never came to be."""
        return self._gone.get(vm_uid, Rank())

    async def bury(self, vm_uid: str, rank: Rank) -> None:
        """Remember that this VM is not here by a command of that rank. Without a store nothing comes late, and nothing is kept."""
        if not rank.order_revision or rank <= self.gone_rank(vm_uid):
            return
        await self._files.save(GONE, vm_uid, msgspec.json.encode(rank))
        self._gone.pop(vm_uid, None)  # so that it is the youngest
        self._gone[vm_uid] = rank
        for old in list(self._gone)[: max(0, len(self._gone) - GONE_KEPT)]:
            await self._files.remove(GONE, old)
            del self._gone[old]

    async def drop_definition(self, vm_uid: str) -> None:
        """It is gone from here, by the newest command that was heard about it."""
        if vm_uid in self._definitions:
            await self.bury(vm_uid, self._definitions[vm_uid].rank)
        await self._files.remove(VMS, vm_uid)
        self._definitions.pop(vm_uid, None)
        self.on_definition()

    async def keep_incoming(self, handoff: Incoming) -> None:
        await self._files.save(INCOMING, handoff.operation_id, msgspec.json.encode(handoff))
        self._incoming[handoff.operation_id] = handoff
        for operation_id in _too_old(self._incoming):
            await self._files.remove(INCOMING, operation_id)
            del self._incoming[operation_id]

    async def keep_outgoing(self, handoff: Outgoing) -> None:
        await self._files.save(OUTGOING, handoff.operation_id, msgspec.json.encode(handoff))
        self._outgoing[handoff.operation_id] = handoff
        for operation_id in _too_old(self._outgoing):
            await self._files.remove(OUTGOING, operation_id)
            del self._outgoing[operation_id]

    def note_outgoing(self, handoff: Outgoing) -> None:
        """In memory alone: figures that may be lost. One that has ended has its figures."""
        kept = self._outgoing.get(handoff.operation_id)
        if kept is not None and kept.stage in ENDED_STAGES:
            return
        self._outgoing[handoff.operation_id] = handoff

    async def end_arrivals_of(self, vm_uid: str) -> None:
        """Of a VM that leaves: an arrival that was lost after its commit is open still, though the VM was started here since."""
        for arriving in [h for h in self._incoming.values() if h.vm_uid == vm_uid and h.stage not in ENDED_STAGES]:
            await self.keep_incoming(replace(arriving, stage=Stage.ABORTED))

    async def end_handoffs_of(self, vm_uid: str) -> None:
        """Of a VM that is gone from here: a copy that was lost after its commit left its end open. Ended ones stay, to refuse what comes late."""
        await self.end_arrivals_of(vm_uid)
        for leaving in [h for h in self._outgoing.values() if h.vm_uid == vm_uid and h.stage not in ENDED_STAGES]:
            await self.keep_outgoing(replace(leaving, stage=Stage.ABORTED))


def _too_old(handoffs: "Mapping[str, Incoming] | Mapping[str, Outgoing]") -> list[str]:
    """Ended handoffs above ENDED_KEPT, in the order in which this process came to know them."""
    ended = [operation_id for operation_id, handoff in handoffs.items() if handoff.stage in ENDED_STAGES]
    return ended[: max(0, len(ended) - ENDED_KEPT)]


def _nobody() -> None:
    """Before anybody listens."""


def _decoded(files: Mapping[str, bytes], kind: type[T]) -> dict[str, T]:
    return {key: msgspec.json.decode(value, type=kind) for key, value in files.items()}
