"""MigrateVM: RESERVED -> DESTINATION_READY -> COPYING -> COMMITTED, or ABORTING before the commit. The steps of mode P, from the scheduler's side.

The commit itself is not made here: the source asks any replica for it when it has inspected its frozen copy. This flow notices it in the owner
record. Before the commit every way out is ABORT, which wins or loses against the commit in one compare; after it the only way is forward.
"""

from dataclasses import replace

from hostler.errors import FailedPrecondition, HostlerError
from hostler.model.copy import GONE, IN_DOUBT, Copy, HandoffReport, Stage
from hostler.model.journal import stop_error
from hostler.model.owner import OwnerState
from scheduler.core.local_disks import copy_s, empty_file, local_volumes
from scheduler.core.migration_check import refusal
from scheduler.core.pool_locks import locked_between
from scheduler.core.records import Migration, OperationRecord, StoredError
from scheduler.core.steps import (
    ABORTING,
    COMMITTED,
    COPYING,
    DESTINATION_READY,
    RESERVED,
    abort_handoff,
    enter_phase,
    finish_abort,
    finish_lost,
    finish_migration,
)
from scheduler.engine.driving import Run, Verbs
from scheduler.engine.flows import cold_migration
from scheduler.engine.migration_check import look
from scheduler.engine.turns import LOOK_AGAIN_S
from scheduler.ports import Departure, NodeUnreachable

POLL_S = 0.5
"""While it copies: how often the source is asked, if the owner record does not change before."""

HEAD_START_S = 0.1
"""After a commit the guest stands still until the destination has resumed it, which it does by itself: our own writes and questions wait so long."""

COPY_LIMIT_S = 1800.0
"""A copy of memory that takes longer will not converge; it is aborted and the VM stays where it is. Disks that are copied along have their own."""

SILENT_SOURCE_LIMIT_S = 60.0
"""A source that does not answer for this long gets the abort; it learns of it when it is back, and goes on under its own epoch."""


GOES_ON = "The VM goes on where it was."


async def step(run: Run) -> None:
    if run.operation.migration is None:
        raise RuntimeError("a MigrateVM operation has no migration")
    if run.operation.migration.cold:
        await cold_migration.step(run, run.operation.migration)
        return
    match run.operation.phase:
        case phase if phase == RESERVED:
            await _prepare(run, run.operation.migration)
        case phase if phase == DESTINATION_READY:
            await _begin_copying(run)
        case phase if phase == COPYING:
            await _copy(run, run.operation.migration)
        case phase if phase == COMMITTED:
            await _finish(run, run.operation.migration)
        case phase if phase == ABORTING:
            await _clean_up(run, run.operation.migration)


async def _prepare(run: Run, migration: Migration) -> None:
    """H1."""
    if await _cancelled(run) or not await _has_its_turn(run):
        return
    await _look(run, migration)
    claim = run.state.claims[(migration.destination_node_id, run.vm.record.vm_id)].record
    domain = replace(run.vm.record.domain, charged=claim.charged)
    copied = tuple(empty_file(volume) for volume in local_volumes(run.state, run.vm.record))
    prepared = await run.nodes.prepare_incoming(migration.destination_node_id, run.order(), domain, migration.source_node_id, copied)
    by = run.by()
    await run.write(
        lambda state: (
            None
            if run.turns.why_not(state, run.operation)
            else enter_phase(
                state,
                run.operation_id,
                RESERVED,
                DESTINATION_READY,
                "The destination is ready.",
                by,
                change_migration=lambda m: replace(m, tunnel_endpoint=prepared.tunnel_endpoint, disks=prepared.disks),
            )
        )
    )


async def _look(run: Run, migration: Migration) -> None:
    """Before anything is touched. Raises FailedPrecondition with everything that forbids it; a hypervisor that is silent is asked again."""
    looked = await look(run.nodes, run.state, run.order(), run.vm.record, migration.destination_node_id)
    silent = next((check for check in looked.checks if check.name == "hypervisor" and not check.ok), None)
    if silent is not None:
        raise NodeUnreachable(f"{silent.message} {silent.fix}")
    if (forbidden := refusal(looked.checks)) is not None:
        raise forbidden


