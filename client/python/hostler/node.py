"""`Host`: one host whose agent runs standalone, asked directly: no scheduler, no etcd. VMs, volumes and operations are as in a cluster (`Machines`).

What a cluster has and one host has not: flavors, other nodes, migration. An agent that belongs to a cluster shows its host and the VMs on it,
and refuses changes with the scheduler's address (MODE_CLUSTER).
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio

from hostler.api.node.v1 import (
    host_pb2,
    host_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
    vms_pb2,
    vms_pb2_grpc,
    volumes_pb2,
    volumes_pb2_grpc,
)
from hostler.api.type.v1.node_pb2 import Node
from hostler.api.type.v1.vm_pb2 import VM
from hostler.api.type.v1.volume_pb2 import Pool, Volume
from hostler.connection import Api
from hostler.errors import NotFound, Reason
from hostler.machines import Machines, full, mutation, wanted_vm
from hostler.operations import OperationHandle
from hostler.settings import node_settings

if TYPE_CHECKING:
    from hostler.api.node.v1.host_pb2_grpc import HostServiceAsyncStub
    from hostler.api.node.v1.operations_pb2_grpc import OperationServiceAsyncStub
    from hostler.api.node.v1.vms_pb2_grpc import VMServiceAsyncStub
    from hostler.api.node.v1.volumes_pb2_grpc import VolumeServiceAsyncStub


@dataclass(frozen=True, slots=True)
class Stubs:
    """The services of a node agent that are for users."""

    vms: "VMServiceAsyncStub"
    volumes: "VolumeServiceAsyncStub"
    operations: "OperationServiceAsyncStub"
    host: "HostServiceAsyncStub"

    @classmethod
    def on(cls, channel: grpc.aio.Channel) -> "Stubs":
        return cls(
            vms_pb2_grpc.VMServiceStub(channel),
            volumes_pb2_grpc.VolumeServiceStub(channel),
            operations_pb2_grpc.OperationServiceStub(channel),
            host_pb2_grpc.HostServiceStub(channel),
        )


def connect_node(
    endpoint: str | None = None,
    *,
    cert: str | Path | None = None,
    key: str | Path | None = None,
    ca: str | Path | None = None,
    insecure: bool | None = None,
    call_s: float | None = None,
    context: str | None = None,
) -> "Host":
    """One host to use in `async with`. `endpoint`: `NODE@host:port` of its agent, whose certificate must be that node's; without `NODE@` the
    certificate must bear the host name or address itself.

    The rest is as in `hostler.connect`, with HOSTLER_NODE_ENDPOINT in the place of HOSTLER_ENDPOINT.
    """
    return Host(node_settings(endpoint, cert=cert, key=key, ca=ca, insecure=insecure, call_s=call_s, context=context))


class Host(Machines):
    """One host, through its agent."""

    api = Api(Stubs.on, vms_pb2, volumes_pb2, operations_pb2, "node", Reason.NODE_UNREACHABLE)

    async def get_host(self) -> Node:
        """Inventory, health and account. Answered also when the hypervisor is not there, marked stale."""
        node: Node = await self._connection.call(lambda stubs: stubs.host.GetHost, host_pb2.GetHostRequest())
        return node

    async def get_pool(self, name: str) -> Pool:
        """Raises NotFound."""
        async for pool in self.list_pools():
            if pool.name == full("pools", name):
                return pool
        raise NotFound(Reason.POOL_NOT_FOUND, f"There is no pool {name.removeprefix('pools/')} on this host.", "See `hostler pool list`.")

    async def list_pools(self) -> AsyncIterator[Pool]:
        """As the host sees them, by name. Whether locks of a shared one exclude other hosts is not for one host to say."""
        for pool in (await self.get_host()).pools:
            yield pool

    async def create_vm(
        self,
        name: str,
        *,
        vcpus: int,
        memory_mib: int,
        cpu_floor_milli: int = 0,
        service_class: str = "",
        image: str = "",
        pool: str = "",
        size_mib: int = 0,
        volumes: Sequence[str] = (),
        networks: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        start: bool = True,
        validate_only: bool = False,
        request_id: str = "",
    ) -> OperationHandle:
        """Make a VM. Its first disk is a new volume in `pool` (a copy of `image`, `size_mib` large) if one is named, then the existing `volumes`.
        Raises NoCapacity with what is short, and by how much.
        """
        wanted = wanted_vm(
            vcpus=vcpus, memory_mib=memory_mib, cpu_floor_milli=cpu_floor_milli, service_class=service_class,
            image=image, pool=pool, size_mib=size_mib, volumes=volumes, networks=networks, labels=labels,
        )  # fmt: skip
        request = vms_pb2.CreateVMRequest(
            vm_id=name.removeprefix("vms/"), vm=wanted, leave_stopped=not start, **mutation(request_id, validate_only)
        )
        return await self._accepted(lambda stubs: stubs.vms.CreateVM, request)

    def list_vms(self, *, page_size: int = 0) -> AsyncIterator[VM]:
        """By name, all of one moment; fetched page by page. Raises OutOfRange if reading took so long that the moment is forgotten."""
        return self._pages(lambda stubs: stubs.vms.ListVMs, vms_pb2.ListVMsRequest(page_size=page_size), "vms")

    async def create_volume(
        self, name: str, *, pool: str, size_mib: int = 0, image: str = "", validate_only: bool = False, request_id: str = ""
    ) -> OperationHandle:
        """Size 0 with an image: the image's size."""
        wanted = Volume(pool=full("pools", pool), size_mib=size_mib, image=image)
        request = volumes_pb2.CreateVolumeRequest(
            volume_id=name.removeprefix("volumes/"), volume=wanted, **mutation(request_id, validate_only)
        )
        return await self._accepted(lambda stubs: stubs.volumes.CreateVolume, request)
