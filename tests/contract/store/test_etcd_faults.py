"""What the etcd adapter says when members die, hang, or the network loses an answer. Real members, real faults."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager

import pytest

from hostler.internal.etcd.v1 import wire_pb2 as wire
from hostler.server.clock import SystemClock
from hostlerlab.etcd import EtcdCluster
from scheduler.adapters.etcd_channels import EtcdConfig
from scheduler.adapters.etcd_connection import EtcdConnection
from scheduler.adapters.etcd_store import EtcdStore
from scheduler.adapters.etcd_watch import WatchCursor, answers_are_ordered
from scheduler.adapters.etcd_wire import WATCH, prefix_range
from scheduler.ports import Committed, KeyPut, KeyValue, LeaseLost, OutcomeUnknown, Put, Store, StoreUnavailable
from tests.contract.store.cut_proxy import CutProxy
from tests.contract.store.subject import etcd_cluster, metric

pytestmark = pytest.mark.etcd

PATIENCE_S = 15.0
LEAVE_FROZEN_S = 8.0
"""An election and some reconnecting; the channel's own keepalive would need 10 to 15 s."""


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """Three members."""
    with etcd_cluster(tmp_path_factory.mktemp("three"), 3) as cluster:
        yield cluster


@asynccontextmanager
async def store_of(*endpoints: str, interval_s: float = 0.3) -> AsyncIterator[EtcdStore]:
    store = EtcdStore(EtcdConfig(endpoints), progress_interval_s=interval_s)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def frozen(cluster: EtcdCluster, name: str = "e1") -> AsyncIterator[None]:
    """The member is stopped: its sockets stay open, nothing answers."""
    cluster.signal_member(name, signal.SIGSTOP)
    try:
        yield
    finally:
        cluster.signal_member(name, signal.SIGCONT)
        await asyncio.to_thread(cluster.wait_healthy, name)


async def version(store: Store, key: str) -> int:
    item = (await store.get(key)).item
    return item.version if item is not None else 0


async def until_written(store: Store, key: str, from_revision: int) -> None:
    async with aclosing(store.watch(key, from_revision)) as batches:
        while not (await anext(batches)).events:
            pass


# ---- one member


async def test_unreachable_etcd_is_said_within_two_seconds() -> None:
    """Nothing was sent, so a write may say so too: StoreUnavailable, not OutcomeUnknown."""
    async with store_of("127.0.0.1:1") as store:
        limit_s = 2.0
        for call in (store.get("a"), store.list(""), store.txn([], [Put("a", b"")]), store.grant(5), store.status()):
            began = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await call
            assert time.monotonic() - began < limit_s
            limit_s = 0.5  # it is known to be away, so nobody waits for it


async def test_lost_reply_is_an_unknown_outcome_and_the_write_happened_once(etcd: EtcdCluster) -> None:
    """A silent second sending would move the version by two: a compare-and-swap would then lose against itself."""
    async with (
        asyncio.timeout(PATIENCE_S),
        CutProxy(etcd.endpoints[0]) as proxy,
        store_of(*etcd.endpoints) as direct,
        store_of(proxy.endpoint) as store,
    ):
        first = await store.txn([], [Put("lost-reply", b"1")])
        proxy.mute()
        async with asyncio.TaskGroup() as group:
            write = group.create_task(_outcome(store, Put("lost-reply", b"2")), name="write")
            await until_written(direct, "lost-reply", first.revision + 1)
            proxy.cut()
        assert isinstance(write.result(), OutcomeUnknown)
        assert await version(direct, "lost-reply") == 2
        await until_read(store, "lost-reply", 2)


async def until_read(store: Store, key: str, *wanted: int) -> None:
    """The store connects again by itself, and no late repetition has raised the version."""
    while True:
        try:
            assert await version(store, key) in wanted
        except StoreUnavailable:
            await asyncio.sleep(0.01)  # the channel's own pause before it connects again
        else:
            return


async def _outcome(store: Store, put: Put) -> Exception | Committed:
    try:
        result = await store.txn([], [put])
    except (OutcomeUnknown, StoreUnavailable) as error:
        return error
    assert isinstance(result, Committed)
    return result


