"""`Cluster`: everything the cluster's API can do, as methods. Names may be given short (`web-1`) or in full (`vms/web-1`).

Every mutation carries a request_id, made here unless given, and is repeated with that same id when a replica is lost: it happens once. Mutations
return an `OperationHandle` as soon as they are accepted and durable; `await handle.wait()` gives the end. `validate_only=True` only says whether
it would be accepted. All methods raise the classes of `hostler.errors`.
"""

import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from google.protobuf.empty_pb2 import Empty

from hostler.api.cluster.v1 import flavors_pb2, nodes_pb2, operations_pb2, vms_pb2, volumes_pb2
from hostler.api.type.v1 import resources_pb2
from hostler.api.type.v1.node_pb2 import Node
from hostler.api.type.v1.operation_pb2 import Operation
from hostler.api.type.v1.vm_pb2 import VM, Flavor
from hostler.api.type.v1.volume_pb2 import Volume
from hostler.connection import Connection, Settings, settings
from hostler.errors import Violation, invalid
from hostler.operations import OperationHandle
from hostler.watch import NodeEvent, VMEvent, watch_nodes, watch_vms


def connect(
    endpoints: str | Sequence[str] | None = None,
    *,
    cert: str | Path | None = None,
    key: str | Path | None = None,
    ca: str | Path | None = None,
    insecure: bool | None = None,
    call_s: float | None = None,
    context: str | None = None,
) -> "Cluster":
    """A cluster to use in `async with`. `endpoints`: host:port of the scheduler replicas, comma separated or a list; certificates as PEM files.

    What is not given comes from the context of that name (`hostler.context`), else from HOSTLER_ENDPOINT, HOSTLER_CERT, HOSTLER_KEY, HOSTLER_CA
    and HOSTLER_INSECURE, else from the user's current context. A call that no replica answers is given up after `call_s` (HOSTLER_CALL_TIMEOUT,
    else 15 s). Nothing is dialled before the first call. Raises InvalidRequest if something is missing, NotFound for the context.
    """
    return Cluster(settings(endpoints, cert=cert, key=key, ca=ca, insecure=insecure, call_s=call_s, context=context))


