"""Forgets operations that ended long ago, so that the journal stays as large as the work at hand. Done by the replica that leads."""

import structlog

from hostler.errors import Conflict, Unavailable
from hostler.server.clock import Clock, wall_ms
from scheduler.core.records import operation_key
from scheduler.core.state import ClusterState
from scheduler.core.transaction import Transaction
from scheduler.engine.election import Term
from scheduler.engine.writer import Writer

SWEEP_S = 600.0
"""How often it is looked."""

BATCH = 50
"""Operations forgotten in one transaction: well under the store's limit of 128 writes."""

log = structlog.get_logger()


class Retention:
    def __init__(self, writer: Writer, clock: Clock, keep_h: int) -> None:
        self._writer = writer
        self._clock = clock
        self._keep_ms = keep_h * 3_600_000

    async def lead(self, term: Term) -> None:
        while True:
            try:
                while await self._writer.apply(self._old_ones, (term.guard,)):
                    pass
            except (Conflict, Unavailable) as error:
                log.info("old operations are looked at again later", why=str(error))
            await self._clock.sleep(SWEEP_S)

    def _old_ones(self, state: ClusterState) -> Transaction | None:
        before_ms = wall_ms(self._clock) - self._keep_ms
        old = sorted(
            (kept.record.operation_id, kept.revision)
            for kept in state.operations.values()
            if kept.record.done and kept.record.update_ms < before_ms
        )[:BATCH]
        if not old:
            return None
        keys = {operation_key(operation_id): revision for operation_id, revision in old}
        return Transaction(keys, {}, tuple(keys))
