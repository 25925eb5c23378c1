"""`Machines`: what can be asked of a cluster and of a single host alike: VMs, volumes and operations. `Cluster` and `Host` add what is theirs.

The two APIs are two packages with the same messages, so the generated module is taken from the connection (`Api`), and what is sent is built once.
Names may be given short (`web-1`) or in full (`vms/web-1`). Every mutation carries a request_id, made here unless given, and is repeated with that
same id when its answer is lost: it happens once.
"""

import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, ClassVar, Self

from hostler.api.type.v1 import resources_pb2
from hostler.api.type.v1.operation_pb2 import Operation
from hostler.api.type.v1.vm_pb2 import VM
from hostler.api.type.v1.volume_pb2 import Volume
from hostler.connection import Api, Connection
from hostler.errors import Violation, invalid
from hostler.operations import OperationHandle
from hostler.settings import Settings
from hostler.watch import VMEvent, follow


class Machines:
    """To be used in `async with`. All methods raise the classes of `hostler.errors`."""

    api: ClassVar[Api[Any]]

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._opened: Connection[Any] | None = None

    async def __aenter__(self) -> Self:
        self._opened = Connection(self._settings, self.api)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Safe to repeat."""
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.close()

    @property
    def _connection(self) -> Connection[Any]:
        if self._opened is None:
            raise RuntimeError("use it inside `async with hostler.connect() as cluster:`, or `async with hostler.connect_node() as host:`")
        return self._opened

    # ---- VMs

    async def get_vm(self, name: str) -> VM:
        vm: VM = await self._connection.call(lambda stubs: stubs.vms.GetVM, self.api.vms.GetVMRequest(name=full("vms", name)))
        return vm

    async def start_vm(self, name: str, *, etag: str = "", validate_only: bool = False, request_id: str = "") -> OperationHandle:
        """Start it on the node that holds its claim. One that runs is left alone: see `left_alone`."""
        request = self.api.vms.StartVMRequest(name=full("vms", name), etag=etag, **mutation(request_id, validate_only))
        return await self._accepted(lambda stubs: stubs.vms.StartVM, request)

    async def stop_vm(
        self, name: str, *, grace_s: int = 0, force: bool = False, etag: str = "", validate_only: bool = False, request_id: str = ""
    ) -> OperationHandle:
        """Ask the guest to power off and take its power after `grace_s` (0: 60 s), or at once with `force`. One that is off is left alone."""
        request = self.api.vms.StopVMRequest(
            name=full("vms", name), etag=etag, grace_s=grace_s, force=force, **mutation(request_id, validate_only)
        )
        return await self._accepted(lambda stubs: stubs.vms.StopVM, request)

    async def reboot_vm(
        self, name: str, *, force: bool = False, etag: str = "", validate_only: bool = False, request_id: str = ""
    ) -> OperationHandle:
        """Ask the guest to reboot, or reset it at once with `force`."""
        request = self.api.vms.RebootVMRequest(name=full("vms", name), etag=etag, force=force, **mutation(request_id, validate_only))
        return await self._accepted(lambda stubs: stubs.vms.RebootVM, request)

    async def delete_vm(
        self, name: str, *, force: bool = False, etag: str = "", validate_only: bool = False, request_id: str = ""
    ) -> OperationHandle:
        """Delete it with the volumes that were made with it; a running one only with `force`."""
        request = self.api.vms.DeleteVMRequest(name=full("vms", name), etag=etag, force=force, **mutation(request_id, validate_only))
        return await self._accepted(lambda stubs: stubs.vms.DeleteVM, request)

    def watch_vms(self, resume_token: str = "") -> AsyncGenerator[VMEvent]:
        """All VMs, a Bookmark, then every change; from a token on: every change. Survives the loss of servers. Close it when done."""

        def begin(token: str) -> Callable[[Any], Any]:
            return lambda stubs: stubs.vms.WatchVMs(self.api.vms.WatchVMsRequest(resume_token=token))

        return follow(self._connection, begin, resume_token, resumable=True)

    # ---- volumes

    async def get_volume(self, name: str) -> Volume:
        request = self.api.volumes.GetVolumeRequest(name=full("volumes", name))
        volume: Volume = await self._connection.call(lambda stubs: stubs.volumes.GetVolume, request)
        return volume

    def list_volumes(self, *, page_size: int = 0) -> AsyncIterator[Volume]:
        """By name, fetched page by page."""
        return self._pages(lambda stubs: stubs.volumes.ListVolumes, self.api.volumes.ListVolumesRequest(page_size=page_size), "volumes")

    async def delete_volume(self, name: str, *, etag: str = "", validate_only: bool = False, request_id: str = "") -> OperationHandle:
        request = self.api.volumes.DeleteVolumeRequest(name=full("volumes", name), etag=etag, **mutation(request_id, validate_only))
        return await self._accepted(lambda stubs: stubs.volumes.DeleteVolume, request)

    # ---- operations

    def operation(self, name: str) -> OperationHandle:
        """A handle to wait for, watch or cancel an operation by its name; nothing is asked yet."""
        return OperationHandle(self._connection, Operation(name=full("operations", name)))

    async def get_operation(self, name: str) -> Operation:
        return await self.operation(name).refresh()

    def list_operations(self, *, target: str = "", page_size: int = 0) -> AsyncIterator[Operation]:
        """Newest first; `target`: `vms/{vm}` or `volumes/{volume}`."""
        request = self.api.operations.ListOperationsRequest(page_size=page_size, target=target)
        return self._pages(lambda stubs: stubs.operations.ListOperations, request, "operations")

    async def cancel_operation(self, name: str) -> OperationHandle:
        """Ask it to stop before its point of no return; wait on the handle to see whether it did."""
        handle = self.operation(name)
        await handle.cancel()
        return handle

    def watch_operation(self, name: str) -> AsyncGenerator[Operation]:
        """The operation now and at each change until it is done. Survives the loss of servers."""
        return self.operation(name).watch()

    # ---- how it is asked

    async def _accepted(self, pick: Callable[[Any], Any], request: Any) -> OperationHandle:  # noqa: ANN401 a message of either API
        return OperationHandle(self._connection, await self._connection.call(pick, request))

    async def _pages(self, pick: Callable[[Any], Any], request: Any, field: str) -> AsyncIterator[Any]:  # noqa: ANN401
        """What the pages' `field` lists, one by one."""
        while True:
            page = await self._connection.call(pick, request)
            for one in getattr(page, field):
                yield one
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token


