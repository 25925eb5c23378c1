"""What every store must do, whoever keeps the data: the engine is built on these sentences."""

import asyncio
from contextlib import aclosing

import pytest

from scheduler.ports import (
    MAX_TXN_BYTES,
    MAX_TXN_OPS,
    Committed,
    Delete,
    KeyDeleted,
    KeyEvent,
    KeyPut,
    LeaseLost,
    Put,
    Refused,
    RevisionCompacted,
    SameCreation,
    Store,
    StoreUnavailable,
    Unchanged,
    WatchBatch,
    Write,
)
from tests.contract.store.subject import Subject

PATIENCE_S = 10.0
"""For anything that has to come; a wait that is not meant to end is a failure."""


async def put(store: Store, key: str, value: bytes = b"v") -> int:
    """Write one key; the revision."""
    result = await store.txn([], [Put(key, value)])
    assert isinstance(result, Committed)
    return result.revision


async def events(store: Store, prefix: str, from_revision: int, count: int) -> list[KeyEvent]:
    """The first `count` events or more, whole batches."""
    found: list[KeyEvent] = []
    async with asyncio.timeout(PATIENCE_S), aclosing(store.watch(prefix, from_revision)) as batches:
        async for batch in batches:
            found += batch.events
            if len(found) >= count:
                break
    return found


def revision_of(event: KeyEvent) -> int:
    return event.item.mod_revision if isinstance(event, KeyPut) else event.mod_revision


# ---- reading and writing


async def test_absent_key_reads_as_none(subject: Subject) -> None:
    """A missing key is an answer, not an error, and tells the store's revision."""
    got = await subject.store.get(subject.key("a"))
    assert got.item is None
    assert got.revision >= 1


async def test_key_tells_its_history(subject: Subject) -> None:
    """Creation, last change and version are what guards are made of."""
    first = await put(subject.store, subject.key("a"), b"1")
    second = await put(subject.store, subject.key("a"), b"2")
    item = (await subject.store.get(subject.key("a"))).item
    assert item is not None
    assert (item.key, item.value, item.version, item.lease_id) == (subject.key("a"), b"2", 2, 0)
    assert (item.create_revision, item.mod_revision) == (first, second)


async def test_transaction_writes_all_at_one_revision(subject: Subject) -> None:
    """A half-written create would be an orphan."""
    result = await subject.store.txn([], [Put(subject.key("a"), b""), Put(subject.key("b"), b"")])
    listing = await subject.store.list(subject.prefix)
    assert isinstance(result, Committed)
    assert [item.mod_revision for item in listing.items] == [result.revision] * 2


async def test_guard_that_fails_refuses_everything_and_shows_what_stands_there(subject: Subject) -> None:
    """A refused writer decides again from `current`, without another round trip; none of its writes may be done."""
    await put(subject.store, subject.key("held"), b"mine")
    result = await subject.store.txn(
        [Unchanged(subject.key("free"), 0), Unchanged(subject.key("held"), 0), SameCreation(subject.key("free"), 0)],
        [Put(subject.key("free"), b""), Delete(subject.key("held"))],
    )
    assert isinstance(result, Refused)
    assert [item and item.value for item in result.current] == [None, b"mine", None]
    assert [item.key for item in (await subject.store.list(subject.prefix)).items] == [subject.key("held")]


async def test_unchanged_guard_holds_for_that_revision_alone(subject: Subject) -> None:
    """Two deciders that read the same state: the second must lose."""
    revision = await put(subject.store, subject.key("a"))
    guard = Unchanged(subject.key("a"), revision)
    assert isinstance(await subject.store.txn([guard], [Put(subject.key("a"), b"first")]), Committed)
    second = await subject.store.txn([guard], [Put(subject.key("a"), b"second")])
    assert isinstance(second, Refused)
    assert second.current[0] is not None
    assert second.current[0].value == b"first"


