"""The sweep's observer, on faked samples: what it must notice, and what it must not take for a breach."""

from dataclasses import replace

import pytest

from tests.sweep.observer import PERIOD_S, Record, Sample, Seen, breaches, executing, longest_still_s, outages

HOME = Record(7, 3, "n1", "RUNNING", "RUNNING", "", ("n1",), 0.0)


def running(count: int = 20, host: str = "n1", pid: int = 10, record: Record | None = HOME) -> list[Sample]:
    """One guest that counts on one host."""
    return [_at(index, (Seen(pid, host, False, 2 * index),), 100 + 2 * index, record) for index in range(count)]


def _at(index: int, processes: tuple[Seen, ...], counter: int, record: Record | None) -> Sample:
    at_s = index * PERIOD_S
    return Sample(at_s, processes, counter, 0, True, None if record is None else replace(record, asked_s=at_s))


def rules(samples: list[Sample]) -> set[str]:
    return {breach.rule for breach in breaches(samples)}


def test_an_undisturbed_guest_breaks_nothing() -> None:
    """An observer that cries wolf."""
    assert rules(running()) == set()
    assert executing(running(), 10) == {10}


def test_a_paused_copy_beside_the_running_one_breaks_nothing() -> None:
    """A migration's own copy, loaded and asleep, taken for a second running one."""
    samples = [replace(one, processes=(*one.processes, Seen(11, "n2", False, 4))) for one in running()]
    assert rules(samples) == set()


@pytest.mark.parametrize("slices", [[0, 0, 2, 3, 4, 4, 4, 4], [4, 4, 12, 24, 24, 24, 24, 24]])
def test_a_copy_that_is_started_or_loaded_does_not_execute(slices: list[int]) -> None:
    """The wakes of a vCPU that is set up, or that gets its memory, taken for a guest's."""
    samples = [replace(one, processes=(*one.processes, Seen(11, "n2", False, slices[index]))) for index, one in enumerate(running(8))]
    assert rules(samples) == set()


def test_a_switchover_within_one_interval_is_not_two_running() -> None:
    """The source's last ticks and the destination's first, with the wakes of its loading before: numbers of a real move."""
    source = [1204, 1221, 1239, 1242, 1253, 1274, 1275, 1275, None, None, None]
    destination = [None, 0, 4, 4, 4, 6, 8, 36, 66, 95, 112]
    samples = [
        _at(
            index,
            tuple(Seen(pid, host, False, slices) for pid, host, slices in ((10, "n1", one), (11, "n2", other)) if slices is not None),
            index,
            None,
        )
        for index, (one, other) in enumerate(zip(source, destination, strict=True))
    ]
    assert executing(samples, 7) == {10, 11}
    assert rules(samples) == set()


def test_two_running_copies_are_noticed() -> None:
    """A second copy that executes while the first one does."""
    samples = [replace(one, processes=(*one.processes, Seen(11, "n2", False, 3 * index))) for index, one in enumerate(running())]
    assert rules(samples) == {"two running", "not the owner"}


def test_a_stopped_process_does_not_execute() -> None:
    """The frozen source, whose count of time slices still shows what was before the freeze, taken for a running one."""
    samples = [replace(one, processes=(replace(one.processes[0], stopped=True),)) for one in running()]
    assert executing(samples, 10) == frozenset()


@pytest.mark.parametrize(("state", "node"), [("COMMITTED", "n2"), ("STOPPED", "n1"), ("FROZEN", "n2")])
def test_a_guest_that_executes_where_the_record_forbids_it_is_noticed(state: str, node: str) -> None:
    """The old copy going on after the commit, or a stopped VM that runs."""
    assert rules(running(record=replace(HOME, state=state, node=node))) == {"not the owner"}


def test_a_record_that_changes_about_the_look_judges_nobody() -> None:
    """The source's last ticks before the commit taken for ticks after it."""
    samples = running(8)
    committed = replace(HOME, revision=8, epoch=4, state="COMMITTED", node="n2")
    samples[-2:] = [replace(one, record=replace(committed, asked_s=one.at_s)) for one in samples[-2:]]
    assert rules(samples) == set()


def test_a_counter_that_goes_back_is_stale_memory() -> None:
    """A copy resumed that is older than the disk."""
    samples = running()
    samples[12:] = [replace(one, counter=one.counter - 9) for one in samples[12:]]
    assert rules(samples) == {"stale memory"}


def test_a_foreign_write_is_a_second_writer() -> None:
    """Two copies that write in turns, each finding the other's record."""
    samples = running()
    samples[12:] = [replace(one, foreign=1) for one in samples[12:]]
    assert rules(samples) == {"two writers"}


def test_a_guest_on_a_file_that_is_older_than_another_hosts_is_noticed() -> None:
    """A source that was let go on from the disk of before the move; the copy that the mirror is still writing is not that."""
    samples = running()
    behind = [replace(one, files=(("n1", one.counter), ("n2", max(0, one.counter - 30)))) for one in samples]
    assert rules(behind) == set()
    older = [replace(one, counter=200, files=(("n1", one.counter), ("n2", 200))) for one in samples]
    assert rules(older) == {"older disk"}


def test_an_epoch_that_goes_back_is_noticed() -> None:
    """A store that forgot a commit."""
    samples = running()
    samples[12:] = [replace(one, record=replace(HOME, revision=9, epoch=2, asked_s=one.at_s)) for one in samples[12:]]
    assert "epoch went back" in rules(samples)


def test_a_guest_that_executes_without_a_lock_is_noticed() -> None:
    """A disk that nothing protects; a moment without an answer is not that."""
    samples = running()
    assert rules([replace(one, locked=False) for one in samples]) == {"no lock"}
    assert rules([replace(one, locked=None) for one in samples]) == set()


def test_a_gap_between_samples_is_told() -> None:
    """A sweep that is green because nobody looked."""
    samples = running()
    samples[12:] = [replace(one, at_s=one.at_s + 2, record=replace(HOME, asked_s=one.at_s + 2)) for one in samples[12:]]
    assert rules(samples) == {"blind"}


def test_outages_are_the_times_in_which_the_counter_stands() -> None:
    """A frozen guest that is called running, or a standstill that has not ended that is not seen."""
    samples = running(40)
    samples[10:30] = [replace(one, counter=samples[10].counter) for one in samples[10:30]]
    (outage,) = outages(samples)
    assert outage == pytest.approx((1.0, 3.0))
    assert longest_still_s(samples) == pytest.approx(2.0)
    (unended,) = outages(samples[:28])
    assert unended == pytest.approx((1.0, 2.7))
