"""A thousand programs that each want one VM, all at once: each asks a replica, and goes on with the same request_id at another when that one is gone.

They do what the SDK does, by the raw stubs, so that it can be counted which answers were lost; one thing more, which the error itself asks for: a
refusal that says when to try again is tried again.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import TypeVar

import grpc.aio

from client import Client
from hostler.api.cluster.v1 import operations_pb2, vms_pb2
from hostler.api.type.v1 import operation_pb2, vm_pb2
from hostler.errors import DeadlineExceeded, HostlerError, Unavailable
from hostler.rpc_status import from_rpc_error
from hostler.server.clock import SystemClock, wall_ms

ASK_S = 30.0
"""For one answer of one replica: many wait for their turn at the store."""
WAIT_S = 10
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
"""After a round over all replicas, doubled each time, as the SDK does."""

CREATE, WAIT = "create", "wait"
CLOCK = SystemClock()
"""The machine's: the replicas write it into the operations."""

A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one create: its operation as it ended, or the refusal."""

    vm_id: str
    operation: operation_pb2.Operation | None
    refusal: HostlerError | None


@dataclass(slots=True)
class Tally:
    """What happened on the way. `flying`: calls under way, by kind and replica; `again`: calls that were made again, by kind and reason."""

    wanted: int
    accepted_by: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    found: int = 0
    """Creates of which a repeat found the operation: it had been made, and its answer was lost."""
    answers: list[Answer] = field(default_factory=list)
    most_flying: int = 0
    flying: Counter[tuple[str, str]] = field(default_factory=Counter)
    again: Counter[tuple[str, str]] = field(default_factory=Counter)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @asynccontextmanager
    async def under_way(self, kind: str, replica: str) -> AsyncIterator[None]:
        async with self._changed:
            self.flying[kind, replica] += 1
            self.most_flying = max(self.most_flying, self.flying.total())
            self._changed.notify_all()
        try:
            yield
        finally:
            self.flying[kind, replica] -= 1

    @property
    def accepted(self) -> int:
        return self.accepted_by.total()

    async def count_accepted(self, replica: str, *, found: bool) -> None:
        async with self._changed:
            self.accepted_by[replica] += 1
            self.found += found
            self._changed.notify_all()

    async def count_refused(self) -> None:
        async with self._changed:
            self.refused += 1
            self._changed.notify_all()

    async def until_answered(self, many: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.accepted + self.refused >= many)

    async def until_busy(self, replicas: Callable[[], Sequence[str]]) -> list[str]:
        """Those of the replicas that have creates under way, as soon as one has; none if all is over."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._over or self._busy(replicas()))
            return self._busy(replicas())

    def _busy(self, replicas: Sequence[str]) -> list[str]:
        return [name for name in replicas if self.flying[CREATE, name]]

    @property
    def _over(self) -> bool:
        return self.accepted + self.refused == self.wanted


@dataclass(frozen=True, slots=True)
class Caller:
    """One user's connections, by replica; `first` is asked first."""

    clients: Mapping[str, Client]
    first: int
    tally: Tally

    async def create(self, vm_id: str, vm: vm_pb2.VM) -> None:
        """Until it is refused for good, or its operation has ended."""
        request = vms_pb2.CreateVMRequest(vm_id=vm_id, vm=vm, request_id=f"race-{vm_id}")

        async def ask(replica: str) -> operation_pb2.Operation:
            asked_ms = wall_ms(CLOCK)
            operation = await self.clients[replica].vms.CreateVM(request, timeout=ASK_S)
            await self.tally.count_accepted(replica, found=operation.create_time.ToMilliseconds() < asked_ms)
            return operation

        try:
            operation = await self._somewhere(CREATE, ask)
        except HostlerError as refusal:
            await self.tally.count_refused()
            self.tally.answers.append(Answer(vm_id, None, refusal))
            return
        wait = operations_pb2.WaitOperationRequest(name=operation.name, timeout_s=WAIT_S)
        while not operation.done:
            operation = await self._somewhere(WAIT, lambda replica: self.clients[replica].operations.WaitOperation(wait, timeout=ASK_S))
        self.tally.answers.append(Answer(vm_id, operation, None))

    async def _somewhere(self, kind: str, call: Callable[[str], Awaitable[A]]) -> A:
        """The answer of the first replica that gives one. Raises HostlerError that no repeat will change."""
        names: Sequence[str] = sorted(self.clients)
        for attempt in count():
            replica = names[(self.first + attempt) % len(names)]
            try:
                async with self.tally.under_way(kind, replica):
                    return await call(replica)
            except grpc.aio.AioRpcError as error:
                refusal = from_rpc_error(error)
            if not isinstance(refusal, Unavailable | DeadlineExceeded) and refusal.retry_after_s is None:
                raise refusal
            self.tally.again[kind, refusal.reason.value] += 1
            rounds, rest = divmod(attempt + 1, len(names))
            pause_s = 0.0 if rest else min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (rounds - 1))
            await asyncio.sleep(max(pause_s, refusal.retry_after_s or 0.0))
        raise AssertionError("a count has no end")
