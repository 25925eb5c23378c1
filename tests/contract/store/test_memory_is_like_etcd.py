"""The store in memory against the real one, on random transactions: same answers, same keys, same events, revision for revision."""

import asyncio
import random
from contextlib import aclosing
from dataclasses import replace

import pytest

from hostlerlab.etcd import EtcdCluster
from scheduler.adapters.etcd_channels import EtcdConfig
from scheduler.adapters.etcd_store import EtcdStore
from scheduler.adapters.memory_store import MemoryServer
from scheduler.ports import (
    Committed,
    Compare,
    Delete,
    KeyDeleted,
    KeyEvent,
    KeyPut,
    KeyValue,
    Put,
    Refused,
    SameCreation,
    Store,
    TxnResult,
    Unchanged,
    Write,
)

KEYS = tuple(f"like-etcd/{name}" for name in ("a", "b", "b/c", "d"))
STEPS = 400
Step = tuple[list[Compare], list[Write]]


def shifted(item: KeyValue | None, by: int) -> KeyValue | None:
    return None if item is None else replace(item, create_revision=item.create_revision - by, mod_revision=item.mod_revision - by)


def shifted_event(event: KeyEvent, by: int) -> KeyEvent:
    if isinstance(event, KeyDeleted):
        return KeyDeleted(event.key, event.mod_revision - by)
    item = shifted(event.item, by)
    assert item is not None
    return KeyPut(item)


def shifted_result(result: TxnResult, by: int) -> TxnResult:
    if isinstance(result, Committed):
        return Committed(result.revision - by)
    return Refused(result.revision - by, tuple(shifted(item, by) for item in result.current))


def step(chance: random.Random, known: dict[str, KeyValue], by: int) -> Step:
    """Guards that mostly hold, on what the last listing showed; writes of distinct keys."""

    def guard(key: str) -> Compare:
        item = known.get(key)
        if chance.random() < 0.5:
            return Unchanged(key, item.mod_revision + by if item and chance.random() < 0.9 else 0)
        return SameCreation(key, item.create_revision + by if item and chance.random() < 0.9 else 0)

    compares = [guard(key) for key in chance.sample(KEYS, chance.randint(0, 2))]
    writes: list[Write] = [
        Put(key, b"%d" % chance.randint(0, 9)) if chance.random() < 0.6 else Delete(key)
        for key in chance.sample(KEYS, chance.randint(0, 3))
    ]
    return compares, writes


async def history(store: Store, start: int, last: int) -> list[KeyEvent]:
    """Every event until the marker that was written at `last`."""
    found: list[KeyEvent] = []
    async with asyncio.timeout(10), aclosing(store.watch("like-etcd/", start)) as batches:
        async for batch in batches:
            found += batch.events
            if batch.events and batch.revision >= last:
                break
    return found


@pytest.mark.etcd
@pytest.mark.parametrize("seed", range(3))
async def test_random_transactions_have_the_same_outcome(etcd: EtcdCluster, seed: int) -> None:
    """A difference would make the simulation and `hostler dev` prove something about another store."""
    chance = random.Random(seed)
    real, fake = EtcdStore(EtcdConfig(etcd.endpoints)), MemoryServer().connect()
    await real.txn([], [Delete(key) for key in (*KEYS, "like-etcd/end")])
    start = (await real.get("like-etcd/")).revision
    by = start - (await fake.get("like-etcd/")).revision
    for _ in range(STEPS):
        known = {item.key: item for item in (await fake.list("like-etcd/")).items}
        fork = random.Random(chance.random())
        state = fork.getstate()
        ours = step(fork, known, 0)
        fork.setstate(state)
        theirs = step(fork, known, by)
        assert await fake.txn(*ours) == shifted_result(await real.txn(*theirs), by)
        listing, wanted = await fake.list("like-etcd/"), await real.list("like-etcd/")
        assert (listing.revision, listing.items) == (wanted.revision - by, tuple(shifted(item, by) for item in wanted.items))
    end = await real.txn([], [Put("like-etcd/end", b"")])
    await fake.txn([], [Put("like-etcd/end", b"")])
    seen = await history(fake, start - by + 1, end.revision - by)
    assert seen == [shifted_event(event, by) for event in await history(real, start + 1, end.revision)]
    assert len(seen) > STEPS / 4
    for store in (real, fake):
        await store.close()