async def test_frozen_etcd_fails_calls_within_their_deadlines(etcd: EtcdCluster) -> None:
    """Connected but mute: a read did not happen, a write under way may have. What comes after it is not sent, and so never happens."""
    async with asyncio.timeout(PATIENCE_S), store_of(*etcd.endpoints) as store:
        await store.txn([], [Put("frozen", b"1")])
        async with frozen(etcd):
            began = time.monotonic()
            with pytest.raises(OutcomeUnknown):
                await store.txn([], [Put("frozen", b"2")])
            assert time.monotonic() - began < 3.5
            for call in (store.get("frozen"), store.txn([], [Put("frozen", b"3")])):
                began = time.monotonic()
                with pytest.raises(StoreUnavailable):
                    await call
                assert time.monotonic() - began < 2.2
        await until_read(store, "frozen", 1, 2)


async def test_lease_is_lost_locally_before_the_server_can_say_so(etcd: EtcdCluster) -> None:
    """The owner must stop at the last renewal's sending plus the TTL, although nobody tells it anything."""
    async with asyncio.timeout(PATIENCE_S), store_of(*etcd.endpoints) as store:
        lease = await store.grant(2)
        async with frozen(etcd):
            began = time.monotonic()
            with pytest.raises(LeaseLost):
                await lease.keep_alive()
            assert time.monotonic() - began <= 2.3
            began = time.monotonic()
            await lease.revoke()
            assert time.monotonic() - began < 1.5


async def test_write_that_crosses_the_space_quota_is_not_called_undone(tmp_path_factory: pytest.TempPathFactory) -> None:
    """etcd may have applied what it answers "database space exceeded" to: to report it as not done would leave a claim nobody knows of."""
    with etcd_cluster(tmp_path_factory.mktemp("quota"), 1, extra=("--quota-backend-bytes", str(4 << 20))) as cluster:
        async with asyncio.timeout(PATIENCE_S), store_of(*cluster.endpoints) as store:
            number = 0
            while isinstance(outcome := await _outcome(store, Put(f"full/{number}", b"x" * 1_000_000)), Committed):
                number += 1
            assert isinstance(outcome, OutcomeUnknown)
            assert "space exceeded" in str(outcome)


async def test_requested_progress_is_not_proof_on_this_server(etcd: EtcdCluster) -> None:
    """An answer to a progress request overtakes a backlog on old servers; the cursor must hand over every event all the same."""
    clock = SystemClock()
    connection = EtcdConnection(EtcdConfig(etcd.endpoints), clock)
    async with asyncio.timeout(PATIENCE_S), store_of(*etcd.endpoints) as store:
        start = (await store.get("overtaken")).revision + 1
        for i in range(200):
            await store.txn([], [Put(f"overtaken/{i}", b"")])
        ordered = answers_are_ordered((await store.status()).version)
        cursor = WatchCursor(start)
        found: list[KeyValue] = []
        member = await connection.until_ready(clock.monotonic_s() + 1)
        with connection.stream(member, WATCH, _impatient("overtaken/", start)) as stream:
            while len(found) < 200:
                response = await stream.read()
                batch = cursor.take(response, answers_ordered=ordered)
                found += [event.item for event in batch.events if isinstance(event, KeyPut)] if batch else []
    await connection.close()
    assert [item.key for item in found] == [f"overtaken/{i}" for i in range(200)]


async def _impatient(prefix: str, start: int) -> AsyncIterator[wire.WatchRequest]:
    first, end = prefix_range(prefix)
    yield wire.WatchRequest(create_request=wire.WatchCreateRequest(key=first, range_end=end, start_revision=start))
    yield wire.WatchRequest(progress_request=wire.WatchProgressRequest())


async def test_servers_own_notifications_move_a_quiet_watch_on(tmp_path_factory: pytest.TempPathFactory) -> None:
    """How a watch that sees no events stays ahead of compaction on a server whose answers are no proof."""
    notify = ("--experimental-watch-progress-notify-interval", "200ms")
    with etcd_cluster(tmp_path_factory.mktemp("notify"), 1, extra=notify) as cluster:
        async with asyncio.timeout(PATIENCE_S), store_of(*cluster.endpoints) as store, aclosing(store.watch("quiet/", 1)) as batches:
            await anext(batches)
            written = await _outcome(store, Put("busy", b""))
            assert isinstance(written, Committed)
            while (batch := await anext(batches)).revision < written.revision:
                assert not batch.events


