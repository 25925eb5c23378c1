"""Which replica drives the operations. A hint for efficiency, never a lock: every write of a driver also compares the leader's key.

A campaign creates the leader's key, bound to a lease, if it does not exist. Whoever leads holds a `Term`; its guard goes into each transaction, so
a replica that slept through the loss of its lease cannot write.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

import structlog

from scheduler.core.records import LEADER
from scheduler.ports import (
    Committed,
    KeyDeleted,
    Lease,
    LeaseLost,
    OutcomeUnknown,
    Put,
    RevisionCompacted,
    SameCreation,
    Store,
    StoreUnavailable,
)

LEASE_TTL_S = 5
"""How long the cluster is without a driver after one died: an etcd election (2 s here) must fit in, or leaders change with it."""

PAUSE_S = 1.0
"""Between two tries when the store does not answer."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Term:
    """One leadership. `guard` holds as long as nobody else has led since."""

    replica_id: str
    create_revision: int

    @property
    def driver(self) -> str:
        """Who drives, in the journal: a replica that was restarted and leads again is another driver."""
        return f"{self.replica_id}@{self.create_revision}"

    @property
    def guard(self) -> SameCreation:
        return SameCreation(LEADER, self.create_revision)


class Election:
    """`run(lead)` campaigns for ever and runs `lead(term)` while it leads; `lead` is cancelled when the lease is lost."""

    def __init__(self, replica_id: str, store: Store, lease_ttl_s: int = LEASE_TTL_S) -> None:
        self._replica_id = replica_id
        self._store = store
        self._lease_ttl_s = lease_ttl_s
        self.leads = False
        self._left: Lease | None = None
        """The last term's, if it could not be revoked: it may hold the leader's key for its whole time, and longer after an election of etcd's."""

    async def run(self, lead: Callable[[Term], Awaitable[None]]) -> None:
        while True:
            try:
                await self._campaign(lead)
            except (StoreUnavailable, OutcomeUnknown, RevisionCompacted, LeaseLost) as error:
                log.info("campaign interrupted", error=str(error))
                await asyncio.sleep(PAUSE_S)

    async def _campaign(self, lead: Callable[[Term], Awaitable[None]]) -> None:
        if self._left is not None:
            await self._give_up(self._left)
        await self._await_vacancy()
        lease = await self._store.grant(self._lease_ttl_s)
        try:
            result = await self._store.txn([SameCreation(LEADER, 0)], [Put(LEADER, self._replica_id.encode(), lease.lease_id)])
            if isinstance(result, Committed):
                await self._lead(Term(self._replica_id, result.revision), lease, lead)
        finally:
            await self._give_up(lease)

    async def _give_up(self, lease: Lease) -> None:
        self._left = None if await lease.revoke() else lease

    async def _await_vacancy(self) -> None:
        """Until nobody leads."""
        got = await self._store.get(LEADER)
        if got.item is None:
            return
        async with aclosing(self._store.watch(LEADER, got.revision + 1)) as batches:
            async for batch in batches:
                if any(isinstance(event, KeyDeleted) for event in batch.events):
                    return

    async def _lead(self, term: Term, lease: Lease, lead: Callable[[Term], Awaitable[None]]) -> None:
        log.info("leading", term=term.create_revision)
        self.leads = True
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_end_with(lease.keep_alive()), name="lease")
                group.create_task(_end_with(lead(term)), name="lead")
        except* (LeaseLost, _Ended, StoreUnavailable) as errors:
            log.warning("leadership ended", why=[str(error) for error in errors.exceptions])
        finally:
            self.leads = False


class _Ended(Exception):
    """One of the two halves of a leadership returned: the other one must end too."""


async def _end_with(work: Awaitable[None]) -> None:
    await work
    raise _Ended("returned")
