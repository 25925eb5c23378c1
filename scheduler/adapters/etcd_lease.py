"""A lease on etcd that its owner loses locally before the server lets it go.

The local deadline is the time at which the last successful renewal was *sent*, plus the TTL the server answered: the server counts from a later
moment, so an owner that obeys stops first, whatever was lost on the way. It stays a hint of liveness: etcd can revoke a lease that is being
renewed. Each renewal is a short stream of its own, so that it goes to another member when one hangs.
"""

import asyncio
from collections.abc import AsyncIterator

import structlog

from hostler.internal.etcd.v1 import wire_pb2 as wire
from hostler.server.clock import Clock
from scheduler.adapters.etcd_connection import EtcdConnection
from scheduler.adapters.etcd_members import StoreClosed
from scheduler.adapters.etcd_wire import LEASE_GRANT, LEASE_KEEP_ALIVE, LEASE_REVOKE
from scheduler.ports import LeaseLost, OutcomeUnknown, StoreUnavailable

log = structlog.get_logger(__name__)

RENEWALS_PER_TTL = 3
"""So that one lost renewal leaves time for another."""

ATTEMPT_S = 1.0
"""One renewal; a member that hangs longer is given up for another."""

RETRY_PAUSE_S = 0.1
"""After a failed renewal."""

REVOKE_DEADLINE_S = 1.0
"""Giving up a lease is a courtesy to the next owner; it ends by itself anyway."""


async def grant(connection: EtcdConnection, ttl_s: int, clock: Clock) -> "EtcdLease":
    """A new lease. Raises StoreUnavailable, OutcomeUnknown."""
    sent_s = clock.monotonic_s()
    response = await connection.write(LEASE_GRANT, wire.LeaseGrantRequest(TTL=ttl_s))
    return EtcdLease(connection, clock, response.ID, response.TTL, sent_s)


class EtcdLease:
    """`ttl_s` is what the server granted; it may be more than was asked for."""

    def __init__(self, connection: EtcdConnection, clock: Clock, lease_id: int, ttl_s: int, sent_s: float) -> None:
        self._connection = connection
        self._clock = clock
        self._lease_id = lease_id
        self.ttl_s = ttl_s
        self._sent_s = sent_s

    @property
    def lease_id(self) -> int:
        return self._lease_id

    @property
    def _left_s(self) -> float:
        """Until the local deadline."""
        return self._sent_s + self.ttl_s - self._clock.monotonic_s()

    async def keep_alive(self) -> None:
        while True:
            await self._clock.sleep(self._left_s - self.ttl_s * (1 - 1 / RENEWALS_PER_TTL))
            await self._renew_in_time()

    async def _renew_in_time(self) -> None:
        """Renew, again and again until the local deadline. Raises LeaseLost."""
        while self._left_s > 0:
            sent_s = self._clock.monotonic_s()
            try:
                self.ttl_s = await self._renew(min(ATTEMPT_S, self._left_s))
            except StoreClosed as error:
                raise LeaseLost("the store is closed") from error
            except StoreUnavailable as error:
                log.warning("lease not renewed", lease_id=self._lease_id, left_s=round(self._left_s, 1), reason=str(error))
                await self._clock.sleep(min(RETRY_PAUSE_S, max(self._left_s, 0.0)))
                continue
            self._sent_s = sent_s
            return
        raise LeaseLost("not renewed before its local deadline")

    async def _renew(self, timeout_s: float) -> int:
        """One renewal: the new TTL. Raises StoreUnavailable, LeaseLost."""
        member = await self._connection.until_ready(self._clock.monotonic_s() + timeout_s)
        with self._connection.stream(member, LEASE_KEEP_ALIVE, self._request(), timeout_s) as stream:
            response = await stream.read()
        if response.TTL <= 0:
            raise LeaseLost("the server does not know the lease any more")
        return response.TTL

    async def _request(self) -> AsyncIterator[wire.LeaseKeepAliveRequest]:
        yield wire.LeaseKeepAliveRequest(ID=self._lease_id)

    async def revoke(self) -> bool:
        try:
            async with asyncio.timeout(REVOKE_DEADLINE_S):
                await self._connection.write(LEASE_REVOKE, wire.LeaseRevokeRequest(ID=self._lease_id))
        except LeaseLost:
            return True
        except (StoreUnavailable, OutcomeUnknown, TimeoutError) as error:
            log.info("lease not revoked, it will expire", lease_id=self._lease_id, reason=str(error))
            return False
        return True
