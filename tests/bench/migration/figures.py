"""What the samples of `make bench-migration` say, as pure functions: the gap of a heartbeat, the work of a throttled guest, ratios and verdicts.

Seconds on a shared machine are noise, so every figure of Hostler's stands beside plain libvirt's from the same run, as medians and as a ratio; every
raw sample is kept. A run that lost its guest, or did not end, has no place in a median and is counted beside it.
"""

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

OURS, PLAIN, DIRECT = "hostler", "plain", "plain-direct"
GAP_FACTOR, GAP_EXTRA_MS = 1.1, 30.0
"""The target: gap <= 1.1 x plain + 30 ms."""
CAPPED_TOTAL_MS, CAPPED_GAP_MS = 15_000.0, 300.0
"""The goal of the capped link."""
WORK_WINDOW_S = 0.5
PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Beat:
    """One look at which a heartbeat had changed: seconds, host, the count, the word after it."""

    at_s: float
    host: int
    count: int
    word: int = 0


@dataclass(frozen=True, slots=True)
class Line:
    """One line that the TCP client got: seconds here, its number, the guest's boot id and clock."""

    at_s: float
    seq: int
    boot_id: str
    guest_ms: int


@dataclass(slots=True)
class Sample:
    """One migration. Milliseconds and bytes; None: not measured with this guest, or not reached.

    `lost`: why there is no guest any more, or why the migration did not end; `wire_bytes`: what came to the destination's wire, `told_bytes`: what
    the one who drives says; `work_*`: bytes per second; `fell_back`: counts of its heartbeat that a dirtying guest lost on its way, which is memory
    that was not copied; `acts_ms`: what the daemons did, after the guest last executed at the source.
    """

    case: str
    peer: str
    round: int
    source: str
    destination: str
    load: float
    lost: str = ""
    total_ms: float | None = None
    gap_ms: float | None = None
    client_ms: float | None = None
    told_ms: float | None = None
    wire_bytes: int = 0
    told_bytes: int = 0
    throttle_percent: int | None = None
    iterations: int | None = None
    work_before: float | None = None
    work_during: float | None = None
    work_least: float | None = None
    wrong_pages: int | None = None
    fell_back: int | None = None
    acts_ms: dict[str, float] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        return not self.lost


def beats_of(text: str) -> list[Beat]:
    """Of the memory reader's file; a last line that is not whole is left out."""
    rows = (line.split() for line in text.splitlines(keepends=True) if line.endswith("\n"))
    return [Beat(float(at_s), int(host), int(count), int(word)) for at_s, host, count, word in rows]


def lines_of(text: str) -> list[Line]:
    """Of the TCP client's file."""
    rows = (line.split() for line in text.splitlines())
    return [Line(float(at_s), int(seq), boot_id, int(guest_ms)) for at_s, seq, boot_id, guest_ms in rows]


def advances(beats: Iterable[Beat]) -> list[Beat]:
    """The looks at which the guest was further than ever before, wherever. A copy that arrives holds at most what the source has reached."""
    found: list[Beat] = []
    for beat in beats:
        if not found or beat.count > found[-1].count:
            found.append(beat)
    return found


def heartbeat_gap(beats: Sequence[Beat]) -> tuple[float, float]:
    """(how long the guest stood at most, less its usual pace, in ms; when it went on)."""
    gaps = [(b.at_s - a.at_s, b.at_s) for a, b in itertools.pairwise(advances(beats))]
    if not gaps:
        return 0.0, 0.0
    longest_s, end_s = max(gaps)
    return max(0.0, longest_s - statistics.median(gap for gap, _ in gaps)) * 1000, end_s


def handover(beats: Sequence[Beat]) -> tuple[float, float, int]:
    """(how long the guest stood between its last beat on one host and its first on the other, in ms; when it went on; how many counts it fell back).

    A copy's memory changes while it arrives, so the first beat is one that is further than another after the source's last.
    """
    last = max((beat for beat in beats if beat.host != beats[-1].host), key=lambda beat: beat.at_s, default=None) if beats else None
    after = [beat for beat in beats if last is not None and beat.at_s > last.at_s]
    first = next((b for a, b in itertools.pairwise(after) if b.count > a.count), None)
    if last is None or first is None:
        return 0.0, 0.0, 0
    return (first.at_s - last.at_s) * 1000, first.at_s, max(0, last.count - first.count)


def hosts_of_progress(beats: Sequence[Beat]) -> list[int]:
    """On which hosts the guest executed, in order: one who goes on in two places at once changes host more than once."""
    return [host for host, _ in itertools.groupby(advances(beats), key=lambda beat: beat.host)]


def work_rate(beats: Sequence[Beat], begin_s: float, end_s: float) -> float | None:
    """Bytes per second that the guest wrote between two moments: its count is of pages."""
    inside = [beat for beat in advances(beats) if begin_s <= beat.at_s <= end_s]
    if len(inside) < 2 or inside[-1].at_s <= inside[0].at_s:
        return None
    return (inside[-1].count - inside[0].count) * PAGE_BYTES / (inside[-1].at_s - inside[0].at_s)


