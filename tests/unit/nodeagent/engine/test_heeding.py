"""Which commands a host heeds, also after a restart, and for how many VMs that are gone it remembers it."""

from dataclasses import replace
from pathlib import Path

import pytest

from hostler.errors import Conflict, NotFound, Reason, Unavailable
from hostler.model.domain import DomainSpec, ServiceClass
from nodeagent.adapters.state_directory import StateDirectory
from nodeagent.core.definitions import Command, Definition, Rank
from nodeagent.engine import host_state
from nodeagent.engine.heeding import heard, heed, not_buried
from nodeagent.engine.host_state import HostState

UID = "uid-1"


def spec(uid: str = UID) -> DomainSpec:
    return DomainSpec(uid, "web-1", 1, 0, 64, ServiceClass.BURSTABLE)


def command(epoch: int, order_revision: int, operation_id: str = "op-1") -> Command:
    return Command(operation_id, UID, epoch, 7, order_revision)


@pytest.fixture
async def state(tmp_path: Path) -> HostState:
    made = HostState(StateDirectory(tmp_path))
    await made.keep_definition(Definition(spec(), 3, "op-0", order_revision=50))
    return made


async def test_an_older_command_is_late_and_an_older_epoch_is_stale(state: HostState) -> None:
    """A scheduler that leads, and hears of a late command, must ask again; one under an old epoch has lost."""
    with pytest.raises(Unavailable) as late:
        await heed(state, "n1", command(3, 49))
    assert late.value.reason is Reason.COMMAND_LATE
    with pytest.raises(Conflict) as stale:
        await heed(state, "n1", command(2, 99))
    assert stale.value.reason is Reason.EPOCH_STALE
    assert state.definitions[UID].rank == Rank(3, 50)


async def test_the_same_command_again_is_heeded(state: HostState) -> None:
    """A repeat after a lost answer that is refused: limbo."""
    for _ in range(2):
        assert (await heed(state, "n1", command(3, 51))).rank == Rank(3, 51)


async def test_what_was_heard_is_remembered_by_the_next_process(state: HostState, tmp_path: Path) -> None:
    """An agent that is restarted between a stop and the start that comes late."""
    await heed(state, "n1", command(3, 60))
    again = HostState(StateDirectory(tmp_path))
    with pytest.raises(Unavailable):
        await heed(again, "n1", command(3, 59))
    await again.drop_definition(UID)
    reborn = HostState(StateDirectory(tmp_path))
    with pytest.raises(NotFound):
        await heed(reborn, "n1", command(3, 59))
    with pytest.raises(Unavailable):
        not_buried(reborn, "n1", command(3, 59))
    not_buried(reborn, "n1", command(3, 60))
    not_buried(reborn, "n1", command(4, 1))


async def test_a_new_epoch_ends_an_arrival_and_a_new_operation_does_not(state: HostState) -> None:
    """A copy that is to arrive, taken for a VM of this host because its migration went on by a step."""
    await state.keep_definition(Definition(spec(), 3, "op-0", incoming=True, order_revision=50))
    assert (await heed(state, "n1", command(3, 51))).incoming
    assert not (await heed(state, "n1", command(4, 52))).incoming


async def test_only_so_many_of_the_gone_are_remembered(state: HostState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state directory that grows by a file for every VM that ever was here."""
    monkeypatch.setattr(host_state, "GONE_KEPT", 2)
    for number in range(5):
        await state.bury(f"uid-{number}", Rank(1, 10 + number))
    assert [state.gone_rank(f"uid-{number}") for number in range(5)] == [Rank(), Rank(), Rank(), Rank(1, 13), Rank(1, 14)]
    assert len(StateDirectory(tmp_path).load(host_state.GONE)) == 2


async def test_a_host_without_a_store_keeps_nothing(state: HostState, tmp_path: Path) -> None:
    """A standalone host's commands come from itself."""
    await state.bury("uid-9", Rank(4, 0))
    assert not StateDirectory(tmp_path).load(host_state.GONE)


async def test_nothing_is_taken_in_by_an_agent_that_was_not_heard(state: HostState) -> None:
    """Refused once it was: no VM starts on that host any more."""
    heard(state, "n1")
    state.heard = False
    with pytest.raises(Unavailable):
        heard(state, "n1")


async def test_what_was_meant_for_this_host_before_its_last_boot_or_fence_is_refused(state: HostState) -> None:
    """A definition that nobody asks for any more, and a charge for ever: the VM was forgotten, or never known, when the host came back."""
    state.registered("boot-2:2")
    for_it, before = (replace(command(3, 60), incarnation=incarnation) for incarnation in ("boot-2:2", "boot-1:1"))
    with pytest.raises(Unavailable):
        not_buried(state, "n1", before)
    not_buried(state, "n1", for_it)
    await state.keep_definition(Definition(spec(), 3, "op-0", order_revision=50))
    with pytest.raises(Unavailable):
        await heed(state, "n1", before)
    assert (await heed(state, "n1", for_it)).order_revision == 60
