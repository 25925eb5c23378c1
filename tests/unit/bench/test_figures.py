"""The arithmetic of the migration benchmark: a gap that is not there, or a lost guest in a median, makes every figure worthless."""

import pytest

from tests.bench.migration.figures import (
    OURS,
    PLAIN,
    Beat,
    Line,
    Sample,
    advances,
    beats_of,
    broken_lines,
    client_gaps,
    handover,
    heartbeat_gap,
    hosts_of_progress,
    least_work,
    lines_of,
    median,
    paused_ms,
    table,
    verdict,
    verdicts,
    work_rate,
)
from tests.bench.migration.picture import columns, svg

PERIOD_S, PAUSE_S = 0.05, 0.2


def moved() -> list[Beat]:
    """A guest that counts on host 0, whose memory arrives on host 1 a little behind, and that goes on there after a pause."""
    source = [Beat(number * PERIOD_S, 0, number) for number in range(1, 21)]
    arriving = [Beat(0.62, 1, 11), Beat(0.93, 1, 17)]
    went_on_s = source[-1].at_s + PERIOD_S + PAUSE_S
    after = [Beat(went_on_s + number * PERIOD_S, 1, 21 + number) for number in range(20)]
    return sorted([*source, *arriving, *after], key=lambda beat: beat.at_s)


def line(number: int, at_s: float, guest_ms: int, boot_id: str = "b") -> Line:
    return Line(at_s, number, boot_id, guest_ms)


def sample(peer: str, turn: int, gap_ms: float | None, lost: str = "") -> Sample:
    return Sample("idle", peer, turn, "n1", "n2", 2.0, lost, total_ms=2000.0, gap_ms=gap_ms, wire_bytes=30 << 20)


def test_the_gap_is_what_the_guest_stood_beyond_its_own_pace() -> None:
    """A period of the heartbeat that is counted as outage, or a copy's arriving page that is taken for the guest going on."""
    gap_ms, end_s = heartbeat_gap(moved())
    assert gap_ms == pytest.approx(PAUSE_S * 1000, abs=0.1)
    assert end_s == pytest.approx(1.25)


def test_pages_that_arrive_are_no_progress() -> None:
    """A copy that seems to execute while its memory is still arriving."""
    assert hosts_of_progress(moved()) == [0, 1]
    assert all(beat.host == 0 for beat in advances(moved()) if beat.at_s <= 1.0)


def test_a_guest_that_fell_back_did_not_stand_still_until_it_caught_up() -> None:
    """An emulator that loses a page would be told as a gap of seconds; and that it lost one would not be told at all."""
    source = [Beat(number * 0.01, 0, number) for number in range(100)]
    arriving = [Beat(0.5, 1, 40), Beat(0.995, 1, 40)]
    after = [Beat(1.2 + number * 0.01, 1, 41 + number) for number in range(100)]
    gap_ms, went_on_s, fell_back = handover(sorted([*source, *arriving, *after], key=lambda beat: beat.at_s))
    assert gap_ms == pytest.approx(210)
    assert went_on_s == pytest.approx(1.2)
    assert fell_back == 58


def test_two_copies_that_execute_in_turns_show() -> None:
    """A second running copy that the benchmark does not notice."""
    both = [Beat(number * 0.1, number % 2, number) for number in range(1, 9)]
    assert len(hosts_of_progress(both)) == 8


def test_a_line_that_is_not_whole_is_left_out() -> None:
    """A reader that was ended in the middle of a line."""
    assert beats_of("1.5 0 7 0\n1.6 0 8 0\n1.7 0") == [Beat(1.5, 0, 7), Beat(1.6, 0, 8)]
    assert lines_of("1.5 7 b 70\n") == [line(7, 1.5, 70)]


def test_work_is_pages_times_their_size() -> None:
    """A work rate of another unit, or a throttle that is averaged away."""
    fast = [Beat(number * 0.01, 0, number * 100) for number in range(100)]
    slow = [Beat(1.0 + number * 0.01, 0, 10_000 + number * 25) for number in range(100)]
    assert work_rate([*fast, *slow], 0.0, 0.99) == pytest.approx(100 * 4096 / 0.01)
    assert least_work([*fast, *slow], 0.0, 2.0) == pytest.approx(25 * 4096 / 0.01)
    assert work_rate(fast, 5.0, 6.0) is None


def test_the_guests_own_clock_tells_its_pause() -> None:
    """A pause of the guest that its stream does not show because its lines come in one burst."""
    lines = [line(0, 10.0, 100), line(1, 10.01, 110), line(2, 10.31, 120), line(3, 10.32, 130)]
    assert paused_ms(lines) == pytest.approx(290.0)
    assert max(gap for _, gap in client_gaps(lines)) == pytest.approx(300.0)


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        ([line(0, 0.0, 0), line(1, 0.1, 10)], ""),
        ([line(0, 0.0, 0), line(2, 0.1, 10)], "line 2 after line 0"),
        ([line(0, 0.0, 0), line(1, 0.1, 10, "c")], "started anew"),
    ],
)
def test_a_stream_that_no_undisturbed_guest_sends_is_told(lines: list[Line], word: str) -> None:
    """A lost or rebooted guest that counts as a migration that went well."""
    assert word in broken_lines(lines)
    assert bool(broken_lines(lines)) == bool(word)


def test_a_lost_guest_is_in_no_median_but_in_the_table() -> None:
    """A run that lost its guest and makes the median better, or vanishes."""
    samples = [sample(PLAIN, 0, 40.0), sample(PLAIN, 1, 50.0), sample(PLAIN, 2, 1.0, "the guest was started anew"), sample(OURS, 0, 90.0)]
    assert median(samples[:3], "gap_ms") == 45.0
    assert "| idle | plain | 2 of 3 |" in table(samples)
    told = verdicts(samples)
    assert any("the guest was started anew" in one for one in told)
    assert any("ratio 2.00; target MISSED (90 against 80 ms)" in one for one in told)


@pytest.mark.parametrize(("ours", "plain", "word"), [(85.0, 50.0, "met"), (85.1, 50.0, "MISSED"), (None, 50.0, "not comparable")])
def test_the_target_is_a_tenth_and_thirty_milliseconds(ours: float | None, plain: float | None, word: str) -> None:
    """A target that is met by rounding."""
    assert verdict(ours, plain).startswith(word)


def test_the_picture_keeps_its_peak() -> None:
    """A peak that is averaged away, or drawn in another series' scale."""
    gaps = [(number * 0.01, 10.0) for number in range(200)]
    peaked = [*gaps[:100], (1.0, 290.0), *gaps[101:]]
    assert max(columns(peaked, 0.0, 2.0, 50)) == 290.0
    drawn = svg("title", [("plain", gaps), ("Hostler", peaked)])
    assert "Hostler: at most 290 ms" in drawn
    assert drawn.count("300 ms</text>") == 2, "both panels have the same axis"
