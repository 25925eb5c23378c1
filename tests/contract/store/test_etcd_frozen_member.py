"""A frozen member of three holds nobody up: once the others have a leader, every call is answered at once. Real members, SIGSTOP.

Who leads is asked of the members themselves, not through the adapter.
"""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

import pytest

from hostlerlab.etcd import EtcdCluster
from scheduler.adapters.etcd_channels import EtcdConfig
from scheduler.adapters.etcd_store import EtcdStore
from scheduler.ports import Committed, OutcomeUnknown, Put, StoreUnavailable
from tests.contract.store.subject import etcd_cluster, metric

pytestmark = pytest.mark.etcd

FROZEN_S = 8.0
"""Longer than any call's deadline: what goes to the frozen member is lost."""

SOON_S = 1.0
"""Within which every call is answered, once somebody leads."""

CALLERS = 3
"""Writers, and as many readers; each makes one call after the other."""

PACE_S = 0.02

BLIND_S = 4.0
"""A watch of a store from which nobody asks anything: its member is asked after 2 s of quiet. A watch's own silence shows after 10 s."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call, on this process's monotonic clock. `failure`: empty if it was answered."""

    kind: str
    began_s: float
    ended_s: float
    failure: str

    @property
    def lasted_s(self) -> float:
        return self.ended_s - self.began_s


@dataclass(slots=True)
class Load:
    """Callers that never rest, and what became of their calls."""

    store: EtcdStore
    prefix: str
    calls: list[Call] = field(default_factory=list)
    committed: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)

    async def write(self, key: str) -> None:
        for number in count():
            await self._call("write", self._put(key, str(number)))

    async def read(self, key: str) -> None:
        while True:
            await self._call("read", self.store.get(key))

    async def _put(self, key: str, value: str) -> None:
        try:
            assert isinstance(await self.store.txn([], [Put(key, value.encode())]), Committed)
        except (OutcomeUnknown, asyncio.CancelledError):
            self.unknown[key] = self.unknown.get(key, 0) + 1
            raise
        self.committed[key] = self.committed.get(key, 0) + 1

    async def _call(self, kind: str, answer: Awaitable[object]) -> None:
        began_s, failure = time.monotonic(), ""
        try:
            await answer
        except (OutcomeUnknown, StoreUnavailable) as error:
            failure = f"{type(error).__name__}: {error}"
        self.calls.append(Call(kind, began_s, time.monotonic(), failure))
        await asyncio.sleep(PACE_S)

    def slow_after(self, moment_s: float) -> list[Call]:
        """Calls that took longer than SOON_S, of which only what was after the moment counts."""
        return [call for call in self.calls if call.ended_s - max(call.began_s, moment_s) > SOON_S]

    def failed_after(self, moment_s: float) -> list[Call]:
        return [call for call in self.calls if call.began_s > moment_s and call.failure]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """Three members."""
    with etcd_cluster(tmp_path_factory.mktemp("frozen"), 3) as cluster:
        yield cluster


@asynccontextmanager
async def store_of(cluster: EtcdCluster, first: str) -> AsyncIterator[EtcdStore]:
    """A store whose first endpoint is that member: it is the one that an idle store turns to."""
    members = sorted(cluster.members, key=lambda member: member.name != first)
    store = EtcdStore(EtcdConfig(tuple(member.client_url.split("//", 1)[1] for member in members)))
    try:
        yield store
    finally:
        async with asyncio.timeout(5):
            await store.close()


@asynccontextmanager
async def frozen(cluster: EtcdCluster, *names: str) -> AsyncIterator[None]:
    try:
        for name in names:
            cluster.signal_member(name, signal.SIGSTOP)
        yield
    finally:
        for name in names:
            cluster.signal_member(name, signal.SIGCONT)
        for name in names:
            await asyncio.to_thread(cluster.wait_healthy, name)


@asynccontextmanager
async def under_load(load: Load) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        callers = [group.create_task(load.write(f"{load.prefix}/{number}"), name=f"writer {number}") for number in range(CALLERS)]
        callers += [group.create_task(load.read(f"{load.prefix}/{number}"), name=f"reader {number}") for number in range(CALLERS)]
        yield
        for caller in callers:
            caller.cancel()


def leader_among(cluster: EtcdCluster, names: frozenset[str]) -> str:
    """The member of these that leads; empty: none does."""
    asked = (member for member in cluster.members if member.name in names)
    return next((member.name for member in asked if metric(cluster, "etcd_server_is_leader", member.client_url)), "")


async def until_led(cluster: EtcdCluster, names: frozenset[str]) -> str:
    """Who leads now. etcd tells nobody that it has elected: it is asked again and again."""
    while True:
        if leader := await asyncio.to_thread(leader_among, cluster, names):
            return leader


def names_of(cluster: EtcdCluster) -> frozenset[str]:
    return frozenset(member.name for member in cluster.members)


async def assert_written_at_most_once(store: EtcdStore, load: Load) -> None:
    """A write that was sent twice moves its key's version too far; one that was called undone and was not, as well."""
    for key, committed in load.committed.items():
        item = (await store.get(key)).item
        assert item is not None
        assert committed <= item.version <= committed + load.unknown.get(key, 0)