class Cluster:
    """One cluster, through whichever of its replicas answers."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._opened: Connection | None = None

    async def __aenter__(self) -> Self:
        self._opened = Connection(self._settings)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Safe to repeat."""
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.close()

    @property
    def _connection(self) -> Connection:
        if self._opened is None:
            raise RuntimeError("use the cluster inside `async with hostler.connect() as cluster:`")
        return self._opened

    # ---- VMs

    async def create_vm(
        self,
        name: str,
        *,
        flavor: str = "",
        vcpus: int = 0,
        memory_mib: int = 0,
        cpu_floor_milli: int = 0,
        service_class: str = "",
        image: str = "",
        pool: str = "",
        size_mib: int = 0,
        volumes: Sequence[str] = (),
        networks: Sequence[str] = (),
        node: str = "",
        labels: Mapping[str, str] | None = None,
        start: bool = True,
        validate_only: bool = False,
        request_id: str = "",
    ) -> OperationHandle:
        """Make a VM: a flavor, or vcpus and memory_mib. Its first disk is a new volume in `pool` (a copy of `image`, `size_mib` large) if one
        is named, then the existing `volumes`. `node`: there or nowhere. Raises NoCapacity with the reason for every node.
        """
        disks = [VM.Disk(new_volume=VM.NewVolume(pool=_full("pools", pool), image=image, size_mib=size_mib))] if pool or image else []
        disks += [VM.Disk(volume=_full("volumes", volume)) for volume in volumes]
        wanted = VM(
            flavor=_full("flavors", flavor),
            vcpus=vcpus,
            memory_mib=memory_mib,
            cpu_floor_milli=cpu_floor_milli,
            service_class=_service_class("vm.service_class", service_class),
            disks=disks,
            nics=[VM.Nic(network=_full("networks", network)) for network in networks],
            labels=dict(labels or {}),
        )
        request = vms_pb2.CreateVMRequest(
            vm_id=name.removeprefix("vms/"),
            vm=wanted,
            node=_full("nodes", node),
            leave_stopped=not start,
            request_id=_request_id(request_id),
            validate_only=validate_only,
        )
        return self._handle(await self._connection.call(lambda replica: replica.vms.CreateVM, request))

    async def get_vm(self, name: str) -> VM:
        request = vms_pb2.GetVMRequest(name=_full("vms", name))
        return await self._connection.call(lambda replica: replica.vms.GetVM, request)

    async def list_vms(self, *, node: str = "", page_size: int = 0) -> AsyncIterator[VM]:
        """By name, all of one moment; fetched page by page. Raises OutOfRange if reading took so long that the moment is forgotten."""
        token = ""
        while True:
            request = vms_pb2.ListVMsRequest(page_size=page_size, page_token=token, node=_full("nodes", node))
            page = await self._connection.call(lambda replica: replica.vms.ListVMs, request)
            for vm in page.vms:
                yield vm
            if not (token := page.next_page_token):
                return

    async def start_vm(self, name: str, *, etag: str = "", validate_only: bool = False, request_id: str = "") -> OperationHandle:
        """Start it on the node that holds its claim; a running one is left alone."""
        request = vms_pb2.StartVMRequest(
            name=_full("vms", name), etag=etag, request_id=_request_id(request_id), validate_only=validate_only
        )
        return self._handle(await self._connection.call(lambda replica: replica.vms.StartVM, request))

    async def stop_vm(
        self, name: str, *, grace_s: int = 0, force: bool = False, etag: str = "", validate_only: bool = False, request_id: str = ""
    ) -> OperationHandle:
        """Ask the guest to power off and take its power after `grace_s` (0: 60 s), or at once with `force`."""
        request = vms_pb2.StopVMRequest(
            name=_full("vms", name),
            etag=etag,
            grace_s=grace_s,
            force=force,
            request_id=_request_id(request_id),
            validate_only=validate_only,
        )
        return self._handle(await self._connection.call(lambda replica: replica.vms.StopVM, request))

    async def reboot_vm(
        self, name: str, *, force: bool = False, etag: str = "", validate_only: bool = False, request_id: str = ""
    ) -> OperationHandle:
        """Ask the guest to reboot, or reset it at once with `force`."""
        request = vms_pb2.RebootVMRequest(
            name=_full("vms", name), etag=etag, force=force, request_id=_request_id(request_id), validate_only=validate_only
        )
        return self._handle(await self._connection.call(lambda replica: replica.vms.RebootVM, request))

    async def delete_vm(
        self, name: str, *, force: bool = False, etag: str = "", validate_only: bool = False, request_id: str = ""
    ) -> OperationHandle:
        """Delete it with the volumes that were made with it; a running one only with `force`."""
        request = vms_pb2.DeleteVMRequest(
            name=_full("vms", name), etag=etag, force=force, request_id=_request_id(request_id), validate_only=validate_only
        )
        return self._handle(await self._connection.call(lambda replica: replica.vms.DeleteVM, request))

    async def migrate_vm(
        self,
        name: str,
        to: str | None = None,
        *,
        bandwidth_mib_s: int = 0,
        etag: str = "",
        validate_only: bool = False,
        request_id: str = "",
    ) -> OperationHandle:
        """Move it while it runs, to the node `to` or to one that the scheduler chooses; `bandwidth_mib_s` 0: no limit."""
        request = vms_pb2.MigrateVMRequest(
            name=_full("vms", name),
            etag=etag,
            destination_node=_full("nodes", to or ""),
            bandwidth_mib_s=bandwidth_mib_s,
            request_id=_request_id(request_id),
            validate_only=validate_only,
        )
        return self._handle(await self._connection.call(lambda replica: replica.vms.MigrateVM, request))

    def watch_vms(self, resume_token: str = "") -> AsyncGenerator[VMEvent]:
        """All VMs, a Bookmark, then every change; from a token on: every change. Survives the loss of replicas. Close it when done."""
        return watch_vms(self._connection, resume_token)

    # ---- nodes

    async def get_node(self, name: str) -> Node:
        request = nodes_pb2.GetNodeRequest(name=_full("nodes", name))
        return await self._connection.call(lambda replica: replica.nodes.GetNode, request)

    async def list_nodes(self, *, page_size: int = 0) -> AsyncIterator[Node]:
        token = ""
        while True:
            request = nodes_pb2.ListNodesRequest(page_size=page_size, page_token=token)
            page = await self._connection.call(lambda replica: replica.nodes.ListNodes, request)
            for node in page.nodes:
                yield node
            if not (token := page.next_page_token):
                return

    async def cordon_node(self, name: str, *, etag: str = "", validate_only: bool = False, request_id: str = "") -> Node:
        """It takes no new VMs from now on; those there stay."""
        request = nodes_pb2.CordonNodeRequest(
            name=_full("nodes", name), etag=etag, request_id=_request_id(request_id), validate_only=validate_only
        )
        return await self._connection.call(lambda replica: replica.nodes.CordonNode, request)

    async def uncordon_node(self, name: str, *, etag: str = "", validate_only: bool = False, request_id: str = "") -> Node:
        """It takes new VMs again."""
        request = nodes_pb2.UncordonNodeRequest(
            name=_full("nodes", name), etag=etag, request_id=_request_id(request_id), validate_only=validate_only
        )
        return await self._connection.call(lambda replica: replica.nodes.UncordonNode, request)

    def watch_nodes(self) -> AsyncGenerator[NodeEvent]:
        """All nodes, a Bookmark, then every change of them and of their health; a lost replica shows as Resync. Close it when done."""
        return watch_nodes(self._connection)

    # ---- volumes

    async def create_volume(
        self,
        name: str,
        *,
        pool: str,
        size_mib: int = 0,
        image: str = "",
        node: str = "",
        validate_only: bool = False,
        request_id: str = "",
    ) -> OperationHandle:
        """`node`: where, in a local pool. Size 0 with an image: the image's size."""
        wanted = Volume(pool=_full("pools", pool), size_mib=size_mib, image=image, node=_full("nodes", node))
        request = volumes_pb2.CreateVolumeRequest(
            volume_id=name.removeprefix("volumes/"), volume=wanted, request_id=_request_id(request_id), validate_only=validate_only
        )
        return self._handle(await self._connection.call(lambda replica: replica.volumes.CreateVolume, request))

    async def get_volume(self, name: str) -> Volume:
        request = volumes_pb2.GetVolumeRequest(name=_full("volumes", name))
        return await self._connection.call(lambda replica: replica.volumes.GetVolume, request)

    async def list_volumes(self, *, page_size: int = 0) -> AsyncIterator[Volume]:
        token = ""
        while True:
            request = volumes_pb2.ListVolumesRequest(page_size=page_size, page_token=token)
            page = await self._connection.call(lambda replica: replica.volumes.ListVolumes, request)
            for volume in page.volumes:
                yield volume
            if not (token := page.next_page_token):
                return

    async def delete_volume(self, name: str, *, etag: str = "", validate_only: bool = False, request_id: str = "") -> OperationHandle:
        request = volumes_pb2.DeleteVolumeRequest(
            name=_full("volumes", name), etag=etag, request_id=_request_id(request_id), validate_only=validate_only
        )
        return self._handle(await self._connection.call(lambda replica: replica.volumes.DeleteVolume, request))

    # ---- flavors

    async def create_flavor(
        self,
        name: str,
        *,
        vcpus: int,
        memory_mib: int,
        cpu_floor_milli: int = 0,
        service_class: str = "",
        validate_only: bool = False,
        request_id: str = "",
    ) -> Flavor:
        """Making the same flavor again is harmless."""
        wanted = Flavor(
            vcpus=vcpus,
            memory_mib=memory_mib,
            cpu_floor_milli=cpu_floor_milli,
            service_class=_service_class("flavor.service_class", service_class),
        )
        request = flavors_pb2.CreateFlavorRequest(
            flavor_id=name.removeprefix("flavors/"), flavor=wanted, request_id=_request_id(request_id), validate_only=validate_only
        )
        return await self._connection.call(lambda replica: replica.flavors.CreateFlavor, request)

    async def get_flavor(self, name: str) -> Flavor:
        request = flavors_pb2.GetFlavorRequest(name=_full("flavors", name))
        return await self._connection.call(lambda replica: replica.flavors.GetFlavor, request)

    async def list_flavors(self, *, page_size: int = 0) -> AsyncIterator[Flavor]:
        token = ""
        while True:
            request = flavors_pb2.ListFlavorsRequest(page_size=page_size, page_token=token)
            page = await self._connection.call(lambda replica: replica.flavors.ListFlavors, request)
            for flavor in page.flavors:
                yield flavor
            if not (token := page.next_page_token):
                return

    async def delete_flavor(self, name: str, *, validate_only: bool = False, request_id: str = "") -> None:
        """VMs made with it keep their size."""
        request = flavors_pb2.DeleteFlavorRequest(
            name=_full("flavors", name), request_id=_request_id(request_id), validate_only=validate_only
        )
        await self._connection.call(lambda replica: replica.flavors.DeleteFlavor, request, already_gone=Empty())

    # ---- operations

    def operation(self, name: str) -> OperationHandle:
        """A handle to wait for, watch or cancel an operation by its name; nothing is asked yet."""
        return self._handle(Operation(name=_full("operations", name)))

    async def get_operation(self, name: str) -> Operation:
        return await self.operation(name).refresh()

    async def list_operations(self, *, target: str = "", page_size: int = 0) -> AsyncIterator[Operation]:
        """Newest first; `target`: `vms/{vm}` or `volumes/{volume}`."""
        token = ""
        while True:
            request = operations_pb2.ListOperationsRequest(page_size=page_size, page_token=token, target=target)
            page = await self._connection.call(lambda replica: replica.operations.ListOperations, request)
            for operation in page.operations:
                yield operation
            if not (token := page.next_page_token):
                return

    async def cancel_operation(self, name: str) -> OperationHandle:
        """Ask it to stop before its point of no return; wait on the handle to see whether it did."""
        handle = self.operation(name)
        await handle.cancel()
        return handle

    def watch_operation(self, name: str) -> AsyncGenerator[Operation]:
        """The operation now and at each change until it is done. Survives the loss of replicas."""
        return self.operation(name).watch()

    def _handle(self, operation: Operation) -> OperationHandle:
        return OperationHandle(self._connection, operation)


def _full(collection: str, name: str) -> str:
    """`web-1` -> `vms/web-1`; what is empty or full already stays."""
    return name if not name or name.startswith(f"{collection}/") else f"{collection}/{name}"


def _request_id(given: str) -> str:
    return given or str(uuid.uuid4())


def _service_class(field: str, name: str) -> "resources_pb2.ServiceClass.ValueType":
    """`guaranteed`, `burstable`, `best-effort`; empty: not said."""
    if not name:
        return resources_pb2.SERVICE_CLASS_UNSPECIFIED
    value = f"SERVICE_CLASS_{name.upper().replace('-', '_')}"
    if value not in resources_pb2.ServiceClass.keys():  # noqa: SIM118 an enum wrapper is no dict
        raise invalid(Violation(field, f"{name!r} is none of guaranteed, burstable, best-effort"))
    return resources_pb2.ServiceClass.Value(value)
