"""MigrateVM of a VM that is off: RESERVED -> DEFINED -> COMMITTED, or ABORTING before the owner changed.

The destination keeps the definition first, so that whoever owns the VM can start it. Then the source's agent is asked whether it has a domain of
the VM; only its word, about the very record that the transaction compares, lets the owner change (`scheduler.core.cold_steps` has the argument).
After that the way is forward: the source forgets the VM under the new epoch.
"""

from dataclasses import replace

from hostler.errors import FailedPrecondition, HostlerError, Reason, Unavailable
from hostler.model.copy import Copy
from hostler.model.journal import stop_error
from scheduler.core.cold_steps import abort_cold, change_owner, finish_cold, finish_cold_abort
from scheduler.core.records import Migration, StoredError
from scheduler.core.steps import ABORTING, COMMITTED, DEFINED, RESERVED, enter_phase
from scheduler.engine.driving import Run
from scheduler.ports import NodeUnreachable

ASK_AGAIN_S = 1.0
"""Between two questions to a source that does not answer."""

SILENT_SOURCE_LIMIT_S = 60.0
"""A source that does not answer for this long proves nothing, and never will in time: the VM stays its own."""


async def step(run: Run, migration: Migration) -> None:
    match run.operation.phase:
        case phase if phase == RESERVED:
            await _define(run, migration)
        case phase if phase == DEFINED:
            await _change_owner(run, migration)
        case phase if phase == COMMITTED:
            await run.nodes.forget(migration.source_node_id, run.order())
            by = run.by()
            await run.write(lambda state: finish_cold(state, run.operation_id, by))
        case phase if phase == ABORTING:
            await run.nodes.forget(migration.destination_node_id, run.order())
            by = run.by()
            await run.write(lambda state: finish_cold_abort(state, run.operation_id, by))


async def turn_back(run: Run, error: HostlerError) -> None:
    """Refused before the owner changed: abort. Refused after it: there is no way back, so it is asked again."""
    if run.operation.phase in (COMMITTED, ABORTING):
        raise NodeUnreachable(str(error))
    await _abort(run, StoredError.of(error))


async def _define(run: Run, migration: Migration) -> None:
    if await _cancelled(run):
        return
    claim = run.state.claims[(migration.destination_node_id, run.vm.record.vm_id)].record
    await run.nodes.define(migration.destination_node_id, run.order(), replace(run.vm.record.domain, charged=claim.charged))
    by = run.by()
    await run.write(
        lambda state: enter_phase(state, run.operation_id, RESERVED, DEFINED, "Defined on the destination; the source is asked.", by)
    )


async def _change_owner(run: Run, migration: Migration) -> None:
    began_s = run.clock.monotonic_s()
    while run.operation.phase == DEFINED:
        if await _cancelled(run):
            return
        seen, owner_revision = run.state.revision, run.vm.revision
        try:
            report = await run.nodes.inspect_handoff(migration.source_node_id, run.order())
        except (NodeUnreachable, Unavailable) as error:
            run.waiting_for = str(error)
            if run.clock.monotonic_s() - began_s > SILENT_SOURCE_LIMIT_S:
                why = f"{migration.source_node_id} did not answer for {SILENT_SOURCE_LIMIT_S:.0f} s; whether it runs the VM is not known."
                await _abort(
                    run, StoredError("Unavailable", "NODE_UNREACHABLE", why, f"See `hostler node get {migration.source_node_id}`.")
                )
                return
            await run.mirror.await_change(seen, ASK_AGAIN_S)
            continue
        if report.copy is not Copy.ABSENT:
            raise FailedPrecondition(
                Reason.VM_RUNNING,
                f"{migration.source_node_id} still has a domain of the VM: {report.copy.value.lower()}.",
                f"Start it and stop it again: `hostler vm start {run.vm.record.vm_id}`.",
            )
        await _move_on(run, owner_revision)


async def _move_on(run: Run, owner_revision: int) -> None:
    by = run.by()
    await run.write(lambda state: change_owner(state, run.operation_id, owner_revision, by))


async def _cancelled(run: Run) -> bool:
    if run.operation.cancel_requested:
        await _abort(run, stop_error(run.operation, "The VM stays where it is."))
    return run.operation.cancel_requested


async def _abort(run: Run, error: StoredError) -> None:
    by = run.by()
    await run.write(lambda state: abort_cold(state, run.operation_id, error, by))
