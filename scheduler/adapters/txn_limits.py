"""What a store accepts as one transaction: checked here, before anything is sent, so that etcd and the store in memory refuse the same ones.

etcd would answer each of these with INVALID_ARGUMENT; a caller that goes over a limit has a bug, so it is a ValueError.
"""

from collections.abc import Sequence

from scheduler.ports import MAX_TXN_BYTES, MAX_TXN_OPS, Compare, Put, Write


def check_txn(compares: Sequence[Compare], writes: Sequence[Write]) -> None:
    """Raises ValueError when the transaction is over a limit, writes a key twice, or names an empty key."""
    if len(compares) > MAX_TXN_OPS or len(writes) > MAX_TXN_OPS:
        raise ValueError(f"{len(compares)} compares and {len(writes)} writes; {MAX_TXN_OPS} of each are the limit")
    keys = [write.key for write in writes]
    if len(set(keys)) != len(keys):
        raise ValueError("a key is written twice in one transaction")
    if not all(keys) or not all(compare.key for compare in compares):
        raise ValueError("a key is empty")
    size = _bytes(compares, writes)
    if size > MAX_TXN_BYTES:
        raise ValueError(f"{size} bytes in one transaction; {MAX_TXN_BYTES} are the limit")


def _bytes(compares: Sequence[Compare], writes: Sequence[Write]) -> int:
    """A compared key travels twice: in its guard, and in the read that answers a refusal."""
    guards = sum(2 * len(compare.key.encode(errors="surrogateescape")) for compare in compares)
    keys = sum(len(write.key.encode(errors="surrogateescape")) for write in writes)
    return guards + keys + sum(len(write.value) for write in writes if isinstance(write, Put))
