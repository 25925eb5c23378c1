"""A replica's copy of the state, when the member of the store that serves its watch hangs and the others answer."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

import pytest

from scheduler.adapters.memory_store import MemoryServer, MemoryStore, no_faults
from scheduler.core.records import TICK
from scheduler.engine.mirror import BEHIND_S, WATCHES_TRIED, Mirror
from scheduler.ports import PROGRESS_INTERVAL_S, Committed, Put, WatchBatch


class SilentWatches(MemoryStore):
    """The first `silent` watches bring nothing, as those of a member that is frozen."""

    silent = 0
    opened = 0

    async def watch(self, prefix: str, from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        self.opened += 1
        if self.opened <= self.silent:
            await asyncio.Event().wait()
        async for batch in super().watch(prefix, from_revision):
            yield batch


@pytest.fixture
async def store() -> AsyncIterator[SilentWatches]:
    store = SilentWatches(MemoryServer(), no_faults, PROGRESS_INTERVAL_S)
    yield store
    await store.close()


async def ticked(store: SilentWatches) -> int:
    written = await store.txn([], [Put(TICK, b"")])
    assert isinstance(written, Committed)
    return written.revision


async def test_what_a_watch_does_not_bring_comes_from_another(store: SilentWatches) -> None:
    """A replica that is blind for as long as a frozen member takes to be noticed, while a frozen guest waits for its commit."""
    store.silent = 2
    mirror = Mirror(store)
    async with asyncio.timeout(BEHIND_S * WATCHES_TRIED), asyncio.TaskGroup() as group:
        running = group.create_task(mirror.run(), name="mirror")
        await mirror.ready.wait()
        begun = mirror.state.revision
        for _ in range(3):
            revision = await ticked(store)
            assert (await mirror.refresh()).revision >= revision
        running.cancel()
    assert store.opened == 3
    assert mirror.changes_after(begun) == (), "the watches of clients would have to begin anew"


async def test_a_watch_that_brings_everything_is_kept(store: SilentWatches) -> None:
    """A copy that is listed anew at every write."""
    mirror = Mirror(store)
    async with asyncio.timeout(BEHIND_S * WATCHES_TRIED), asyncio.TaskGroup() as group:
        running = group.create_task(mirror.run(), name="mirror")
        await mirror.ready.wait()
        for _ in range(20):
            await mirror.await_revision(await ticked(store))
        running.cancel()
    assert store.opened == 1
