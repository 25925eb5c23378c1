"""VMService of one host: convert, decide, convert. Reads are served in both modes, mutations by a standalone host alone."""

from collections.abc import AsyncIterator, Callable

import grpc.aio

from hostler.api.node.v1 import vms_pb2, vms_pb2_grpc
from hostler.api.type.v1 import operation_pb2, vm_pb2
from hostler.errors import NotFound, Reason
from hostler.model.journal import Request
from hostler.server import request_checks as checks
from hostler.server.api_wire import mac_from, request_from_wire, wished_vm
from hostler.server.clock import Clock, IdSource, wall_ms
from hostler.server.identity import current_principal
from nodeagent.core import standalone as decide
from nodeagent.core.standalone import HostRecords, Step
from nodeagent.engine.standalone import StandaloneHost
from nodeagent.engine.views import VMViews
from nodeagent.rpc import checks as host_checks
from nodeagent.rpc.paging import page, resume_revision, resume_token
from nodeagent.rpc.wire import accepted_to_wire, vm_to_wire

Context = grpc.aio.ServicerContext[object, object]

READS = ("GetVM", "ListVMs", "WatchVMs")


class VMReads(vms_pb2_grpc.VMServiceServicer):
    """The part of proto hostler.api.node.v1.VMService that changes nothing."""

    def __init__(self, views: VMViews) -> None:
        self._views = views

    async def GetVM(self, request: vms_pb2.GetVMRequest, context: Context) -> vm_pb2.VM:
        checks.require(request, *checks.resource("name", request.name, "vms"))
        await self._views.look()
        view = self._views.ring.things.get(request.name.removeprefix("vms/"))
        if view is None:
            raise NotFound(Reason.VM_NOT_FOUND, f"There is no VM {request.name.removeprefix('vms/')} on this host.", "See `ListVMs`.")
        return vm_to_wire(view)

    async def ListVMs(self, request: vms_pb2.ListVMsRequest, context: Context) -> vms_pb2.ListVMsResponse:
        checks.require(request)
        if not request.page_token:
            await self._views.look()
        found, next_token, revision = page(self._views.ring, request.page_size, request.page_token, sorted, "vms")
        return vms_pb2.ListVMsResponse(
            vms=[vm_to_wire(view) for view in found],
            next_page_token=next_token,
            resume_token=resume_token(self._views.ring, revision),
        )

    async def WatchVMs(self, request: vms_pb2.WatchVMsRequest, context: Context) -> AsyncIterator[vms_pb2.WatchVMsResponse]:
        checks.require(request)
        ring = self._views.ring
        revision = resume_revision(ring, request.resume_token)
        if revision is None:
            await self._views.look()
            revision, now = ring.revision, sorted(ring.things.items())
            for _, view in now:
                yield vms_pb2.WatchVMsResponse(updated=vm_to_wire(view))
            yield vms_pb2.WatchVMsResponse(bookmark=True, resume_token=resume_token(ring, revision))
        async for change in ring.follow(revision):
            if change is None:
                yield vms_pb2.WatchVMsResponse(bookmark=True, resume_token=resume_token(ring, ring.revision))
                continue
            token = resume_token(ring, change.revision)
            if change.now is None:
                yield vms_pb2.WatchVMsResponse(deleted=f"vms/{change.name}", resume_token=token)
            else:
                yield vms_pb2.WatchVMsResponse(updated=vm_to_wire(change.now), resume_token=token)


class VMService(VMReads):
    """See proto hostler.api.node.v1.VMService: all of it, on a standalone host."""

    def __init__(self, host: StandaloneHost, clock: Clock, ids: IdSource) -> None:
        super().__init__(host.views)
        self._host = host
        self._clock = clock
        self._ids = ids

    async def CreateVM(self, request: vms_pb2.CreateVMRequest, context: Context) -> operation_pb2.Operation:
        checks.require(
            request,
            *checks.new_id("vm_id", request.vm_id),
            *host_checks.vm(request.vm),
            *checks.request_id(request.request_id),
        )
        uids = [self._ids.uuid() for _ in range(1 + len(request.vm.disks))]
        macs = [mac_from(self._ids.uuid()) for _ in request.vm.nics]
        wish = wished_vm(request.vm_id, request.vm, "", request.leave_stopped, uids, macs)
        operation = await self._host.create_vm(self._request(request), wish, request.validate_only)
        return accepted_to_wire(self._host, operation, request.validate_only)

    async def DeleteVM(self, request: vms_pb2.DeleteVMRequest, context: Context) -> operation_pb2.Operation:
        return await self._change(
            request, lambda records, asked, vm_id: decide.delete_vm(records, asked, vm_id, request.etag, request.force)
        )

    async def StartVM(self, request: vms_pb2.StartVMRequest, context: Context) -> operation_pb2.Operation:
        return await self._change(request, lambda records, asked, vm_id: decide.start_vm(records, asked, vm_id, request.etag))

    async def StopVM(self, request: vms_pb2.StopVMRequest, context: Context) -> operation_pb2.Operation:
        checks.require(request, *checks.between("grace_s", request.grace_s, 0, checks.MAX_GRACE_S))
        return await self._change(
            request, lambda records, asked, vm_id: decide.stop_vm(records, asked, vm_id, request.etag, request.grace_s, request.force)
        )

    async def RebootVM(self, request: vms_pb2.RebootVMRequest, context: Context) -> operation_pb2.Operation:
        return await self._change(
            request, lambda records, asked, vm_id: decide.reboot_vm(records, asked, vm_id, request.etag, request.force)
        )

    async def _change(self, request: "_OnOneVM", change: Callable[[HostRecords, Request, str], Step]) -> operation_pb2.Operation:
        checks.require(request, *checks.resource("name", request.name, "vms"), *checks.request_id(request.request_id))
        vm_id, asked = request.name.removeprefix("vms/"), self._request(request)
        operation = await self._host.change_vm(asked, lambda records: change(records, asked, vm_id), request.validate_only)
        return accepted_to_wire(self._host, operation, request.validate_only)

    def _request(self, request: "_OnOneVM | vms_pb2.CreateVMRequest") -> Request:
        return request_from_wire(request, current_principal().uri, request.request_id or self._ids.uuid(), wall_ms(self._clock))


_OnOneVM = vms_pb2.DeleteVMRequest | vms_pb2.StartVMRequest | vms_pb2.StopVMRequest | vms_pb2.RebootVMRequest
