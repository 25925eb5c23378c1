"""The node agents over gRPC: one channel per node and endpoint, kept while the node keeps its endpoint."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import grpc
import grpc.aio

from hostler.cancellation import cancellation_kept
from hostler.errors import DeadlineExceeded, Unavailable
from hostler.internal.v1 import agent_pb2, agent_pb2_grpc
from hostler.model.copy import HandoffReport
from hostler.model.domain import DomainSpec, VolumeSpec
from hostler.model.migration_facts import GuestFacts, MigrationFacts
from hostler.model.node import VMStatus
from hostler.rpc_status import from_rpc_error
from hostler.server.internal_wire import domain_to_wire, facts_from_wire, guest_to_wire, report_from_wire, status_from_wire, volume_to_wire
from scheduler.ports import CopyEstimate, Departure, NodeUnreachable, Order, Prepared, ProbeAct, ProbeOutcome

QUICK_S = 10.0
"""A step that asks the hypervisor a few questions."""

SLOW_S = 60.0
"""A step that starts or ends a process, or looks at storage."""

COPY_S = 600.0
"""A step that copies an image."""

T = TypeVar("T")
Stub: TypeAlias = "agent_pb2_grpc.AgentServiceAsyncStub"


@dataclass(frozen=True, slots=True)
class _Line:
    """A stub is as many objects as the service has methods, so it is kept with its channel."""

    endpoint: str
    channel: grpc.aio.Channel
    stub: Stub


@dataclass(frozen=True, slots=True)
class Registered:
    """Of a node's registration: host:port of its agent, and its incarnation."""

    endpoint: str
    incarnation: str