# ---- three members


async def test_watch_sees_every_acknowledged_write_once_while_members_are_killed(three: EtcdCluster) -> None:
    """Each member is killed in turn under writing: an acknowledged write that the watch does not hand over is a claim the mirror never saw."""
    acknowledged: dict[str, int] = {}
    seen: list[KeyValue] = []
    stop = asyncio.Event()
    progress = asyncio.Condition()

    async def write(store: Store) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            outcome = await _outcome(store, Put(f"rotation/{number}", b""))
            if isinstance(outcome, Committed):
                acknowledged[f"rotation/{number}"] = outcome.revision
                async with progress:
                    progress.notify_all()
            else:
                await asyncio.sleep(0.01)  # not a flood of refused calls while nobody leads
        await until_committed(store, "rotation/end")

    async def watch(store: Store, start: int) -> None:
        async with aclosing(store.watch("rotation/", start)) as batches:
            async for batch in batches:
                seen.extend(event.item for event in batch.events if isinstance(event, KeyPut))
                if seen and seen[-1].key == "rotation/end":
                    return

    async def more(count: int) -> None:
        """`count` acknowledged writes later."""
        goal = len(acknowledged) + count
        async with progress:
            await progress.wait_for(lambda: len(acknowledged) >= goal)

    async with asyncio.timeout(60), store_of(*three.endpoints) as writer, store_of(*three.endpoints) as reader:
        start = (await reader.get("rotation/")).revision + 1
        async with asyncio.TaskGroup() as group:
            group.create_task(write(writer), name="writer")
            group.create_task(watch(reader, start), name="watch")
            for member in three.members:
                await more(150)
                three.kill_member(member.name)
                await more(150)
                three.start_member(member.name)
                await asyncio.to_thread(three.wait_healthy, member.name)
            stop.set()
    revisions = [item.mod_revision for item in seen]
    assert revisions == sorted(set(revisions))
    handed_over = {item.key: item.mod_revision for item in seen}
    assert len(handed_over) == len(seen)
    assert {key: handed_over.get(key) for key in acknowledged} == acknowledged


async def until_committed(store: Store, key: str) -> None:
    while True:
        if isinstance(await _outcome(store, Put(key, b"")), Committed):
            return
        await asyncio.sleep(0.01)  # while nobody leads


async def test_frozen_member_costs_reads_half_a_deadline_at_most(three: EtcdCluster) -> None:
    """One hung member of three must not make a third of the reads fail."""
    async with asyncio.timeout(PATIENCE_S), store_of(*three.endpoints) as store:
        await store.get("a")
        async with frozen(three, await follower(three)):
            for _ in range(4):
                await store.get("a")


async def test_watch_leaves_a_frozen_member(three: EtcdCluster) -> None:
    """A stream to a member that hangs stays open and silent for ever; progress that does not come gives it away."""
    async with asyncio.timeout(30), store_of(*three.endpoints) as store:
        start = (await store.get("hung")).revision + 1
        before = await asyncio.to_thread(watchers, three)
        async with aclosing(store.watch("hung", start)) as batches:
            await anext(batches)
            after = await asyncio.to_thread(watchers, three)
            (serving,) = (name for name in after if after[name] > before[name])
            async with frozen(three, serving), asyncio.timeout(LEAVE_FROZEN_S):
                await until_committed(store, "hung")
                while not (await anext(batches)).events:
                    pass


def watchers(cluster: EtcdCluster) -> dict[str, int]:
    """Watches open at each member."""
    return {member.name: metric(cluster, "etcd_debugging_mvcc_watcher_total", member.client_url) for member in cluster.members}


async def follower(cluster: EtcdCluster) -> str:
    """A member that does not lead, so that freezing it costs no election."""
    for member in cluster.members:
        if not await asyncio.to_thread(metric, cluster, "etcd_server_is_leader", member.client_url):
            return member.name
    raise AssertionError("every member leads")
