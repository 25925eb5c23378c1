"""This replica's copy of the cluster's state: listed once, then kept by one watch, and listed again whenever the watch cannot go on. A watch that
does not bring what the store is known to have is opened anew: the member that serves it may hang while the others answer.

Readers: `state` (a decision's input), `refresh` (be at least as new as the store is now), `await_revision`, and `changes` (a bounded ring, from which
client watches are served, so that a thousand dashboards cost the store one watch).
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import structlog

from hostler.errors import OutOfRange, Reason, Unavailable
from scheduler.core.records import (
    STATE,
    TICK,
    ClaimRecord,
    FlavorRecord,
    LedgerRecord,
    NodeRecord,
    OperationRecord,
    OwedRemoval,
    Record,
    VMRecord,
    VolumeRecord,
)
from scheduler.core.state import ClusterState, Kept
from scheduler.engine.codec import decode, kind_and_id
from scheduler.ports import KeyPut, RevisionCompacted, Store, StoreUnavailable, WatchBatch

RING_SIZE = 10_000
"""Changes kept for watchers that resume: minutes of a busy cluster, some MiB of memory."""

BEHIND_S = 0.5
"""A watch brings what was written within milliseconds. One that does not bring for so long what was read or written is given up: by itself it would
be found silent only after seconds, and a frozen guest waits for the commit of its handoff meanwhile."""

WATCHES_TRIED = 6
"""Of whichever members come in turn; 3 s, an election, and the store is not reachable for this replica."""

RELIST_PAUSE_S = 1.0
"""Between two tries to list when the store does not answer."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Change:
    """One key's change: the record as it is now, None when it is gone."""

    revision: int
    kind: str
    name: str
    record: Record | None


class Mirror:
    """`run` keeps it; until the first listing `ready` is not set and reads raise Unavailable."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.state = ClusterState()
        self.ready = asyncio.Event()
        self._ring: deque[Change] = deque(maxlen=RING_SIZE)
        self._ring_begins_after = 0
        self._waiting: dict[asyncio.Future[None], int] = {}
        self._on_change: list[Callable[[Change], None]] = []
        self._following: asyncio.Timeout | None = None
        self._opened_s = 0.0

    def on_change(self, listener: Callable[[Change], None]) -> None:
        """Call `listener` (quick, synchronous) for every change, a relisting included."""
        self._on_change.append(listener)

    async def run(self) -> None:
        while True:
            try:
                await self._list()
                while True:
                    await self._follow()
            except RevisionCompacted:
                log.warning("watch fell behind the compaction, listing again", revision=self.state.revision)
            except StoreUnavailable as error:
                log.warning("store does not answer", error=str(error))
                await asyncio.sleep(RELIST_PAUSE_S)

    async def refresh(self) -> ClusterState:
        """The state, at least as new as the store is now. Raises Unavailable."""
        try:
            got = await self._store.get(TICK)
        except StoreUnavailable as error:
            raise _store_away() from error
        await self.await_revision(got.item.mod_revision if got.item is not None else 0)
        return self.state

    async def await_revision(self, revision: int) -> None:
        """Until the state is at `revision`, one that wrote to it, or newer. Raises Unavailable."""
        if self.state.revision >= revision and self.ready.is_set():
            return
        for _ in range(WATCHES_TRIED):
            if await self._reaches(revision, BEHIND_S):
                return
            self._doubt()
        raise _store_away()

    def _doubt(self) -> None:
        """The watch is given up, unless it brings something first; one that was opened just now gets its time."""
        following = self._following
        if following is not None and not following.expired() and following.when() is None:
            following.reschedule(max(asyncio.get_running_loop().time(), self._opened_s + BEHIND_S))

    def _trust(self) -> None:
        """It has brought something."""
        if self._following is not None and not self._following.expired():
            self._following.reschedule(None)

    async def _reaches(self, revision: int, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self._arrival(revision)
        except TimeoutError:
            return False
        return True

    async def _arrival(self, revision: int) -> None:
        """Until the state is listed, and at `revision` or newer."""
        while not self._has(revision):
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting[waiting] = revision
            try:
                await waiting
            finally:
                self._waiting.pop(waiting, None)

    def _has(self, revision: int) -> bool:
        return self.state.revision >= revision and self.ready.is_set()

    def changes_after(self, revision: int) -> tuple[Change, ...]:
        """Every change after `revision`. Raises OutOfRange if that is not known any more, or not yet."""
        if revision < self._ring_begins_after:
            raise OutOfRange(Reason.REVISION_COMPACTED, "What happened after this token is not known any more.", "List again.")
        return tuple(change for change in self._ring if change.revision > revision)

    async def await_change(self, revision: int, timeout_s: float) -> None:
        """Until the state is newer than `revision`, or the timeout has passed."""
        await self._reaches(revision + 1, timeout_s)

    # ---- the copy

    async def _list(self) -> None:
        listing = await self._store.list(STATE)
        before = self.state
        fresh = ClusterState(health=before.health)
        for item in listing.items:
            put_record(fresh, item.key, item.mod_revision, decode(item.key, item.value))
        fresh.revision = listing.revision
        gone = _names(before) - _names(fresh)
        self.state = fresh
        self._ring.clear()
        self._ring_begins_after = listing.revision
        for kind, name in sorted(gone):
            self._tell(Change(listing.revision, kind, name, None))
        for item in listing.items:
            if item.key == TICK:
                continue
            kind, name = kind_and_id(item.key)
            self._tell(Change(item.mod_revision, kind, name, decode(item.key, item.value)))
        self.ready.set()
        self._notify()

    async def _follow(self) -> None:
        """Returns when the watch is known to be behind."""
        self._opened_s = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(None) as self._following, aclosing(self._store.watch(STATE, self.state.revision + 1)) as batches:
                async for batch in batches:
                    self._trust()
                    self._take(batch)
                    self._notify()
        except TimeoutError:
            log.warning("the store is ahead of its watch, opening another", revision=self.state.revision)
        finally:
            self._following = None

    def _take(self, batch: WatchBatch) -> None:
        for event in batch.events:
            if isinstance(event, KeyPut):
                key, revision, record = event.item.key, event.item.mod_revision, decode(event.item.key, event.item.value)
            else:
                key, revision, record = event.key, event.mod_revision, None
            if key == TICK:
                continue
            put_record(self.state, key, revision, record)
            change = Change(revision, *kind_and_id(key), record)
            if len(self._ring) == RING_SIZE:
                self._ring_begins_after = self._ring[0].revision
            self._ring.append(change)
            self._tell(change)
        self.state.revision = max(self.state.revision, batch.revision)

    def _tell(self, change: Change) -> None:
        for listener in self._on_change:
            listener(change)

    def _notify(self) -> None:
        """Wake whoever has what he waits for, and nobody else: every write comes by here."""
        for waiting, revision in self._waiting.items():
            if not waiting.done() and self._has(revision):
                waiting.set_result(None)


def put_record(state: ClusterState, key: str, revision: int, record: Record | None) -> None:
    """Write one key's record into the state, or take it out."""
    kind, name = kind_and_id(key)
    match kind:
        case "node":
            _set(state.nodes, name, record, revision, NodeRecord)
            state.touch(name)
        case "ledger":
            _set(state.ledgers, name, record, revision, LedgerRecord)
            state.touch(name)
        case "pool":
            _set(state.shared_pools, name, record, revision, LedgerRecord)
        case "claim":
            node_id, _, vm_id = name.partition("/")
            _set(state.claims, (node_id, vm_id), record, revision, ClaimRecord)
        case "vm":
            _set_vm(state, name, record, revision)
        case "volume":
            _set(state.volumes, name, record, revision, VolumeRecord)
        case "flavor":
            _set(state.flavors, name, record, revision, FlavorRecord)
        case "op":
            _set_operation(state, name, record, revision)
        case "owed":
            node_id, _, volume_uid = name.partition("/")
            _set(state.owed, (node_id, volume_uid), record, revision, OwedRemoval)
        case "tick":
            pass
        case _:
            log.info("key of an unknown kind is ignored", key=key)


