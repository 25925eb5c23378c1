"""PeerService: what the source of a handoff may ask of its destination. Only the node named in the handoff is answered."""

import grpc.aio

from hostler.errors import PermissionDenied, Reason
from hostler.internal.v1 import peer_pb2, peer_pb2_grpc
from hostler.model.copy import Stage
from hostler.server.identity import current_principal
from nodeagent.engine.host_state import HostState
from nodeagent.engine.incoming import IncomingHandoffs

Context = grpc.aio.ServicerContext[object, object]


class PeerService(peer_pb2_grpc.PeerServiceServicer):
    """See proto hostler.internal.v1.PeerService."""

    def __init__(self, incoming: IncomingHandoffs, state: HostState) -> None:
        self._incoming = incoming
        self._state = state

    async def AwaitArrival(self, request: peer_pb2.AwaitArrivalRequest, context: Context) -> peer_pb2.AwaitArrivalResponse:
        self._only_its_source(request.operation_id)
        return peer_pb2.AwaitArrivalResponse(arrived=await self._incoming.await_arrival(request.operation_id))

    async def NoteCommitted(self, request: peer_pb2.NoteCommittedRequest, context: Context) -> peer_pb2.NoteCommittedResponse:
        self._only_its_source(request.operation_id)
        report = await self._incoming.resume_if_committed(request.operation_id)
        return peer_pb2.NoteCommittedResponse(running=report.stage is Stage.FINISHED)

    def _only_its_source(self, operation_id: str) -> None:
        """A node that asks about somebody else's handoff learns nothing, not even whether there is one."""
        handoff = self._state.incoming.get(operation_id)
        if handoff is None or current_principal().id != handoff.source_node_id:
            raise PermissionDenied(Reason.NODE_IDENTITY_MISMATCH, "This handoff is not yours.")
