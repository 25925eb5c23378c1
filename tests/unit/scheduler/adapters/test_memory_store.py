"""What the store in memory adds to the contract: time that a test owns, faults, and history that does not grow for ever."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import pytest

from hostler.server.manual_clock import ManualClock
from scheduler.adapters.memory_keyspace import Keyspace
from scheduler.adapters.memory_store import Fault, MemoryServer, MemoryStore
from scheduler.ports import Committed, Delete, KeyDeleted, LeaseLost, OutcomeUnknown, Put, RevisionCompacted, StoreUnavailable

PATIENCE_S = 5.0


async def test_lease_ends_when_the_clock_says_so_and_not_before() -> None:
    """The simulation's hours must not need real ones."""
    clock = ManualClock()
    store = MemoryServer(clock).connect()
    lease = await store.grant(10)
    await store.txn([], [Put("a", b"", lease.lease_id)])
    clock.advance(9.9)
    assert (await store.get("a")).item is not None
    clock.advance(0.1)
    assert (await store.get("a")).item is None


async def test_watch_alone_sees_a_lease_end() -> None:
    """Nobody else has to call the store for a dead leader to be noticed."""
    clock = ManualClock()
    store = MemoryServer(clock).connect(progress_interval_s=60)
    lease = await store.grant(10)
    await store.txn([], [Put("a", b"", lease.lease_id)])
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group, aclosing(store.watch("a", 3)) as batches:
        first = group.create_task(anext(batches), name="watch")
        await clock.until_sleeping(1)
        clock.advance(10)
        batch = await first
    assert batch.events == (KeyDeleted("a", 3),)


async def test_keep_alive_renews_on_the_clock_and_gives_up_at_its_local_deadline() -> None:
    """Ten TTLs with renewals, then a network that fails: lost exactly one TTL after the last renewal."""
    clock = ManualClock()
    store = MemoryServer(clock).connect()
    lease = await store.grant(9)
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        keeper = group.create_task(outcome(lease.keep_alive), name="keeper")
        for _ in range(30):
            await clock.until_sleeping(1)
            clock.advance(3)
        await clock.until_sleeping(1)
        store.faults = lambda _call: Fault.UNREACHABLE
        for _ in range(3):
            assert not keeper.done()
            clock.advance(3)
            if clock.monotonic_s() < 99:
                await clock.until_sleeping(1)
        assert isinstance(await keeper, LeaseLost)


async def outcome(call: Callable[[], Awaitable[object]]) -> object:
    try:
        return await call()
    except (LeaseLost, StoreUnavailable, OutcomeUnknown) as error:
        return error


@pytest.mark.parametrize(
    ("fault", "error", "written"),
    [(Fault.UNREACHABLE, StoreUnavailable, 0), (Fault.REQUEST_LOST, OutcomeUnknown, 0), (Fault.REPLY_LOST, OutcomeUnknown, 1)],
)
async def test_faults_are_told_apart_as_on_a_network(fault: Fault, error: type[Exception], written: int) -> None:
    """A lost reply is a write that happened; the engine's handling of it is tested with this."""
    server = MemoryServer()
    store = server.connect(faults=lambda _call: fault)
    with pytest.raises(error):
        await store.txn([], [Put("a", b"")])
    with pytest.raises(StoreUnavailable):
        await store.get("a")
    assert len((await server.connect().list("")).items) == written


async def test_closing_one_client_leaves_the_others() -> None:
    """Replicas share the server in a simulation."""
    server = MemoryServer()
    first, second = server.connect(), server.connect()
    await first.close()
    assert isinstance(await second.txn([], [Put("a", b"")]), Committed)


async def test_unwatched_store_has_no_tasks_left() -> None:
    """A watch's timer must end with the watch."""
    server = MemoryServer()
    store: MemoryStore = server.connect()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), aclosing(store.watch("a", 1)) as batches:
            await anext(batches)
    assert server.watches == 0
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "memory store tick"]


def test_history_is_bounded() -> None:
    """A simulation of days writes millions of revisions; what is alive stays, what was superseded is compacted."""
    keyspace = Keyspace(retained_revisions=100)
    keyspace.txn([], [Put("kept", b"")])
    for i in range(1000):
        keyspace.txn([], [Put("busy", b"%d" % i)])
    assert keyspace.get("kept") is not None
    assert keyspace.revision - keyspace.compacted_revision <= 200
    assert len(keyspace.list("", keyspace.compacted_revision)) == 2
    with pytest.raises(RevisionCompacted):
        keyspace.events("", 1)
    assert len(keyspace.events("", keyspace.compacted_revision)) <= 201


def test_deleted_keys_are_forgotten_with_their_history() -> None:
    """Every operation and VM has a key of its own; those long gone must not fill the memory."""
    keyspace = Keyspace(retained_revisions=10)
    for i in range(1000):
        keyspace.txn([], [Put(f"{i}", b"")])
        keyspace.txn([], [Delete(f"{i}")])
    assert keyspace.list("") == ()
    assert len(keyspace._versions) == len(keyspace._keys) <= 20