def left_alone(operation: Operation) -> bool:
    """Whether a StartVM or StopVM that succeeded found the VM so already, and did nothing."""
    worked = {"StartVM": "STARTING", "StopVM": "STOPPING"}.get(operation.verb)
    return operation.state == Operation.SUCCEEDED and worked is not None and all(entry.phase != worked for entry in operation.phases)


def full(collection: str, name: str) -> str:
    """`web-1` -> `vms/web-1`; what is empty or full already stays."""
    return name if not name or name.startswith(f"{collection}/") else f"{collection}/{name}"


def mutation(request_id: str, validate_only: bool) -> dict[str, Any]:
    """The fields that every request for a change has."""
    return {"request_id": request_id or str(uuid.uuid4()), "validate_only": validate_only}


def wanted_vm(
    *,
    vcpus: int,
    memory_mib: int,
    cpu_floor_milli: int,
    service_class: str,
    image: str,
    pool: str,
    size_mib: int,
    volumes: Sequence[str],
    networks: Sequence[str],
    labels: Mapping[str, str] | None,
    flavor: str = "",
) -> VM:
    """The VM of a create: its first disk is a new volume in `pool` if one is named, then the existing `volumes`."""
    disks = [VM.Disk(new_volume=VM.NewVolume(pool=full("pools", pool), image=image, size_mib=size_mib))] if pool or image else []
    disks += [VM.Disk(volume=full("volumes", volume)) for volume in volumes]
    return VM(
        flavor=full("flavors", flavor),
        vcpus=vcpus,
        memory_mib=memory_mib,
        cpu_floor_milli=cpu_floor_milli,
        service_class=service_class_of("vm.service_class", service_class),
        disks=disks,
        nics=[VM.Nic(network=full("networks", network)) for network in networks],
        labels=dict(labels or {}),
    )


def service_class_of(field: str, name: str) -> "resources_pb2.ServiceClass.ValueType":
    """`guaranteed`, `burstable`, `best-effort`; empty: not said."""
    if not name:
        return resources_pb2.SERVICE_CLASS_UNSPECIFIED
    value = f"SERVICE_CLASS_{name.upper().replace('-', '_')}"
    if value not in resources_pb2.ServiceClass.keys():  # noqa: SIM118 an enum wrapper is no dict
        raise invalid(Violation(field, f"{name!r} is none of guaranteed, burstable, best-effort"))
    return resources_pb2.ServiceClass.Value(value)
