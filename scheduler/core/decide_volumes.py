"""Whether a volume or a flavor is made or deleted, and the transaction for it."""

from dataclasses import replace

from hostler.errors import AlreadyExists, Conflict, FailedPrecondition, NoCapacity, NotFound, Reason, Violation, invalid
from hostler.model.quantities import pool_key
from hostler.model.wishes import volume_mib
from scheduler.core.accept import Accepted, Request, begin, journal, repeat_of
from scheduler.core.claims import add_claim
from scheduler.core.pools import image_mib, is_shared
from scheduler.core.records import (
    FlavorRecord,
    LedgerRecord,
    Verb,
    VolumeRecord,
    VolumeState,
    flavor_key,
    ledger_key,
    shared_pool_key,
    volume_key,
)
from scheduler.core.state import ClusterState, Kept
from scheduler.core.transaction import Transaction


def create_volume(
    state: ClusterState, request: Request, volume_id: str, uid: str, pool_id: str, node_id: str, size_mib: int, image: str
) -> Accepted:
    """Charge its space to its pool and write it down. Raises AlreadyExists, NotFound, NoCapacity, InvalidRequest."""
    if (repeat := repeat_of(state, request)) is not None:
        return Accepted(repeat, Transaction())
    if volume_id in state.volumes:
        raise AlreadyExists(Reason.VOLUME_EXISTS, f"There is a volume {volume_id} already.", "Choose another name, or delete that one.")
    size_mib = volume_mib(size_mib, image, image_mib(state, pool_id, image), "volume.size_mib")
    shared = is_shared(state, pool_id, "volume.pool")
    _check_node(state, pool_id, node_id, shared)
    kept = state.shared_pools.get(pool_id) if shared else state.ledgers.get(node_id)
    key = shared_pool_key(pool_id) if shared else ledger_key(node_id)
    volume = VolumeRecord(
        volume_id,
        uid,
        pool_id,
        "" if shared else node_id,
        size_mib,
        "qcow2",
        image,
        VolumeState.CREATING,
        request.now_ms,
        size_mib,
        operation_id=request.operation_id,
    )
    operation = begin(request, Verb.CREATE_VOLUME, volume_id, "Its file is being made.")
    charge = _charge(kept, key, pool_id, size_mib)
    made = Transaction({volume_key(volume_id): 0}, {volume_key(volume_id): volume})
    return Accepted(operation, journal(operation).and_then(made).and_then(charge))


def _check_node(state: ClusterState, pool_id: str, node_id: str, shared: bool) -> None:
    if shared and node_id:
        raise invalid(Violation("volume.node", f"pool {pool_id} is shared; leave the node empty"))
    if not shared and not node_id:
        raise invalid(Violation("volume.node", f"pool {pool_id} is local; name the node the volume is to be on"))
    if node_id and (node_id not in state.nodes or all(pool.pool_id != pool_id for pool in state.nodes[node_id].record.pools)):
        raise NotFound(Reason.POOL_NOT_FOUND, f"Node {node_id} has no pool {pool_id}.", "See `hostler node get`.")


def _charge(kept: Kept[LedgerRecord] | None, key: str, pool_id: str, size_mib: int) -> Transaction:
    if kept is None:
        raise NotFound(Reason.POOL_NOT_FOUND, f"Pool {pool_id} has no account yet.", "Wait until its node has registered.")
    after = add_claim(kept.record, {pool_key(pool_id): size_mib})
    if not isinstance(after, LedgerRecord):
        short = after[0]
        raise NoCapacity(
            Reason.POOL_CAPACITY_EXCEEDED,
            f"Pool {pool_id} is short by {short.missing} MiB (needs {short.needed}, free {short.free}).",
            f"size_mib of {short.free} or less would fit." if short.free > 0 else "Delete volumes in it, or use another pool.",
        )
    return Transaction({key: kept.revision}, {key: after})


def delete_volume(state: ClusterState, request: Request, volume_id: str, etag: str) -> Accepted:
    """Raises NotFound, FailedPrecondition (in use), Conflict (etag)."""
    if (repeat := repeat_of(state, request)) is not None:
        return Accepted(repeat, Transaction())
    kept = state.volumes.get(volume_id)
    if kept is None:
        raise NotFound(Reason.VOLUME_NOT_FOUND, f"There is no volume {volume_id}.", "See `hostler volume list`.")
    volume = kept.record
    if etag and etag != str(kept.revision):
        raise Conflict(Reason.ETAG_MISMATCH, f"Volume {volume_id} changed in between.", "Read it again.")
    if volume.vm_id:
        raise FailedPrecondition(Reason.VOLUME_IN_USE, f"Volume {volume_id} is used by VM {volume.vm_id}.", "Delete that VM first.")
    if volume.operation_id:
        raise FailedPrecondition(Reason.VOLUME_IN_USE, f"Volume {volume_id} is in the hands of {volume.operation_id}.", "Wait for it.")
    operation = begin(request, Verb.DELETE_VOLUME, volume_id, "Accepted.")
    held = replace(volume, state=VolumeState.DELETING, operation_id=operation.operation_id)
    key = volume_key(volume_id)
    return Accepted(operation, journal(operation).and_then(Transaction({key: kept.revision}, {key: held})))


def create_flavor(state: ClusterState, flavor: FlavorRecord) -> Transaction | None:
    """None: the very same flavor is there already. Raises AlreadyExists."""
    kept = state.flavors.get(flavor.flavor_id)
    if kept is None:
        return Transaction({flavor_key(flavor.flavor_id): 0}, {flavor_key(flavor.flavor_id): flavor})
    if kept.record != flavor:
        raise AlreadyExists(Reason.FLAVOR_EXISTS, f"There is another flavor {flavor.flavor_id} already.", "Choose another name.")
    return None


def delete_flavor(state: ClusterState, flavor_id: str) -> Transaction:
    """Raises NotFound."""
    kept = state.flavors.get(flavor_id)
    if kept is None:
        raise NotFound(Reason.FLAVOR_NOT_FOUND, f"There is no flavor {flavor_id}.", "See `hostler flavor list`.")
    return Transaction({flavor_key(flavor_id): kept.revision}, {}, (flavor_key(flavor_id),))
