"""The scheduler over gRPC: registration, heartbeats and the owner record, from whichever replica answers.

The replica that answered last is asked first. A call that fails moves on to the next one, so that losing a replica costs one deadline at most.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import grpc
import grpc.aio

from hostler.cancellation import cancellation_kept
from hostler.errors import HostlerError
from hostler.internal.v1 import cluster_link_pb2, cluster_link_pb2_grpc
from hostler.model.node import NodeReport
from hostler.model.owner import OwnerRead
from hostler.rpc_status import from_rpc_error
from hostler.server.internal_wire import inventory_to_wire, owner_from_wire
from nodeagent.ports import AuthorityUnavailable, Registration

CALL_TIMEOUT_S = 2.0
"""One small call to a replica on the same network; an etcd election in between takes longer and is retried by the caller."""

BEAT_TIMEOUT_S = 5.0
"""A beat waits for the replica's next packed write (an interval) and its commit."""

T = TypeVar("T")
BeatStream = grpc.aio.StreamStreamCall[cluster_link_pb2.HeartbeatRequest, cluster_link_pb2.HeartbeatResponse]
TRY_ELSEWHERE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})


class GrpcScheduler:
    """Implements SchedulerLink and OwnerAuthority over `channels`, one per replica."""

    def __init__(self, node_id: str, channels: Sequence[grpc.aio.Channel]) -> None:
        self._node_id = node_id
        self._stubs = [cluster_link_pb2_grpc.ClusterLinkServiceStub(channel) for channel in channels]
        self._preferred = 0
        self._stream: BeatStream | None = None
        self._interval_s = CALL_TIMEOUT_S

    async def register(self, boot_id: str, endpoint: str, report: NodeReport, *, laid_down: bool = False) -> Registration:
        request = cluster_link_pb2.RegisterRequest(
            node_id=self._node_id, boot_id=boot_id, endpoint=endpoint, inventory=inventory_to_wire(report), laid_down=laid_down
        )
        answer = await self._ask(lambda stub: stub.Register(request, timeout=BEAT_TIMEOUT_S))
        if answer.fenced:
            return Registration("", 0.0, fenced=True)
        self._interval_s = answer.heartbeat_interval_s
        self._drop_stream()
        return Registration(answer.incarnation, float(answer.heartbeat_interval_s))

    async def beat(self, incarnation: str, counter: int, report: NodeReport | None) -> bool:
        request = cluster_link_pb2.HeartbeatRequest(node_id=self._node_id, incarnation=incarnation, counter=counter)
        if report is not None:
            request.inventory.CopyFrom(inventory_to_wire(report))
        try:
            async with asyncio.timeout(self._interval_s + BEAT_TIMEOUT_S):
                if self._stream is None:
                    self._stream = self._stubs[self._preferred].Heartbeat()
                with cancellation_kept():
                    await self._stream.write(request)
                    answer = await self._stream.read()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError) as error:
            self._drop_stream()
            self._preferred = (self._preferred + 1) % len(self._stubs)
            raise AuthorityUnavailable("the heartbeat stream was lost") from error
        if not isinstance(answer, cluster_link_pb2.HeartbeatResponse):
            self._drop_stream()
            self._preferred = (self._preferred + 1) % len(self._stubs)
            raise AuthorityUnavailable("the replica ended the heartbeat stream")
        return not answer.register_again

    async def owner(self, vm_uid: str) -> OwnerRead | None:
        request = cluster_link_pb2.GetOwnerRequest(vm_uid=vm_uid)
        try:
            return owner_from_wire(await self._ask(lambda stub: stub.GetOwner(request, timeout=CALL_TIMEOUT_S)))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise AuthorityUnavailable(str(_refusal(error))) from error

    async def await_commit(self, vm_uid: str, operation_id: str) -> OwnerRead | None:
        request = cluster_link_pb2.AwaitCommitRequest(vm_uid=vm_uid, operation_id=operation_id)
        try:
            return owner_from_wire(await self._ask(lambda stub: stub.AwaitCommit(request, timeout=CALL_TIMEOUT_S)))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise AuthorityUnavailable(str(_refusal(error))) from error

    async def commit_handoff(self, vm_uid: str, operation_id: str, owner_revision: int) -> OwnerRead:
        request = cluster_link_pb2.CommitHandoffRequest(vm_uid=vm_uid, operation_id=operation_id, owner_revision=owner_revision)
        try:
            return owner_from_wire(await self._ask(lambda stub: stub.CommitHandoff(request, timeout=CALL_TIMEOUT_S)))
        except grpc.aio.AioRpcError as error:
            raise AuthorityUnavailable(str(_refusal(error))) from error

    async def close(self) -> None:
        self._drop_stream()

    async def _ask(self, call: "Callable[[cluster_link_pb2_grpc.ClusterLinkServiceAsyncStub], Awaitable[T]]") -> T:
        """The first replica that answers; AioRpcError for an answer that is a refusal, AuthorityUnavailable if none answers."""
        for _ in self._stubs:
            try:
                with cancellation_kept():
                    return await call(self._stubs[self._preferred])
            except grpc.aio.AioRpcError as error:
                if error.code() not in TRY_ELSEWHERE:
                    raise
                self._preferred = (self._preferred + 1) % len(self._stubs)
        raise AuthorityUnavailable("no scheduler replica answers")

    def _drop_stream(self) -> None:
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None


def _refusal(error: grpc.aio.AioRpcError) -> HostlerError:
    return from_rpc_error(error)
