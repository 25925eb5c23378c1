"""Places that a drain holds for VMs before it moves the first of them: planned one after the other, each on what the others leave, charged at once.

A hold is a claim of the kind HOLD under the drain's operation: the ledger is charged as by any other claim, so nobody else can be promised the place.
The move makes it a MIGRATE_IN. What is not used is given back when the drain ends, however it ends.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from hostler.errors import FailedPrecondition
from hostler.model.owner import OwnerState
from scheduler.core.claims import Adding, DoesNotFit, Dropping, LedgerRead, add_claim, claim_transaction
from scheduler.core.moving import moved_request
from scheduler.core.placement.cluster import ClusterView
from scheduler.core.placement.explain import no_capacity
from scheduler.core.placement.fleet import Fleet
from scheduler.core.placement.place import NoFit, Placement, place, seed_of
from scheduler.core.placement.policy import Policy
from scheduler.core.records import (
    ClaimKind,
    ClaimRecord,
    DrainEntry,
    DrainState,
    LedgerRecord,
    MoveFallback,
    NodeState,
    Verb,
    VMRecord,
    ledger_key,
    node_key,
)
from scheduler.core.state import ClusterState, Kept
from scheduler.core.transaction import Transaction

REASON_MOST = 240
"""Characters of a reason that are kept with the drain: its record stays within 64 KiB, and a sentence this long says which rule and how much."""

HOLDS_AT_ONCE = 40
"""In one transaction: each is a claim, perhaps another ledger and another node, so 120 of the store's 128 compares at most, and the drain itself."""


@dataclass(frozen=True, slots=True)
class Planned:
    """Where each VM goes or why it does not, in order; and the transaction that holds the places."""

    entries: tuple[DrainEntry, ...]
    transaction: Transaction


def hold_of(state: ClusterState, vm: VMRecord) -> Kept[ClaimRecord] | None:
    """The place that a drain of the VM's own node holds for it, on a node that still takes VMs."""
    node = state.nodes.get(vm.owner.node_id)
    if node is None or node.record.state is not NodeState.CORDONED:
        return None
    for kept in state.claims_of(vm.vm_id):
        drain = state.operations.get(kept.record.operation_id)
        if kept.record.kind is not ClaimKind.HOLD or drain is None or drain.record.target_id != vm.owner.node_id:
            continue
        there = state.nodes.get(kept.record.node_id)
        return kept if there is not None and there.record.state is NodeState.ACTIVE else None
    return None


def held(state: ClusterState, operation_id: str, entry: DrainEntry) -> Kept[ClaimRecord] | None:
    """The place that this drain holds for this VM."""
    kept = state.claims.get((entry.destination_node_id, entry.vm_id))
    return kept if kept is not None and kept.record.kind is ClaimKind.HOLD and kept.record.operation_id == operation_id else None


def plan(
    state: ClusterState, operation_id: str, wanted: Sequence[DrainEntry], policy: Policy, dropping: Iterable[Kept[ClaimRecord]] = ()
) -> Planned:
    """A place for each of these VMs, at most HOLDS_AT_ONCE of them when the transaction is to be written; `dropping`: holds given back with it."""
    now, entries, adding = state.view(), list[DrainEntry](), list[Adding]()
    view = replace(now, nodes=now.nodes.copy())
    drops = tuple(Dropping(kept.record, kept.revision) for kept in dropping)
    for entry in wanted:
        vm = state.vms[entry.vm_id].record
        planned, placement = _one(state, view, operation_id, vm, entry, policy)
        entries.append(planned)
        if placement is not None:
            claim = ClaimRecord(vm.vm_id, vm.uid, placement.node_id, ClaimKind.HOLD, placement.charged, operation_id)
            adding.append(Adding(claim))
            _charge(view.nodes, placement)
    answer = claim_transaction(_ledgers(state, adding, drops), adding, drops)
    if isinstance(answer, DoesNotFit):
        raise RuntimeError(f"a plan does not fit: {answer.key} {answer.shortfalls}")
    nodes = {add.claim.node_id for add in adding}
    return Planned(tuple(entries), answer.and_then(Transaction({node_key(node_id): state.nodes[node_id].revision for node_id in nodes})))