@pytest.mark.parametrize("turned_to", ["the leader", "a follower"])
async def test_frozen_leader_holds_nobody_up_after_the_election(three: EtcdCluster, turned_to: str) -> None:
    """A guest that waits for its handoff's commit stands still for as long as these calls take."""
    everybody = names_of(three)
    leader = await until_led(three, everybody)
    first = leader if turned_to == "the leader" else min(everybody - {leader})
    async with asyncio.timeout(60), store_of(three, first) as store:
        load = Load(store, f"leader/{turned_to}")
        async with under_load(load):
            await asyncio.sleep(0.5)  # a load under way
            async with frozen(three, leader):
                await until_led(three, everybody - {leader})
                elected_s = time.monotonic()
                await asyncio.sleep(FROZEN_S)
                thawed_s = time.monotonic()
            await asyncio.sleep(1.0)  # the load goes on when it is back
        during = [call for call in load.calls if elected_s < call.began_s < thawed_s]
        assert load.slow_after(elected_s) == []
        assert load.failed_after(elected_s + SOON_S) == []
        assert len(during) > 0.5 * 2 * CALLERS * FROZEN_S / SOON_S
        await assert_written_at_most_once(store, load)


@pytest.mark.parametrize("turned_to", ["the frozen one", "another one"])
async def test_frozen_follower_costs_a_call_or_two(three: EtcdCluster, turned_to: str) -> None:
    """Nothing has to be elected: whoever was not with it at that moment notices nothing."""
    everybody = names_of(three)
    leader = await until_led(three, everybody)
    victim, other = sorted(everybody - {leader})
    async with asyncio.timeout(60), store_of(three, victim if turned_to == "the frozen one" else other) as store:
        load = Load(store, f"follower/{turned_to}")
        async with under_load(load):
            await asyncio.sleep(0.5)  # a load under way
            began_s = time.monotonic()
            async with frozen(three, victim):
                await asyncio.sleep(FROZEN_S)
        assert load.slow_after(began_s) == []
        assert len([call for call in load.calls if call.failure]) <= CALLERS
        assert [call for call in load.calls if call.failure and call.kind == "read"] == []
        await assert_written_at_most_once(store, load)


async def test_watch_leaves_a_frozen_leader_of_whom_nothing_else_is_asked(three: EtcdCluster) -> None:
    """Nobody waits for the stream's own silence to be noticed: a replica whose watch is blind decides nothing."""
    everybody = names_of(three)
    leader = await until_led(three, everybody)
    async with asyncio.timeout(60), store_of(three, leader) as store, store_of(three, min(everybody - {leader})) as other:
        start = (await store.get("moved")).revision + 1
        async with aclosing(store.watch("moved", start)) as batches:
            await anext(batches)
            async with frozen(three, leader):
                await until_led(three, everybody - {leader})
                elected_s = time.monotonic()
                while not await committed(other, "moved"):
                    assert time.monotonic() - elected_s < SOON_S
                async with asyncio.timeout(BLIND_S):
                    while not (await anext(batches)).events:
                        pass


async def test_lease_outlives_the_freeze_of_the_leader(three: EtcdCluster) -> None:
    """A replica that leads goes on leading: its renewals leave the frozen member in time."""
    everybody = names_of(three)
    leader = await until_led(three, everybody)
    async with asyncio.timeout(60), store_of(three, leader) as store, asyncio.TaskGroup() as group:
        lease = await store.grant(5)
        renewals = group.create_task(lease.keep_alive(), name="renewals")
        async with frozen(three, leader):
            await asyncio.wait([renewals], timeout=FROZEN_S)
        assert not renewals.done()
        renewals.cancel()


async def committed(store: EtcdStore, key: str) -> bool:
    try:
        return isinstance(await store.txn([], [Put(key, b"")]), Committed)
    except (OutcomeUnknown, StoreUnavailable):
        return False


async def test_frozen_cluster_is_said_within_two_seconds_and_found_again(three: EtcdCluster) -> None:
    """What was under way is not known; what comes after it was certainly not sent: nobody reads back what cannot have happened."""
    everybody = names_of(three)
    async with asyncio.timeout(60), store_of(three, min(everybody)) as store:
        assert await committed(store, "all-frozen")
        before = (await store.get("all-frozen")).item
        assert before is not None
        async with frozen(three, *everybody):
            with pytest.raises(OutcomeUnknown):
                await store.txn([], [Put("all-frozen", b"")])
            for _ in range(2):
                for call in (store.get("all-frozen"), store.txn([], [Put("all-frozen", b"")]), store.status()):
                    began_s = time.monotonic()
                    with pytest.raises(StoreUnavailable):
                        await call
                    assert time.monotonic() - began_s < 2.2
        async with asyncio.timeout(5):
            while not await committed(store, "all-frozen"):
                pass
        after = (await store.get("all-frozen")).item
        assert after is not None
        assert after.version - before.version <= 2
