"""The other agent of a handoff, over gRPC. One channel per handoff: it is connected before the guest stands still, and none outlives its handoff."""

from collections.abc import Callable

import grpc
import grpc.aio

from hostler.cancellation import cancellation_kept
from hostler.internal.v1 import peer_pb2, peer_pb2_grpc
from nodeagent.ports import PeerUnavailable

AWAIT_TIMEOUT_S = 240.0
"""A call that waits for the arrival; asked again when it passes."""

NOTE_TIMEOUT_S = 5.0
"""The destination reads the owner record and resumes within it, or the scheduler's own call does it."""


class GrpcPeer:
    """Implements Peer; `connect(node_id, endpoint)` makes a channel that accepts that node's certificate alone."""

    def __init__(self, connect: Callable[[str, str], grpc.aio.Channel]) -> None:
        self._connect = connect
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def await_arrival(self, operation_id: str, node_id: str, endpoint: str) -> bool:
        request = peer_pb2.AwaitArrivalRequest(operation_id=operation_id)
        try:
            with cancellation_kept():
                answer = await self._stub(operation_id, node_id, endpoint).AwaitArrival(request, timeout=AWAIT_TIMEOUT_S)
            return bool(answer.arrived)
        except grpc.aio.AioRpcError as error:
            raise PeerUnavailable(f"{node_id} answers {error.code().name}") from error

    async def note_committed(self, operation_id: str, node_id: str, endpoint: str) -> bool:
        request = peer_pb2.NoteCommittedRequest(operation_id=operation_id)
        try:
            with cancellation_kept():
                answer = await self._stub(operation_id, node_id, endpoint).NoteCommitted(request, timeout=NOTE_TIMEOUT_S)
            return bool(answer.running)
        except grpc.aio.AioRpcError as error:
            raise PeerUnavailable(f"{node_id} answers {error.code().name}") from error

    async def leave(self, operation_id: str) -> None:
        channel = self._channels.pop(operation_id, None)
        if channel is not None:
            await channel.close()

    def _stub(self, operation_id: str, node_id: str, endpoint: str) -> "peer_pb2_grpc.PeerServiceAsyncStub":
        """One operation has one destination, and one endpoint of it for as long as this process drives it."""
        channel = self._channels.get(operation_id)
        if channel is None:
            channel = self._channels[operation_id] = self._connect(node_id, endpoint)
        return peer_pb2_grpc.PeerServiceStub(channel)
