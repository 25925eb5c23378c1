"""DrainNode: ACCEPTED -> CLAIMING -> MOVING, or RELEASING when it is cancelled, the node is uncordoned or fenced, or does not answer.

This only asks `scheduler.core.drain` for the next transaction until there is none, then waits for something to change. The moves are operations of
their own, driven beside this one.
"""

from collections.abc import Callable

from hostler.errors import HostlerError
from hostler.model.journal import ACCEPTED, CLAIMING, MOVING, RELEASING
from scheduler.core.drain import advance, arriving, claim_places, finish_drain, release_places, stop_drain
from scheduler.core.records import NodeState, StoredError
from scheduler.core.state import ClusterState
from scheduler.core.transaction import Transaction
from scheduler.engine.driving import Run, Verbs
from scheduler.engine.turns import LOOK_AGAIN_S
from scheduler.ports import NodeUnreachable

SILENT_LIMIT_S = 60.0
"""A node that does not answer for so long cannot be drained: its moves turn back by themselves, and no further one is begun."""


async def drain(run: Run) -> None:
    match run.operation.phase:
        case phase if phase in (ACCEPTED, CLAIMING):
            if not await _stopped(run, silent_s=0.0):
                by = run.by()
                await _write(run, lambda state: claim_places(state, run.operation_id, run.policy, by))
        case phase if phase == MOVING:
            await _move(run)
        case phase if phase == RELEASING:
            await _release(run)


async def turn_back(run: Run, error: HostlerError) -> None:
    """Something broke: no further move is begun."""
    if run.operation.phase == RELEASING:
        raise NodeUnreachable(str(error))
    await _stop(run, StoredError.of(error))


async def _move(run: Run) -> None:
    heard_s = run.clock.monotonic_s()
    while run.operation.phase == MOVING and not run.operation.done:
        seen, now_s = run.state.revision, run.clock.monotonic_s()
        silent = run.operation.target_id in run.turns.silent(run.state)
        heard_s = heard_s if silent else now_s
        if await _stopped(run, silent_s=now_s - heard_s):
            return
        by = run.by()
        if silent:
            run.waiting_for = f"{run.operation.target_id} does not answer."
        elif await _write(run, lambda state, by=by: advance(state, run.operation_id, run.policy, by)):  # type: ignore[misc]
            run.waiting_for = ""
            continue
        if await run.write(lambda state, by=by: finish_drain(state, run.operation_id, by)):  # type: ignore[misc]
            return
        if coming := arriving(run.state, run.operation.target_id):
            run.waiting_for = f"{coming[0]} is on its way here: it is moved away once it has arrived."
        await run.mirror.await_change(seen, LOOK_AGAIN_S)


async def _release(run: Run) -> None:
    by = run.by()
    while await _write(run, lambda state: release_places(state, run.operation_id, run.policy, by)):
        pass
    if not await run.write(lambda state: finish_drain(state, run.operation_id, by)):
        await run.mirror.await_change(run.state.revision, LOOK_AGAIN_S)


async def _write(run: Run, decide: Callable[[ClusterState], Transaction | None]) -> bool:
    """A step that looks for places: on this replica's judgement of the nodes as it is now, whoever asked it for anything before or not."""

    def judged(state: ClusterState) -> Transaction | None:
        run.turns.judge(state)
        return decide(state)

    return await run.write(judged)


async def _stopped(run: Run, silent_s: float) -> bool:
    """Whether it is to begin nothing any more; written down then."""
    node_id = run.operation.target_id
    state = run.state.nodes[node_id].record.state
    if run.operation.cancel_requested:
        error = StoredError("FailedPrecondition", "OPERATION_CANCELLED", "The drain was cancelled.")
    elif state is NodeState.ACTIVE:
        error = StoredError("FailedPrecondition", "DRAIN_INCOMPLETE", f"{node_id} was uncordoned while it was drained.")
    elif state is NodeState.FENCED:
        error = StoredError(
            "FailedPrecondition", "NODE_FENCED", f"{node_id} was fenced while it was drained.", "Start its VMs: they go elsewhere."
        )
    elif silent_s > SILENT_LIMIT_S:
        why, fix = f"{node_id} did not answer for {SILENT_LIMIT_S:.0f} s.", f"See `hostler node get {node_id}`."
        error = StoredError("Unavailable", "NODE_UNREACHABLE", why, fix)
    else:
        return False
    await _stop(run, error)
    return True


async def _stop(run: Run, error: StoredError) -> None:
    by = run.by()
    await run.write(lambda state: stop_drain(state, run.operation_id, error, by))


DRAIN = Verbs(drain, turn_back)
