"""VolumeService and FlavorService of the cluster."""

import grpc.aio
from google.protobuf.empty_pb2 import Empty

from hostler.api.cluster.v1 import flavors_pb2, flavors_pb2_grpc, volumes_pb2, volumes_pb2_grpc
from hostler.api.type.v1 import operation_pb2, vm_pb2, volume_pb2
from hostler.errors import NotFound, Reason
from hostler.server import request_checks as checks
from hostler.server.api_wire import volume_to_wire
from scheduler.core import decide_volumes
from scheduler.rpc.api import Api
from scheduler.rpc.wire import flavor_to_wire, wished_flavor

Context = grpc.aio.ServicerContext[object, object]


class VolumeService(volumes_pb2_grpc.VolumeServiceServicer):
    """See proto hostler.api.cluster.v1.VolumeService."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def CreateVolume(self, request: volumes_pb2.CreateVolumeRequest, context: Context) -> operation_pb2.Operation:
        wanted = request.volume
        checks.require(
            request,
            *checks.new_id("volume_id", request.volume_id),
            *checks.resource("volume.pool", wanted.pool, "pools"),
            *checks.resource("volume.node", wanted.node, "nodes"),
            *checks.between("volume.size_mib", wanted.size_mib, 0, checks.MAX_VOLUME_MIB),
            *checks.image("volume.image", wanted.image),
            *checks.request_id(request.request_id),
        )
        uid, asked = self._api.ids.uuid(), self._api.request(request, request.request_id)
        pool_id, node_id = wanted.pool.removeprefix("pools/"), wanted.node.removeprefix("nodes/")
        return await self._api.accept(
            lambda state: decide_volumes.create_volume(
                state, asked, request.volume_id, uid, pool_id, node_id, wanted.size_mib, wanted.image
            ),
            request.validate_only,
        )

    async def GetVolume(self, request: volumes_pb2.GetVolumeRequest, context: Context) -> volume_pb2.Volume:
        checks.require(request, *checks.resource("name", request.name, "volumes"))
        state, volume_id = await self._api.read(), request.name.removeprefix("volumes/")
        if volume_id not in state.volumes:
            raise NotFound(Reason.VOLUME_NOT_FOUND, f"There is no volume {volume_id}.", "See `hostler volume list`.")
        return volume_to_wire(state.volumes[volume_id].record, str(state.volumes[volume_id].revision))

    async def ListVolumes(self, request: volumes_pb2.ListVolumesRequest, context: Context) -> volumes_pb2.ListVolumesResponse:
        checks.require(request)
        page = await self._api.page("volumes", request.page_size, request.page_token, lambda state: sorted(state.volumes))
        kept = [page.state.volumes[name] for name in page.names]
        return volumes_pb2.ListVolumesResponse(
            volumes=[volume_to_wire(one.record, str(one.revision)) for one in kept], next_page_token=page.next_token
        )

    async def DeleteVolume(self, request: volumes_pb2.DeleteVolumeRequest, context: Context) -> operation_pb2.Operation:
        checks.require(request, *checks.resource("name", request.name, "volumes"), *checks.request_id(request.request_id))
        asked, volume_id = self._api.request(request, request.request_id), request.name.removeprefix("volumes/")
        return await self._api.accept(
            lambda state: decide_volumes.delete_volume(state, asked, volume_id, request.etag), request.validate_only
        )


class FlavorService(flavors_pb2_grpc.FlavorServiceServicer):
    """See proto hostler.api.cluster.v1.FlavorService."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def CreateFlavor(self, request: flavors_pb2.CreateFlavorRequest, context: Context) -> vm_pb2.Flavor:
        checks.require(
            request,
            *checks.new_id("flavor_id", request.flavor_id),
            *checks.flavor(request.flavor),
            *checks.request_id(request.request_id),
        )
        flavor = wished_flavor(request.flavor_id, request.flavor)
        if request.validate_only:
            decide_volumes.create_flavor(await self._api.read(), flavor)
        else:
            await self._api.writer.apply(lambda state: decide_volumes.create_flavor(state, flavor))
        return flavor_to_wire(flavor)

    async def GetFlavor(self, request: flavors_pb2.GetFlavorRequest, context: Context) -> vm_pb2.Flavor:
        checks.require(request, *checks.resource("name", request.name, "flavors"))
        state, flavor_id = await self._api.read(), request.name.removeprefix("flavors/")
        if flavor_id not in state.flavors:
            raise NotFound(Reason.FLAVOR_NOT_FOUND, f"There is no flavor {flavor_id}.", "See `hostler flavor list`.")
        return flavor_to_wire(state.flavors[flavor_id].record)

    async def ListFlavors(self, request: flavors_pb2.ListFlavorsRequest, context: Context) -> flavors_pb2.ListFlavorsResponse:
        checks.require(request)
        page = await self._api.page("flavors", request.page_size, request.page_token, lambda state: sorted(state.flavors))
        return flavors_pb2.ListFlavorsResponse(
            flavors=[flavor_to_wire(page.state.flavors[name].record) for name in page.names], next_page_token=page.next_token
        )

    async def DeleteFlavor(self, request: flavors_pb2.DeleteFlavorRequest, context: Context) -> Empty:
        checks.require(request, *checks.resource("name", request.name, "flavors"), *checks.request_id(request.request_id))
        flavor_id = request.name.removeprefix("flavors/")
        if request.validate_only:
            decide_volumes.delete_flavor(await self._api.read(), flavor_id)
        else:
            await self._api.writer.apply(lambda state: decide_volumes.delete_flavor(state, flavor_id))
        return Empty()
