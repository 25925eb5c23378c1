"""`Cluster`: everything the cluster's API can do, as methods; VMs, volumes and operations are in `Machines`, which a single host has too.

Mutations return an `OperationHandle` as soon as they are accepted and durable; `await handle.wait()` gives the end. `validate_only=True` only says
whether it would be accepted. All methods raise the classes of `hostler.errors`.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc.aio
from google.protobuf.empty_pb2 import Empty

from hostler.api.cluster.v1 import (
    flavors_pb2,
    flavors_pb2_grpc,
    nodes_pb2,
    nodes_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
    pools_pb2,
    pools_pb2_grpc,
    vms_pb2,
    vms_pb2_grpc,
    volumes_pb2,
    volumes_pb2_grpc,
)
from hostler.api.cluster.v1.vms_pb2 import Reconciliation
from hostler.api.type.v1.node_pb2 import Node
from hostler.api.type.v1.operation_pb2 import Operation
from hostler.api.type.v1.vm_pb2 import VM, Flavor
from hostler.api.type.v1.volume_pb2 import Pool, Volume
from hostler.connection import Api
from hostler.errors import HostlerError, Reason, Violation, invalid
from hostler.machines import Machines, full, mutation, service_class_of, wanted_vm
from hostler.operations import OperationHandle
from hostler.settings import settings
from hostler.watch import NodeEvent, follow

if TYPE_CHECKING:
    from hostler.api.cluster.v1.flavors_pb2_grpc import FlavorServiceAsyncStub
    from hostler.api.cluster.v1.nodes_pb2_grpc import NodeServiceAsyncStub
    from hostler.api.cluster.v1.operations_pb2_grpc import OperationServiceAsyncStub
    from hostler.api.cluster.v1.pools_pb2_grpc import PoolServiceAsyncStub
    from hostler.api.cluster.v1.vms_pb2_grpc import VMServiceAsyncStub
    from hostler.api.cluster.v1.volumes_pb2_grpc import VolumeServiceAsyncStub


@dataclass(frozen=True, slots=True)
class Stubs:
    """The services of a scheduler replica."""

    vms: "VMServiceAsyncStub"
    nodes: "NodeServiceAsyncStub"
    volumes: "VolumeServiceAsyncStub"
    flavors: "FlavorServiceAsyncStub"
    operations: "OperationServiceAsyncStub"
    pools: "PoolServiceAsyncStub"

    @classmethod
    def on(cls, channel: grpc.aio.Channel) -> "Stubs":
        return cls(
            vms_pb2_grpc.VMServiceStub(channel),
            nodes_pb2_grpc.NodeServiceStub(channel),
            volumes_pb2_grpc.VolumeServiceStub(channel),
            flavors_pb2_grpc.FlavorServiceStub(channel),
            operations_pb2_grpc.OperationServiceStub(channel),
            pools_pb2_grpc.PoolServiceStub(channel),
        )


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


class Cluster(Machines):
    """One cluster, through whichever of its replicas answers."""

    api = Api(Stubs.on, vms_pb2, volumes_pb2, operations_pb2, "scheduler", Reason.SCHEDULER_UNAVAILABLE)

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
        move_fallback: str = "",
        start: bool = True,
        deadline_s: int = 0,
        validate_only: bool = False,
        request_id: str = "",
    ) -> OperationHandle:
        """Make a VM: a flavor, or vcpus and memory_mib. Its first disk is a new volume in `pool` (a copy of `image`, `size_mib` large) if one
        is named, then the existing `volumes`. `node`: there or nowhere. Raises NoCapacity with the reason for every node.
        `move_fallback`: "stay" (default) or "restart", what a drain of its node may do if it cannot be moved while it runs.
        """
        wanted = wanted_vm(
            flavor=flavor, vcpus=vcpus, memory_mib=memory_mib, cpu_floor_milli=cpu_floor_milli, service_class=service_class,
            image=image, pool=pool, size_mib=size_mib, volumes=volumes, networks=networks, labels=labels,
        )  # fmt: skip
        wanted.move_fallback = _move_fallback_of(move_fallback)
        request = vms_pb2.CreateVMRequest(
            vm_id=name.removeprefix("vms/"),
            vm=wanted,
            node=full("nodes", node),
            leave_stopped=not start,
            deadline_s=deadline_s,
            **mutation(request_id, validate_only),
        )
        return await self._accepted(lambda stubs: stubs.vms.CreateVM, request)

    def list_vms(self, *, node: str = "", page_size: int = 0) -> AsyncIterator[VM]:
        """By name, all of one moment; fetched page by page. Raises OutOfRange if reading took so long that the moment is forgotten."""
        request = vms_pb2.ListVMsRequest(page_size=page_size, node=full("nodes", node))
        return self._pages(lambda stubs: stubs.vms.ListVMs, request, "vms")

    async def migrate_vm(
        self,
        name: str,
        to: str | None = None,
        *,
        bandwidth_mib_s: int = 0,
        priority: str = "",
        max_downtime_ms: int = 0,
        deadline_s: int = 0,
        etag: str = "",
        validate_only: bool = False,
        request_id: str = "",
    ) -> OperationHandle:
        """Move it to the node `to` or to one that the scheduler chooses: while it runs, or, off, without a copy.

        `bandwidth_mib_s` 0: no limit. `priority`: "low", "normal" or "high", among those that wait for the same nodes.
        `deadline_s`: turned back if the owner has not changed by then; 0: none.
        """
        request = vms_pb2.MigrateVMRequest(
            name=full("vms", name),
            etag=etag,
            destination_node=full("nodes", to or ""),
            bandwidth_mib_s=bandwidth_mib_s,
            priority=_priority_of(priority),
            max_downtime_ms=max_downtime_ms,
            deadline_s=deadline_s,
            **mutation(request_id, validate_only),
        )
        return await self._accepted(lambda stubs: stubs.vms.MigrateVM, request)

    async def tune_migration(self, name: str, *, bandwidth_mib_s: int | None = None, max_downtime_ms: int | None = None) -> OperationHandle:
        """Other limits for a migration that copies; None: as it is, 0: no limit, 300 ms. Raises FailedPrecondition (NOT_TUNABLE)."""
        request = operations_pb2.TuneMigrationRequest(
            name=full("operations", name), bandwidth_mib_s=bandwidth_mib_s, max_downtime_ms=max_downtime_ms
        )
        return await self._accepted(lambda stubs: stubs.operations.TuneMigration, request)

    async def reconcile_vm(self, name: str, *, apply: bool = False, allow_destructive: bool = False) -> Reconciliation:
        """What every node has of it, and what would make record and nodes agree; `apply` does that.

        `allow_destructive`: also what may cost a guest its memory.
        """
        request = vms_pb2.ReconcileVMRequest(name=full("vms", name), apply=apply, allow_destructive=allow_destructive)
        found: Reconciliation = await self._connection.call(lambda stubs: stubs.vms.ReconcileVM, request)
        return found

    # ---- nodes

    async def get_node(self, name: str) -> Node:
        request = nodes_pb2.GetNodeRequest(name=full("nodes", name))
        node: Node = await self._connection.call(lambda stubs: stubs.nodes.GetNode, request)
        return node

    def list_nodes(self, *, page_size: int = 0) -> AsyncIterator[Node]:
        """By name, fetched page by page."""
        return self._pages(lambda stubs: stubs.nodes.ListNodes, nodes_pb2.ListNodesRequest(page_size=page_size), "nodes")

    async def cordon_node(self, name: str, *, etag: str = "", validate_only: bool = False, request_id: str = "") -> Node:
        """It takes no new VMs from now on; those there stay."""
        request = nodes_pb2.CordonNodeRequest(name=full("nodes", name), etag=etag, **mutation(request_id, validate_only))
        node: Node = await self._connection.call(lambda stubs: stubs.nodes.CordonNode, request)
        return node

    async def uncordon_node(self, name: str, *, etag: str = "", validate_only: bool = False, request_id: str = "") -> Node:
        """It takes new VMs again."""
        request = nodes_pb2.UncordonNodeRequest(name=full("nodes", name), etag=etag, **mutation(request_id, validate_only))
        node: Node = await self._connection.call(lambda stubs: stubs.nodes.UncordonNode, request)
        return node

    async def fence_node(
        self, name: str, *, confirm_powered_off: bool, etag: str = "", validate_only: bool = False, request_id: str = ""
    ) -> OperationHandle:
        """Take a silent node for off, on the caller's word that it is powered off: its VMs are stopped, and may be started elsewhere."""
        request = nodes_pb2.FenceNodeRequest(
            name=full("nodes", name), confirm_powered_off=confirm_powered_off, etag=etag, **mutation(request_id, validate_only)
        )
        return await self._accepted(lambda stubs: stubs.nodes.FenceNode, request)

    async def drain_node(
        self, name: str, *, parallel: int = 0, etag: str = "", validate_only: bool = False, request_id: str = ""
    ) -> OperationHandle:
        """Cordon it and move its VMs away, `parallel` (0: 4) at once. With `validate_only` the operation's `drain` is the plan.

        Waiting for it raises OperationFailed if something stays; `operation.drain` says what and why.
        """
        request = nodes_pb2.DrainNodeRequest(name=full("nodes", name), etag=etag, parallel=parallel, **mutation(request_id, validate_only))
        return await self._accepted(lambda stubs: stubs.nodes.DrainNode, request)

    async def move_back(self, drain: str) -> list[tuple[str, OperationHandle | HostlerError]]:
        """Ask for the return of every VM that the operation `drain` has moved away and that is still where it went: each with what was accepted,
        or with why it was not. The moves are LOW, as the drain's were; the node must take VMs again.

        Raises NotFound, and InvalidRequest if the operation is no drain.
        """
        operation = await self.get_operation(drain)
        if not operation.HasField("drain"):
            raise invalid(Violation("drain", f"{operation.name} is {operation.verb} and has moved nothing away"))
        asked: list[tuple[str, OperationHandle | HostlerError]] = []
        for entry in operation.drain.entries:
            if entry.state != Operation.DrainMetadata.MOVED:
                continue
            name = entry.vm.removeprefix("vms/")
            try:
                vm = await self.get_vm(name)
                if vm.node == entry.destination_node:
                    asked.append((name, await self.migrate_vm(name, operation.target, priority="low", etag=vm.etag)))
            except HostlerError as error:
                asked.append((name, error))
        return asked

    def watch_nodes(self) -> AsyncGenerator[NodeEvent]:
        """All nodes, a Bookmark, then every change of them and of their health; a lost replica shows as Resync. Close it when done."""

        def begin(token: str) -> Callable[[Any], Any]:
            return lambda stubs: stubs.nodes.WatchNodes(nodes_pb2.WatchNodesRequest(resume_token=token))

        return follow(self._connection, begin, "", resumable=False)

    # ---- pools

    async def get_pool(self, name: str) -> Pool:
        """What it has, and what it can promise: its locks as probed between the nodes, and what a live move costs."""
        pool: Pool = await self._connection.call(lambda stubs: stubs.pools.GetPool, pools_pb2.GetPoolRequest(name=full("pools", name)))
        return pool

    def list_pools(self, *, page_size: int = 0) -> AsyncIterator[Pool]:
        """By name, fetched page by page."""
        return self._pages(lambda stubs: stubs.pools.ListPools, pools_pb2.ListPoolsRequest(page_size=page_size), "pools")

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
        wanted = Volume(pool=full("pools", pool), size_mib=size_mib, image=image, node=full("nodes", node))
        request = volumes_pb2.CreateVolumeRequest(
            volume_id=name.removeprefix("volumes/"), volume=wanted, **mutation(request_id, validate_only)
        )
        return await self._accepted(lambda stubs: stubs.volumes.CreateVolume, request)

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
            service_class=service_class_of("flavor.service_class", service_class),
        )
        request = flavors_pb2.CreateFlavorRequest(
            flavor_id=name.removeprefix("flavors/"), flavor=wanted, **mutation(request_id, validate_only)
        )
        flavor: Flavor = await self._connection.call(lambda stubs: stubs.flavors.CreateFlavor, request)
        return flavor

    async def get_flavor(self, name: str) -> Flavor:
        request = flavors_pb2.GetFlavorRequest(name=full("flavors", name))
        flavor: Flavor = await self._connection.call(lambda stubs: stubs.flavors.GetFlavor, request)
        return flavor

    def list_flavors(self, *, page_size: int = 0) -> AsyncIterator[Flavor]:
        """By name, fetched page by page."""
        return self._pages(lambda stubs: stubs.flavors.ListFlavors, flavors_pb2.ListFlavorsRequest(page_size=page_size), "flavors")

    async def delete_flavor(self, name: str, *, validate_only: bool = False, request_id: str = "") -> None:
        """VMs made with it keep their size."""
        request = flavors_pb2.DeleteFlavorRequest(name=full("flavors", name), **mutation(request_id, validate_only))
        await self._connection.call(lambda stubs: stubs.flavors.DeleteFlavor, request, already_gone=Empty())


def _priority_of(name: str) -> "Operation.Priority.ValueType":
    """`low`, `normal`, `high`; empty: not said."""
    if not name:
        return Operation.PRIORITY_UNSPECIFIED
    if name.upper() not in ("LOW", "NORMAL", "HIGH"):
        raise invalid(Violation("priority", f"{name!r} is none of low, normal, high"))
    return Operation.Priority.Value(name.upper())


def _move_fallback_of(name: str) -> "VM.MoveFallback.ValueType":
    """`stay`, `restart`; empty: not said."""
    if not name:
        return VM.MOVE_FALLBACK_UNSPECIFIED
    if name.upper() not in ("STAY", "RESTART"):
        raise invalid(Violation("vm.move_fallback", f"{name!r} is none of stay, restart"))
    return VM.MoveFallback.Value(name.upper())
