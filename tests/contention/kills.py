"""When which replica is killed: drawn from a seed, by how many creates have been answered, so that each blow falls while there is something to
decide, most of them early, when there is something to win, and on a replica that has creates in hand."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from tests.contention.clients import CREATE, Tally
from tests.contention.replicas import Killed, Replicas

KILLS = 7
LAST_KILL = 600
"""Answered creates, of a thousand: a group of creates is accepted at once, and while victims are awaited the others go on answering."""
LATE = 80
"""From so many accepted ones on a victim need not have accepted one since it was started: the slots would be gone before it has."""
LEADERS = 3
"""So many of them, the first among them, are of whoever leads then, if anybody does; the others of anybody."""


@dataclass(frozen=True, slots=True)
class Blow:
    """One kill: once so many are answered, of whoever leads, or of the replica that `choice` (0 to 1) points to among those that serve."""

    after_answered: int
    leader: bool
    choice: float


@dataclass(frozen=True, slots=True)
class Hit:
    """A blow that fell: on whom, how many creates were under way there, and how many had been accepted anywhere."""

    killed: Killed
    creates: int
    accepted: int


def none(seed: int) -> tuple[Blow, ...]:
    """Nobody is killed: all replicas race all the time."""
    return ()


def schedule(seed: int) -> tuple[Blow, ...]:
    """The same for the same seed; what it hits depends on the moment."""
    random = Random(seed)
    moments = sorted(round(LAST_KILL ** random.random()) for _ in range(KILLS))
    leaders = {0, *random.sample(range(1, KILLS), LEADERS - 1)}
    return tuple(Blow(moment, index in leaders, random.random()) for index, moment in enumerate(moments))


async def strike(blows: Sequence[Blow], replicas: Replicas, tally: Tally, hits: list[Hit]) -> None:
    """Carry out the schedule, noting the hits; returns when every replica that was killed serves again. The next blow does not wait for that.

    A victim has creates under way and (but see LATE) has accepted one since it was started: it is hit while it decides, not while it begins. Raises
    AssertionError if everything was answered before a blow could fall.
    """
    before: Counter[str] = Counter()

    def deciding() -> list[str]:
        return [name for name in replicas.serving() if tally.accepted_by[name] > before[name] or tally.accepted >= LATE]

    async with asyncio.TaskGroup() as group:
        for blow in blows:
            await tally.until_answered(blow.after_answered)
            leads = await replicas.leader()
            busy = await tally.until_busy(deciding)
            assert busy, f"all creates were answered before the blow after {blow.after_answered} of them"
            wanted = blow.leader and leads is not None and leads.replica in busy
            victim = leads.replica if wanted and leads is not None else busy[int(blow.choice * len(busy))]
            creates, accepted, before[victim] = tally.flying[CREATE, victim], tally.accepted, tally.accepted_by[victim]
            hits.append(Hit(await replicas.kill(victim, leads), creates, accepted))
            group.create_task(replicas.back(victim), name=f"restart of {victim}")