def release(state: ClusterState, holds: Iterable[Kept[ClaimRecord]]) -> Transaction:
    """These places are free again."""
    drops = tuple(Dropping(kept.record, kept.revision) for kept in holds)
    answer = claim_transaction(_ledgers(state, (), drops), (), drops)
    if isinstance(answer, DoesNotFit):
        raise RuntimeError("giving back does not fit")
    return answer


def _one(
    state: ClusterState, view: ClusterView, operation_id: str, vm: VMRecord, entry: DrainEntry, policy: Policy
) -> tuple[DrainEntry, Placement | None]:
    if vm.owner.state is OwnerState.FROZEN:
        return blocked(entry, f"It is frozen: {vm.reason}", f"See `hostler vm get {vm.vm_id}`."), None
    if moving := move_of(state, vm):
        migration = state.operations[moving].record.migration
        destination = migration.destination_node_id if migration is not None else ""
        return replace(entry, state=DrainState.MOVING, destination_node_id=destination, operation_id=moving), None
    permitted = vm.move_fallback is MoveFallback.RESTART and vm.owner.state is not OwnerState.STOPPED
    if not entry.restart:
        answer = _place(state, view, operation_id, vm, policy)
        if isinstance(answer, Placement):
            return _to(entry, answer), answer
        if not permitted:
            return blocked(entry, *answer), None
    answer = _place(state, view, operation_id, replace(vm, owner=replace(vm.owner, state=OwnerState.STOPPED)), policy)
    if isinstance(answer, Placement):
        return replace(_to(entry, answer), restart=permitted or entry.restart), answer
    return blocked(entry, *answer), None


def _place(state: ClusterState, view: ClusterView, operation_id: str, vm: VMRecord, policy: Policy) -> Placement | tuple[str, str]:
    """A place, or why there is none and what to do."""
    try:
        asked = moved_request(state, vm, "", "it is being drained")
    except FailedPrecondition as error:
        return error.message, error.fix
    others = {claim.record.node_id: "it has a claim there" for claim in state.claims_of(vm.vm_id)}
    asked = replace(asked, excluded={**others, **asked.excluded})
    answer = place(view, asked, policy, seed_of(operation_id))
    if isinstance(answer, NoFit):
        no = no_capacity(asked, answer)
        return no.message, no.fix
    return answer


def move_of(state: ClusterState, vm: VMRecord) -> str:
    """The migration that moves it from its node now, if one does."""
    kept = state.operations.get(vm.operation_id)
    if kept is None or kept.record.verb is not Verb.MIGRATE_VM or kept.record.migration is None:
        return ""
    return vm.operation_id if kept.record.migration.source_node_id == vm.owner.node_id else ""


def blocked(entry: DrainEntry, reason: str, fix: str) -> DrainEntry:
    return replace(entry, state=DrainState.BLOCKED, destination_node_id="", reason=short(reason), fix=short(fix))


def short(text: str) -> str:
    return text if len(text) <= REASON_MOST else f"{text[: REASON_MOST - 1]}…"


def _to(entry: DrainEntry, placement: Placement) -> DrainEntry:
    return replace(entry, state=DrainState.PLANNED, destination_node_id=placement.node_id, reason="", fix="")


def _charge(nodes: Fleet, placement: Placement) -> None:
    """Take the place."""
    view = nodes[placement.node_id]
    after = add_claim(view.ledger, placement.charged)
    if not isinstance(after, LedgerRecord):
        raise RuntimeError(f"a placement does not fit: {placement.node_id} {after}")
    nodes.put(replace(view, ledger=after))


def _ledgers(state: ClusterState, adding: Iterable[Adding], dropping: Iterable[Dropping]) -> dict[str, LedgerRead]:
    nodes = {one.claim.node_id for one in adding} | {one.claim.node_id for one in dropping}
    return {ledger_key(node_id): LedgerRead(state.ledgers[node_id].record, state.ledgers[node_id].revision) for node_id in sorted(nodes)}
