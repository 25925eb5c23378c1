"""CreateVolume and DeleteVolume: one step each on a node that reaches the pool."""

from dataclasses import replace

from hostler.errors import HostlerError
from scheduler.core.accept import enter, fail, succeed
from scheduler.core.claims import drop_claim
from scheduler.core.records import StoredError, VolumeRecord, VolumeState, ledger_key, operation_key, volume_key
from scheduler.core.state import ClusterState
from scheduler.core.steps import REMOVING, in_phase, release_pool
from scheduler.core.transaction import Transaction
from scheduler.engine.driving import Run, Verbs
from scheduler.engine.flows.removal import node_for, remove_file, volume_spec
from scheduler.ports import Order


async def create(run: Run) -> None:
    volume = run.state.volumes[run.operation.target_id].record
    size_mib = await run.nodes.ensure_volume(node_for(run, volume), Order(run.operation_id), volume_spec(volume))
    by, phase = run.by(), run.operation.phase

    def made(state: ClusterState) -> Transaction | None:
        operation = in_phase(state, run.operation_id, phase)
        if operation is None:
            return None
        kept = state.volumes[volume.volume_id]
        ready = replace(kept.record, state=VolumeState.READY, size_mib=size_mib, operation_id="")
        ended = succeed(operation.record, by.driver, by.now_ms, volume=ready)
        return Transaction(
            {operation_key(run.operation_id): operation.revision, volume_key(volume.volume_id): kept.revision},
            {operation_key(run.operation_id): ended, volume_key(volume.volume_id): ready},
        )

    await run.write(made)


async def turn_back_create(run: Run, error: HostlerError) -> None:
    volume = run.state.volumes[run.operation.target_id].record
    await remove_file(run, Order(run.operation_id), volume)
    await _remove(run, StoredError.of(error))


async def delete(run: Run) -> None:
    volume = run.state.volumes[run.operation.target_id].record
    if run.operation.phase == "ACCEPTED":
        by = run.by()

        def removing(state: ClusterState) -> Transaction | None:
            operation = in_phase(state, run.operation_id, "ACCEPTED")
            if operation is None:
                return None
            entered = enter(operation.record, REMOVING, "Its file is being removed.", by.driver, by.now_ms)
            return Transaction({operation_key(run.operation_id): operation.revision}, {operation_key(run.operation_id): entered})

        await run.write(removing)
        return
    await remove_file(run, Order(run.operation_id), volume)
    await _remove(run, None)


async def turn_back_delete(run: Run, error: HostlerError) -> None:
    """Refused: the volume stays, and may be used again."""
    by, phase = run.by(), run.operation.phase

    def kept_it(state: ClusterState) -> Transaction | None:
        operation = in_phase(state, run.operation_id, phase)
        if operation is None:
            return None
        kept = state.volumes[operation.record.target_id]
        ready = replace(kept.record, state=VolumeState.READY, operation_id="")
        ended = fail(operation.record, StoredError.of(error), by.driver, by.now_ms)
        return Transaction(
            {operation_key(run.operation_id): operation.revision, volume_key(ready.volume_id): kept.revision},
            {operation_key(run.operation_id): ended, volume_key(ready.volume_id): ready},
        )

    await run.write(kept_it)


async def _remove(run: Run, error: StoredError | None) -> None:
    by, phase = run.by(), run.operation.phase

    def gone(state: ClusterState) -> Transaction | None:
        operation = in_phase(state, run.operation_id, phase)
        if operation is None:
            return None
        kept = state.volumes[operation.record.target_id]
        volume, key = kept.record, volume_key(kept.record.volume_id)
        if error is not None:
            ended = fail(operation.record, error, by.driver, by.now_ms)
        else:
            ended = succeed(operation.record, by.driver, by.now_ms, volume=volume)
        op_key = operation_key(run.operation_id)
        return Transaction({op_key: operation.revision, key: kept.revision}, {op_key: ended}, (key,)).and_then(_freed(state, volume))

    await run.write(gone)


def _freed(state: ClusterState, volume: VolumeRecord) -> Transaction:
    if not volume.node_id:
        return release_pool(state, volume.pool_id, volume.charged_mib)
    ledger = state.ledgers[volume.node_id]
    after = drop_claim(ledger.record, {f"pool_mib/{volume.pool_id}": volume.charged_mib})
    return Transaction({ledger_key(volume.node_id): ledger.revision}, {ledger_key(volume.node_id): after})


CREATE = Verbs(create, turn_back_create)
DELETE = Verbs(delete, turn_back_delete)
