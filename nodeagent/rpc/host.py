"""HostService: the host as it is now, or as it was known last, marked stale."""

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from hostler.api.node.v1 import host_pb2, host_pb2_grpc
from hostler.api.type.v1 import node_pb2, volume_pb2
from hostler.server.clock import Clock
from hostler.server.internal_wire import node_to_wire
from nodeagent.engine.inventory import Inventory

Context = grpc.aio.ServicerContext[object, object]


class HostService(host_pb2_grpc.HostServiceServicer):
    """See proto hostler.api.node.v1.HostService."""

    def __init__(self, inventory: Inventory, endpoint: str, clock: Clock) -> None:
        self._inventory = inventory
        self._endpoint = endpoint
        self._clock = clock

    async def GetHost(self, request: host_pb2.GetHostRequest, context: Context) -> node_pb2.Node:
        node = node_to_wire(await self._inventory.collect())
        node.endpoint = self._endpoint
        for pool in node.pools:
            _not_more_than_one_host_knows(pool)
        stamp = Timestamp()
        stamp.FromDatetime(self._clock.now())
        node.report_time.CopyFrom(stamp)
        return node


def _not_more_than_one_host_knows(pool: volume_pb2.Pool) -> None:
    """To the scheduler a host says whether locks can be asked; whether they exclude other hosts is found out between hosts."""
    if pool.reach == volume_pb2.Pool.LOCAL:
        pool.live_move = volume_pb2.Pool.COLD_ONLY
    elif pool.lock_kind == volume_pb2.Pool.OFD:
        pool.lock_kind = volume_pb2.Pool.LOCK_KIND_UNSPECIFIED
        pool.reason = "Its locks can be asked here; whether they exclude other hosts is probed between the hosts of a cluster."
