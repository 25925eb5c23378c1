"""Laws of the sums: whatever is added and dropped, the ledgers are the count of what is there, and never above what there is."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hostler.model.quantities import CPU_MILLI, Quantities, Shortfall, memory_key, pool_key
from scheduler.core.claims import (
    Adding,
    Difference,
    DoesNotFit,
    Dropping,
    Finding,
    InvariantBroken,
    LedgerRead,
    add_claim,
    audit,
    claim_transaction,
    drop_claim,
    recount,
)
from scheduler.core.records import ClaimKind, ClaimRecord, LedgerRecord, VolumeRecord, VolumeState, claim_key, ledger_key, shared_pool_key
from tests.examples import share

KEYS = (CPU_MILLI, memory_key(0), pool_key("local"))
CHARGES = st.dictionaries(st.sampled_from(KEYS), st.integers(0, 60))
NODES = st.sampled_from(["n1", "n2"])
VMS = st.sampled_from(["a", "b", "c", "d"])


def claim(node_id: str, vm_id: str, charged: Quantities) -> ClaimRecord:
    return ClaimRecord(vm_id, f"uid-{vm_id}", node_id, ClaimKind.RUN, charged, "op")


def volume(volume_id: str, pool_id: str, node_id: str, charged_mib: int) -> VolumeRecord:
    return VolumeRecord(volume_id, f"uid-{volume_id}", pool_id, node_id, 500, "qcow2", "", VolumeState.READY, 0, charged_mib)


class Ledgers(RuleBasedStateMachine):
    """A store of two nodes and a shared pool, changed by claim transactions alone; the transactions' guards are enforced as the store would."""

    def __init__(self) -> None:
        super().__init__()
        full = dict.fromkeys(KEYS, 100)
        self.ledgers = {key: LedgerRead(LedgerRecord(full), 1) for key in (ledger_key("n1"), ledger_key("n2"))}
        self.ledgers[shared_pool_key("nas")] = LedgerRead(LedgerRecord({pool_key("nas"): 100}), 1)
        self.claims: dict[str, tuple[ClaimRecord, int, int]] = {}
        self.revision = 1

    @rule(node=NODES, vm=VMS, charged=CHARGES, shared=st.integers(0, 60))
    def add(self, node: str, vm: str, charged: dict[str, int], shared: int) -> None:
        if claim_key(node, vm) not in self.claims:
            self.commit(adding=[(claim(node, vm, charged), shared)])

    @rule(node=NODES, vm=VMS)
    def drop(self, node: str, vm: str) -> None:
        if claim_key(node, vm) in self.claims:
            self.commit(dropping=[claim_key(node, vm)])

    @rule(vm=VMS, charged=CHARGES, shared=st.integers(0, 60))
    def move(self, vm: str, charged: dict[str, int], shared: int) -> None:
        if claim_key("n1", vm) in self.claims and claim_key("n2", vm) not in self.claims:
            self.commit(adding=[(claim("n2", vm, charged), shared)], dropping=[claim_key("n1", vm)])

    @rule(node=NODES, first=CHARGES, second=CHARGES)
    def add_two(self, node: str, first: dict[str, int], second: dict[str, int]) -> None:
        if not {claim_key(node, "a"), claim_key(node, "b")} & self.claims.keys():
            self.commit(adding=[(claim(node, "a", first), 10), (claim(node, "b", second), 10)])

    @rule(node=NODES, key=st.sampled_from(KEYS), amount=st.integers(0, 150))
    def resize(self, node: str, key: str, amount: int) -> None:
        """A node reports another size; promises stay."""
        read = self.ledgers[ledger_key(node)]
        self.revision += 1
        ledger = replace(read.record, allocatable={**read.record.allocatable, key: amount})
        self.ledgers[ledger_key(node)] = LedgerRead(ledger, self.revision)

    def commit(self, adding: Sequence[tuple[ClaimRecord, int]] = (), dropping: Sequence[str] = ()) -> None:
        adds = [Adding(one, {"nas": {pool_key("nas"): shared}}) for one, shared in adding]
        drops = [Dropping(self.claims[key][0], self.claims[key][1], {"nas": {pool_key("nas"): self.claims[key][2]}}) for key in dropping]
        result = claim_transaction(self.ledgers, adds, drops)
        if isinstance(result, DoesNotFit):
            assert all(short.missing > 0 for short in result.shortfalls)
            return
        self.revision += 1
        for key in (*result.puts, *result.deletes):
            known = self.ledgers[key].revision if key in self.ledgers else self.claims[key][1] if key in self.claims else 0
            assert result.guards[key] == known, f"{key} is written without a guard on what was read"
        for key, record in result.puts.items():
            if isinstance(record, LedgerRecord):
                self.ledgers[key] = LedgerRead(record, self.revision)
        for key in result.deletes:
            del self.claims[key]
        for one, shared in adding:
            self.claims[claim_key(one.node_id, one.vm_id)] = (one, self.revision, shared)
            for quantity, amount in one.charged.items():
                ledger = self.ledgers[ledger_key(one.node_id)].record
                assert not amount or ledger.claimed[quantity] <= ledger.allocatable[quantity]

    @invariant()
    def sums_are_the_count(self) -> None:
        claims = [one for one, _, _ in self.claims.values()]
        counted = recount(claims)
        for node in ("n1", "n2"):
            claimed = self.ledgers[ledger_key(node)].record.claimed
            assert dict(claimed) == counted.get(node, {})
            assert all(amount > 0 for amount in claimed.values())
        nas = self.ledgers[shared_pool_key("nas")].record.claimed.get(pool_key("nas"), 0)
        assert nas == sum(shared for _, _, shared in self.claims.values()) <= 100

    @invariant()
    def the_audit_is_clean_but_for_shrunk_nodes(self) -> None:
        findings = audit(
            {node: self.ledgers[ledger_key(node)].record for node in ("n1", "n2")},
            [one for one, _, _ in self.claims.values()],
            {"nas": self.ledgers[shared_pool_key("nas")].record},
            [volume(key, "nas", "", shared) for key, (_, _, shared) in self.claims.items()],
        )
        assert all(finding.finding is Finding.OVER_ALLOCATABLE for finding in findings)


