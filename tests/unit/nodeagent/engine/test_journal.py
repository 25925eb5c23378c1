"""The journal over crashes: whatever the moment, a restarted agent finds each step taken whole or not at all, and goes on from there."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from hostler.errors import HostlerError, Reason
from hostler.model.domain import ServiceClass
from hostler.model.journal import ACCEPTED, DEFINED, STARTING, STOPPING, VOLUMES, Request
from hostler.model.owner import OwnerState
from hostler.model.records import Observed
from hostler.model.wishes import ExistingDisk, NewDisk, WishedVM
from hostler.server.clock import SystemClock
from hostler.server.manual_clock import ManualClock
from nodeagent.core import standalone as decide
from nodeagent.core import standalone_steps as steps
from nodeagent.core.ledger import Account
from nodeagent.core.observed import PoolView
from nodeagent.core.standalone import Host, HostRecords, Step
from nodeagent.core.standalone_steps import By
from nodeagent.engine.journal import OPERATIONS, RETRY_FIRST_S, Journal

PLENTY = Account({"cpu_milli": 10_000, "memory_mib/0": 10_000, "pool_mib/local": 10_000}, {}, {}, {})
HOST = Host("h1", PLENTY, (PoolView("local", False, "f", 10_000, 10_000, True, {}),), ())
BY = By("h1", 5)
Decide = Callable[[HostRecords], Step | None]


class Crash(BaseException):
    """The process is gone."""


@dataclass
class Disk:
    """StateFiles in memory, which stops the process before its `writes_left`th write, or refuses `faults` writes."""

    files: defaultdict[str, dict[str, bytes]] = field(default_factory=lambda: defaultdict(dict))
    writes_left: int = 10_000
    faults: int = 0

    def load(self, kind: str) -> Mapping[str, bytes]:
        return dict(self.files[kind])

    async def save(self, kind: str, key: str, value: bytes) -> None:
        self._count()
        self.files[kind][key] = value

    async def remove(self, kind: str, key: str) -> None:
        self._count()
        self.files[kind].pop(key, None)

    def _count(self) -> None:
        if self.faults:
            self.faults -= 1
            raise OSError(28, "No space left on device")
        if self.writes_left == 0:
            raise Crash
        self.writes_left -= 1


@asynccontextmanager
async def opened(disk: Disk) -> AsyncIterator[Journal]:
    journal = Journal(disk, SystemClock())
    await journal.recover()
    async with asyncio.TaskGroup() as group:
        writer = group.create_task(journal.run(), name="writer")
        yield journal
        writer.cancel()


def request(number: int) -> Request:
    return Request("spiffe://c/user/alice", f"r-{number}", f"d-{number}", number)


VM = WishedVM("web-1", "uid-1", "", 1, 64, 0, ServiceClass.BURSTABLE, (NewDisk("local", 10, "", "u-own"), ExistingDisk("data")), ())
MAKE_VOLUME, CREATE, STOP, DELETE = (request(number).operation_id for number in range(4))
STORY: tuple[Decide, ...] = (
    lambda r: decide.create_volume(r, HOST, request(0), "data", NewDisk("local", 10, "", "u-data")),
    lambda r: steps.volume_made(r, MAKE_VOLUME, 10, PLENTY, BY),
    lambda r: decide.create_vm(r, HOST, request(1), VM),
    lambda r: steps.volumes_made(r, CREATE, {"web-1-disk0": 10}, PLENTY, BY),
    lambda r: steps.enter_phase(r, CREATE, VOLUMES, DEFINED, "", BY),
    lambda r: steps.enter_phase(r, CREATE, DEFINED, STARTING, "", BY, steps.let_run),
    lambda r: steps.finish_vm(r, CREATE, STARTING, Observed.RUNNING, OwnerState.RUNNING, BY),
    lambda r: decide.stop_vm(r, request(2), "web-1", "", 0, True),
    lambda r: steps.enter_phase(r, STOP, ACCEPTED, STOPPING, "", BY),
    lambda r: steps.finish_vm(r, STOP, STOPPING, Observed.STOPPED, OwnerState.STOPPED, BY),
    lambda r: decide.delete_vm(r, request(3), "web-1", "", False),
    lambda r: steps.remove_vm(r, DELETE, ACCEPTED, BY),
    lambda r: Step(forget=(MAKE_VOLUME,)),
)
"""One life of a VM with a volume of its own and one that it borrows: each step changes one file to four."""
WRITES = 28
"""How many writes the story takes."""


async def tell(journal: Journal, story: tuple[Decide, ...]) -> list[HostRecords]:
    """The records after each step."""
    told = []
    for one in story:
        assert await journal.write(one) is not None
        told.append(journal.records)
    return told


async def moments() -> list[HostRecords]:
    async with opened(Disk()) as journal:
        return [HostRecords(), *await tell(journal, STORY)]


def without_revision(records: HostRecords) -> tuple[object, ...]:
    return dict(records.vms), dict(records.volumes), dict(records.operations)


async def test_the_story_is_read_back() -> None:
    """Records that are not what was written, in a journal that was closed in good order."""
    disk = Disk()
    async with opened(disk) as journal:
        told = await tell(journal, STORY)
    assert 10_000 - disk.writes_left == WRITES
    assert without_revision(Journal(disk, SystemClock()).records) == without_revision(told[-1])


@pytest.mark.parametrize("writes", range(WRITES))
async def test_a_crash_before_any_write_leaves_a_moment_of_the_story(writes: int) -> None:
    """Half a step: a VM without its operation, an operation without its VM, a volume that is in use by nobody."""
    disk, known = Disk(writes_left=writes), [without_revision(moment) for moment in await moments()]
    with pytest.raises(BaseExceptionGroup) as caught:
        async with opened(disk) as journal, asyncio.timeout(5):
            await tell(journal, STORY)
    assert caught.group_contains(Crash)
    disk.writes_left = 10_000
    async with opened(disk) as again:
        begin = known.index(without_revision(again.records))
        told = await tell(again, STORY[begin:])
    assert without_revision(told[-1])[:2] == known[-1][:2]
    assert without_revision(Journal(disk, SystemClock()).records) == without_revision(told[-1])


@pytest.mark.parametrize("writes", range(WRITES))
async def test_a_crash_in_the_recovery_from_a_crash(writes: int) -> None:
    """A recovery that can be made only once."""
    disk, known = Disk(writes_left=writes), [without_revision(moment) for moment in await moments()]
    with pytest.raises(BaseExceptionGroup):
        async with opened(disk) as journal, asyncio.timeout(5):
            await tell(journal, STORY)
    disk.writes_left = 0
    before = without_revision(Journal(disk, SystemClock()).records)
    if Journal(disk, SystemClock())._mend:
        with pytest.raises(Crash):
            await Journal(disk, SystemClock()).recover()
    assert without_revision(Journal(disk, SystemClock()).records) == before
    assert before in known


async def test_a_revision_is_never_used_again() -> None:
    """An etag that is the same for two states of a VM, before and after a restart."""
    disk = Disk()
    async with opened(disk) as journal:
        await tell(journal, STORY[:7])
        revision = journal.records.vms["web-1"].revision
    async with opened(disk) as again:
        await tell(again, STORY[7:8])
        assert again.records.vms["web-1"].revision > revision


async def test_a_full_disk_stops_changes_until_it_is_freed() -> None:
    """A step that is told as true and is not on disk, or is lost, because the disk was full for a while."""
    clock, disk = ManualClock(), Disk(faults=3)
    journal = Journal(disk, clock)
    async with asyncio.TaskGroup() as group:
        writer = group.create_task(journal.run(), name="writer")
        writing = group.create_task(journal.write(STORY[0]), name="write")
        for pause_s in (RETRY_FIRST_S, 2 * RETRY_FIRST_S, 4 * RETRY_FIRST_S):
            await clock.until_sleeping(1)
            assert not writing.done()
            assert journal.records == HostRecords()
            assert disk.files[OPERATIONS] == {}
            clock.advance(pause_s)
        assert await writing is not None
        writer.cancel()
    assert set(disk.files[OPERATIONS]) == {MAKE_VOLUME}


async def test_who_goes_away_does_not_undo_a_step() -> None:
    """A client that hangs up in the middle of a write, and leaves memory and disk with two opinions."""
    clock, disk = ManualClock(), Disk(faults=1)
    journal = Journal(disk, clock)
    async with asyncio.TaskGroup() as group:
        writer = group.create_task(journal.run(), name="writer")
        writing = group.create_task(journal.write(STORY[0]), name="write")
        await clock.until_sleeping(1)
        writing.cancel()
        clock.advance(RETRY_FIRST_S)
        assert await journal.write(STORY[1]) is not None
        writer.cancel()
    assert without_revision(Journal(disk, clock).records) == without_revision(journal.records)
    assert set(journal.records.volumes) == {"data"}


async def test_a_refusal_is_its_caller_s_and_the_next_one_is_served() -> None:
    """A refused decision that stops the writer for everybody."""

    def refuse(records: HostRecords) -> Step | None:
        raise HostlerError(Reason.VM_BUSY, "no")

    async with opened(Disk()) as journal:
        with pytest.raises(HostlerError):
            await journal.write(refuse)
        assert await journal.write(STORY[0]) is not None
