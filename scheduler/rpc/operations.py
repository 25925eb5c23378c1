"""OperationService of the cluster: any replica answers for any operation."""

from collections.abc import AsyncIterator

import grpc.aio

from hostler.api.cluster.v1 import operations_pb2, operations_pb2_grpc
from hostler.api.type.v1 import operation_pb2
from hostler.errors import NotFound, Reason
from hostler.server import request_checks as checks
from scheduler.core.decide_migration import LimitsChange, tune_migration
from scheduler.core.decide_power import cancel
from scheduler.core.records import OperationRecord
from scheduler.core.state import ClusterState
from scheduler.rpc.api import Api

Context = grpc.aio.ServicerContext[object, object]

DEFAULT_WAIT_S, MAX_WAIT_S = 30, 240
PROGRESS_S = 0.5
"""How often a watcher hears of the progress of a copy."""


class OperationService(operations_pb2_grpc.OperationServiceServicer):
    """See proto hostler.api.cluster.v1.OperationService."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def GetOperation(self, request: operations_pb2.GetOperationRequest, context: Context) -> operation_pb2.Operation:
        state = await self._api.read()
        return await self._api.operation_to_wire(state, _find(request, state))

    async def ListOperations(
        self, request: operations_pb2.ListOperationsRequest, context: Context
    ) -> operations_pb2.ListOperationsResponse:
        checks.require(request)
        target = request.target.rpartition("/")[2]

        def newest_first(state: ClusterState) -> list[str]:
            found = [kept.record for kept in state.operations.values() if not target or kept.record.target_id == target]
            return [one.operation_id for one in sorted(found, key=lambda one: (-one.create_ms, one.operation_id))]

        page = await self._api.page("operations", request.page_size, request.page_token, newest_first, request.target)
        records = [page.state.operations[name].record for name in page.names]
        return operations_pb2.ListOperationsResponse(
            operations=[await self._api.operation_to_wire(page.state, one) for one in records], next_page_token=page.next_token
        )

    async def WaitOperation(self, request: operations_pb2.WaitOperationRequest, context: Context) -> operation_pb2.Operation:
        checks.require(request, *checks.between("timeout_s", request.timeout_s, 0, MAX_WAIT_S))
        end_s = self._api.clock.monotonic_s() + (request.timeout_s or DEFAULT_WAIT_S)
        operation = _find(request, await self._api.read())
        while not operation.done and (left_s := end_s - self._api.clock.monotonic_s()) > 0:
            await self._api.mirror.await_change(self._api.mirror.state.revision, left_s)
            operation = _find(request, self._api.mirror.state)
        return await self._api.operation_to_wire(self._api.mirror.state, operation)

    async def CancelOperation(self, request: operations_pb2.CancelOperationRequest, context: Context) -> operation_pb2.Operation:
        operation_id = _find(request, await self._api.read()).operation_id
        await self._api.writer.apply(lambda state: cancel(state, operation_id))
        state = await self._api.read()
        return await self._api.operation_to_wire(state, _find(request, state))

    async def TuneMigration(self, request: operations_pb2.TuneMigrationRequest, context: Context) -> operation_pb2.Operation:
        bandwidth_mib_s = request.bandwidth_mib_s if request.HasField("bandwidth_mib_s") else None
        max_downtime_ms = request.max_downtime_ms if request.HasField("max_downtime_ms") else None
        checks.require(
            request,
            *checks.between("bandwidth_mib_s", bandwidth_mib_s or 0, 0, checks.MAX_BANDWIDTH_MIB_S),
            *checks.between("max_downtime_ms", max_downtime_ms or 0, 0, checks.MAX_DOWNTIME_MS),
        )
        operation_id = _find(request, await self._api.read()).operation_id
        change = LimitsChange(bandwidth_mib_s, max_downtime_ms)
        await self._api.writer.apply(lambda state: tune_migration(state, operation_id, change))
        state = await self._api.read()
        return await self._api.operation_to_wire(state, _find(request, state))

    async def WatchOperation(
        self, request: operations_pb2.WatchOperationRequest, context: Context
    ) -> AsyncIterator[operations_pb2.WatchOperationResponse]:
        last: operation_pb2.Operation | None = None
        operation = _find(request, await self._api.read())
        while True:
            revision = self._api.mirror.state.revision
            now = await self._api.operation_to_wire(self._api.mirror.state, operation)
            if now != last:
                yield operations_pb2.WatchOperationResponse(operation=now)
                last = now
            if operation.done:
                return
            await self._api.mirror.await_change(revision, PROGRESS_S)
            operation = _find(request, self._api.mirror.state)


_Named = (
    operations_pb2.GetOperationRequest
    | operations_pb2.WaitOperationRequest
    | operations_pb2.CancelOperationRequest
    | operations_pb2.TuneMigrationRequest
    | operations_pb2.WatchOperationRequest
)


def _find(request: _Named, state: ClusterState) -> OperationRecord:
    checks.require(request)
    kept = state.operations.get(request.name.removeprefix("operations/"))
    if kept is None:
        raise NotFound(
            Reason.OPERATION_NOT_FOUND, "There is no such operation; ended ones are forgotten after a while.", "See `hostler op list`."
        )
    return kept.record
