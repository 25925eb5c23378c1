"""What taking and giving back capacity does to the sums: the only arithmetic on ledgers, and the audit that counts them again.

Invariant of every ledger: claimed = sum of the charges written for it, never negative, and key by key not above allocatable whenever that key is
charged. Each change is a transaction guarded by the ledgers it changes, so two deciders cannot spend the same free amount.
A node may shrink below what it has promised; nothing more of that key is then promised, and giving back always works.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from hostler.model.quantities import Quantities, Shortfall, at_least_zero, minus, plus, pool_key, shortfalls
from scheduler.core.records import ClaimRecord, LedgerRecord, Record, VolumeRecord, claim_key, ledger_key, shared_pool_key
from scheduler.core.transaction import Transaction


class InvariantBroken(Exception):
    """The sums do not agree with what they sum: a defect, or a store that was changed by hand. The text is for the log."""


@dataclass(frozen=True, slots=True)
class LedgerRead:
    """A ledger as it was read: its mod revision is the guard."""

    record: LedgerRecord
    revision: int


@dataclass(frozen=True, slots=True)
class Adding:
    """A claim to be made; `shared` is what its new volumes take, by shared pool."""

    claim: ClaimRecord
    shared: Mapping[str, Quantities] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Dropping:
    """A claim to be given back, as read at `revision`; `shared` is what goes with it, by shared pool."""

    claim: ClaimRecord
    revision: int
    shared: Mapping[str, Quantities] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DoesNotFit:
    """The claim of `adding` does not fit into the ledger at `key`; nothing of the transaction is written."""

    adding: Adding
    key: str
    shortfalls: tuple[Shortfall, ...]


def free_of(ledger: LedgerRecord) -> Quantities:
    """What may still be promised."""
    return at_least_zero(minus(ledger.allocatable, ledger.claimed))


def left_of(ledger: LedgerRecord, key: str) -> int:
    """What of one quantity may still be promised."""
    return max(0, ledger.allocatable.get(key, 0) - ledger.claimed.get(key, 0))


def add_claim(ledger: LedgerRecord, charged: Quantities) -> LedgerRecord | tuple[Shortfall, ...]:
    """The ledger with the charge, or what is missing. Raises InvariantBroken on a negative charge."""
    _require(min(charged.values(), default=0) >= 0, f"a charge of less than nothing: {dict(charged)}")
    if short := shortfalls(charged, free_of(ledger)):
        return short
    after = replace(ledger, claimed=plus(ledger.claimed, charged))
    for key in charged:
        claimed, allocatable = after.claimed.get(key, 0), after.allocatable.get(key, 0)
        _require(claimed <= max(allocatable, ledger.claimed.get(key, 0)), f"{key}: {claimed} claimed of {allocatable}")
    return after


def drop_claim(ledger: LedgerRecord, charged: Quantities) -> LedgerRecord:
    """The ledger without the charge. Raises InvariantBroken if the charge is not in it."""
    _require(min(charged.values(), default=0) >= 0, f"a charge of less than nothing: {dict(charged)}")
    rest = minus(ledger.claimed, charged)
    for key, amount in rest.items():
        _require(amount >= 0, f"{key}: {charged.get(key, 0)} given back, {ledger.claimed.get(key, 0)} was claimed")
    return replace(ledger, claimed=rest)


def claim_transaction(
    reads: Mapping[str, LedgerRead], adding: Iterable[Adding] = (), dropping: Iterable[Dropping] = ()
) -> Transaction | DoesNotFit:
    """One transaction for any number of claims; `reads` has the ledgers they touch by store key.

    What is dropped is free for what is added. A claim that is added must not exist; one that is dropped must be as it was read. Raises
    InvariantBroken (also for a ledger that does not exist, when something is dropped from it).
    """
    ledgers = {key: read.record for key, read in reads.items()}
    guards: dict[str, int] = {}
    puts: dict[str, Record] = {}
    deletes: list[str] = []
    for drop in dropping:
        key = claim_key(drop.claim.node_id, drop.claim.vm_id)
        _require(key not in guards, f"{key} is changed twice in one transaction")
        guards[key] = drop.revision
        deletes.append(key)
        for ledger, charged in _charges(drop.claim, drop.shared).items():
            ledgers[ledger] = drop_claim(ledgers.get(ledger, LedgerRecord({})), charged)
            guards[ledger] = _revision(reads, ledger)
    for add in adding:
        key = claim_key(add.claim.node_id, add.claim.vm_id)
        _require(key not in guards, f"{key} is changed twice in one transaction")
        guards[key] = 0
        puts[key] = add.claim
        for ledger, charged in _charges(add.claim, add.shared).items():
            after = add_claim(ledgers.get(ledger, LedgerRecord({})), charged)
            if not isinstance(after, LedgerRecord):
                return DoesNotFit(add, ledger, after)
            ledgers[ledger] = after
            guards[ledger] = _revision(reads, ledger)
    return Transaction(guards, puts | {key: ledgers[key] for key in guards if key in reads}, tuple(deletes))


def recount(claims: Iterable[ClaimRecord]) -> dict[str, dict[str, int]]:
    """What each node's claims sum to, by node."""
    sums: dict[str, dict[str, int]] = {}
    for claim in claims:
        sums[claim.node_id] = plus(sums.get(claim.node_id, {}), claim.charged)
    return sums


