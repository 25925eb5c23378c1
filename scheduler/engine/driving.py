"""Drives the accepted operations, while this replica leads: one task per operation, taken up where the journal says it stands.

A flow is a function from the phase to the next step. A step is: act on the node (a command that may be repeated), then write the next phase. Hence a
restart, a new leader and a retry are the same thing. What a node does not answer is asked again, with growing pauses; what it refuses is told to
the flow, which turns back.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog

from hostler.errors import Conflict, HostlerError, Internal, Reason, Unavailable
from hostler.server.clock import Clock, wall_ms
from scheduler.core.decide_fence import way_out, while_fenced
from scheduler.core.placement.policy import Policy
from scheduler.core.records import OperationRecord, Verb, VMRecord
from scheduler.core.state import ClusterState, Kept
from scheduler.core.steps import By
from scheduler.core.transaction import Transaction
from scheduler.core.view import Health
from scheduler.engine.election import Term
from scheduler.engine.fenced_nodes import FencedNodes
from scheduler.engine.mirror import Mirror
from scheduler.engine.turns import Turns
from scheduler.engine.writer import Writer
from scheduler.ports import NodeGateway, NodeUnreachable, Order

RETRY_FIRST_S = 0.25
RETRY_MOST_S = 5.0
"""A node that restarts its agent is back within seconds; one that stays away is asked twelve times a minute."""

BREAKS_BEFORE_ROLLBACK = 5
"""An exception that is no refusal is a bug or a passing fault: try again a few times, then turn back and say so."""

log = structlog.get_logger()


class LeadershipLost(Exception):
    """Another replica drives now."""


@dataclass(slots=True)
class Run:
    """One operation being driven by this replica; what its flow works with."""

    operation_id: str
    nodes: FencedNodes
    mirror: Mirror
    writer: Writer
    clock: Clock
    term: Term
    turns: Turns
    policy: Policy
    waiting_for: str = ""

    @property
    def state(self) -> ClusterState:
        return self.mirror.state

    @property
    def operation(self) -> OperationRecord:
        return self.state.operations[self.operation_id].record

    @property
    def vm(self) -> Kept[VMRecord]:
        return self.state.vms[self.operation.target_id]

    def by(self) -> By:
        return By(self.term.driver, wall_ms(self.clock))

    def order(self) -> Order:
        """A command about the operation's VM under its present epoch."""
        vm = self.vm
        operation = self.state.operations[self.operation_id]
        return Order(self.operation_id, vm.record.uid, vm.record.owner.epoch, vm.revision, operation.revision)

    async def write(self, decide: Callable[[ClusterState], Transaction | None]) -> bool:
        """Write a step; False: the operation was not where the step thought, or a node is fenced no longer on whose proof it rests. Raises
        LeadershipLost."""
        proofs = dict(self.nodes.proofs)
        try:
            return await self.writer.apply(lambda state: while_fenced(state, proofs, decide(state)), (self.term.guard,))
        except Conflict as error:
            raise LeadershipLost(self.operation_id) from error
        finally:
            self.nodes.proofs.clear()


Flow = Callable[[Run], Awaitable[None]]
"""Takes one step of an operation that is not done. Raises NodeUnreachable (ask again), HostlerError (refused: `Refused` flows turn back)."""


@dataclass(frozen=True, slots=True)
class Verbs:
    """`step` goes forward; `turn_back` writes what follows from a refusal, and must itself be repeatable."""

    step: Flow
    turn_back: Callable[[Run, HostlerError], Awaitable[None]]


class Driver:
    """`lead(term)` drives every undone operation until it is cancelled or the leadership is lost."""

    def __init__(
        self,
        mirror: Mirror,
        writer: Writer,
        nodes: NodeGateway,
        clock: Clock,
        flows: Mapping[Verb, Verbs],
        turns: Turns,
        health: Callable[[], Mapping[str, Health]],
        policy: Policy,
    ) -> None:
        self._mirror = mirror
        self._writer = writer
        self._nodes = nodes
        self._clock = clock
        self._flows = flows
        self._turns = turns
        self._health = health
        self._policy = policy
        self._runs: dict[str, Run] = {}

    def waiting_for(self, operation_id: str) -> str:
        """What the operation waits for in this replica's hands, one sentence; empty: nothing, or it is not in its hands."""
        run = self._runs.get(operation_id)
        return run.waiting_for if run is not None else ""

    async def lead(self, term: Term) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    revision = self._mirror.state.revision
                    for operation_id in list(self._mirror.state.open_operations):
                        if operation_id not in self._runs:
                            nodes = FencedNodes(self._nodes, self._mirror)
                            run = Run(operation_id, nodes, self._mirror, self._writer, self._clock, term, self._turns, self._policy)
                            self._runs[operation_id] = run
                            group.create_task(self._drive(run), name=f"drive {operation_id}")
                    await self._mirror.await_change(revision, RETRY_MOST_S)
        finally:
            self._runs.clear()

    async def _drive(self, run: Run) -> None:
        operation = run.operation
        log.info("driving", operation=run.operation_id, verb=operation.verb.value, target=operation.target_id, phase=operation.phase)
        verbs = self._flows[operation.verb]
        pause_s, breaks = RETRY_FIRST_S, 0
        try:
            while run.operation_id in run.state.operations and not run.operation.done:
                before = run.operation.phase
                run.nodes.proofs.clear()
                try:
                    await verbs.step(run)
                    pause_s, breaks, run.waiting_for = RETRY_FIRST_S, 0, ""
                except (NodeUnreachable, Unavailable) as error:
                    run.waiting_for = self._why(run.state, error)
                    log.info("operation waits", operation=run.operation_id, phase=before, why=str(error))
                    await self._clock.sleep(pause_s)
                    pause_s = min(2 * pause_s, RETRY_MOST_S)
                except HostlerError as error:
                    log.info("refused", operation=run.operation_id, phase=before, reason=error.reason.value, why=str(error))
                    await self._turn_back(run, verbs, error)
                    if not run.operation.done and run.operation.phase == before:
                        # It cannot turn back further (a refusal while turning back): ask again, slowly, and say what for.
                        run.waiting_for = str(error)
                        await self._clock.sleep(RETRY_MOST_S)
                except LeadershipLost:
                    raise
                except Exception:
                    breaks += 1
                    log.exception("step broke", operation=run.operation_id, phase=before, breaks=breaks)
                    await self._clock.sleep(pause_s)
                    if breaks >= BREAKS_BEFORE_ROLLBACK:
                        broken = Internal(Reason.INTERNAL, f"Something broke in phase {before}; the scheduler's log has it.")
                        await self._turn_back(run, verbs, broken)
                        breaks = 0
        except LeadershipLost:
            log.warning("not leading any more", operation=run.operation_id)
        finally:
            self._runs.pop(run.operation_id, None)
        if run.operation_id in run.state.operations and run.operation.done:
            log.info("ended", operation=run.operation_id, state=run.operation.state.value)

    def _why(self, state: ClusterState, error: NodeUnreachable | Unavailable) -> str:
        """What it waits for; of a node that is not heard, what would end the wait."""
        state.health = self._health()
        node_id = error.node_id if isinstance(error, NodeUnreachable) else ""
        return way_out(state, node_id) or str(error)

    async def _turn_back(self, run: Run, verbs: Verbs, error: HostlerError) -> None:
        try:
            await verbs.turn_back(run, error)
        except (NodeUnreachable, Unavailable) as later:
            run.waiting_for = str(later)
            await self._clock.sleep(RETRY_MOST_S)
