"""VMService of the cluster: convert, decide, convert."""

from collections.abc import AsyncIterator

import grpc.aio

from hostler.api.cluster.v1 import vms_pb2, vms_pb2_grpc
from hostler.api.type.v1 import operation_pb2, vm_pb2
from hostler.errors import NotFound, Reason
from hostler.model.migration_facts import MigrationCheck
from hostler.server import request_checks as checks
from hostler.server.api_wire import mac_from, wished_vm
from hostler.server.internal_wire import check_to_wire, forecast_to_wire
from scheduler.core.accept import Request
from scheduler.core.decide_create import create_vm
from scheduler.core.decide_migration import migrate_vm
from scheduler.core.decide_power import delete_vm, reboot_vm, start_vm, stop_vm
from scheduler.core.records import VMRecord
from scheduler.core.state import ClusterState, Kept
from scheduler.engine.migration_check import look
from scheduler.engine.reconciling import Outcome, Result, carry_out, judged
from scheduler.ports import CopyEstimate, NodeUnreachable, Order
from scheduler.rpc.api import Api
from scheduler.rpc.wire import priority_from_wire, reconciliation_to_wire, vm_to_wire

Context = grpc.aio.ServicerContext[object, object]


class VMService(vms_pb2_grpc.VMServiceServicer):
    """See proto hostler.api.cluster.v1.VMService."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def CreateVM(self, request: vms_pb2.CreateVMRequest, context: Context) -> operation_pb2.Operation:
        checks.require(
            request,
            *checks.new_id("vm_id", request.vm_id),
            *checks.vm(request.vm),
            *checks.resource("node", request.node, "nodes"),
            *checks.between("deadline_s", request.deadline_s, 0, checks.MAX_DEADLINE_S),
            *checks.request_id(request.request_id),
        )
        uids = [self._api.ids.uuid() for _ in range(1 + len(request.vm.disks))]
        macs = [mac_from(self._api.ids.uuid()) for _ in request.vm.nics]
        wish = wished_vm(request.vm_id, request.vm, request.node.removeprefix("nodes/"), request.leave_stopped, uids, macs)
        asked = self._api.request(request, request.request_id)
        return await self._api.accept(lambda state: create_vm(state, asked, wish, self._api.policy), request.validate_only)

    async def GetVM(self, request: vms_pb2.GetVMRequest, context: Context) -> vm_pb2.VM:
        checks.require(request, *checks.resource("name", request.name, "vms"))
        state = await self._api.read()
        kept = _find(state, request.name.removeprefix("vms/"))
        return vm_to_wire(state, kept.record, kept.revision)

    async def ListVMs(self, request: vms_pb2.ListVMsRequest, context: Context) -> vms_pb2.ListVMsResponse:
        checks.require(request, *checks.resource("node", request.node, "nodes"))
        node_id = request.node.removeprefix("nodes/")

        def names(state: ClusterState) -> list[str]:
            return sorted(vm_id for vm_id, kept in state.vms.items() if not node_id or kept.record.owner.node_id == node_id)

        page = await self._api.page("vms", request.page_size, request.page_token, names, request.node)
        return vms_pb2.ListVMsResponse(
            vms=[vm_to_wire(page.state, page.state.vms[name].record, page.state.vms[name].revision) for name in page.names],
            next_page_token=page.next_token,
            resume_token=self._api.resume_token(page.state.revision),
        )

    async def DeleteVM(self, request: vms_pb2.DeleteVMRequest, context: Context) -> operation_pb2.Operation:
        vm_id, asked = self._about(request)
        return await self._api.accept(lambda state: delete_vm(state, asked, vm_id, request.etag, request.force), request.validate_only)

    async def StartVM(self, request: vms_pb2.StartVMRequest, context: Context) -> operation_pb2.Operation:
        vm_id, asked = self._about(request)
        return await self._api.accept(lambda state: start_vm(state, asked, vm_id, request.etag, self._api.policy), request.validate_only)

    async def StopVM(self, request: vms_pb2.StopVMRequest, context: Context) -> operation_pb2.Operation:
        checks.require(request, *checks.between("grace_s", request.grace_s, 0, checks.MAX_GRACE_S))
        vm_id, asked = self._about(request)
        return await self._api.accept(
            lambda state: stop_vm(state, asked, vm_id, request.etag, request.grace_s, request.force), request.validate_only
        )

    async def RebootVM(self, request: vms_pb2.RebootVMRequest, context: Context) -> operation_pb2.Operation:
        vm_id, asked = self._about(request)
        return await self._api.accept(lambda state: reboot_vm(state, asked, vm_id, request.etag, request.force), request.validate_only)

    async def MigrateVM(self, request: vms_pb2.MigrateVMRequest, context: Context) -> operation_pb2.Operation:
        checks.require(
            request,
            *checks.resource("destination_node", request.destination_node, "nodes"),
            *checks.between("deadline_s", request.deadline_s, 0, checks.MAX_DEADLINE_S),
            *checks.between("bandwidth_mib_s", request.bandwidth_mib_s, 0, checks.MAX_BANDWIDTH_MIB_S),
            *checks.between("max_downtime_ms", request.max_downtime_ms, 0, checks.MAX_DOWNTIME_MS),
        )
        vm_id, asked = self._about(request)
        destination, priority = request.destination_node.removeprefix("nodes/"), priority_from_wire(request.priority)
        operation = await self._api.accept(
            lambda state: migrate_vm(
                state,
                asked,
                vm_id,
                request.etag,
                destination,
                request.bandwidth_mib_s,
                self._api.policy,
                priority,
                max_downtime_ms=request.max_downtime_ms,
            ),
            request.validate_only,
        )
        if request.validate_only and not operation.migration.cold:
            await self._look(vm_id, operation, CopyEstimate(request.bandwidth_mib_s, request.max_downtime_ms))
        return operation

    async def _look(self, vm_id: str, would: operation_pb2.Operation, estimate: CopyEstimate) -> None:
        """What both nodes say of it goes into the operation that it would be."""
        state = self._api.mirror.state
        kept, destination = _find(state, vm_id), would.migration.destination_node.removeprefix("nodes/")
        order = Order("", kept.record.uid, kept.record.owner.epoch, kept.revision)
        try:
            looked = await look(self._api.nodes, state, order, kept.record, destination, estimate)
        except NodeUnreachable as silent:
            found = MigrationCheck("agents", False, f"Not everything could be looked at: {silent}", "Make that agent answer.")
            would.migration.checks.append(check_to_wire(found))
            return
        would.migration.checks.extend(check_to_wire(check) for check in looked.checks)
        if looked.forecast is not None:
            would.migration.forecast.CopyFrom(forecast_to_wire(looked.forecast))

    async def ReconcileVM(self, request: vms_pb2.ReconcileVMRequest, context: Context) -> vms_pb2.Reconciliation:
        checks.require(request, *checks.resource("name", request.name, "vms"))
        state = await self._api.read()
        kept = _find(state, request.name.removeprefix("vms/"))
        seen, verdict = await judged(self._api.nodes, state, kept.record)
        results = [Result(action, Outcome.PROPOSED, action.why) for action in verdict.actions]
        if request.apply:
            results = await carry_out(self._api.nodes, self._api.writer, kept, verdict, seen, request.allow_destructive)
        return reconciliation_to_wire(kept.record, seen, verdict, results)

    async def WatchVMs(self, request: vms_pb2.WatchVMsRequest, context: Context) -> AsyncIterator[vms_pb2.WatchVMsResponse]:
        def updated(state: ClusterState, vm_id: str) -> vms_pb2.WatchVMsResponse | None:
            kept = state.vms.get(vm_id)
            if kept is None:
                return None
            return vms_pb2.WatchVMsResponse(updated=vm_to_wire(state, kept.record, kept.revision))

        async for message, token in self._api.watch(
            "vm",
            request.resume_token,
            updated,
            lambda vm_id: vms_pb2.WatchVMsResponse(deleted=f"vms/{vm_id}"),
            lambda: vms_pb2.WatchVMsResponse(bookmark=True),
        ):
            message.resume_token = token
            yield message

    def _about(self, request: "_OnOneVM") -> tuple[str, Request]:
        checks.require(request, *checks.resource("name", request.name, "vms"), *checks.request_id(request.request_id))
        return request.name.removeprefix("vms/"), self._api.request(request, request.request_id)


def _find(state: ClusterState, vm_id: str) -> Kept[VMRecord]:
    kept = state.vms.get(vm_id)
    if kept is None:
        raise NotFound(Reason.VM_NOT_FOUND, f"There is no VM {vm_id}.", "See `hostler vm list`.")
    return kept


_OnOneVM = vms_pb2.DeleteVMRequest | vms_pb2.StartVMRequest | vms_pb2.StopVMRequest | vms_pb2.RebootVMRequest | vms_pb2.MigrateVMRequest