def least_work(beats: Sequence[Beat], begin_s: float, end_s: float) -> float | None:
    """The slowest half second between two moments."""
    rates = []
    at_s = begin_s
    while at_s + WORK_WINDOW_S <= end_s:
        rates.append(work_rate(beats, at_s, at_s + WORK_WINDOW_S) or 0.0)
        at_s += WORK_WINDOW_S
    return min(rates, default=None)


def client_gaps(lines: Sequence[Line]) -> list[tuple[float, float]]:
    """(when a line came, ms since the one before)."""
    return [(b.at_s, (b.at_s - a.at_s) * 1000) for a, b in itertools.pairwise(lines)]


def paused_ms(lines: Sequence[Line]) -> float:
    """How much the guest's own clock, which stands while the guest does, fell behind ours."""
    if not lines:
        return 0.0
    return max(0.0, (lines[-1].at_s - lines[0].at_s) * 1000 - (lines[-1].guest_ms - lines[0].guest_ms))


def broken_lines(lines: Sequence[Line]) -> str:
    """What no undisturbed guest sends; empty when all is well."""
    if len({line.boot_id for line in lines}) > 1:
        return "the guest was started anew"
    holes = [(a.seq, b.seq) for a, b in itertools.pairwise(lines) if b.seq != a.seq + 1]
    return f"line {holes[0][1]} after line {holes[0][0]}" if holes else ""


def median(samples: Iterable[Sample], name: str) -> float | None:
    """Of the runs that have it."""
    values = [getattr(sample, name) for sample in samples if sample.good and getattr(sample, name) is not None]
    return float(statistics.median(values)) if values else None


def share_below(samples: Sequence[Sample], name: str, limit: float) -> str:
    """How many of the runs that have a figure keep to a limit."""
    values = [getattr(sample, name) for sample in samples if sample.good and getattr(sample, name) is not None]
    return f"{sum(value <= limit for value in values)} of {len(values)}"


def verdict(ours: float | None, plain: float | None) -> str:
    """Of the target for gaps."""
    if ours is None or plain is None:
        return "not comparable"
    limit = GAP_FACTOR * plain + GAP_EXTRA_MS
    return f"{'met' if ours <= limit else 'MISSED'} ({ours:.0f} against {limit:.0f} ms)"


COLUMNS = ("runs", "guest's gap", "client's gap", "total", "on the wire", "load")


def table(samples: Sequence[Sample]) -> str:
    """Markdown: one row per case and peer; medians with the least and the most."""
    rows = [
        "| Case | Who | Runs | Guest's gap, ms | Client's gap, ms | Total, s | On the wire, MiB | Load |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case, group in _by(samples, "case"):
        for peer, runs in _by(group, "peer"):
            lost = [run for run in runs if not run.good]
            count = f"{len(runs) - len(lost)} of {len(runs)}" if lost else f"{len(runs)}"
            cells = [
                _spread(runs, "gap_ms"),
                _spread(runs, "client_ms"),
                _spread(runs, "total_ms", 1000, 1),
                _spread(runs, "wire_bytes", 1 << 20),
            ]
            load = f"{min(run.load for run in runs):.0f}–{max(run.load for run in runs):.0f}"
            rows.append(f"| {case} | {peer} | {count} | {' | '.join(cells)} | {load} |")
    return "\n".join(rows)


def verdicts(samples: Sequence[Sample]) -> list[str]:
    """One line per case that has both sides, for each gap; and every run that lost its guest."""
    told = []
    for case, group in _by(samples, "case"):
        ours, plain = [run for run in group if run.peer == OURS], [run for run in group if run.peer == PLAIN]
        for name, what in (("gap_ms", "guest's gap"), ("client_ms", "client's gap")):
            mine, theirs = median(ours, name), median(plain, name)
            if mine is not None and theirs is not None:
                told.append(
                    f"{case}: {what} {mine:.0f} ms, plain {theirs:.0f} ms, ratio {mine / theirs:.2f}; target {verdict(mine, theirs)}"
                )
        for name, what in (("total_ms", "total time"), ("wire_bytes", "bytes on the wire")):
            mine, theirs = median(ours, name), median(plain, name)
            if mine and theirs:
                told.append(f"{case}: {what}, ratio {mine / theirs:.2f}")
        told += [f"{case}: {run.peer}, round {run.round}: {run.lost}" for run in group if run.lost]
    return told


def _spread(samples: Sequence[Sample], name: str, unit: float = 1, digits: int = 0) -> str:
    values = [getattr(run, name) / unit for run in samples if run.good and getattr(run, name) is not None]
    if not values:
        return "–"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def _by(samples: Sequence[Sample], name: str) -> list[tuple[str, list[Sample]]]:
    keys = list(dict.fromkeys(getattr(sample, name) for sample in samples))
    return [(key, [sample for sample in samples if getattr(sample, name) == key]) for key in keys]
