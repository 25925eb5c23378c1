"""Several decisions in one transaction. Each is made on the state as those before it in the group leave it; all are carried out, or none is.

What a decision writes is put into this replica's own state while the others of its group are decided, and taken out again before anybody else can
look: nothing here awaits. A guard on what an earlier decision of the group has written is that one's to keep, so it is left out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scheduler.core.records import TICK, Record
from scheduler.core.state import ClusterState, Kept
from scheduler.core.transaction import Transaction
from scheduler.engine.codec import encode
from scheduler.engine.mirror import kept_record, put_record
from scheduler.ports import MAX_TXN_BYTES, MAX_TXN_OPS, Compare, Delete, Put, Unchanged, Write

Plan = Callable[[ClusterState], tuple[Any, Transaction]]

BYTES_MOST = MAX_TXN_BYTES // 2
"""Of the values of a group: the rest is for keys, which travel several times."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a plan gave, or raised, if the group is carried out."""

    value: object = None
    error: Exception | None = None


class Group:
    """One transaction in the making. `extra_count`: compares that come with it. Call `restore` before anything is awaited."""

    def __init__(self, state: ClusterState, extra_count: int) -> None:
        self._state = state
        self._compares_most = MAX_TXN_OPS - extra_count
        self._soon = state.revision + 1
        self._guards: dict[str, int] = {}
        self._written: dict[str, bytes | None] = {}
        self._before: dict[str, Kept[Any] | None] = {}
        self._bytes = 0
        self.answers: list[Answer] = []

    def take(self, plan: Plan) -> bool:
        """Decide, and make room for what was decided; False: it has to wait for another group. The first one always has room."""
        try:
            value, transaction = plan(self._state)
            if not self._add(transaction):
                return False
        except Exception as error:  # a refusal, or a defect: it belongs to whoever asked, and the others are not to suffer from it
            self.answers.append(Answer(error=error))
        else:
            self.answers.append(Answer(value))
        return True

    @property
    def writes_nothing(self) -> bool:
        return not self._written

    def restore(self) -> None:
        """Take out of the state what was put there."""
        for key, kept in reversed(self._before.items()):
            put_record(self._state, key, 0 if kept is None else kept.revision, None if kept is None else kept.record)
        self._before.clear()

    def guards_and_writes(self) -> tuple[list[Compare], list[Write]]:
        """As the store wants it; in key order, so that a failed guard is told in a known place."""
        compares: list[Compare] = [Unchanged(key, revision) for key, revision in sorted(self._guards.items())]
        puts: list[Write] = [Put(key, value) for key, value in sorted(self._written.items()) if value is not None]
        return compares, [*puts, Put(TICK, b""), *(Delete(key) for key, value in sorted(self._written.items()) if value is None)]

    def _add(self, transaction: Transaction) -> bool:
        guards = {key: revision for key, revision in transaction.guards.items() if key not in self._written}
        if any(not self._is_at(key, revision) for key, revision in transaction.guards.items() if key in self._written):
            return False  # decided on something older than this group
        if any(self._guards.get(key, revision) != revision for key, revision in guards.items()):
            return False
        values = {key: encode(record) for key, record in transaction.puts.items()}
        written = {**values, **dict.fromkeys(transaction.deletes)}
        more_bytes = sum(map(len, values.values()))
        if self._written and not self._has_room(guards, written, more_bytes):
            return False
        self._guards.update(guards)
        self._bytes += more_bytes
        for key in written:
            self._put(key, transaction.puts.get(key))
        self._written.update(written)
        return True

    def _is_at(self, key: str, revision: int) -> bool:
        kept = kept_record(self._state, key)
        return revision == (0 if kept is None else kept.revision)

    def _has_room(self, guards: dict[str, int], written: dict[str, bytes | None], more_bytes: int) -> bool:
        compares, writes = len(self._guards.keys() | guards.keys()), len(self._written.keys() | written.keys())
        return compares <= self._compares_most and writes < MAX_TXN_OPS and self._bytes + more_bytes <= BYTES_MOST

    def _put(self, key: str, record: Record | None) -> None:
        if key not in self._before:
            self._before[key] = kept_record(self._state, key)
        put_record(self._state, key, self._soon, record)
