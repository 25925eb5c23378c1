"""The data of the store in memory: every version of every key, the log of revisions, compaction and leases, with etcd's semantics.

Synchronous and without a clock: time comes in as an argument, so the same calls give the same revisions. Leases end in `expire`, one revision
per lease, keys in order, like etcd's. History is kept for RETAINED_REVISIONS, as auto-compaction by revision would keep it.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from scheduler.ports import (
    Committed,
    Compare,
    Delete,
    KeyDeleted,
    KeyEvent,
    KeyPut,
    KeyValue,
    LeaseLost,
    Put,
    Refused,
    RevisionCompacted,
    SameCreation,
    TxnResult,
    Write,
)

RETAINED_REVISIONS = 10_000
"""At least this many are kept, at most twice as many: what a long simulation may use of memory."""

BATCH_REVISIONS = 1000
"""In one answer to a watcher; etcd's own limit."""


@dataclass(slots=True)
class _Lease:
    ttl_s: int
    ends_s: float
    keys: set[str] = field(default_factory=set)


class Keyspace:
    """Begins at revision 1, as an empty etcd does."""

    def __init__(self, retained_revisions: int = RETAINED_REVISIONS) -> None:
        self.revision = 1
        self.compacted_revision = 0
        self._retained_revisions = retained_revisions
        self._keys: list[str] = []
        self._versions: dict[str, list[KeyEvent]] = {}
        self._log: list[tuple[KeyEvent, ...]] = [()]
        self._log_begins = 1
        self._leases: dict[int, _Lease] = {}
        self._next_lease_id = 1

    # ---- reading

    def get(self, key: str, revision: int = 0) -> KeyValue | None:
        """The key at a revision (0: now). Raises RevisionCompacted."""
        if not revision:
            versions = self._versions.get(key)
            return _value(versions[-1]) if versions else None
        at = self._known(revision)
        return next((_value(event) for event in reversed(self._versions.get(key, ())) if _revision(event) <= at), None)

    def list(self, prefix: str, revision: int = 0) -> tuple[KeyValue, ...]:
        """Keys under a prefix, in the order of their UTF-8 bytes. Raises RevisionCompacted."""
        at = self._known(revision)
        items = (self.get(key, at if revision else 0) for key in self._under(prefix))
        return tuple(item for item in items if item is not None)

    def events(self, prefix: str, from_revision: int) -> tuple[KeyEvent, ...]:
        """The events of a prefix in the next BATCH_REVISIONS revisions that have any, whole revisions only. Raises RevisionCompacted."""
        if from_revision < self.compacted_revision:
            raise RevisionCompacted(self.compacted_revision)
        found: list[KeyEvent] = []
        revisions = 0
        for events in self._log[max(from_revision - self._log_begins, 0) :]:
            mine = [event for event in events if _key(event).startswith(prefix)]
            found += mine
            revisions += bool(mine)
            if revisions == BATCH_REVISIONS:
                break
        return tuple(found)

    def keys_changed(self, after_revision: int) -> set[str]:
        """The keys written or deleted after a revision, as far as that is still known."""
        return {_key(event) for events in self._log[max(after_revision + 1 - self._log_begins, 0) :] for event in events}

    def _under(self, prefix: str) -> Iterator[str]:
        for i in range(bisect_left(self._keys, _order(prefix), key=_order), len(self._keys)):
            if not self._keys[i].startswith(prefix):
                return
            yield self._keys[i]

    def _known(self, revision: int) -> int:
        if revision and not self.compacted_revision <= revision <= self.revision:
            raise RevisionCompacted(self.compacted_revision if revision < self.compacted_revision else 0)
        return revision or self.revision

    # ---- writing

    def txn(self, compares: Sequence[Compare], writes: Sequence[Write]) -> TxnResult:
        """All or nothing. Raises LeaseLost."""
        current = tuple(self.get(compare.key) for compare in compares)
        if not all(_holds(compare, item) for compare, item in zip(compares, current, strict=True)):
            return Refused(self.revision, current)
        if any(isinstance(write, Put) and write.lease_id and write.lease_id not in self._leases for write in writes):
            raise LeaseLost("the lease of a write is gone")
        self._append(writes)
        return Committed(self.revision)

    def compact(self, revision: int) -> None:
        """Forget what was superseded before `revision`. Raises ValueError for one already compacted or not reached."""
        if not self.compacted_revision < revision <= self.revision:
            raise ValueError(f"revision {revision} is not between {self.compacted_revision} and {self.revision}")
        self.compacted_revision = revision
        del self._log[: revision - self._log_begins]
        self._log_begins = revision
        for key in tuple(self._keys):
            self._compact_key(key)

    def _compact_key(self, key: str) -> None:
        versions = self._versions[key]
        newest = max((i for i, event in enumerate(versions) if _revision(event) <= self.compacted_revision), default=0)
        keep = versions[newest:]
        if keep and isinstance(keep[0], KeyDeleted) and _revision(keep[0]) <= self.compacted_revision:
            keep = keep[1:]
        if keep:
            self._versions[key] = keep
        else:
            del self._versions[key]
            del self._keys[bisect_left(self._keys, _order(key), key=_order)]

    def _append(self, writes: Sequence[Write]) -> None:
        """One revision for all writes that change something; none if nothing does."""
        revision = self.revision + 1
        events = tuple(event for write in writes if (event := self._event(write, revision)) is not None)
        if not events:
            return
        for event in events:
            self._store(event)
        self.revision = revision
        self._log.append(events)
        if self.revision - self.compacted_revision > 2 * self._retained_revisions:
            self.compact(self.revision - self._retained_revisions)

    def _event(self, write: Write, revision: int) -> KeyEvent | None:
        before = self.get(write.key)
        if isinstance(write, Delete):
            return KeyDeleted(write.key, revision) if before is not None else None
        created, version = (before.create_revision, before.version + 1) if before is not None else (revision, 1)
        return KeyPut(KeyValue(write.key, write.value, created, revision, version, write.lease_id))

    def _store(self, event: KeyEvent) -> None:
        key = _key(event)
        before = self.get(key)
        if before is not None and before.lease_id in self._leases:
            self._leases[before.lease_id].keys.discard(key)
        if isinstance(event, KeyPut) and event.item.lease_id:
            self._leases[event.item.lease_id].keys.add(key)
        if key not in self._versions:
            self._versions[key] = []
            insort(self._keys, key, key=_order)
        self._versions[key].append(event)

    # ---- leases

    def grant(self, ttl_s: int, now_s: float) -> int:
        lease_id = self._next_lease_id
        self._next_lease_id += 1
        self._leases[lease_id] = _Lease(ttl_s, now_s + ttl_s)
        return lease_id

    def renew(self, lease_id: int, now_s: float) -> bool:
        """False: the lease is gone."""
        lease = self._leases.get(lease_id)
        if lease is None:
            return False
        lease.ends_s = now_s + lease.ttl_s
        return True

    def revoke(self, lease_id: int) -> None:
        """Delete its keys in one revision; a lease that is gone is no error."""
        lease = self._leases.pop(lease_id, None)
        if lease is not None:
            self._append([Delete(key) for key in sorted(lease.keys, key=_order)])

    def expire(self, now_s: float) -> None:
        """End every lease whose time has come, the earliest first."""
        if all(lease.ends_s > now_s for lease in self._leases.values()):
            return
        due = sorted((lease.ends_s, lease_id) for lease_id, lease in self._leases.items() if lease.ends_s <= now_s)
        for _, lease_id in due:
            self.revoke(lease_id)

    def next_expiry_s(self) -> float | None:
        """When the next lease ends; None: there is none."""
        return min((lease.ends_s for lease in self._leases.values()), default=None)

    def size_bytes(self) -> int:
        """Keys and values as they are now."""
        return sum(len(_order(item.key)) + len(item.value) for item in self.list(""))


def _holds(compare: Compare, item: KeyValue | None) -> bool:
    if isinstance(compare, SameCreation):
        return compare.create_revision == (item.create_revision if item is not None else 0)
    return compare.mod_revision == (item.mod_revision if item is not None else 0)


def _order(key: str) -> bytes:
    """etcd orders keys by their bytes."""
    return key.encode(errors="surrogateescape")


def _key(event: KeyEvent) -> str:
    return event.item.key if isinstance(event, KeyPut) else event.key


def _revision(event: KeyEvent) -> int:
    return event.item.mod_revision if isinstance(event, KeyPut) else event.mod_revision


def _value(event: KeyEvent) -> KeyValue | None:
    return event.item if isinstance(event, KeyPut) else None
