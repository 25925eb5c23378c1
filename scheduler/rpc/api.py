"""What every service of the cluster's API shares: reading, accepting, paging, watching. Thin over the engine."""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import Message

from hostler.api.type.v1 import operation_pb2
from hostler.errors import OutOfRange, Reason, Unavailable
from hostler.server.api_wire import request_from_wire
from hostler.server.clock import Clock, IdSource, wall_ms
from hostler.server.identity import current_principal
from hostler.server.tokens import PageToken, ResumeToken, decode_page, decode_resume, encode, page_size, question
from scheduler.core.accept import Accepted, Request
from scheduler.core.placement.policy import Policy
from scheduler.core.records import STATE, OperationRecord
from scheduler.core.state import ClusterState
from scheduler.core.view import Health
from scheduler.engine.codec import decode
from scheduler.engine.liveness import Liveness
from scheduler.engine.mirror import Change, Mirror, put_record
from scheduler.engine.progress import ProgressReader
from scheduler.engine.turns import Turns
from scheduler.engine.writer import Writer
from scheduler.ports import NodeGateway, RevisionCompacted, Store, StoreUnavailable
from scheduler.rpc.wire import operation_to_wire

BOOKMARK_S = 10.0
"""How often a quiet watch says how far it has come: a client that reconnects resumes from there."""

HEALTH_LOOK_S = 0.5
"""How often a watch of nodes looks at their health: heartbeats are no change of state that would wake it."""

T = TypeVar("T")
M = TypeVar("M", bound=Message)
KINDS = {"vms": "vm", "nodes": "node", "volumes": "volume", "pools": "pool", "flavors": "flavor", "operations": "op"}


@dataclass(frozen=True, slots=True)
class Page:
    """Names of one page in order, the state they are of, and the next page's token."""

    state: ClusterState
    names: tuple[str, ...]
    next_token: str


