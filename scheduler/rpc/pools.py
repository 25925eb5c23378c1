"""PoolService of the cluster: convert, ask, convert."""

import grpc.aio

from hostler.api.cluster.v1 import pools_pb2, pools_pb2_grpc
from hostler.api.type.v1 import volume_pb2
from hostler.errors import NotFound, Reason
from hostler.server import request_checks as checks
from scheduler.core.pool_promise import pool_ids, promise
from scheduler.rpc.api import Api
from scheduler.rpc.wire import promise_to_wire

Context = grpc.aio.ServicerContext[object, object]


class PoolService(pools_pb2_grpc.PoolServiceServicer):
    """See proto hostler.api.cluster.v1.PoolService."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def GetPool(self, request: pools_pb2.GetPoolRequest, context: Context) -> volume_pb2.Pool:
        checks.require(request, *checks.resource("name", request.name, "pools"))
        state, pool_id = await self._api.read(), request.name.removeprefix("pools/")
        found = promise(state, pool_id)
        if found is None:
            raise NotFound(Reason.POOL_NOT_FOUND, f"No node has a pool {pool_id}.", "See `hostler pool list`.")
        return promise_to_wire(found)

    async def ListPools(self, request: pools_pb2.ListPoolsRequest, context: Context) -> pools_pb2.ListPoolsResponse:
        checks.require(request)
        page = await self._api.page("pools", request.page_size, request.page_token, pool_ids)
        found = [promise(page.state, name) for name in page.names]
        return pools_pb2.ListPoolsResponse(
            pools=[promise_to_wire(one) for one in found if one is not None], next_page_token=page.next_token
        )
