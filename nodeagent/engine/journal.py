"""What a standalone host has decided, in memory and on disk. One writer: a step is decided on the newest records, written, and only then true.

A step may change several files, and a crash may come between two. So the operation's own file is written first and holds the whole step; the files of
VMs and volumes follow. What is loaded is the files, with every step applied that is newer than the file it changes. Steps are told apart by their
revision, which grows by one with each.
A disk that cannot be written (full, broken) stops the writer at that step, not the agent: it is tried again until it succeeds, and who waits for it
runs into its own deadline.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
import structlog

from hostler.model.records import Kept, OperationRecord, VMRecord, VolumeRecord
from hostler.server.clock import Clock
from nodeagent.core.standalone import HostRecords, Step, after
from nodeagent.ports import StateFiles

VMS, VOLUMES, OPERATIONS = "standalone-vms", "standalone-volumes", "operations"
"""Kinds of state files."""

RETRY_FIRST_S, RETRY_MOST_S = 0.1, 5.0
"""Between two tries to write a step: a passing fault is over at once, a full disk is freed by a person."""

QUEUE_STEPS = 1024
"""Steps that wait for the writer: more than the server admits calls, so that this bound is never what is met first."""

log = structlog.get_logger()

_R = TypeVar("_R", VMRecord, VolumeRecord)

Decide = Callable[[HostRecords], Step | None]


@dataclass(frozen=True, slots=True)
class Entry:
    """An operation's file: the operation, and all that its last step changed, at that step's revision."""

    operation: OperationRecord
    revision: int
    vms: dict[str, VMRecord | None] = field(default_factory=dict)
    volumes: dict[str, VolumeRecord | None] = field(default_factory=dict)


@dataclass(slots=True)
class _Asked:
    decide: Decide
    answer: "asyncio.Future[Step | None]"


class Journal:
    """`records` is what is true now; `write` changes it. `on_step` is called, in order, after each step has become true."""

    def __init__(self, files: StateFiles, clock: Clock) -> None:
        self._files = files
        self._clock = clock
        self._asked: asyncio.Queue[_Asked] = asyncio.Queue(QUEUE_STEPS)
        self._mend: list[tuple[str, str, bytes | None]] = []
        self.records = self._load()
        self.on_step: Callable[[Step], None] = _nothing

    async def recover(self) -> None:
        """Before anything else is written: what a crash left unwritten."""
        for kind, key, value in self._mend:
            await (self._files.remove(kind, key) if value is None else self._files.save(kind, key, value))
        self._mend.clear()

    async def run(self) -> None:
        """The writer; for ever."""
        while True:
            asked = await self._asked.get()
            if not asked.answer.cancelled():
                await self._serve(asked)

    async def write(self, decide: Decide) -> Step | None:
        """Take the step that `decide` answers on the newest records; None: it answered none. Raises what `decide` raises.

        A caller that goes away does not undo the step: it is written whole or was never begun.
        """
        answer: asyncio.Future[Step | None] = asyncio.get_running_loop().create_future()
        await self._asked.put(_Asked(decide, answer))
        return await answer

    async def _serve(self, asked: _Asked) -> None:
        try:
            step = asked.decide(self.records)
        except Exception as refusal:
            _answer(asked, refusal)
            return
        if step is not None:
            await self._until_written(step)
            self.records = after(self.records, step)
            self.on_step(step)
        _answer(asked, step)

    async def _until_written(self, step: Step) -> None:
        pause_s = RETRY_FIRST_S
        while True:
            try:
                await self._save(step)
                return
            except OSError as error:
                log.error("the state directory cannot be written; trying again", error=str(error))
                await self._clock.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_MOST_S)

    async def _save(self, step: Step) -> None:
        revision = self.records.revision + 1
        if step.operation is not None:
            entry = Entry(step.operation, revision, dict(step.vms), dict(step.volumes))
            await self._files.save(OPERATIONS, step.operation.operation_id, msgspec.json.encode(entry))
        for kind, changes in ((VMS, step.vms), (VOLUMES, step.volumes)):
            for name, record in changes.items():
                if record is None:
                    await self._files.remove(kind, name)
                else:
                    await self._files.save(kind, name, _encoded(record, revision))
        for operation_id in step.forget:
            await self._files.remove(OPERATIONS, operation_id)

    # ---- loading

    def _load(self) -> HostRecords:
        entries = [msgspec.json.decode(value, type=Entry) for value in self._files.load(OPERATIONS).values()]
        vms = {key: msgspec.json.decode(value, type=Kept[VMRecord]) for key, value in self._files.load(VMS).items()}
        volumes = {key: msgspec.json.decode(value, type=Kept[VolumeRecord]) for key, value in self._files.load(VOLUMES).items()}
        for entry in sorted(entries, key=lambda one: one.revision):
            self._redo(VMS, vms, entry.vms, entry.revision)
            self._redo(VOLUMES, volumes, entry.volumes, entry.revision)
        operations = {entry.operation.operation_id: Kept(entry.operation, entry.revision) for entry in entries}
        revision = max((kept.revision for table in (vms, volumes, operations) for kept in table.values()), default=0)
        return HostRecords(revision, vms, volumes, operations)

    def _redo(self, kind: str, table: "dict[str, Kept[_R]]", changes: "Mapping[str, _R | None]", revision: int) -> None:
        for name, record in changes.items():
            known = table.get(name)
            if known is not None and known.revision >= revision:
                continue
            if record is not None:
                table[name] = Kept(record, revision)
                self._mend.append((kind, name, _encoded(record, revision)))
            elif known is not None:
                del table[name]
                self._mend.append((kind, name, None))


def _encoded(record: VMRecord | VolumeRecord, revision: int) -> bytes:
    return msgspec.json.encode(Kept(record, revision))


def _answer(asked: _Asked, result: Step | Exception | None) -> None:
    if asked.answer.cancelled():
        return
    if isinstance(result, Exception):
        asked.answer.set_exception(result)
    else:
        asked.answer.set_result(result)


def _nothing(step: Step) -> None:
    """Before anybody listens."""
