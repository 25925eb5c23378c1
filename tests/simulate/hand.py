"""The hand that lets a fault fall: whom it strikes, how long, what it waits for, and how it is told and counted."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

import grpc.aio

from hostler.api.cluster.v1 import nodes_pb2_grpc, operations_pb2, operations_pb2_grpc
from scheduler.core.records import LEADER
from tests.simulate.cluster import NODES, REPLICAS, RESTART_S, SimCluster
from tests.simulate.net import SimCall


class Hand:
    """What every kind of fault is made with."""

    def __init__(self, cluster: SimCluster, random: Random) -> None:
        self._cluster = cluster
        self._random = random
        self._off: set[str] = set()
        """Hosts without power."""
        self.count = 0

    def _fell(self, kind: str, what: str) -> None:
        self.count += 1
        self._cluster.checker.hit[f"fault {kind}"] += 1
        self._cluster.checker.tell(f"FAULT {kind}: {what}")

    async def _sleep(self, least_s: float, most_s: float) -> None:
        await asyncio.sleep(self._random.uniform(least_s, most_s))

    def _node(self) -> str:
        return self._random.choice(NODES)

    def _nodes(self) -> Any:  # noqa: ANN401 a generated stub, over a channel that is no gRPC channel
        channel: Any = self._cluster.channel("admin", self._random.choice(REPLICAS))
        return nodes_pb2_grpc.NodeServiceStub(channel)

    def _leader(self) -> str:
        item = self._cluster.store.keyspace().get(LEADER)
        return item.value.decode() if item is not None else self._random.choice(REPLICAS)

    def _busy_replica(self) -> str:
        return self._leader() if self._random.random() < 0.75 else self._random.choice(REPLICAS)

    async def _restart(self, name: str) -> None:
        await asyncio.sleep(RESTART_S if self._random.random() < 0.7 else self._random.uniform(RESTART_S, 25.0))
        if name not in self._off and not self._cluster.lives(name):
            self._cluster.start(name)

    async def _cut(self, links: list[frozenset[str]]) -> None:
        hangs = self._random.random() < 0.5
        for link in links:
            self._cluster.network.cut[link] = hangs
        await self._sleep(0.3, 10.0) if self._random.random() < 0.7 else await self._sleep(10.0, 90.0)
        for link in links:
            self._cluster.network.cut.pop(link, None)

    async def _departure(self, method: str, caller: str = "") -> SimCall | None:
        """The next such call, as it departs; None if none does for a while."""
        network = self._cluster.network
        seen: asyncio.Future[SimCall] = asyncio.get_running_loop().create_future()

        def departs(call: SimCall) -> None:
            if call.method.endswith(method) and caller in ("", call.caller_id) and not seen.done():
                seen.set_result(call)

        network.departs[departs] = None
        try:
            async with asyncio.timeout(30.0):
                return await seen
        except TimeoutError:
            return None
        finally:
            del network.departs[departs]

    async def _comes_true(self, so: Callable[[], bool]) -> bool:
        for _ in range(200):
            if so():
                return True
            await asyncio.sleep(0.1)
        return False

    async def _cancel(self, operation_id: str) -> None:
        """By a person who asks each replica until one answers."""
        for replica in REPLICAS:
            channel: Any = self._cluster.channel("admin", replica)
            stub: Any = operations_pb2_grpc.OperationServiceStub(channel)
            with suppress(grpc.aio.AioRpcError):
                await stub.CancelOperation(operations_pb2.CancelOperationRequest(name=f"operations/{operation_id}"), timeout=5)
                return