async def _has_its_turn(run: Run) -> bool:
    """False once it was cancelled, or given up because one of its ends did not answer for too long."""
    answered_s = run.clock.monotonic_s()
    while why := run.turns.why_not(run.state, run.operation):
        run.waiting_for, now_s = why, run.clock.monotonic_s()
        migration = run.operation.migration
        assert migration is not None
        silent = run.turns.silent(run.state) & {migration.source_node_id, migration.destination_node_id}
        if not silent:
            answered_s = now_s
        elif now_s - answered_s > SILENT_SOURCE_LIMIT_S:
            await _abort(run, "NODE_UNREACHABLE", f"{min(silent)} did not answer while the migration waited for its turn.")
            return False
        await run.mirror.await_change(run.state.revision, LOOK_AGAIN_S)
        if run.operation.cancel_requested or run.operation.phase != RESERVED:
            return False
    run.waiting_for = ""
    return True


async def _begin_copying(run: Run) -> None:
    if await _cancelled(run):
        return
    by = run.by()
    await run.write(lambda state: enter_phase(state, run.operation_id, DESTINATION_READY, COPYING, "Memory is being copied.", by))


async def _copy(run: Run, migration: Migration) -> None:
    """H2: COPYING is in the journal. Start (or find started) the source's end, then follow it until the owner record or the source decides."""
    owner = run.vm.record.owner
    if owner.state is OwnerState.COMMITTED:
        await _note_commit(run, owner.epoch)
        return
    if await _cancelled(run):
        return
    departure = Departure(
        migration.destination_node_id,
        run.state.nodes[migration.destination_node_id].record.endpoint,
        migration.tunnel_endpoint,
        migration.disks,
        migration.bandwidth_mib_s,
        migration.max_downtime_ms,
        locked_between(
            run.state,
            (disk.pool_id for disk in run.vm.record.domain.disks),
            (migration.source_node_id, migration.destination_node_id),
        ),
    )
    await run.nodes.start_outgoing(migration.source_node_id, run.order(), departure)
    await _follow(run, migration)


async def _follow(run: Run, migration: Migration) -> None:
    limit_s = COPY_LIMIT_S + copy_s(local_volumes(run.state, run.vm.record))
    began_s = heard_s = run.clock.monotonic_s()
    while run.operation.phase == COPYING and not run.operation.cancel_requested:
        revision = run.state.revision
        if run.vm.record.owner.state is OwnerState.COMMITTED:
            await run.clock.sleep(HEAD_START_S)
            await _note_commit(run, run.vm.record.owner.epoch)
            return
        now_s = run.clock.monotonic_s()
        try:
            report = await run.nodes.inspect_handoff(migration.source_node_id, run.order())
            heard_s, run.waiting_for = now_s, report.error
            if report.stage is Stage.FAILED or report.copy is Copy.ABSENT:
                await _abort(run, "MIGRATION_FAILED", report.error or "The copy did not complete.")
                return
            await _pass_on_limits(run, report)
        except NodeUnreachable as error:
            run.waiting_for = str(error)
            if now_s - heard_s > SILENT_SOURCE_LIMIT_S:
                await _abort(run, "NODE_UNREACHABLE", "The source did not answer during the copy.")
                return
        if now_s - began_s > limit_s:
            await _abort(run, "DEADLINE", f"The copy was not complete after {limit_s:.0f} s.")
            return
        await run.mirror.await_change(revision, POLL_S)


async def _pass_on_limits(run: Run, report: HandoffReport) -> None:
    """Limits that were changed while it copies: the source has those that it reports, whoever told it."""
    wanted = run.operation.migration
    if wanted is None or report.stage not in (Stage.PREPARED, Stage.COPYING):
        return
    if (wanted.bandwidth_mib_s, wanted.max_downtime_ms) != (report.bandwidth_mib_s, report.max_downtime_ms):
        await run.nodes.tune_outgoing(wanted.source_node_id, run.order(), wanted.bandwidth_mib_s, wanted.max_downtime_ms)


async def _note_commit(run: Run, epoch: int) -> None:
    by = run.by()
    await run.write(
        lambda state: enter_phase(
            state,
            run.operation_id,
            COPYING,
            COMMITTED,
            "The destination owns it and resumes it.",
            by,
            change_migration=lambda m: replace(m, committed_epoch=epoch),
        )
    )


async def _finish(run: Run, migration: Migration) -> None:
    """H6 and H7: forward only."""
    try:
        arrived = await run.nodes.finish_incoming(migration.destination_node_id, run.order())
    except FailedPrecondition:
        await _lost(run, migration)
        return
    if arrived.stage is Stage.ABORTED and arrived.copy is Copy.ABSENT:
        await _lost(run, migration)  # the destination was fenced, and has laid down what it had before it was heard again
        return
    if arrived.stage is not Stage.FINISHED:
        raise NodeUnreachable(f"{migration.destination_node_id}: the copy is {arrived.copy.value.lower()}")
    left = await run.nodes.finish_outgoing(migration.source_node_id, run.order())
    if not _has_left(left):
        raise NodeUnreachable(f"{migration.source_node_id}: the old copy is {left.copy.value.lower()}")
    await _forgotten_there(run, migration, left)
    by, figures = run.by(), _figures(migration, left, arrived)
    await run.write(lambda state: finish_migration(state, run.operation_id, figures, by))


