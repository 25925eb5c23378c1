"""The raw limit of a durable placement: etcd's own transactions, with as many writes of such sizes as a claim takes, and no decision before them.

Two limits. `compare_and_put`: one transaction per claim, which compares the host's revision, writes the host and what else the claim writes; so
many under way at once, each on a host of its own, so that none is refused. `batched`: many claims in one transaction, as a group commit could at
best do it. The client is the product's (grpc.aio and the generated messages, on the caller's event loop; uvloop is the caller's to choose) with
nothing around it: no members to choose from, no retries, no watch. One connection: so few bytes wait for the member, not for the wire.
etcd keeps every version of what is written, here up to 30 MB a second: give each comparison a fresh member, with more than the usual quota of 2 GiB
(--quota-backend-bytes) where it takes more than a minute.
"""

import asyncio
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import grpc

from hostler.internal.etcd.v1 import wire_pb2 as wire

MAX_PUTS = 128
"""Of one transaction: etcd's default limit."""
CALL_S = 30.0
PREFIX = "/hostler-bench/raw/"
TXN = "/etcdserverpb.KV/Txn"


class Refused(Exception):
    """A transaction's compare failed: somebody else writes these keys."""


@dataclass(frozen=True, slots=True)
class Rate:
    """What was written. `latencies_s`: of each transaction; `cpu_s`: of this process, which shares the machine with the member."""

    claims: int
    puts: int
    took_s: float
    cpu_s: float
    latencies_s: tuple[float, ...]

    @property
    def claims_per_s(self) -> float:
        return self.claims / self.took_s

    @property
    def puts_per_s(self) -> float:
        return self.puts / self.took_s


Call = Callable[[wire.TxnRequest], Awaitable[wire.TxnResponse]]


class RawEtcd:
    """A member reached over `channel`."""

    def __init__(self, channel: grpc.aio.Channel, prefix: str = PREFIX) -> None:
        self._prefix = f"{prefix}{uuid.uuid4().hex}/"
        self._txn = channel.unary_unary(
            TXN, request_serializer=wire.TxnRequest.SerializeToString, response_deserializer=wire.TxnResponse.FromString
        )
        self._numbers = itertools.count()

    async def compare_and_put(self, put_bytes: tuple[int, ...], *, concurrency: int, for_s: float) -> Rate:
        """One claim per transaction. `put_bytes`: of each value that a claim writes, the host's first. Raises Refused, ValueError."""
        return await self._measured(put_bytes, 1, concurrency, for_s)

    async def batched(self, put_bytes: tuple[int, ...], *, claims: int, concurrency: int, for_s: float) -> Rate:
        """`claims` per transaction, each of a host of its own. Raises Refused, ValueError."""
        return await self._measured(put_bytes, claims, concurrency, for_s)

    async def _measured(self, put_bytes: tuple[int, ...], claims: int, concurrency: int, for_s: float) -> Rate:
        if not put_bytes or claims < 1 or len(put_bytes) * claims > MAX_PUTS:
            raise ValueError(f"{claims} claims of {len(put_bytes)} puts are not 1 to {MAX_PUTS} puts")
        workers = [_Worker(self._new_hosts(claims), put_bytes) for _ in range(concurrency)]
        latencies_s: list[float] = []
        async with asyncio.TaskGroup() as group:
            for worker in workers:
                group.create_task(self._send(worker), name="the first version of a host")
        began_s, cpu_s = time.perf_counter(), time.process_time()
        async with asyncio.TaskGroup() as group:
            for worker in workers:
                group.create_task(self._keep_sending(worker, began_s + for_s, latencies_s), name="raw transactions")
        took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
        done = len(latencies_s) * claims
        return Rate(done, done * len(put_bytes), took_s, cpu_s, tuple(latencies_s))

    async def _keep_sending(self, worker: "_Worker", end_s: float, latencies_s: list[float]) -> None:
        while (began_s := time.perf_counter()) < end_s:
            await self._send(worker)
            latencies_s.append(time.perf_counter() - began_s)

    async def _send(self, worker: "_Worker") -> None:
        answer = await self._txn(worker.request(), timeout=CALL_S)
        if not answer.succeeded:
            raise Refused(f"somebody else writes below {self._prefix}")
        worker.revision = answer.header.revision

    def _new_hosts(self, count: int) -> list[bytes]:
        return [f"{self._prefix}{next(self._numbers):08}".encode() for _ in range(count)]


@dataclass(slots=True)
class _Worker:
    """Its hosts, all of which it wrote at `revision` (0: not yet), and how many transactions it made."""

    hosts: list[bytes]
    put_bytes: tuple[int, ...]
    revision: int = 0
    made: int = 0

    def request(self) -> wire.TxnRequest:
        self.made += 1
        return transaction(self.hosts, self.revision, self.made, self.put_bytes)


def transaction(hosts: list[bytes], revision: int, number: int, put_bytes: tuple[int, ...]) -> wire.TxnRequest:
    """One claim per host: its key is compared and written, the other keys of a claim are new ones."""
    compares = [wire.Compare(target=wire.Compare.MOD, key=host, mod_revision=revision) for host in hosts]
    puts = [
        wire.RequestOp(request_put=wire.PutRequest(key=host if at == 0 else host + f"/{number:08}-{at}".encode(), value=bytes(size)))
        for host in hosts
        for at, size in enumerate(put_bytes)
    ]
    return wire.TxnRequest(compare=compares, success=puts)


def target(url: str) -> str:
    """host:port of an http:// URL. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or parts.port is None:
        raise ValueError(f"{url!r} is not http://host:port: the raw limit is measured without TLS")
    return parts.netloc


@asynccontextmanager
async def raw_etcd(url: str, prefix: str = PREFIX) -> AsyncIterator[RawEtcd]:
    """On the running event loop."""
    options = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))
    async with grpc.aio.insecure_channel(target(url), options=options) as channel:
        yield RawEtcd(channel, prefix)
