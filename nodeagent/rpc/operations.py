"""OperationService of a standalone host."""

from collections.abc import AsyncIterator, Mapping

import grpc.aio

from hostler.api.node.v1 import operations_pb2, operations_pb2_grpc
from hostler.api.type.v1 import operation_pb2
from hostler.errors import NotFound, Reason
from hostler.model.records import Kept, OperationRecord
from hostler.server import request_checks as checks
from hostler.server.api_wire import collection_of
from hostler.server.clock import Clock
from nodeagent.engine.standalone import StandaloneHost
from nodeagent.rpc.paging import page
from nodeagent.rpc.wire import operation_to_wire

Context = grpc.aio.ServicerContext[object, object]

DEFAULT_WAIT_S, MAX_WAIT_S = 30, 240
LOOK_S = 0.5
"""How often a watcher is told what an operation waits for, which is no change of its record."""


class OperationService(operations_pb2_grpc.OperationServiceServicer):
    """See proto hostler.api.node.v1.OperationService."""

    def __init__(self, host: StandaloneHost, clock: Clock) -> None:
        self._host = host
        self._clock = clock

    async def GetOperation(self, request: operations_pb2.GetOperationRequest, context: Context) -> operation_pb2.Operation:
        return operation_to_wire(self._host, self._find(request))

    async def ListOperations(
        self, request: operations_pb2.ListOperationsRequest, context: Context
    ) -> operations_pb2.ListOperationsResponse:
        checks.require(request)

        def newest_first(things: Mapping[str, Kept[OperationRecord]]) -> list[str]:
            found = [kept.record for kept in things.values() if not request.target or _target(kept.record) == request.target]
            return [one.operation_id for one in sorted(found, key=lambda one: (-one.create_ms, one.operation_id))]

        found, next_token, _ = page(
            self._host.operations, request.page_size, request.page_token, newest_first, "operations", request.target
        )
        return operations_pb2.ListOperationsResponse(
            operations=[operation_to_wire(self._host, kept.record) for kept in found], next_page_token=next_token
        )

    async def WaitOperation(self, request: operations_pb2.WaitOperationRequest, context: Context) -> operation_pb2.Operation:
        checks.require(request, *checks.between("timeout_s", request.timeout_s, 0, MAX_WAIT_S))
        end_s = self._clock.monotonic_s() + (request.timeout_s or DEFAULT_WAIT_S)
        revision, operation = self._host.operations.revision, self._find(request)
        while not operation.done and (left_s := end_s - self._clock.monotonic_s()) > 0:
            await self._host.operations.moves_on(revision, left_s)
            revision, operation = self._host.operations.revision, self._find(request)
        return operation_to_wire(self._host, operation)

    async def CancelOperation(self, request: operations_pb2.CancelOperationRequest, context: Context) -> operation_pb2.Operation:
        checks.require(request, *checks.request_id(request.request_id))
        await self._host.cancel(self._find(request).operation_id)
        return operation_to_wire(self._host, self._find(request))

    async def WatchOperation(
        self, request: operations_pb2.WatchOperationRequest, context: Context
    ) -> AsyncIterator[operations_pb2.WatchOperationResponse]:
        last: operation_pb2.Operation | None = None
        while True:
            revision, operation = self._host.operations.revision, self._find(request)
            now = operation_to_wire(self._host, operation)
            if now != last:
                yield operations_pb2.WatchOperationResponse(operation=now)
                last = now
            if operation.done:
                return
            await self._host.operations.moves_on(revision, LOOK_S)

    def _find(self, request: "_Named") -> OperationRecord:
        checks.require(request)
        kept = self._host.operations.things.get(request.name.removeprefix("operations/"))
        if kept is None:
            raise NotFound(
                Reason.OPERATION_NOT_FOUND, "There is no such operation; ended ones are forgotten after a day.", "See `ListOperations`."
            )
        return kept.record


_Named = (
    operations_pb2.GetOperationRequest
    | operations_pb2.WaitOperationRequest
    | operations_pb2.CancelOperationRequest
    | operations_pb2.WatchOperationRequest
)


def _target(operation: OperationRecord) -> str:
    return f"{collection_of(operation.verb)}/{operation.target_id}"
