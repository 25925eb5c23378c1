"""The store port in one process: for `hostler dev`, the simulation and tests. It passes the contract suite that etcd passes.

`MemoryServer` is the cluster (data and clock), `MemoryStore` one client of it, as a scheduler replica has one; so a replica's store can be
closed, or made to fail, alone. Every call suspends once, as a real one would, so that tasks interleave. Leases end on the injected clock:
whoever calls next, or watches, sees them ended. `Fault` is what the network does to a client: a reply can be lost *after* the write.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from enum import StrEnum
from typing import TypeVar

from hostler.server.clock import Clock, SystemClock
from scheduler.adapters.memory_keyspace import RETAINED_REVISIONS, Keyspace
from scheduler.adapters.txn_limits import check_txn
from scheduler.ports import (
    PROGRESS_INTERVAL_S,
    Compare,
    Got,
    KeyEvent,
    KeyPut,
    Lease,
    LeaseLost,
    Listing,
    OutcomeUnknown,
    StoreStatus,
    StoreUnavailable,
    TxnResult,
    WatchBatch,
    Write,
)

Result = TypeVar("Result")

RENEWALS_PER_TTL = 3
VERSION = "memory"
CLUSTER_ID = "0000000000000001"


class Fault(StrEnum):
    """What happens to one call of a client. A read fails with StoreUnavailable in every case."""

    UNREACHABLE = "UNREACHABLE"
    """Nothing was sent: StoreUnavailable."""
    REQUEST_LOST = "REQUEST_LOST"
    """The write did not happen, and the caller cannot know: OutcomeUnknown."""
    REPLY_LOST = "REPLY_LOST"
    """The write happened, and the caller cannot know: OutcomeUnknown."""


Faults = Callable[[str], Fault | None]
"""Asked before each call with its name (get, list, txn, grant, renew, revoke, status); None: it works."""


def no_faults(_call: str) -> None:
    """A network that works."""


class MemoryServer:
    """What all clients share."""

    def __init__(self, clock: Clock | None = None, *, cluster_id: str = CLUSTER_ID, retained_revisions: int = RETAINED_REVISIONS) -> None:
        self.clock: Clock = clock or SystemClock()
        self.cluster_id = cluster_id
        self.watches = 0
        self._keyspace = Keyspace(retained_revisions)
        self._waiting: dict[asyncio.Future[None], str] = {}
        self._told_revision = 0

    def keyspace(self) -> Keyspace:
        """The data as they are now: leases whose time has come are ended first."""
        self._keyspace.expire(self.clock.monotonic_s())
        return self._keyspace

    def connect(self, *, faults: Faults = no_faults, progress_interval_s: float = PROGRESS_INTERVAL_S) -> "MemoryStore":
        """A new client."""
        return MemoryStore(self, faults, progress_interval_s)

    def compact(self, revision: int) -> None:
        """Raises ValueError for a revision already compacted or not reached."""
        self.keyspace().compact(revision)
        self.wake()

    def wake(self) -> None:
        """Let everybody who waits look again."""
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    def written(self) -> None:
        """Let those look again who wait for a key that has changed since the last call."""
        keys = self._keyspace.keys_changed(self._told_revision)
        self._told_revision = self._keyspace.revision
        for waiting, prefix in self._waiting.items():
            if not waiting.done() and any(key.startswith(prefix) for key in keys):
                waiting.set_result(None)

    async def wait(self, prefix: str, seen_revision: int, limit_s: float) -> None:
        """Until something under `prefix` may be newer than `seen_revision`, a lease may have ended, or `limit_s` has passed."""
        keyspace = self.keyspace()
        if keyspace.revision > seen_revision:
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[woken] = prefix
        expiry_s = keyspace.next_expiry_s()
        tick_s = limit_s if expiry_s is None else min(limit_s, expiry_s - self.clock.monotonic_s())
        try:
            async with asyncio.TaskGroup() as group:
                tick = group.create_task(self._tick(woken, tick_s), name="memory store tick")
                await woken
                tick.cancel()
        finally:
            self._waiting.pop(woken, None)

    async def _tick(self, woken: asyncio.Future[None], tick_s: float) -> None:
        await self.clock.sleep(tick_s)
        if not woken.done():
            woken.set_result(None)


class MemoryStore:
    """One client of a MemoryServer. `faults` may be set at any time."""

    def __init__(self, server: MemoryServer, faults: Faults, progress_interval_s: float) -> None:
        self.faults = faults
        self.server = server
        self._progress_interval_s = progress_interval_s
        self._closed = False

    async def get(self, key: str) -> Got:
        keyspace = await self._read("get")
        return Got(keyspace.revision, keyspace.get(key))

    async def list(self, prefix: str, *, revision: int = 0) -> Listing:
        keyspace = await self._read("list")
        return Listing(revision or keyspace.revision, keyspace.list(prefix, revision))

    async def txn(self, compares: Sequence[Compare], writes: Sequence[Write]) -> TxnResult:
        check_txn(compares, writes)
        return await self._write("txn", lambda keyspace: keyspace.txn(compares, writes))

    def watch(self, prefix: str, from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        if from_revision < 1:
            raise ValueError(f"a watch begins at revision 1 or later, not {from_revision}")
        return self._watch(prefix, from_revision)

    async def _watch(self, prefix: str, next_revision: int) -> AsyncGenerator[WatchBatch, None]:
        self.server.watches += 1
        try:
            progress_s = self._now_s + self._progress_interval_s
            while True:
                self._check_open()
                keyspace = self.server.keyspace()
                seen_revision = keyspace.revision
                if events := keyspace.events(prefix, next_revision):
                    next_revision = _revision(events[-1]) + 1
                    yield WatchBatch(next_revision - 1, events)
                elif self._now_s >= progress_s:
                    progress_s = self._now_s + self._progress_interval_s
                    next_revision = max(next_revision, seen_revision + 1)
                    yield WatchBatch(next_revision - 1, ())
                else:
                    next_revision = max(next_revision, seen_revision + 1)  # nothing of this prefix up to there: not looked at again
                    await self.server.wait(prefix, seen_revision, progress_s - self._now_s)
        finally:
            self.server.watches -= 1

    async def grant(self, ttl_s: int) -> Lease:
        lease_id = await self._write("grant", lambda keyspace: keyspace.grant(ttl_s, self._now_s))
        return MemoryLease(self, lease_id, ttl_s)

    async def renew(self, lease_id: int) -> bool:
        """For the lease alone. False: it is gone."""
        return await self._write("renew", lambda keyspace: keyspace.renew(lease_id, self._now_s))

    async def revoke(self, lease_id: int) -> None:
        """For the lease alone."""
        await self._write("revoke", lambda keyspace: keyspace.revoke(lease_id))

    async def status(self) -> StoreStatus:
        keyspace = await self._read("status")
        return StoreStatus(VERSION, self.server.cluster_id, keyspace.size_bytes(), is_etcd=False)

    async def close(self) -> None:
        self._closed = True
        self.server.wake()

    @property
    def _now_s(self) -> float:
        return self.server.clock.monotonic_s()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")

    async def _read(self, call: str) -> Keyspace:
        await asyncio.sleep(0)
        self._check_open()
        if (fault := self.faults(call)) is not None:
            raise StoreUnavailable(fault.value)
        return self.server.keyspace()

    async def _write(self, call: str, act: Callable[[Keyspace], Result]) -> Result:
        await asyncio.sleep(0)
        self._check_open()
        fault = self.faults(call)
        if fault is Fault.UNREACHABLE:
            raise StoreUnavailable(fault.value)
        if fault is Fault.REQUEST_LOST:
            raise OutcomeUnknown(fault.value)
        result = act(self.server.keyspace())
        if call == "grant":
            self.server.wake()  # a watcher looks again when the next lease ends, which may be this one now
        else:
            self.server.written()
        if fault is Fault.REPLY_LOST:
            raise OutcomeUnknown(fault.value)
        await asyncio.sleep(0)
        return result


class MemoryLease:
    """As on etcd: the local deadline is the time of the last successful renewal plus the TTL."""

    def __init__(self, store: MemoryStore, lease_id: int, ttl_s: int) -> None:
        self._store = store
        self._clock = store.server.clock
        self._lease_id = lease_id
        self._ttl_s = ttl_s
        self._ends_s = self._clock.monotonic_s() + ttl_s

    @property
    def lease_id(self) -> int:
        return self._lease_id

    async def keep_alive(self) -> None:
        while True:
            await self._clock.sleep(self._ttl_s / RENEWALS_PER_TTL)
            sent_s = self._clock.monotonic_s()
            if sent_s >= self._ends_s:
                raise LeaseLost("not renewed before its local deadline")
            try:
                known = await self._store.renew(self._lease_id)
            except (StoreUnavailable, OutcomeUnknown):
                continue
            if not known:
                raise LeaseLost("the store does not know the lease any more")
            self._ends_s = sent_s + self._ttl_s

    async def revoke(self) -> bool:
        try:
            await self._store.revoke(self._lease_id)
        except (StoreUnavailable, OutcomeUnknown):
            return False
        return True


def _revision(event: KeyEvent) -> int:
    return event.item.mod_revision if isinstance(event, KeyPut) else event.mod_revision