class GrpcNodes:
    """Implements NodeGateway. `registered(node_id)` is where the node is and which incarnation of it, as this replica knows it now; `connect` makes
    a channel that accepts that node alone. A command is for the incarnation that is known when it is made, however long it is on its way."""

    def __init__(self, registered: Callable[[str], Registered], connect: Callable[[str, str], grpc.aio.Channel]) -> None:
        self._registered = registered
        self._connect = connect
        self._channels: dict[str, _Line] = {}

    async def ensure_volume(self, node_id: str, order: Order, volume: VolumeSpec) -> int:
        request = agent_pb2.EnsureVolumeRequest(command=self._command(node_id, order), volume=volume_to_wire(volume))
        return (await self._ask(node_id, lambda stub: stub.EnsureVolume(request, timeout=COPY_S))).size_mib

    async def remove_volume(self, node_id: str, order: Order, volume: VolumeSpec) -> None:
        request = agent_pb2.RemoveVolumeRequest(command=self._command(node_id, order), volume=volume_to_wire(volume))
        await self._ask(node_id, lambda stub: stub.RemoveVolume(request, timeout=SLOW_S))

    async def define(self, node_id: str, order: Order, domain: DomainSpec) -> VMStatus:
        request = agent_pb2.DefineVMRequest(command=self._command(node_id, order), domain=domain_to_wire(domain))
        return status_from_wire(await self._ask(node_id, lambda stub: stub.DefineVM(request, timeout=QUICK_S)))

    async def start(self, node_id: str, order: Order) -> VMStatus:
        request = agent_pb2.StartVMRequest(command=self._command(node_id, order))
        return status_from_wire(await self._ask(node_id, lambda stub: stub.StartVM(request, timeout=SLOW_S)))

    async def stop(self, node_id: str, order: Order, grace_s: int) -> VMStatus:
        request = agent_pb2.StopVMRequest(command=self._command(node_id, order), grace_s=grace_s)
        return status_from_wire(await self._ask(node_id, lambda stub: stub.StopVM(request, timeout=grace_s + SLOW_S)))

    async def reboot(self, node_id: str, order: Order, force: bool) -> VMStatus:
        request = agent_pb2.RebootVMRequest(command=self._command(node_id, order), force=force)
        return status_from_wire(await self._ask(node_id, lambda stub: stub.RebootVM(request, timeout=SLOW_S)))

    async def forget(self, node_id: str, order: Order) -> None:
        request = agent_pb2.ForgetVMRequest(command=self._command(node_id, order))
        await self._ask(node_id, lambda stub: stub.ForgetVM(request, timeout=QUICK_S))

    async def end_copy(self, node_id: str, order: Order) -> VMStatus:
        request = agent_pb2.EndCopyRequest(command=self._command(node_id, order))
        return status_from_wire(await self._ask(node_id, lambda stub: stub.EndCopy(request, timeout=SLOW_S)))

    async def inspect(self, node_id: str, vm_uid: str) -> VMStatus:
        request = agent_pb2.InspectVMRequest(vm_uid=vm_uid)
        return status_from_wire(await self._ask(node_id, lambda stub: stub.InspectVM(request, timeout=QUICK_S)))

    async def probe_pool(self, node_id: str, pool_id: str, probe_id: str, act: ProbeAct) -> ProbeOutcome | None:
        request = agent_pb2.ProbePoolRequest(pool_id=pool_id, probe_id=probe_id, act=agent_pb2.ProbePoolRequest.Act.Value(act.value))
        found = (await self._ask(node_id, lambda stub: stub.ProbePool(request, timeout=SLOW_S))).outcome
        return ProbeOutcome(agent_pb2.ProbePoolResponse.Outcome.Name(found)) if found else None

    async def migration_source(self, node_id: str, order: Order, domain: DomainSpec, estimate: CopyEstimate | None) -> MigrationFacts:
        request = agent_pb2.CheckMigrationRequest(
            command=self._command(node_id, order),
            domain=domain_to_wire(domain),
            forecast=estimate is not None,
            bandwidth_mib_s=estimate.bandwidth_mib_s if estimate else 0,
            max_downtime_ms=estimate.max_downtime_ms if estimate else 0,
        )
        return facts_from_wire(await self._ask(node_id, lambda stub: stub.CheckMigration(request, timeout=SLOW_S)))

    async def migration_destination(self, node_id: str, order: Order, domain: DomainSpec, guest: GuestFacts) -> MigrationFacts:
        request = agent_pb2.CheckMigrationRequest(
            command=self._command(node_id, order), domain=domain_to_wire(domain), guest=guest_to_wire(guest)
        )
        return facts_from_wire(await self._ask(node_id, lambda stub: stub.CheckMigration(request, timeout=SLOW_S)))

    async def prepare_incoming(
        self, node_id: str, order: Order, domain: DomainSpec, source_node_id: str, copied: tuple[VolumeSpec, ...] = ()
    ) -> Prepared:
        request = agent_pb2.PrepareIncomingRequest(
            command=self._command(node_id, order),
            domain=domain_to_wire(domain),
            source_node_id=source_node_id,
            copied=[volume_to_wire(volume) for volume in copied],
        )
        answer = await self._ask(node_id, lambda stub: stub.PrepareIncoming(request, timeout=SLOW_S))
        return Prepared(answer.tunnel_endpoint, tuple((d.volume_uid, d.identity, d.path) for d in answer.disks))

    async def start_outgoing(self, node_id: str, order: Order, departure: Departure) -> HandoffReport:
        request = agent_pb2.StartOutgoingRequest(
            command=self._command(node_id, order),
            destination_node_id=departure.destination_node_id,
            destination_endpoint=departure.destination_endpoint,
            tunnel_endpoint=departure.tunnel_endpoint,
            disks=[agent_pb2.DiskIdentity(volume_uid=u, identity=i, path=p) for u, i, p in departure.disks],
            bandwidth_mib_s=departure.bandwidth_mib_s,
            max_downtime_ms=departure.max_downtime_ms,
            locked_pools=departure.locked_pools,
        )
        return report_from_wire(await self._ask(node_id, lambda stub: stub.StartOutgoing(request, timeout=QUICK_S)))

    async def tune_outgoing(self, node_id: str, order: Order, bandwidth_mib_s: int, max_downtime_ms: int) -> HandoffReport:
        request = agent_pb2.TuneOutgoingRequest(
            command=self._command(node_id, order), bandwidth_mib_s=bandwidth_mib_s, max_downtime_ms=max_downtime_ms
        )
        return report_from_wire(await self._ask(node_id, lambda stub: stub.TuneOutgoing(request, timeout=QUICK_S)))

    async def inspect_handoff(self, node_id: str, order: Order) -> HandoffReport:
        request = agent_pb2.InspectHandoffRequest(operation_id=order.operation_id, vm_uid=order.vm_uid)
        return report_from_wire(await self._ask(node_id, lambda stub: stub.InspectHandoff(request, timeout=QUICK_S)))

    async def finish_incoming(self, node_id: str, order: Order) -> HandoffReport:
        request = agent_pb2.FinishIncomingRequest(command=self._command(node_id, order))
        return report_from_wire(await self._ask(node_id, lambda stub: stub.FinishIncoming(request, timeout=SLOW_S)))

    async def finish_outgoing(self, node_id: str, order: Order) -> HandoffReport:
        request = agent_pb2.FinishOutgoingRequest(command=self._command(node_id, order))
        return report_from_wire(await self._ask(node_id, lambda stub: stub.FinishOutgoing(request, timeout=SLOW_S)))

    async def abort_incoming(self, node_id: str, order: Order) -> HandoffReport:
        request = agent_pb2.AbortIncomingRequest(command=self._command(node_id, order))
        return report_from_wire(await self._ask(node_id, lambda stub: stub.AbortIncoming(request, timeout=SLOW_S)))

    async def abort_outgoing(self, node_id: str, order: Order) -> HandoffReport:
        request = agent_pb2.AbortOutgoingRequest(command=self._command(node_id, order))
        return report_from_wire(await self._ask(node_id, lambda stub: stub.AbortOutgoing(request, timeout=SLOW_S)))

    async def close(self) -> None:
        for line in self._channels.values():
            await line.channel.close()
        self._channels.clear()

    async def _ask(self, node_id: str, call: "Callable[[Stub], Awaitable[T]]") -> T:
        try:
            stub = await self._stub(node_id)
            with cancellation_kept():
                return await call(stub)
        except grpc.aio.AioRpcError as error:
            refusal = from_rpc_error(error)
            if isinstance(refusal, Unavailable | DeadlineExceeded):
                raise NodeUnreachable(f"{node_id}: {refusal.message}", node_id) from error
            raise refusal from error
        except asyncio.InvalidStateError as error:
            raise NodeUnreachable(f"{node_id}: the connection is closing", node_id) from error

    async def _stub(self, node_id: str) -> Stub:
        endpoint = self._registered(node_id).endpoint
        known = self._channels.get(node_id)
        if known is not None and known.endpoint == endpoint:
            return known.stub
        channel = self._connect(node_id, endpoint)
        line = self._channels[node_id] = _Line(endpoint, channel, agent_pb2_grpc.AgentServiceStub(channel))
        if known is not None:
            await known.channel.close()
        return line.stub

    def _command(self, node_id: str, order: Order) -> agent_pb2.Command:
        return agent_pb2.Command(
            operation_id=order.operation_id,
            vm_uid=order.vm_uid,
            epoch=order.epoch,
            owner_revision=order.owner_revision,
            order_revision=order.order_revision,
            incarnation=self._registered(node_id).incarnation,
        )
