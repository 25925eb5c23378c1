"""The other agent of a handoff, over gRPC. One channel per call: handoffs are rare, and no connection between hosts outlives its handoff."""

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

    async def await_arrival(self, operation_id: str, node_id: str, endpoint: str) -> bool:
        try:
            async with self._connect(node_id, endpoint) as channel:
                stub = peer_pb2_grpc.PeerServiceStub(channel)
                with cancellation_kept():
                    answer = await stub.AwaitArrival(peer_pb2.AwaitArrivalRequest(operation_id=operation_id), timeout=AWAIT_TIMEOUT_S)
                return bool(answer.arrived)
        except grpc.aio.AioRpcError as error:
            raise PeerUnavailable(f"{node_id} answers {error.code().name}") from error

    async def note_committed(self, operation_id: str, node_id: str, endpoint: str) -> bool:
        try:
            async with self._connect(node_id, endpoint) as channel:
                stub = peer_pb2_grpc.PeerServiceStub(channel)
                with cancellation_kept():
                    answer = await stub.NoteCommitted(peer_pb2.NoteCommittedRequest(operation_id=operation_id), timeout=NOTE_TIMEOUT_S)
                return bool(answer.running)
        except grpc.aio.AioRpcError as error:
            raise PeerUnavailable(f"{node_id} answers {error.code().name}") from error