class Finding(StrEnum):
    """What an audit can find."""

    SUM_DIFFERS = "SUM_DIFFERS"
    """The ledger's sum is not the sum of what it sums: a defect."""
    OVER_ALLOCATABLE = "OVER_ALLOCATABLE"
    """More is promised than there is: the node or pool has shrunk since."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One finding at the ledger's store key: `recorded` is the ledger's sum, `expected` what it should be (or at most be)."""

    finding: Finding
    ledger: str
    quantity: str
    recorded: int
    expected: int


def audit(
    ledgers: Mapping[str, LedgerRecord],
    claims: Iterable[ClaimRecord],
    pools: Mapping[str, LedgerRecord],
    volumes: Iterable[VolumeRecord],
) -> tuple[Difference, ...]:
    """Every ledger (by node) and shared pool (by pool) against a fresh count, at one revision.

    A volume counts with its `charged_mib` against its node, or against its pool when that is shared; one whose space is part of a VM's charge has 0.
    """
    counted = {ledger_key(node_id): sums for node_id, sums in recount(claims).items()}
    for volume in volumes:
        key = ledger_key(volume.node_id) if volume.node_id else shared_pool_key(volume.pool_id)
        counted[key] = plus(counted.get(key, {}), {pool_key(volume.pool_id): volume.charged_mib})
    recorded = {ledger_key(node): record for node, record in ledgers.items()} | {
        shared_pool_key(pool): record for pool, record in pools.items()
    }
    empty = LedgerRecord({})
    return tuple(
        difference
        for key in sorted(recorded.keys() | counted.keys())
        for difference in _differences(key, recorded.get(key, empty), counted.get(key, {}))
    )


def _differences(key: str, ledger: LedgerRecord, counted: Quantities) -> Iterable[Difference]:
    for quantity in sorted(ledger.claimed.keys() | counted.keys()):
        recorded = ledger.claimed.get(quantity, 0)
        if recorded != counted.get(quantity, 0):
            yield Difference(Finding.SUM_DIFFERS, key, quantity, recorded, counted.get(quantity, 0))
        if recorded > ledger.allocatable.get(quantity, 0):
            yield Difference(Finding.OVER_ALLOCATABLE, key, quantity, recorded, ledger.allocatable.get(quantity, 0))


def _charges(claim: ClaimRecord, shared: Mapping[str, Quantities]) -> dict[str, Quantities]:
    """What a claim takes, by the store key of the ledger it is taken from."""
    return {ledger_key(claim.node_id): claim.charged} | {shared_pool_key(pool_id): charged for pool_id, charged in shared.items()}


def _revision(reads: Mapping[str, LedgerRead], key: str) -> int:
    """0 for a ledger that was not there: nothing was added to it, so its absence is all there is to guard."""
    read = reads.get(key)
    return read.revision if read else 0


def _require(holds: bool, story: str) -> None:
    if not holds:
        raise InvariantBroken(story)