def kept_record(state: ClusterState, key: str) -> Kept[Any] | None:
    """What the state has under a key."""
    kind, name = kind_and_id(key)
    first, _, second = name.partition("/")
    tables: dict[str, Mapping[Any, Kept[Any]]] = {
        "node": state.nodes,
        "ledger": state.ledgers,
        "pool": state.shared_pools,
        "claim": state.claims,
        "vm": state.vms,
        "volume": state.volumes,
        "flavor": state.flavors,
        "op": state.operations,
        "owed": state.owed,
    }
    return tables[kind].get((first, second) if kind in ("claim", "owed") else name)


def _set_vm(state: ClusterState, vm_id: str, record: Record | None, revision: int) -> None:
    before = state.vms.get(vm_id)
    if before is not None:
        state.vm_ids_by_uid.pop(before.record.uid, None)
    _set(state.vms, vm_id, record, revision, VMRecord)
    if isinstance(record, VMRecord):
        state.vm_ids_by_uid[record.uid] = vm_id


def _set_operation(state: ClusterState, operation_id: str, record: Record | None, revision: int) -> None:
    _set(state.operations, operation_id, record, revision, OperationRecord)
    if isinstance(record, OperationRecord) and not record.done:
        state.open_operations[operation_id] = None
    else:
        state.open_operations.pop(operation_id, None)


def _set(table: dict, key: object, record: Record | None, revision: int, kind: type) -> None:  # type: ignore[type-arg]
    if record is None:
        table.pop(key, None)
    elif isinstance(record, kind):
        table[key] = Kept(record, revision)
    else:
        raise TypeError(f"{key} holds a {type(record).__name__}")


def _names(state: ClusterState) -> set[tuple[str, str]]:
    return {
        *(("node", n) for n in state.nodes),
        *(("ledger", n) for n in state.ledgers),
        *(("pool", n) for n in state.shared_pools),
        *(("claim", f"{n}/{v}") for n, v in state.claims),
        *(("vm", n) for n in state.vms),
        *(("volume", n) for n in state.volumes),
        *(("flavor", n) for n in state.flavors),
        *(("op", n) for n in state.operations),
        *(("owed", f"{n}/{u}") for n, u in state.owed),
    }


def _store_away() -> Unavailable:
    return Unavailable(Reason.STORE_UNAVAILABLE, "The cluster's store does not answer this replica.", "Try again.", retry_after_s=1.0)