async def test_creation_guard_outlives_changes_but_not_a_new_creation(subject: Subject) -> None:
    """A leader's term: writing to the key keeps it, deleting and creating it ends it."""
    term = SameCreation(subject.key("leader"), await put(subject.store, subject.key("leader")))
    await put(subject.store, subject.key("leader"), b"again")
    assert isinstance(await subject.store.txn([term], []), Committed)
    await subject.store.txn([], [Delete(subject.key("leader"))])
    await put(subject.store, subject.key("leader"))
    assert isinstance(await subject.store.txn([term], []), Refused)


async def test_deleting_an_absent_key_changes_nothing(subject: Subject) -> None:
    """Cleaning up twice must not disturb anybody's revision."""
    before = (await subject.store.get(subject.key("a"))).revision
    assert await subject.store.txn([Unchanged(subject.key("a"), 0)], [Delete(subject.key("a"))]) == Committed(before)


async def test_transaction_at_the_limits_is_accepted(subject: Subject) -> None:
    """The writer fills transactions to these limits; a server that took less would stop it."""
    count = MAX_TXN_OPS
    keys = [f"{subject.key('k')}{i:03}" for i in range(count)]
    room = MAX_TXN_BYTES - sum(3 * len(key) for key in keys)
    result = await subject.store.txn([Unchanged(key, 0) for key in keys], [Put(key, b"x" * (room // count)) for key in keys])
    assert isinstance(result, Committed)
    again = await subject.store.txn([Unchanged(key, 0) for key in keys], [])
    assert isinstance(again, Refused)
    assert [item and item.key for item in again.current] == keys


@pytest.mark.parametrize("case", ["compares", "writes", "bytes", "twice", "empty"])
async def test_transaction_over_a_limit_is_a_mistake_of_the_caller(subject: Subject, case: str) -> None:
    """It must fail before it is sent, the same with every store, not as an error of the server."""
    many = range(MAX_TXN_OPS + 1)
    compares = {"compares": [Unchanged(f"{i}", 0) for i in many]}.get(case, [])
    over: dict[str, list[Write]] = {
        "writes": [Put(f"{i}", b"") for i in many],
        "bytes": [Put(subject.key("a"), b"x" * MAX_TXN_BYTES)],
        "twice": [Put(subject.key("a"), b""), Delete(subject.key("a"))],
        "empty": [Put("", b"")],
    }
    with pytest.raises(ValueError, match=r"limit|twice|empty"):
        await subject.store.txn(compares, over.get(case, []))


async def test_concurrent_increments_lose_nothing(subject: Subject) -> None:
    """Compare and swap: 8 tasks on two clients, each adding 10, end at exactly 80."""

    async def add(store: Store) -> None:
        for _ in range(10):
            item = (await store.get(subject.key("n"))).item
            while True:
                revision, value = (item.mod_revision, int(item.value)) if item else (0, 0)
                result = await store.txn([Unchanged(subject.key("n"), revision)], [Put(subject.key("n"), b"%d" % (value + 1))])
                if isinstance(result, Committed):
                    break
                item = result.current[0]

    other = subject.connect()
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        for i in range(8):
            group.create_task(add(other if i % 2 else subject.store), name=f"adder {i}")
    final = (await subject.store.get(subject.key("n"))).item
    assert final is not None
    assert (final.value, final.version) == (b"80", 80)


# ---- listing


async def test_listing_has_the_prefix_alone_in_key_order(subject: Subject) -> None:
    """A key next to the prefix is somebody else's."""
    names = ["p/", "p/a", "p/b/c", "p/ü", "p/\uffff", "p", "p0", "o/z"]
    for name in names:
        await put(subject.store, subject.key(name))
    listing = await subject.store.list(subject.key("p/"))
    assert [item.key for item in listing.items] == [subject.key(name) for name in ["p/", "p/a", "p/b/c", "p/ü", "p/\uffff"]]


async def test_long_listing_is_one_moment_although_it_comes_in_pages(subject: Subject) -> None:
    """A token moves between the first and the last of 2,502 keys all the time: a listing must show it exactly once."""
    names = [f"{subject.key('k')}{i:04}" for i in range(2500)]
    for at in range(0, len(names), 100):
        await subject.store.txn([], [Put(name, b"x" * 100) for name in names[at : at + 100]])
    ends = [subject.key("a-token"), subject.key("z-token")]
    await put(subject.store, ends[0])

    async def move() -> None:
        here, there = ends
        while True:
            await subject.store.txn([], [Delete(here), Put(there, b"")])
            here, there = there, here

    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        mover = group.create_task(move(), name="mover")
        for _ in range(20):
            listing = await subject.store.list(subject.prefix)
            assert len(listing.items) == 2501
            assert sum(item.key in ends for item in listing.items) == 1
            assert max(item.mod_revision for item in listing.items) <= listing.revision
        mover.cancel()


async def test_listing_at_a_revision_shows_that_moment(subject: Subject) -> None:
    """What a replica resynchronises from: keys changed, deleted and created since then are as they were."""
    await put(subject.store, subject.key("changed"), b"old")
    revision = await put(subject.store, subject.key("deleted"))
    await put(subject.store, subject.key("changed"), b"new")
    await put(subject.store, subject.key("created"))
    await subject.store.txn([], [Delete(subject.key("deleted"))])
    listing = await subject.store.list(subject.prefix, revision=revision)
    assert listing.revision == revision
    assert [(item.key, item.value) for item in listing.items] == [(subject.key("changed"), b"old"), (subject.key("deleted"), b"v")]


async def test_listing_at_a_revision_the_store_does_not_have(subject: Subject) -> None:
    """Compacted, or of another life of the cluster: the caller must list anew, and be told so."""
    first = await put(subject.store, subject.key("a"))
    last = await put(subject.store, subject.key("a"))
    subject.compact(last)
    for revision in (first, last + 1_000_000):
        with pytest.raises(RevisionCompacted):
            await subject.store.list(subject.prefix, revision=revision)
    assert len((await subject.store.list(subject.prefix, revision=last)).items) == 1


# ---- watching


async def test_watch_tells_every_change_in_order_from_its_revision_on(subject: Subject) -> None:
    """The revision asked for is included, what was before it is not, other prefixes are not."""
    await put(subject.store, subject.key("w/a"), b"before")
    start = await put(subject.store, subject.key("w/a"), b"1")
    await put(subject.store, subject.key("other"))
    await subject.store.txn([], [Put(subject.key("w/b"), b"2"), Delete(subject.key("w/a"))])
    found = await events(subject.store, subject.key("w/"), start, 3)
    assert [(event.item.value if isinstance(event, KeyPut) else "deleted", revision_of(event)) for event in found] == [
        (b"1", start),
        (b"2", start + 2),
        ("deleted", start + 2),
    ]


async def test_watch_sees_what_is_written_while_it_runs(subject: Subject) -> None:
    """History first, then live, without a gap or a repetition where they meet."""
    start = await put(subject.store, subject.key("000"))

    async def write() -> None:
        for i in range(1, 200):
            await put(subject.store, f"{subject.prefix}{i:03}")

    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        group.create_task(write(), name="writer")
        found = await events(subject.store, subject.prefix, start, 200)
    assert [event.item.key for event in found if isinstance(event, KeyPut)] == [f"{subject.prefix}{i:03}" for i in range(200)]


async def test_watch_hands_over_whole_revisions(subject: Subject) -> None:
    """A reader that stops between batches must never hold half of a transaction, however large the backlog is (7 MiB here)."""
    value = b"x" * 10_000
    start = 0
    for _ in range(6):
        result = await subject.store.txn([], [Put(f"{subject.prefix}{i}", value) for i in range(MAX_TXN_OPS)])
        start = start or result.revision
    seen: list[int] = []
    async with asyncio.timeout(PATIENCE_S), aclosing(subject.store.watch(subject.prefix, start)) as batches:
        async for batch in batches:
            revisions = [revision_of(event) for event in batch.events]
            assert all(revisions.count(revision) == MAX_TXN_OPS for revision in set(revisions))
            assert not revisions or batch.revision == revisions[-1]
            seen += revisions
            if len(seen) == 6 * MAX_TXN_OPS:
                break
    assert seen == sorted(seen)


async def test_watch_resumes_where_another_stopped(subject: Subject) -> None:
    """batch.revision + 1 is the place to go on from: nothing is skipped, nothing is repeated."""
    start = await put(subject.store, subject.key("0"))
    for i in range(1, 10):
        await put(subject.store, subject.key(f"{i}"))
    found: list[KeyEvent] = []
    while len(found) < 10:
        async with asyncio.timeout(PATIENCE_S), aclosing(subject.store.watch(subject.prefix, start)) as batches:
            batch = await anext(batches)
        found += batch.events
        start = batch.revision + 1
    assert [event.item.key for event in found if isinstance(event, KeyPut)] == [subject.key(f"{i}") for i in range(10)]


async def test_watch_from_a_compacted_revision_says_so(subject: Subject) -> None:
    """Silence would be a mirror that is wrong for ever."""
    first = await put(subject.store, subject.key("a"))
    await put(subject.store, subject.key("a"))
    last = await put(subject.store, subject.key("a"))
    subject.compact(last)
    async with asyncio.timeout(PATIENCE_S), aclosing(subject.store.watch(subject.prefix, first)) as batches:
        with pytest.raises(RevisionCompacted) as caught:
            await anext(batches)
    assert caught.value.compact_revision == last
    assert [revision_of(event) for event in await events(subject.store, subject.prefix, last, 1)] == [last]


async def test_watch_begins_at_a_revision(subject: Subject) -> None:
    """ "From now" would depend on when the server looks."""
    with pytest.raises(ValueError, match="revision 1"):
        subject.store.watch(subject.prefix, 0)


async def test_quiet_watch_shows_progress(subject: Subject) -> None:
    """How a reader knows that its watch lives; progress never goes back, and never claims less than the reader said it had."""
    start = await put(subject.store, subject.key("a")) + 1
    progress: list[WatchBatch] = []
    async with asyncio.timeout(PATIENCE_S), aclosing(subject.store.watch(subject.prefix, start)) as batches:
        async for batch in batches:
            progress.append(batch)
            if len(progress) == 3:
                break
    assert not any(batch.events for batch in progress)
    assert start - 1 <= progress[0].revision <= progress[1].revision <= progress[2].revision


async def test_progress_never_overtakes_events(subject: Subject) -> None:
    """Whoever resumes after a progress batch would lose what came later with an older revision."""

    async def write() -> None:
        for i in range(300):
            await put(subject.store, subject.key(f"{i}"))

    start = await put(subject.store, subject.key("first"))
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        group.create_task(write(), name="writer")
        async with aclosing(subject.store.watch(subject.prefix, start)) as batches:
            reached, count = start - 1, 0
            while count < 301:
                batch = await anext(batches)
                assert all(revision_of(event) > reached for event in batch.events)
                assert batch.revision >= reached
                reached = batch.revision
                count += len(batch.events)


async def test_many_watches_share_one_store(subject: Subject) -> None:
    """A replica has dozens of them on one channel."""
    start = (await subject.store.get(subject.key("a"))).revision + 1
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        tasks = [group.create_task(events(subject.store, subject.key(f"{i}/"), start, 2), name=f"watch {i}") for i in range(50)]
        for n in range(2):
            await subject.store.txn([], [Put(subject.key(f"{i}/{n}"), b"") for i in range(50)])
    assert all(len(task.result()) == 2 for task in tasks)


async def test_watch_that_was_left_is_gone_from_the_server(subject: Subject) -> None:
    """Streams that nobody reads would pile up in the server's memory: closed, cancelled, and left by an exception."""
    before = subject.watches()
    start = await put(subject.store, subject.key("a"))

    async def read_for_ever() -> None:
        async with aclosing(subject.store.watch(subject.prefix, start)) as batches:
            async for _ in batches:
                started.set()

    started = asyncio.Event()
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        reader = group.create_task(read_for_ever(), name="reader")
        await started.wait()
        assert subject.watches() == before + 1
        reader.cancel()
    await events(subject.store, subject.prefix, start, 1)
    async with asyncio.timeout(PATIENCE_S):
        while await asyncio.to_thread(subject.watches) != before:
            await subject.store.get(subject.key("a"))


async def test_closed_store_answers_nothing_and_ends_its_watches(subject: Subject) -> None:
    """A watch that fell silent, or a reader taken for cancelled, would outlive the shutdown."""
    store = subject.connect()
    start = await put(store, subject.key("a"))
    ready = asyncio.Event()

    async def read_for_ever() -> None:
        async with aclosing(store.watch(subject.prefix, start)) as batches:
            async for _ in batches:
                ready.set()

    async def close_under_a_reader() -> None:
        async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
            group.create_task(read_for_ever(), name="reader")
            await ready.wait()
            await store.close()
            await store.close()

    with pytest.raises(ExceptionGroup) as caught:
        await close_under_a_reader()
    assert caught.group_contains(StoreUnavailable)
    with pytest.raises(StoreUnavailable):
        await store.get(subject.key("a"))


# ---- leases


async def test_lease_that_is_not_renewed_takes_its_keys_with_it(subject: Subject) -> None:
    """A dead leader's key must go away by itself; keys of nobody's lease stay."""
    lease = await subject.store.grant(1)
    start = await put(subject.store, subject.key("kept"))
    await subject.store.txn([], [Put(subject.key(name), b"", lease.lease_id) for name in ("b", "a")])
    found = (await events(subject.store, subject.prefix, start + 2, 2))[-2:]
    assert [event.key for event in found if isinstance(event, KeyDeleted)] == [subject.key("a"), subject.key("b")]
    assert len({revision_of(event) for event in found}) == 1
    assert [item.key for item in (await subject.store.list(subject.prefix)).items] == [subject.key("kept")]
    with pytest.raises(LeaseLost):
        await lease.keep_alive()


async def test_renewed_lease_outlives_its_ttl(subject: Subject) -> None:
    """keep_alive is what keeps a leader in office."""
    lease = await subject.store.grant(1)
    await subject.store.txn([], [Put(subject.key("a"), b"", lease.lease_id)])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3.5):
            await lease.keep_alive()
    item = (await subject.store.get(subject.key("a"))).item
    assert item is not None
    assert item.lease_id == lease.lease_id
    await lease.revoke()


async def test_revoked_lease_is_gone_at_once(subject: Subject) -> None:
    """A leader that stops in order leaves no gap of a TTL behind; again is no error."""
    lease = await subject.store.grant(60)
    await subject.store.txn([], [Put(subject.key("a"), b"", lease.lease_id)])
    assert await lease.revoke()
    assert (await subject.store.get(subject.key("a"))).item is None
    assert await lease.revoke()


async def test_key_written_without_its_lease_is_free_of_it(subject: Subject) -> None:
    """The last write decides to which lease a key belongs."""
    lease = await subject.store.grant(60)
    await subject.store.txn([], [Put(subject.key("a"), b"", lease.lease_id)])
    await put(subject.store, subject.key("a"))
    await lease.revoke()
    assert (await subject.store.get(subject.key("a"))).item is not None


async def test_write_under_a_lease_that_is_gone_does_not_happen(subject: Subject) -> None:
    """A leader whose lease ended must learn it from its write, and must have written nothing."""
    lease = await subject.store.grant(60)
    await lease.revoke()
    with pytest.raises(LeaseLost):
        await subject.store.txn([], [Put(subject.key("a"), b"", lease.lease_id), Put(subject.key("b"), b"")])
    assert (await subject.store.list(subject.prefix)).items == ()


async def test_status_names_the_cluster(subject: Subject) -> None:
    """Tokens carry the cluster's id, so it must be stable and the same for every client."""
    status, again = await subject.store.status(), await subject.connect().status()
    assert (status.version, status.cluster_id) == (again.version, again.cluster_id)
    assert len(status.cluster_id) == 16
    assert int(status.cluster_id, 16)
