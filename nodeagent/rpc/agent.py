"""AgentService: the scheduler's commands, converted and handed to the engine. Thin: convert, call, convert."""

import grpc.aio

from hostler.internal.v1 import agent_pb2, agent_pb2_grpc
from hostler.model.copy import HandoffReport, Stage
from hostler.server.internal_wire import domain_from_wire, facts_to_wire, guest_from_wire, report_to_wire, status_to_wire, volume_from_wire
from nodeagent.core.definitions import Command, DiskTarget, Outgoing
from nodeagent.core.precopy import Limits
from nodeagent.engine.host_state import HostState
from nodeagent.engine.incoming import IncomingHandoffs
from nodeagent.engine.migration_check import MigrationChecks
from nodeagent.engine.outgoing import OutgoingHandoffs
from nodeagent.engine.vms import HostVMs
from nodeagent.ports import Volumes

Context = grpc.aio.ServicerContext[object, object]

END_WAIT_S = 20.0
"""How long FinishOutgoing and AbortOutgoing wait for the source's own task to end before they report what is."""


class AgentService(agent_pb2_grpc.AgentServiceServicer):
    """See proto hostler.internal.v1.AgentService."""

    def __init__(
        self,
        node_id: str,
        vms: HostVMs,
        incoming: IncomingHandoffs,
        outgoing: OutgoingHandoffs,
        checks: MigrationChecks,
        state: HostState,
        volumes: Volumes,
    ) -> None:
        self._node_id = node_id
        self._volumes = volumes
        self._vms = vms
        self._incoming = incoming
        self._outgoing = outgoing
        self._checks = checks
        self._state = state

    async def EnsureVolume(self, request: agent_pb2.EnsureVolumeRequest, context: Context) -> agent_pb2.EnsureVolumeResponse:
        return agent_pb2.EnsureVolumeResponse(size_mib=await self._vms.ensure_volume(volume_from_wire(request.volume)))

    async def RemoveVolume(self, request: agent_pb2.RemoveVolumeRequest, context: Context) -> agent_pb2.RemoveVolumeResponse:
        await self._vms.remove_volume(volume_from_wire(request.volume))
        return agent_pb2.RemoveVolumeResponse()

    async def DefineVM(self, request: agent_pb2.DefineVMRequest, context: Context) -> agent_pb2.VMStatus:
        return status_to_wire(await self._vms.define(_command(request.command), domain_from_wire(request.domain)))

    async def StartVM(self, request: agent_pb2.StartVMRequest, context: Context) -> agent_pb2.VMStatus:
        return status_to_wire(await self._vms.start(_command(request.command)))

    async def StopVM(self, request: agent_pb2.StopVMRequest, context: Context) -> agent_pb2.VMStatus:
        return status_to_wire(await self._vms.stop(_command(request.command), request.grace_s))

    async def RebootVM(self, request: agent_pb2.RebootVMRequest, context: Context) -> agent_pb2.VMStatus:
        return status_to_wire(await self._vms.reboot(_command(request.command), request.force))

    async def ForgetVM(self, request: agent_pb2.ForgetVMRequest, context: Context) -> agent_pb2.ForgetVMResponse:
        await self._vms.forget(_command(request.command))
        return agent_pb2.ForgetVMResponse()

    async def EndCopy(self, request: agent_pb2.EndCopyRequest, context: Context) -> agent_pb2.VMStatus:
        return status_to_wire(await self._vms.end_copy(_command(request.command)))

    async def InspectVM(self, request: agent_pb2.InspectVMRequest, context: Context) -> agent_pb2.VMStatus:
        return status_to_wire(await self._vms.status(request.vm_uid))

    async def ProbePool(self, request: agent_pb2.ProbePoolRequest, context: Context) -> agent_pb2.ProbePoolResponse:
        match request.act:
            case agent_pb2.ProbePoolRequest.HOLD:
                outcome = await self._volumes.hold_probe(request.pool_id, request.probe_id)
            case agent_pb2.ProbePoolRequest.TRY:
                outcome = await self._volumes.try_probe(request.pool_id, request.probe_id)
            case act:
                await self._volumes.end_probe(request.pool_id, request.probe_id, remove=act == agent_pb2.ProbePoolRequest.CLEAR)
                return agent_pb2.ProbePoolResponse()
        return agent_pb2.ProbePoolResponse(outcome=agent_pb2.ProbePoolResponse.Outcome.Value(outcome.value))

    async def CheckMigration(self, request: agent_pb2.CheckMigrationRequest, context: Context) -> agent_pb2.MigrationFacts:
        spec = domain_from_wire(request.domain)
        if request.HasField("guest"):
            return facts_to_wire(await self._checks.as_destination(spec, guest_from_wire(request.guest)))
        limits = Limits(request.bandwidth_mib_s, request.max_downtime_ms) if request.forecast else None
        return facts_to_wire(await self._checks.as_source(spec, limits))

    async def PrepareIncoming(self, request: agent_pb2.PrepareIncomingRequest, context: Context) -> agent_pb2.PrepareIncomingResponse:
        spec, copied = domain_from_wire(request.domain), tuple(volume_from_wire(volume) for volume in request.copied)
        endpoint, disks = await self._incoming.prepare(_command(request.command), spec, request.source_node_id, copied)
        identities = [agent_pb2.DiskIdentity(volume_uid=d.volume_uid, identity=d.identity, path=d.path) for d in disks]
        return agent_pb2.PrepareIncomingResponse(tunnel_endpoint=endpoint, disks=identities)

    async def StartOutgoing(self, request: agent_pb2.StartOutgoingRequest, context: Context) -> agent_pb2.HandoffReport:
        command = _command(request.command)
        handoff = Outgoing(
            operation_id=command.operation_id,
            vm_uid=command.vm_uid,
            epoch=command.epoch,
            owner_revision=command.owner_revision,
            destination_node_id=request.destination_node_id,
            destination_endpoint=request.destination_endpoint,
            tunnel_endpoint=request.tunnel_endpoint,
            disks=tuple(DiskTarget(d.volume_uid, d.identity, d.path) for d in request.disks),
            bandwidth_mib_s=request.bandwidth_mib_s,
            locked_pools=tuple(request.locked_pools),
            stage=Stage.PREPARED,
            max_downtime_ms=request.max_downtime_ms,
        )
        return report_to_wire(await self._outgoing.start(command, handoff))

    async def TuneOutgoing(self, request: agent_pb2.TuneOutgoingRequest, context: Context) -> agent_pb2.HandoffReport:
        limits = Limits(request.bandwidth_mib_s, request.max_downtime_ms)
        return report_to_wire(await self._outgoing.tune(request.command.operation_id, limits))

    async def InspectHandoff(self, request: agent_pb2.InspectHandoffRequest, context: Context) -> agent_pb2.HandoffReport:
        if request.operation_id in self._state.outgoing:
            return report_to_wire(await self._outgoing.report(request.operation_id))
        if request.operation_id in self._state.incoming:
            return report_to_wire(await self._incoming.report(request.operation_id))
        return report_to_wire(HandoffReport(self._node_id, request.operation_id, await self._vms.copy(request.vm_uid), Stage.NONE))

    async def FinishIncoming(self, request: agent_pb2.FinishIncomingRequest, context: Context) -> agent_pb2.HandoffReport:
        return report_to_wire(await self._incoming.resume_if_committed(request.command.operation_id))

    async def FinishOutgoing(self, request: agent_pb2.FinishOutgoingRequest, context: Context) -> agent_pb2.HandoffReport:
        return report_to_wire(await self._outgoing.await_end(request.command.operation_id, END_WAIT_S))

    async def AbortIncoming(self, request: agent_pb2.AbortIncomingRequest, context: Context) -> agent_pb2.HandoffReport:
        return report_to_wire(await self._incoming.abort(_command(request.command)))

    async def AbortOutgoing(self, request: agent_pb2.AbortOutgoingRequest, context: Context) -> agent_pb2.HandoffReport:
        if request.command.operation_id not in self._state.outgoing:
            copy = await self._vms.copy(request.command.vm_uid)
            return report_to_wire(HandoffReport(self._node_id, request.command.operation_id, copy, Stage.ABORTED))
        return report_to_wire(await self._outgoing.await_end(request.command.operation_id, END_WAIT_S))


def _command(command: agent_pb2.Command) -> Command:
    return Command(command.operation_id, command.vm_uid, command.epoch, command.owner_revision, command.order_revision, command.incarnation)
