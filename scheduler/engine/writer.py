"""Carries out decisions: decide on the newest state, write with its guards, decide again if somebody else was first. Decisions that wait at the
same time are carried out together (`grouping`): the store takes many writes in one transaction for little more than the price of one.

A decision is a function of the state, so deciding again is always right. When the outcome of a write is not known, the state is read back: the
decision made on it says whether the first one was carried out (a repeat) or has to be made again.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, cast

import structlog

from hostler.errors import Conflict, Reason, Unavailable
from scheduler.core.accept import Accepted
from scheduler.core.records import OperationRecord
from scheduler.core.state import ClusterState
from scheduler.core.transaction import Transaction
from scheduler.engine.codec import guards_and_writes
from scheduler.engine.grouping import Answer, Group, Plan
from scheduler.engine.mirror import Mirror
from scheduler.ports import Committed, Compare, KeyValue, OutcomeUnknown, SameCreation, Store, StoreUnavailable

MAX_TRIES = 20
"""A try is lost only to somebody else's success, so this many losses in a row mean a storm: the caller backs off."""

GROUP_MOST = 64
"""Decisions in one transaction. Its size bounds them first: a creation writes four or five keys of 128."""

T = TypeVar("T")
log = structlog.get_logger()


class Writer:
    """The one way into the store for the engine."""

    def __init__(self, store: Store, mirror: Mirror) -> None:
        self._store = store
        self._mirror = mirror
        self._waiting: list[_Waiting] = []
        self._turn = asyncio.Lock()
        self._group_most = GROUP_MOST

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
        """In the next group of those that wait; whoever comes to its turn first carries it out for all."""
        waiting = _Waiting(plan, extra)
        self._waiting.append(waiting)
        try:
            while waiting.answer is None:
                async with self._turn:
                    if waiting.answer is None:
                        await self._next_group()
        finally:
            if waiting.answer is None:
                self._waiting.remove(waiting)  # cancelled: if it was written already, whoever asks again finds it
        if waiting.answer.error is not None:
            raise waiting.answer.error
        return cast("T", waiting.answer.value), waiting.revision

    async def _next_group(self) -> None:
        """Decide on the newest state and write. What fails for the store's sake fails for all that wait: each would only wait as long again."""
        try:
            state = await self._mirror.refresh()
        except Unavailable as error:
            self._fail(list(self._waiting), error)
            return
        extra = self._waiting[0].extra
        group, taken = Group(state, len(extra)), list[_Waiting]()
        try:
            for waiting in (one for one in list(self._waiting) if one.extra == extra):
                if len(taken) == self._group_most or not group.take(waiting.plan):
                    break
                taken.append(waiting)
        finally:
            group.restore()
        if group.writes_nothing:
            self._settle(taken, group.answers, state.revision)
            return
        await self._write(group, taken, extra)

    async def _write(self, group: Group, taken: "list[_Waiting]", extra: tuple[Compare, ...]) -> None:
        compares, writes = group.guards_and_writes()
        try:
            result = await self._store.txn([*compares, *extra], writes)
            if isinstance(result, Committed):
                await self._mirror.await_revision(result.revision)
                self._group_most = GROUP_MOST
                self._settle(taken, group.answers, result.revision)
                return
        except OutcomeUnknown:
            log.warning("outcome of a write is not known, reading back", decisions=len(taken))
        except StoreUnavailable:
            self._fail(
                taken, Unavailable(Reason.STORE_UNAVAILABLE, "The cluster's store does not answer.", "Try again.", retry_after_s=1.0)
            )
            return
        except Exception as error:  # the store is away after all; or a transaction that no store takes, a defect of whoever asked for it
            self._fail(taken, error)
            return
        else:
            guards = result.current[len(compares) :]
            if extra and any(not _holds(compare, current) for compare, current in zip(extra, guards, strict=True)):
                self._fail(taken, Conflict(Reason.CLAIM_CONFLICT, "This replica does not lead any more."))
                return
            self._group_most = max(1, len(taken) // 2)  # somebody else was first with one of them: it must not hold up the others for ever
        for waiting in taken:
            waiting.tries += 1
        self._fail([waiting for waiting in taken if waiting.tries >= MAX_TRIES], _storm())

    def _settle(self, taken: "list[_Waiting]", answers: list[Answer], revision: int) -> None:
        for waiting, answer in zip(taken, answers, strict=True):
            waiting.answer, waiting.revision = answer, revision
            if waiting in self._waiting:
                self._waiting.remove(waiting)

    def _fail(self, waiting: "list[_Waiting]", error: Exception) -> None:
        self._settle(waiting, [Answer(error=error)] * len(waiting), 0)


@dataclass(slots=True, eq=False)
class _Waiting:
    """A decision that is to be carried out."""

    plan: Plan
    extra: tuple[Compare, ...]
    tries: int = 0
    answer: Answer | None = None
    revision: int = 0


def _storm() -> Conflict:
    return Conflict(Reason.CLAIM_CONFLICT, "Too many others change the same thing at once.", "Try again after a moment.", retry_after_s=1.0)


def _holds(compare: Compare, current: KeyValue | None) -> bool:
    """Whether a guard is still true of what the store said."""
    if isinstance(compare, SameCreation):
        return compare.create_revision == (current.create_revision if current is not None else 0)
    return compare.mod_revision == (current.mod_revision if current is not None else 0)
