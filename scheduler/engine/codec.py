"""Records <-> what the store holds, and keys -> what they are about. JSON by msgspec; unknown fields of a newer replica are ignored."""

from collections.abc import Mapping

import msgspec

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
from scheduler.core.transaction import Transaction
from scheduler.ports import Compare, Delete, Put, Unchanged, Write

KINDS: Mapping[str, type[Record]] = {
    "node": NodeRecord,
    "ledger": LedgerRecord,
    "pool": LedgerRecord,
    "claim": ClaimRecord,
    "vm": VMRecord,
    "volume": VolumeRecord,
    "flavor": FlavorRecord,
    "op": OperationRecord,
    "owed": OwedRemoval,
}


def kind_and_id(key: str) -> tuple[str, str]:
    """`/hostler/state/claim/n1/web-1` -> ("claim", "n1/web-1")."""
    kind, _, name = key.removeprefix(STATE).partition("/")
    return kind, name


def decode(key: str, value: bytes) -> Record | None:
    """The record under a key; None for a kind that this version does not know. Raises msgspec.ValidationError for a broken value."""
    kind = KINDS.get(kind_and_id(key)[0])
    return None if kind is None else msgspec.json.decode(value, type=kind)


def encode(record: Record) -> bytes:
    return msgspec.json.encode(record)


def guards_and_writes(transaction: Transaction) -> tuple[list[Compare], list[Write]]:
    """As the store wants it; in key order, so that a failed guard is told in a known place."""
    compares: list[Compare] = [Unchanged(key, revision) for key, revision in sorted(transaction.guards.items())]
    puts: list[Write] = [Put(key, encode(record)) for key, record in sorted(transaction.puts.items())]
    return compares, [*puts, Put(TICK, b""), *(Delete(key) for key in sorted(transaction.deletes))]
