"""What has changed lately, so that lists can be paged at one revision and watches resumed without a gap: a bounded ring of changes, in memory.

Revisions count within one `history`, which begins when the agent starts; tokens carry it. Who asks for more than the ring remembers, or for another
history, is told to list again (OUT_OF_RANGE): a change is never skipped silently.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from hostler.errors import OutOfRange, Reason

T = TypeVar("T")

RING_CHANGES = 8192
"""A few hundred bytes each. A host with a hundred VMs makes some hundred changes when its hypervisor is lost and found."""

BOOKMARK_S = 10.0
"""How often a quiet watch says how far it has come: a client that reconnects resumes from there."""


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """One thing before and after; None: it was not, or is no more, there."""

    revision: int
    name: str
    before: T | None
    now: T | None


class Ring(Generic[T]):
    """Things of one kind by name, as they are, and how they came to be so."""

    def __init__(self, history: str, first: Mapping[str, T] | None = None, capacity: int = RING_CHANGES) -> None:
        self.history = history
        self.revision = 1
        self._begin = self.revision
        self._things: dict[str, T] = dict(first or {})
        self._changes: deque[Change[T]] = deque()
        self._capacity = capacity
        self._moved = asyncio.Event()

    @property
    def things(self) -> Mapping[str, T]:
        return self._things

    def put(self, name: str, thing: T | None) -> None:
        """It is so now; no change if it was so already."""
        before = self._things.get(name)
        if before == thing:
            return
        self.revision += 1
        self._changes.append(Change(self.revision, name, before, thing))
        if len(self._changes) > self._capacity:
            self._begin = self._changes.popleft().revision
        if thing is None:
            del self._things[name]
        else:
            self._things[name] = thing
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    def put_all(self, things: Mapping[str, T]) -> None:
        """Everything there is now."""
        for name in sorted({*self._things, *things}):
            self.put(name, things.get(name))

    def changes_after(self, revision: int) -> list[Change[T]]:
        """Oldest first. Raises OutOfRange."""
        self._check(revision)
        newer = list(itertools.takewhile(lambda change: change.revision > revision, reversed(self._changes)))
        return newer[::-1]

    def at(self, revision: int) -> dict[str, T]:
        """Everything as it was then. Raises OutOfRange."""
        things = dict(self._things)
        for change in reversed(self.changes_after(revision)):
            if change.before is None:
                things.pop(change.name, None)
            else:
                things[change.name] = change.before
        return things

    async def follow(self, revision: int) -> AsyncIterator[Change[T] | None]:
        """Every change after `revision`, for ever; None when it was quiet for a while (everything up to `self.revision` has been told)."""
        while True:
            for change in self.changes_after(revision):
                revision = change.revision
                yield change
            if not await self.moves_on(revision, BOOKMARK_S):
                yield None

    async def moves_on(self, revision: int, timeout_s: float) -> bool:
        """Wait until there is something after `revision`; False after the timeout."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.revision <= revision:
                    await self._moved.wait()
        except TimeoutError:
            return False
        return True

    def _check(self, revision: int) -> None:
        if revision > self.revision:
            raise OutOfRange(Reason.REVISION_UNKNOWN, "This token is from the future of this host.", "List again.")
        if revision < self._begin:
            raise OutOfRange(Reason.REVISION_COMPACTED, "The changes since then are not known any more.", "List again.")
