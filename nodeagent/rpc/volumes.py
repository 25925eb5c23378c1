"""VolumeService of a standalone host."""

import grpc.aio

from hostler.api.node.v1 import volumes_pb2, volumes_pb2_grpc
from hostler.api.type.v1 import operation_pb2, volume_pb2
from hostler.errors import NotFound, Reason
from hostler.model.journal import Request
from hostler.model.wishes import NewDisk
from hostler.server import request_checks as checks
from hostler.server.api_wire import request_from_wire
from hostler.server.clock import Clock, IdSource, wall_ms
from hostler.server.identity import current_principal
from nodeagent.engine.standalone import StandaloneHost
from nodeagent.rpc import checks as host_checks
from nodeagent.rpc.paging import page
from nodeagent.rpc.wire import accepted_to_wire, volume_to_wire

Context = grpc.aio.ServicerContext[object, object]


class VolumeService(volumes_pb2_grpc.VolumeServiceServicer):
    """See proto hostler.api.node.v1.VolumeService."""

    def __init__(self, host: StandaloneHost, clock: Clock, ids: IdSource) -> None:
        self._host = host
        self._clock = clock
        self._ids = ids

    async def CreateVolume(self, request: volumes_pb2.CreateVolumeRequest, context: Context) -> operation_pb2.Operation:
        wanted = request.volume
        checks.require(
            request,
            *checks.new_id("volume_id", request.volume_id),
            *host_checks.volume(wanted, self._host.node_id),
            *checks.request_id(request.request_id),
        )
        wish = NewDisk(wanted.pool.removeprefix("pools/"), wanted.size_mib, wanted.image, self._ids.uuid())
        operation = await self._host.create_volume(self._request(request), request.volume_id, wish, request.validate_only)
        return accepted_to_wire(self._host, operation, request.validate_only)

    async def GetVolume(self, request: volumes_pb2.GetVolumeRequest, context: Context) -> volume_pb2.Volume:
        checks.require(request, *checks.resource("name", request.name, "volumes"))
        volume_id = request.name.removeprefix("volumes/")
        kept = self._host.volumes.things.get(volume_id)
        if kept is None:
            raise NotFound(Reason.VOLUME_NOT_FOUND, f"There is no volume {volume_id} on this host.", "See `ListVolumes`.")
        return volume_to_wire(kept)

    async def ListVolumes(self, request: volumes_pb2.ListVolumesRequest, context: Context) -> volumes_pb2.ListVolumesResponse:
        checks.require(request)
        found, next_token, _ = page(self._host.volumes, request.page_size, request.page_token, sorted, "volumes")
        return volumes_pb2.ListVolumesResponse(volumes=[volume_to_wire(kept) for kept in found], next_page_token=next_token)

    async def DeleteVolume(self, request: volumes_pb2.DeleteVolumeRequest, context: Context) -> operation_pb2.Operation:
        checks.require(request, *checks.resource("name", request.name, "volumes"), *checks.request_id(request.request_id))
        volume_id = request.name.removeprefix("volumes/")
        operation = await self._host.delete_volume(self._request(request), volume_id, request.etag, request.validate_only)
        return accepted_to_wire(self._host, operation, request.validate_only)

    def _request(self, request: volumes_pb2.CreateVolumeRequest | volumes_pb2.DeleteVolumeRequest) -> Request:
        return request_from_wire(request, current_principal().uri, request.request_id or self._ids.uuid(), wall_ms(self._clock))
