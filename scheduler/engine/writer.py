"""Carries out decisions: decide on the newest state, write with its guards, decide again if somebody else was first.

A decision is a function of the state, so deciding again is always right. When the outcome of a write is not known, the state is read back: the
decision made on it says whether the first one was carried out (a repeat) or has to be made again.
"""

from collections.abc import Callable
from typing import TypeVar

import structlog

from hostler.errors import Conflict, Reason, Unavailable
from scheduler.core.accept import Accepted
from scheduler.core.records import OperationRecord
from scheduler.core.state import ClusterState
from scheduler.core.transaction import Transaction
from scheduler.engine.codec import guards_and_writes
from scheduler.engine.mirror import Mirror
from scheduler.ports import Committed, Compare, KeyValue, OutcomeUnknown, SameCreation, Store, StoreUnavailable

MAX_TRIES = 20
"""A try is lost only to somebody else's success, so this many losses in a row mean a storm: the caller backs off."""

T = TypeVar("T")
log = structlog.get_logger()


class Writer:
    """The one way into the store for the engine."""

    def __init__(self, store: Store, mirror: Mirror) -> None:
        self._store = store
        self._mirror = mirror

    async def accept(self, decide: Callable[[ClusterState], Accepted]) -> OperationRecord:
        """Make a mutation durable and return its operation; refusals of `decide` pass through. Raises Conflict, Unavailable."""

        def plan(state: ClusterState) -> tuple[OperationRecord, Transaction]:
            accepted = decide(state)
            return accepted.operation, accepted.transaction

        operation, _ = await self._carry_out(plan, ())
        return operation

    async def apply(self, decide: Callable[[ClusterState], Transaction | None], extra: tuple[Compare, ...] = ()) -> bool:
        """Write what `decide` wants under the extra guards; False if it wants nothing (any more). Raises Conflict, Unavailable."""

        def plan(state: ClusterState) -> tuple[bool, Transaction]:
            transaction = decide(state)
            return (False, Transaction()) if transaction is None else (True, transaction)

        wrote, _ = await self._carry_out(plan, extra)
        return wrote

    async def apply_at_once(self, decide: Callable[[ClusterState], Transaction | None]) -> int:
        """As `apply`, where a guest stands still meanwhile: the revision of the write, 0 if nothing was to be written.

        It is decided on this replica's own copy first, which may be behind the store: the guards refuse what it got wrong, and that there is
        nothing to write is believed of the newest state alone. The copy may not have the write yet when this returns.
        """
        transaction = decide(self._mirror.state)
        if transaction is not None:
            compares, writes = guards_and_writes(transaction)
            try:
                result = await self._store.txn(compares, writes)
            except (OutcomeUnknown, StoreUnavailable) as error:
                log.warning("a write at once failed, deciding on the newest state", error=str(error))
            else:
                if isinstance(result, Committed):
                    return result.revision
        written: list[bool] = []

        def plan(state: ClusterState) -> tuple[None, Transaction]:
            transaction = decide(state)
            written.append(transaction is not None)
            return None, transaction or Transaction()

        _, revision = await self._carry_out(plan, ())
        return revision if written[-1] else 0

    async def _carry_out(self, plan: Callable[[ClusterState], tuple[T, Transaction]], extra: tuple[Compare, ...]) -> tuple[T, int]:
        state = await self._mirror.refresh()
        for _ in range(MAX_TRIES):
            answer, transaction = plan(state)
            if not transaction.puts and not transaction.deletes:
                return answer, state.revision
            compares, writes = guards_and_writes(transaction)
            try:
                result = await self._store.txn([*compares, *extra], writes)
            except OutcomeUnknown:
                log.warning("outcome of a write is not known, reading back")
                state = await self._mirror.refresh()
                continue
            except StoreUnavailable as error:
                raise Unavailable(
                    Reason.STORE_UNAVAILABLE, "The cluster's store does not answer.", "Try again.", retry_after_s=1.0
                ) from error
            if isinstance(result, Committed):
                await self._mirror.await_revision(result.revision)
                return answer, result.revision
            if extra and any(not _holds(compare, current) for compare, current in zip(extra, result.current[len(compares) :], strict=True)):
                raise Conflict(Reason.CLAIM_CONFLICT, "This replica does not lead any more.")
            state = await self._mirror.refresh()
        raise Conflict(
            Reason.CLAIM_CONFLICT, "Too many others change the same thing at once.", "Try again after a moment.", retry_after_s=1.0
        )


def _holds(compare: Compare, current: KeyValue | None) -> bool:
    """Whether a guard is still true of what the store said."""
    if isinstance(compare, SameCreation):
        return compare.create_revision == (current.create_revision if current is not None else 0)
    return compare.mod_revision == (current.mod_revision if current is not None else 0)
