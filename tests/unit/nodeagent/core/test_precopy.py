"""The policy of a running copy: when the guest is throttled and by how much, when limits are passed on, when the copy is given up.

`Link` is a small model of a guest and QEMU, independent of the simulated hypervisor: iterations, a working set, QEMU's own rule for its steps."""

from dataclasses import dataclass, replace

import pytest

from nodeagent.core.observed import MigrationProgress
from nodeagent.core.precopy import MOST_PERCENT, SILENT_S, Course, GiveUp, GoOn, Limits, Move, Tune, next_move, throttle_for

MIB = 1 << 20
LOOK_S = 0.5


@dataclass
class Link:
    """A guest of `memory_mib` that dirties `dirty_mib_s` of its `working_set_mib`, copied at `link_mib_s`."""

    memory_mib: int
    working_set_mib: int
    dirty_mib_s: float
    link_mib_s: float
    percent: int = 0
    wanted: int = 0
    iteration: int = 1
    triggers: int = 0
    left: float = 0.0
    dirty: float = 0.0
    done: float = 0.0
    sent: float = 0.0
    dirtied: float = 0.0
    spent_s: float = 0.0
    rate: float = 0.0

    def __post_init__(self) -> None:
        self.left = float(self.memory_mib)

    def run(self, seconds: float, step_s: float = 0.05) -> None:
        for _ in range(round(seconds / step_s)):
            sent = min(self.left, self.link_mib_s * step_s)
            new = min(self.dirty + self.dirty_mib_s * (100 - self.percent) / 100 * step_s, self.working_set_mib) - self.dirty
            self.left, self.dirty, self.done = self.left - sent, self.dirty + new, self.done + sent
            self.sent, self.dirtied, self.spent_s = self.sent + sent, self.dirtied + new, self.spent_s + step_s
            if self.left <= 0:
                self._next_iteration()

    def _next_iteration(self) -> None:
        self.left, self.dirty, self.iteration = self.dirty, 0.0, self.iteration + 1
        if self.spent_s < 1.0:
            return
        self.rate = self.dirtied / self.spent_s
        self.triggers += self.dirtied > self.sent / 2
        if self.triggers == 2:
            self.triggers, self.percent = 0, self.wanted or min(99, self.percent + 10 or 20)
        self.sent = self.dirtied = self.spent_s = 0.0

    def seen(self) -> MigrationProgress:
        return MigrationProgress(
            int(self.done * MIB),
            int((self.done + self.left) * MIB),
            int(self.link_mib_s * MIB),
            0,
            remaining_bytes=int(self.left * MIB),
            dirty_bytes_per_s=int(self.rate * MIB),
            iteration=self.iteration,
            throttle_percent=self.percent,
        )


@dataclass(frozen=True)
class Played:
    seconds: float
    converged: bool
    moves: tuple[Move, ...]
    percent: int


def play(link: Link, limits: Limits, limit_s: float = 300.0, steered: bool = True) -> Played:
    """Look every LOOK_S, do what is said, until what is left fits the downtime."""
    moves: list[Move] = []
    course, now_s = Course(limits), 0.0
    while now_s < limit_s:
        link.run(LOOK_S)
        now_s += LOOK_S
        if (link.left + link.dirty) / link.link_mib_s * 1000 <= limits.downtime_ms:
            return Played(now_s, True, tuple(moves), link.percent)
        if not steered:
            continue
        course, move = next_move(course, limits, link.seen(), now_s)
        if not isinstance(move, GoOn):
            moves.append(move)
        if isinstance(move, GiveUp):
            return Played(now_s, False, tuple(moves), link.percent)
        if isinstance(move, Tune) and move.throttle_percent is not None:
            link.wanted = move.throttle_percent
    return Played(now_s, False, tuple(moves), link.percent)


def busy() -> Link:
    """The bar: 200 MB/s dirtied, a link of 128 MiB/s."""
    return Link(memory_mib=512, working_set_mib=400, dirty_mib_s=200e6 / MIB, link_mib_s=128)


def test_a_guest_that_dirties_more_than_the_link_carries_converges() -> None:
    """Without a throttle that fits, such a copy goes on until somebody stops it; by QEMU's own steps it takes a minute."""
    steered, alone = play(busy(), Limits(128)), play(busy(), Limits(128), steered=False)
    assert steered.converged
    assert steered.seconds < 20
    assert alone.seconds > 1.5 * steered.seconds
    assert 50 <= steered.percent <= MOST_PERCENT


def test_an_idle_guest_is_never_throttled() -> None:
    """A guest that costs nothing must not be made slow."""
    played = play(Link(4096, 4096, dirty_mib_s=8, link_mib_s=200), Limits(200))
    assert (played.converged, played.moves, played.percent) == (True, (), 0)


