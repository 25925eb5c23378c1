"""HostService: the host as it is now, or as it was known last, marked stale."""

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from hostler.api.node.v1 import host_pb2, host_pb2_grpc
from hostler.api.type.v1 import node_pb2
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
        stamp = Timestamp()
        stamp.FromDatetime(self._clock.now())
        node.report_time.CopyFrom(stamp)
        return node