TestLedgers = Ledgers.TestCase
TestLedgers.settings = settings(max_examples=share(60), stateful_step_count=25, deadline=None)


@given(st.dictionaries(st.sampled_from(KEYS), st.integers(1, 100)), CHARGES, CHARGES)
def test_a_claim_is_refused_exactly_when_it_is_too_much(
    allocatable: dict[str, int], claimed: dict[str, int], charged: dict[str, int]
) -> None:
    """More would be promised than there is, or what fits would be refused."""
    after = add_claim(LedgerRecord(allocatable, claimed), charged)
    fits = all(claimed.get(key, 0) + amount <= allocatable.get(key, 0) for key, amount in charged.items() if amount)
    assert isinstance(after, LedgerRecord) == fits
    if isinstance(after, LedgerRecord):
        assert after.allocatable == allocatable
        back = drop_claim(after, charged)
        assert back.claimed == {key: amount for key, amount in claimed.items() if amount}


def test_a_ledger_is_filled_to_the_last_mib() -> None:
    """The limit would be off by one, in either direction."""
    ledger = LedgerRecord({memory_key(0): 265}, {memory_key(0): 100})
    assert isinstance(add_claim(ledger, {memory_key(0): 165}), LedgerRecord)
    assert add_claim(ledger, {memory_key(0): 166}) == (Shortfall(memory_key(0), 166, 165),)


def test_giving_back_what_was_not_taken_breaks_loudly() -> None:
    """A claim given back twice would free what others hold."""
    with pytest.raises(InvariantBroken, match="cpu_milli: 200 given back, 100 was claimed"):
        drop_claim(LedgerRecord({CPU_MILLI: 1000}, {CPU_MILLI: 100}), {CPU_MILLI: 200})


@pytest.mark.parametrize("change", [add_claim, drop_claim])
def test_a_negative_charge_breaks_loudly(change: Callable[[LedgerRecord, Quantities], object]) -> None:
    """A negative charge would make room out of nothing."""
    with pytest.raises(InvariantBroken, match="less than nothing"):
        change(LedgerRecord({CPU_MILLI: 1000}, {CPU_MILLI: 100}), {CPU_MILLI: -1})


def test_dropping_from_a_ledger_that_is_gone_breaks_loudly() -> None:
    """A lost ledger would go unnoticed."""
    with pytest.raises(InvariantBroken):
        claim_transaction({}, dropping=[Dropping(claim("n1", "a", {CPU_MILLI: 1}), 7)])


def test_a_claim_on_a_node_without_a_ledger_does_not_fit() -> None:
    """Capacity would be promised on a node that has not said what it has."""
    adding = Adding(claim("n1", "a", {CPU_MILLI: 1}))
    assert claim_transaction({}, [adding]) == DoesNotFit(adding, ledger_key("n1"), (Shortfall(CPU_MILLI, 1, 0),))


def test_the_claim_that_does_not_fit_is_named() -> None:
    """A batch could not be split: nobody would know which of its claims was too much."""
    reads = {ledger_key("n1"): LedgerRead(LedgerRecord({CPU_MILLI: 100}), 5)}
    small, large = Adding(claim("n1", "a", {CPU_MILLI: 60})), Adding(claim("n1", "b", {CPU_MILLI: 60}))
    assert claim_transaction(reads, [small, large]) == DoesNotFit(large, ledger_key("n1"), (Shortfall(CPU_MILLI, 60, 40),))


def test_one_claim_is_changed_once() -> None:
    """Two changes of one key in one transaction: the store would refuse it, or the last would win."""
    reads = {ledger_key("n1"): LedgerRead(LedgerRecord({CPU_MILLI: 100}), 5)}
    twice = [Adding(claim("n1", "a", {CPU_MILLI: 1}))] * 2
    with pytest.raises(InvariantBroken, match="changed twice"):
        claim_transaction(reads, twice)


def test_the_audit_counts_claims_and_volumes_again() -> None:
    """A leak of capacity would stay invisible: in a ledger, in a pool, or on a node that has no ledger."""
    findings = audit(
        {"n1": LedgerRecord({CPU_MILLI: 100, pool_key("local"): 50}, {CPU_MILLI: 40, pool_key("local"): 30})},
        [claim("n1", "a", {CPU_MILLI: 30, pool_key("local"): 10}), claim("n2", "b", {CPU_MILLI: 5})],
        {"nas": LedgerRecord({pool_key("nas"): 100}, {pool_key("nas"): 120})},
        [volume("a-disk0", "local", "n1", 0), volume("data", "local", "n1", 20), volume("s", "nas", "", 120)],
    )
    assert findings == (
        Difference(Finding.SUM_DIFFERS, ledger_key("n1"), CPU_MILLI, 40, 30),
        Difference(Finding.SUM_DIFFERS, ledger_key("n2"), CPU_MILLI, 0, 5),
        Difference(Finding.OVER_ALLOCATABLE, shared_pool_key("nas"), pool_key("nas"), 120, 100),
    )