@pytest.mark.parametrize("dirty_mib_s", [10, 60, 120, 250, 500, 1000, 4000])
@pytest.mark.parametrize("working_set_mib", [16, 64, 300, 1024, 4096])
@pytest.mark.parametrize("link_mib_s", [32, 128, 1000])
@pytest.mark.parametrize("downtime_ms", [0, 50, 2000])
def test_every_copy_ends_and_no_guest_is_stopped(dirty_mib_s: int, working_set_mib: int, link_mib_s: int, downtime_ms: int) -> None:
    """Limbo: a copy that neither converges nor is given up. And a throttle above the cap, or one that is lowered or repeated."""
    limits = Limits(link_mib_s, downtime_ms)
    played = play(Link(4096, working_set_mib, dirty_mib_s, link_mib_s), limits, limit_s=1800)
    assert played.converged or isinstance(played.moves[-1], GiveUp)
    asked = [move.throttle_percent for move in played.moves if isinstance(move, Tune) and move.throttle_percent is not None]
    assert asked == sorted(set(asked))
    assert all(0 < percent <= MOST_PERCENT for percent in asked)


def test_throttling_that_is_spent_ends_the_copy_with_its_figures() -> None:
    """A guest kept at a tenth of its speed for nothing; and a refusal that does not say what to change."""
    played = play(Link(2048, 2048, dirty_mib_s=4000, link_mib_s=64), Limits(64, 100), limit_s=3600)
    last = played.moves[-1]
    assert isinstance(last, GiveUp)
    assert "at 10 % of its speed" in last.reason
    assert "the link carries 64 MiB/s" in last.reason
    assert "100 ms are allowed" in last.reason
    assert "--bandwidth" in last.reason
    assert "--max-downtime" in last.reason


TRACE = [  # seconds, iteration, remaining MiB, dirty MiB/s, throttle -> what is done
    (0.5, 1, 448, 0, 0, GoOn()),
    (4.5, 2, 390, 100, 0, Tune(throttle_percent=49)),
    (7.5, 3, 380, 128, 0, GoOn()),  # asked for, not taken yet
    (9.5, 4, 150, 70, 49, Tune(throttle_percent=63)),
    (10.5, 5, 60, 40, 49, GoOn()),  # shrinks by itself now
]


def test_the_steps_of_a_trace() -> None:
    """49 %: what leaves 0.4 of a link of 128 MiB/s to a guest of 100 MiB/s, not a step out of a table."""
    course, limits = Course(Limits(128)), Limits(128)
    for at_s, iteration, remaining, dirty, percent, expected in TRACE:
        seen = MigrationProgress(
            int(at_s * 128 * MIB),
            1 << 40,
            128 * MIB,
            0,
            remaining_bytes=remaining * MIB,
            dirty_bytes_per_s=dirty * MIB,
            iteration=iteration,
            throttle_percent=percent,
        )
        course, move = next_move(course, limits, seen, at_s)
        assert move == expected, at_s


def test_new_limits_are_passed_on_once() -> None:
    """A change that never reaches the hypervisor, or is sent again every half second."""
    course, seen = Course(Limits(16)), Link(512, 512, 8, 16).seen()
    course, move = next_move(course, Limits(64, 500), seen, 1.0)
    assert move == Tune(64, 500, None)
    course, move = next_move(course, Limits(64, 500), replace(seen, bytes_done=MIB), 1.5)
    assert move == GoOn()
    course, move = next_move(course, Limits(0, 500), replace(seen, bytes_done=2 * MIB), 2.0)
    assert move == Tune(bandwidth_mib_s=0)


def test_a_copy_that_stands_still_is_given_up() -> None:
    """A link that is dead without an error would hold both hosts' memory for half an hour."""
    course, limits, seen = Course(Limits()), Limits(), Link(512, 512, 8, 100).seen()
    for at_s in (0.0, 2 * SILENT_S):  # not begun: a large guest's memory is made first
        course, move = next_move(course, limits, seen, at_s - 2 * SILENT_S)
        assert move == GoOn()
    seen = replace(seen, bytes_done=MIB)
    course, move = next_move(course, limits, seen, 1.0)
    assert move == GoOn()
    course, move = next_move(course, limits, seen, SILENT_S)
    assert move == GoOn()
    course, move = next_move(course, limits, seen, SILENT_S + 1.0)
    assert isinstance(move, GiveUp)


def test_the_throttle_follows_the_rates() -> None:
    """More dirt or less link must never ask for less throttle."""
    asked = [throttle_for(dirty * MIB, 100 * MIB) for dirty in range(0, 2000, 10)]
    assert asked == sorted(asked)
    assert asked[0] == 0
    assert asked[-1] == MOST_PERCENT
    assert throttle_for(200 * MIB, 100 * MIB) == 80
    assert throttle_for(200 * MIB, 0) == 0