async def _lost(run: Run, migration: Migration) -> None:
    """The destination has nothing to resume. Once it says ABSENT, and the source that its copy is dead, the VM is stopped for certain."""
    there = await run.nodes.inspect_handoff(migration.destination_node_id, run.order())
    left = await run.nodes.finish_outgoing(migration.source_node_id, run.order())
    if there.copy is not Copy.ABSENT or not _has_left(left):
        raise NodeUnreachable(f"the copies are {there.copy.value.lower()} and {left.copy.value.lower()}")
    await _forgotten_there(run, migration, left)
    by = run.by()
    message = "The copy on the destination was lost after the handoff was committed; the guest's memory is gone, its disks are not."
    error = StoredError("FailedPrecondition", "MIGRATION_FAILED", message, "Start the VM.")
    await run.write(lambda state: finish_lost(state, run.operation_id, error, by))


def _has_left(source: HandoffReport) -> bool:
    """Whether the source is through: it has finished, or it was fenced and has laid down what it had before it was heard again."""
    return source.stage is Stage.FINISHED or (source.stage is Stage.ABORTED and source.copy in GONE)


async def _forgotten_there(run: Run, migration: Migration, source: HandoffReport) -> None:
    """A source that was laid down before the commit was written took the VM for its own, and has kept its definition."""
    if source.stage is Stage.ABORTED:
        await run.nodes.forget(migration.source_node_id, run.order())


def _figures(migration: Migration, left: HandoffReport, arrived: HandoffReport) -> Migration:
    """Measured on two hosts' wall clocks: for people. The source does not look at its copy any more while the guest stands still, so the bytes of the
    last part are the destination's to tell."""
    return replace(
        migration,
        bytes_transferred=max(left.bytes_done, arrived.bytes_done),
        total_ms=max(0, arrived.resume_ms - left.begin_ms) if left.begin_ms and arrived.resume_ms else 0,
        downtime_ms=max(0, arrived.resume_ms - left.suspend_ms) if left.suspend_ms and arrived.resume_ms else 0,
        throttle_percent=left.throttle_percent,
        iterations=left.iterations,
    )


async def _cancelled(run: Run) -> bool:
    if run.operation.cancel_requested:
        await _abort_with(run, stop_error(run.operation, GOES_ON))
    return run.operation.cancel_requested


async def _abort(run: Run, reason: str, message: str) -> None:
    await _abort_with(run, StoredError("FailedPrecondition", reason, message, GOES_ON))


async def _abort_with(run: Run, error: StoredError) -> None:
    """Wins, or finds that the commit has: then the next step sees COMMITTED."""
    by, phase = run.by(), run.operation.phase
    await run.write(lambda state: abort_handoff(state, run.operation_id, phase, error, by))


async def _clean_up(run: Run, migration: Migration) -> None:
    """After the abort: the destination's copy is destroyed, the source's goes on; paused, if somebody has paused it. An answer in doubt is no end."""
    await run.nodes.abort_incoming(migration.destination_node_id, run.order())
    unasked = migration.destination_node_id in run.nodes.proofs
    source = await run.nodes.abort_outgoing(migration.source_node_id, run.order())
    if source.stage is not Stage.ABORTED:
        raise NodeUnreachable(f"{migration.source_node_id}: the source is {source.stage.value.lower()}")
    if source.copy in IN_DOUBT:
        raise NodeUnreachable(f"{migration.source_node_id}: the source's copy is {source.copy.value.lower()}")
    by, alive = run.by(), source.copy not in GONE
    await run.write(lambda state: finish_abort(state, run.operation_id, alive, by, unasked=unasked))


async def turn_back(run: Run, error: HostlerError) -> None:
    """Refused before the commit: abort. Refused after it: there is no way back, so it is asked again."""
    operation: OperationRecord = run.operation
    if operation.migration is not None and operation.migration.cold:
        await cold_migration.turn_back(run, error)
        return
    if operation.phase in (COMMITTED, ABORTING):
        raise NodeUnreachable(str(error))
    violations = tuple((one.field, one.description) for one in error.violations)
    fix = f"{GOES_ON} {error.fix}".rstrip()
    await _abort_with(run, StoredError("FailedPrecondition", error.reason.value, error.message, fix, violations))


MIGRATE = Verbs(step, turn_back)
