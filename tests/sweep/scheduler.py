"""`python -m tests.sweep.scheduler CONTROL --config FILE`: the ordinary scheduler replica, with gates around its store's transactions.

A transaction is named by what it writes of a migration: the phase or the end of the operation (`txn COMMITTED`, `txn SUCCEEDED`), or the commit
itself, the one that writes a VM's owner record alone (`txn owner COMMITTED`).
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from scheduler import __main__ as daemon
from scheduler import app
from scheduler.adapters.etcd_store import EtcdStore
from scheduler.core.records import STATE, Verb
from scheduler.engine.codec import kind_and_id
from scheduler.ports import Compare, Put, TxnResult, Write
from tests.sweep.pause import Gates


def main() -> int:
    control = Path(sys.argv.pop(1))
    unit = Path(sys.argv[-1]).stem

    class GatedStore(EtcdStore):
        async def txn(self, compares: Sequence[Compare], writes: Sequence[Write]) -> TxnResult:
            gates, point = Gates(unit, control), name_of(writes)
            if point:
                await gates.at(f"before {point}")
            result = await super().txn(compares, writes)
            if point:
                await gates.at(f"after {point}")
            return result

    with mock.patch.object(app, "EtcdStore", GatedStore):
        return daemon.main()


def name_of(writes: Sequence[Write]) -> str:
    """What a transaction is to a migration; "": nothing."""
    named = [(kind_and_id(put.key)[0], put.value) for put in writes if isinstance(put, Put) and put.key.startswith(STATE)]
    puts = {kind: json.loads(value) for kind, value in named if kind in ("op", "vm")}
    operation = puts.get("op")
    if operation is not None:
        if operation["verb"] != Verb.MIGRATE_VM.value:
            return ""
        return f"txn {operation['state'] if operation['state'] not in ('RUNNING', 'PENDING') else operation['phase']}"
    owner = puts["vm"]["owner"]["state"] if "vm" in puts else ""
    return f"txn owner {owner}" if owner == "COMMITTED" else ""


if __name__ == "__main__":
    sys.exit(main())
