"""ClusterLinkService: what node agents ask. Each may speak for its own node alone."""

from collections.abc import AsyncIterator
from functools import partial

import grpc.aio
import structlog

from hostler.errors import Conflict, NotFound, PermissionDenied, Reason, Unavailable
from hostler.internal.v1 import cluster_link_pb2, cluster_link_pb2_grpc
from hostler.model.node import NodeReport, VMStatus
from hostler.model.owner import OwnerRead, OwnerState
from hostler.server.identity import PrincipalKind, current_principal
from hostler.server.internal_wire import inventory_from_wire, owner_to_wire
from scheduler.core.decide_nodes import owned_by, register, take_report, take_status
from scheduler.core.records import NodeRecord, NodeState, VMRecord
from scheduler.core.state import ClusterState, Kept
from scheduler.core.steps import commit_handoff
from scheduler.core.transaction import Transaction
from scheduler.engine.liveness import INTERVAL_S
from scheduler.ports import NodeUnreachable, StoreUnavailable
from scheduler.rpc.api import Api

AWAIT_COMMIT_S = 1.5
"""A caller that waits for a commit is answered after this in any case: below its deadline, so that an answer is never older than any other read's."""

Context = grpc.aio.ServicerContext[object, object]
log = structlog.get_logger()


class ClusterLinkService(cluster_link_pb2_grpc.ClusterLinkServiceServicer):
    """See proto hostler.internal.v1.ClusterLinkService."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def Register(self, request: cluster_link_pb2.RegisterRequest, context: Context) -> cluster_link_pb2.RegisterResponse:
        _only_itself(request.node_id)
        report = inventory_from_wire(request.inventory)
        if report.node_id != request.node_id:
            raise PermissionDenied(Reason.NODE_IDENTITY_MISMATCH, "The inventory is another node's.")
        record = await self._register(report, request.boot_id, request.endpoint, request.laid_down)
        if record.state is NodeState.FENCED:
            log.warning("a fenced node answers; it is told to lay down its guests", node=request.node_id)
            return cluster_link_pb2.RegisterResponse(fenced=True)
        await self._take_statuses(report)
        state = await self._api.read()
        owned = [owner_to_wire(_read(state, kept)) for kept in owned_by(state, request.node_id)]
        log.info("node registered", node=request.node_id, incarnation=record.incarnation, endpoint=request.endpoint)
        return cluster_link_pb2.RegisterResponse(incarnation=record.incarnation, heartbeat_interval_s=int(INTERVAL_S), owned=owned)

    async def Heartbeat(
        self, request_iterator: AsyncIterator[cluster_link_pb2.HeartbeatRequest], context: Context
    ) -> AsyncIterator[cluster_link_pb2.HeartbeatResponse]:
        node_id = current_principal().id
        try:
            async for request in request_iterator:
                _only_itself(request.node_id)
                kept = self._api.mirror.state.nodes.get(node_id)
                if kept is None or kept.record.incarnation != request.incarnation:
                    kept = (await self._api.read()).nodes.get(node_id)
                if kept is None or kept.record.incarnation != request.incarnation or kept.record.state is NodeState.FENCED:
                    yield cluster_link_pb2.HeartbeatResponse(counter=request.counter, register_again=True)
                    return
                if request.HasField("inventory"):
                    report = inventory_from_wire(request.inventory)
                    await self._api.writer.apply(partial(take_report, report=report))
                    await self._take_statuses(report)
                try:
                    await self._api.liveness.beat(node_id, request.incarnation, request.counter)
                except StoreUnavailable as error:
                    raise Unavailable(Reason.STORE_UNAVAILABLE, "The beat could not be written.", retry_after_s=1.0) from error
                yield cluster_link_pb2.HeartbeatResponse(counter=request.counter)
        finally:
            self._api.liveness.left(node_id)

    async def GetOwner(self, request: cluster_link_pb2.GetOwnerRequest, context: Context) -> cluster_link_pb2.OwnerRecord:
        _only_a_node()
        state = await self._api.read()
        return owner_to_wire(_read(state, _vm(state, request.vm_uid)))

    async def AwaitCommit(self, request: cluster_link_pb2.AwaitCommitRequest, context: Context) -> cluster_link_pb2.OwnerRecord:
        """The first look is at the newest state, so what the watch brings after it was written after the question: a linearizable read, whose answer
        needs no other look at the store."""
        _only_a_node()
        state = await self._api.read()
        end_s = self._api.clock.monotonic_s() + AWAIT_COMMIT_S
        while True:
            kept = _vm(state, request.vm_uid)
            owner, left_s = kept.record.owner, end_s - self._api.clock.monotonic_s()
            if left_s <= 0 or owner.state is not OwnerState.HANDOFF or owner.operation_id != request.operation_id:
                return owner_to_wire(_read(state, kept))
            await self._api.mirror.await_change(state.revision, left_s)
            state = self._api.mirror.state

    async def CommitHandoff(self, request: cluster_link_pb2.CommitHandoffRequest, context: Context) -> cluster_link_pb2.OwnerRecord:
        """A guest stands still for as long as this takes: one transaction and nothing else, where this replica knows the record that it compares."""
        kept = self._api.mirror.state.vm_by_uid(request.vm_uid)
        if kept is not None and kept.revision == request.owner_revision:
            state = self._api.mirror.state  # the very record that the transaction compares, so also the one to judge the caller by
        else:
            state = await self._api.read()
        owner = _vm(state, request.vm_uid).record.owner
        if current_principal().id not in (owner.node_id, owner.destination_node_id):
            _source_of(state, request.operation_id)
        written: list[VMRecord] = []

        def decide(state: ClusterState) -> Transaction | None:
            transaction = commit_handoff(state, request.vm_uid, request.operation_id, request.owner_revision)
            written.extend(record for record in (transaction.puts.values() if transaction else ()) if isinstance(record, VMRecord))
            return transaction

        revision = await self._api.writer.apply_at_once(decide)
        if revision:
            answer = OwnerRead(request.vm_uid, written[-1].owner, revision, revision)
        else:
            state = await self._api.read()
            answer = _read(state, _vm(state, request.vm_uid))
        log.info("commit of a handoff", operation=request.operation_id, committed=bool(revision), epoch=answer.owner.epoch)
        return owner_to_wire(answer)

    async def _register(self, report: NodeReport, boot_id: str, endpoint: str, laid_down: bool) -> NodeRecord:
        written: list[NodeRecord] = []

        def decide(state: ClusterState) -> Transaction | None:
            record, transaction = register(state, report, boot_id, endpoint, laid_down)
            written.append(record)
            return transaction

        await self._api.writer.apply(decide)
        return written[-1]

    async def _take_statuses(self, report: NodeReport) -> None:
        """One small transaction each, so that one busy VM does not hold up the others; what is lost to a conflict comes with the next report."""
        for status in report.vms:
            try:
                await self._take_status(report.node_id, status)
            except (Conflict, NodeUnreachable) as error:
                log.info("status of a VM was not taken", vm_uid=status.vm_uid, why=str(error))

    async def _take_status(self, node_id: str, status: VMStatus) -> None:
        """A report may be older than the operation that has just ended: before a VM is called stopped, its node is asked again, and the answer
        counts only if nothing was written about the VM since before the question."""
        if take_status(self._api.mirror.state, node_id, status) is None:
            return
        before = (await self._api.read()).vm_by_uid(status.vm_uid)
        if before is None:
            return
        now = await self._api.nodes.inspect(node_id, status.vm_uid)

        def decide(state: ClusterState) -> Transaction | None:
            kept = state.vm_by_uid(status.vm_uid)
            return take_status(state, node_id, now) if kept is not None and kept.revision == before.revision else None

        await self._api.writer.apply(decide)


def _only_itself(node_id: str) -> None:
    principal = current_principal()
    if principal.kind is not PrincipalKind.NODE or principal.id != node_id:
        raise PermissionDenied(Reason.NODE_IDENTITY_MISMATCH, f"{principal} does not speak for node {node_id}.")


def _only_a_node() -> None:
    if current_principal().kind is not PrincipalKind.NODE:
        raise PermissionDenied(Reason.IDENTITY_NOT_ALLOWED, "Only nodes ask this.")


def _source_of(state: ClusterState, operation_id: str) -> None:
    """The source may ask for the outcome of its own commit again, when it is no longer the owner."""
    kept = state.operations.get(operation_id)
    migration = kept.record.migration if kept is not None else None
    if migration is None or current_principal().id != migration.source_node_id:
        raise PermissionDenied(Reason.NODE_IDENTITY_MISMATCH, "This handoff is not yours.")


def _vm(state: ClusterState, vm_uid: str) -> Kept[VMRecord]:
    kept = state.vm_by_uid(vm_uid)
    if kept is None:
        raise NotFound(Reason.VM_NOT_FOUND, "There is no such VM.")
    return kept


def _read(state: ClusterState, kept: Kept[VMRecord]) -> OwnerRead:
    return OwnerRead(kept.record.uid, kept.record.owner, kept.revision, state.revision)