@dataclass(slots=True)
class Api:
    """One replica's engine, as its services use it."""

    cluster_id: str
    store: Store
    nodes: NodeGateway
    mirror: Mirror
    writer: Writer
    liveness: Liveness
    progress: ProgressReader
    policy: Policy
    clock: Clock
    ids: IdSource
    waiting_for: Callable[[str], str]
    turns: Turns

    async def read(self) -> ClusterState:
        """The newest state, with this replica's judgement of every node's health."""
        state = await self.mirror.refresh()
        state.health = self.liveness.health()
        return state

    # ---- mutations

    def request(self, message: Message, request_id: str) -> Request:
        return request_from_wire(message, current_principal().uri, request_id or self.ids.uuid(), wall_ms(self.clock))

    async def accept(self, decide: Callable[[ClusterState], Accepted], validate_only: bool) -> operation_pb2.Operation:
        """Carry out the decision and answer the operation; only say what it would be, if that is all that is asked."""

        def judged(state: ClusterState) -> Accepted:
            state.health = self.liveness.health()
            return decide(state)

        if validate_only:
            state = await self.read()
            would = operation_to_wire(state, judged(state).operation)
            would.name = ""
            return would
        operation = await self.writer.accept(judged)
        kept = self.mirror.state.operations.get(operation.operation_id)
        operation = kept.record if kept is not None else operation
        return operation_to_wire(self.mirror.state, operation, self.turns.why_not(self.mirror.state, operation))

    async def operation_to_wire(self, state: ClusterState, operation: OperationRecord) -> operation_pb2.Operation:
        """With progress and what it waits for, where this replica knows; a drain with that of each VM that moves."""
        message = await self._operation_to_wire(state, operation)
        if operation.drain is None or operation.done:
            return message
        for entry in message.drain.entries:
            child = state.operations.get(entry.operation.removeprefix("operations/"))
            if entry.state == operation_pb2.Operation.DrainMetadata.MOVING and child is not None:
                moving = await self._operation_to_wire(state, child.record)
                entry.reason = f"{moving.phase}: {moving.reason}" if moving.reason else moving.phase
                if moving.HasField("progress"):
                    entry.progress.CopyFrom(moving.progress)
        return message

    async def _operation_to_wire(self, state: ClusterState, operation: OperationRecord) -> operation_pb2.Operation:
        progress = await self.progress.of(operation) if not operation.done else None
        waits = self.turns.why_not(state, operation) or self.waiting_for(operation.operation_id)
        return operation_to_wire(state, operation, waits, progress)

    # ---- lists

    async def page(
        self,
        collection: str,
        size: int,
        token_text: str,
        names_of: Callable[[ClusterState], Iterable[str]],
        *asked: str,
    ) -> Page:
        """One page of `names_of(state)`, which is in order; every page is of the first one's revision. Raises OutOfRange, InvalidRequest."""
        name = question(collection, *asked)
        token = decode_page(token_text, self.cluster_id, name)
        state = await self.read() if token is None else await self._state_at(token.revision, KINDS[collection])
        names = list(names_of(state))
        begin = 0
        if token is not None:
            begin = names.index(token.after) + 1 if token.after in names else 0
        page = names[begin : begin + page_size(size)]
        more = begin + len(page) < len(names)
        next_token = encode(PageToken(self.cluster_id, state.revision, page[-1], name)) if more else ""
        return Page(state, tuple(page), next_token)

    async def _state_at(self, revision: int, kind: str) -> ClusterState:
        """The state as it was: the mirror's if nothing of the kind has changed since, else the store's history."""
        now = await self.read()
        if revision == now.revision:
            return now
        try:
            listing = await self.store.list(STATE, revision=revision)
        except RevisionCompacted as error:
            raise OutOfRange(Reason.REVISION_COMPACTED, "This list is too old to go on.", "List again from the first page.") from error
        except StoreUnavailable as error:
            raise Unavailable(Reason.STORE_UNAVAILABLE, "The cluster's store does not answer.", "Try again.", retry_after_s=1.0) from error
        then = ClusterState(revision=revision, health=now.health)
        for item in listing.items:
            put_record(then, item.key, item.mod_revision, decode(item.key, item.value))
        return then

    def resume_token(self, revision: int) -> str:
        return encode(ResumeToken(self.cluster_id, revision))

    # ---- watches

    async def watch(
        self,
        kind: str,
        token_text: str,
        updated: Callable[[ClusterState, str], M | None],
        deleted: Callable[[str], M],
        bookmark: Callable[[], M],
    ) -> AsyncIterator[tuple[M, str]]:
        """Messages with the resume token that belongs to each. Every change is told, or OutOfRange is raised; never is one skipped.

        A change is told as the resource is when it is told: several changes between two tellings may be one.
        """
        token = decode_resume(token_text, self.cluster_id)
        state = await self.read()
        if token is None:
            revision = state.revision
            for name in sorted(self._names(kind, state)):
                message = updated(state, name)
                if message is not None:
                    yield message, ""
            yield bookmark(), self.resume_token(revision)
        else:
            revision = token.revision
            if revision > state.revision:
                raise OutOfRange(Reason.REVISION_UNKNOWN, "This token is from the future of this cluster.", "List again.")
        async for change in self._changes(kind, revision, state.health):
            if change is None:
                yield bookmark(), self.resume_token(self.mirror.state.revision)
                continue
            message = updated(self.mirror.state, change.name) if change.record is not None else None
            yield message if message is not None else deleted(change.name), self.resume_token(change.revision)

    async def _changes(self, kind: str, revision: int, health: Mapping[str, Health]) -> AsyncIterator[Change | None]:
        """Changes of one kind after `revision`, for ever; None when it was quiet for a while.

        A node's health is this replica's own judgement, not a record: what differs from `health`, which was told, is told too.
        """
        quiet_since_s = self.clock.monotonic_s()
        while True:
            changes = [change for change in self.mirror.changes_after(revision) if change.kind == kind]
            revision = max(revision, self.mirror.state.revision)
            before, health = health, self.liveness.health()
            self.mirror.state.health = health
            if kind == "node":
                changes += self._health_changes(before, health, {change.name for change in changes})
            for change in changes:
                yield change
            now_s = self.clock.monotonic_s()
            if changes or now_s - quiet_since_s >= BOOKMARK_S:
                quiet_since_s = now_s
                if not changes:
                    yield None
            await self.mirror.await_change(revision, HEALTH_LOOK_S if kind == "node" else BOOKMARK_S)

    def _health_changes(self, before: Mapping[str, Health], now: Mapping[str, Health], told: set[str]) -> list[Change]:
        state = self.mirror.state
        different = sorted(name for name in now if name not in told and before.get(name) != now[name] and name in state.nodes)
        return [Change(state.revision, "node", name, state.nodes[name].record) for name in different]

    def _names(self, kind: str, state: ClusterState) -> Iterable[str]:
        return list(state.vms if kind == "vm" else state.nodes)
