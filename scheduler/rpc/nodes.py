"""NodeService of the cluster."""

from collections.abc import AsyncIterator

import grpc.aio

from hostler.api.cluster.v1 import nodes_pb2, nodes_pb2_grpc
from hostler.api.type.v1 import node_pb2, operation_pb2
from hostler.errors import NotFound, Reason
from hostler.server import request_checks as checks
from scheduler.core.decide_fence import fence_node
from scheduler.core.decide_nodes import set_state
from scheduler.core.drain import PARALLEL_MOST, drain_node
from scheduler.core.records import NodeState
from scheduler.core.state import ClusterState
from scheduler.rpc.api import Api
from scheduler.rpc.wire import node_to_wire

Context = grpc.aio.ServicerContext[object, object]


class NodeService(nodes_pb2_grpc.NodeServiceServicer):
    """See proto hostler.api.cluster.v1.NodeService."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def GetNode(self, request: nodes_pb2.GetNodeRequest, context: Context) -> node_pb2.Node:
        checks.require(request, *checks.resource("name", request.name, "nodes"))
        return _get(await self._api.read(), request.name.removeprefix("nodes/"))

    async def ListNodes(self, request: nodes_pb2.ListNodesRequest, context: Context) -> nodes_pb2.ListNodesResponse:
        checks.require(request)
        page = await self._api.page("nodes", request.page_size, request.page_token, lambda state: sorted(state.nodes))
        return nodes_pb2.ListNodesResponse(
            nodes=[node_to_wire(page.state, page.state.nodes[name]) for name in page.names],
            next_page_token=page.next_token,
            resume_token=self._api.resume_token(page.state.revision),
        )

    async def CordonNode(self, request: nodes_pb2.CordonNodeRequest, context: Context) -> node_pb2.Node:
        return await self._set(request, NodeState.CORDONED)

    async def UncordonNode(self, request: nodes_pb2.UncordonNodeRequest, context: Context) -> node_pb2.Node:
        return await self._set(request, NodeState.ACTIVE)

    async def FenceNode(self, request: nodes_pb2.FenceNodeRequest, context: Context) -> operation_pb2.Operation:
        checks.require(
            request,
            *checks.resource("name", request.name, "nodes"),
            *checks.request_id(request.request_id),
            *checks.confirmed(
                "confirm_powered_off", request.confirm_powered_off, "power the node off, then say so: nothing else proves it"
            ),
        )
        asked, node_id = self._api.request(request, request.request_id), request.name.removeprefix("nodes/")
        return await self._api.accept(lambda state: fence_node(state, asked, node_id, request.etag), request.validate_only)

    async def DrainNode(self, request: nodes_pb2.DrainNodeRequest, context: Context) -> operation_pb2.Operation:
        checks.require(
            request,
            *checks.resource("name", request.name, "nodes"),
            *checks.request_id(request.request_id),
            *checks.between("parallel", request.parallel, 0, PARALLEL_MOST),
        )
        asked, node_id = self._api.request(request, request.request_id), request.name.removeprefix("nodes/")
        return await self._api.accept(
            lambda state: drain_node(
                state, asked, node_id, request.etag, request.parallel, self._api.policy, plan_only=request.validate_only
            ),
            request.validate_only,
        )

    async def WatchNodes(self, request: nodes_pb2.WatchNodesRequest, context: Context) -> AsyncIterator[nodes_pb2.WatchNodesResponse]:
        def updated(state: ClusterState, node_id: str) -> nodes_pb2.WatchNodesResponse | None:
            kept = state.nodes.get(node_id)
            return None if kept is None else nodes_pb2.WatchNodesResponse(updated=node_to_wire(state, kept))

        async for message, token in self._api.watch(
            "node",
            request.resume_token,
            updated,
            lambda node_id: nodes_pb2.WatchNodesResponse(deleted=f"nodes/{node_id}"),
            lambda: nodes_pb2.WatchNodesResponse(bookmark=True),
        ):
            message.resume_token = token
            yield message

    async def _set(self, request: nodes_pb2.CordonNodeRequest | nodes_pb2.UncordonNodeRequest, wanted: NodeState) -> node_pb2.Node:
        checks.require(request, *checks.resource("name", request.name, "nodes"), *checks.request_id(request.request_id))
        node_id = request.name.removeprefix("nodes/")
        if request.validate_only:
            set_state(await self._api.read(), node_id, wanted, request.etag)
        else:
            await self._api.writer.apply(lambda state: set_state(state, node_id, wanted, request.etag))
        return _get(await self._api.read(), node_id)


def _get(state: ClusterState, node_id: str) -> node_pb2.Node:
    kept = state.nodes.get(node_id)
    if kept is None:
        raise NotFound(Reason.NODE_NOT_FOUND, f"There is no node {node_id}.", "See `hostler node list`.")
    return node_to_wire(state, kept)
