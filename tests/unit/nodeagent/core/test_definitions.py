"""The epoch rule: an older one is refused, a newer one is remembered before it is acted on; and the records survive the disk."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.model.copy import Stage
from hostler.model.domain import DiskSpec, DomainSpec, NicSpec, ServiceClass
from nodeagent.core.definitions import Definition, DiskTarget, EpochVerdict, Incoming, Outgoing, Rank, judge_epoch

SPEC = DomainSpec(
    "uid",
    "web-1",
    2,
    200,
    512,
    ServiceClass.BURSTABLE,
    (DiskSpec("v", "nas", "qcow2"),),
    (NicSpec("br0", "52:54:00:00:00:01"),),
    {"cpu_milli": 200},
)


@pytest.mark.parametrize(
    ("known", "commanded", "verdict"),
    [(5, 4, EpochVerdict.STALE), (5, 5, EpochVerdict.CURRENT), (5, 6, EpochVerdict.NEWER), (0, 1, EpochVerdict.NEWER)],
)
def test_the_three_verdicts(known: int, commanded: int, verdict: EpochVerdict) -> None:
    """A command of a former owner that is obeyed, or one of the present owner that is refused."""
    assert judge_epoch(known, commanded) is verdict


@given(st.lists(st.integers(0, 20)))
def test_what_is_obeyed_never_goes_back(commands: list[int]) -> None:
    """A host that, having seen a new owner, obeys the old one again."""
    known, obeyed = 0, []
    for epoch in commands:
        if judge_epoch(known, epoch) is not EpochVerdict.STALE:
            known = max(known, epoch)
            obeyed.append(epoch)
    assert obeyed == sorted(obeyed)


def test_a_command_under_a_newer_epoch_is_newer_whenever_it_was_ordered() -> None:
    """A new owner's command taken for a late one, after the store's revisions were counted anew."""
    assert Rank(2, 5) > Rank(1, 900)
    assert Rank(2, 5) < Rank(2, 6)


@pytest.mark.parametrize(
    "record",
    [
        Definition(SPEC, 3, "op", incoming=True, order_revision=41, rebooted_by="op-1"),
        Rank(3, 41),
        Incoming("op", "uid", "n1", 3, Stage.FINISHED, 17),
        Outgoing("op", "uid", 3, 40, "n2", "n2:1", "n2:2", (DiskTarget("v", "f:1", "/a"),), 100, Stage.COPYING, "e", 1, 2, 3, 4, 5),
    ],
    ids=lambda record: type(record).__name__,
)
def test_records_come_back_from_disk_as_they_were(record: object) -> None:
    """A restarted agent that knows something else than the one before it."""
    assert msgspec.json.decode(msgspec.json.encode(record), type=type(record)) == record
