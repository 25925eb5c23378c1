"""The checker sees what it is for: hand-made histories, each with one breach, and one without any."""

import json
from collections.abc import Iterable
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from tests.contention.checker import STATE, Breach, Rule, at_rest, judge
from tests.contention.history import Change, Incomplete, Listed, require_whole

SLOT = {"cpu_milli": 100, "memory_mib/0": 585}
TWO_SLOTS = {"cpu_milli": 200, "memory_mib/0": 1170}
ROOM = {"cpu_milli": 1000, "memory_mib/0": 1754}
"""For two slots, and a third but for one MiB."""
OFFERS = {"n1": ROOM, "n2": ROOM}

Step = dict[str, Any]
"""What one revision writes, by key below STATE; None deletes."""


def history(*steps: Step) -> tuple[Change, ...]:
    """One revision a step, from 2 on as etcd's first."""
    versions: dict[str, int] = {}

    def changes() -> Iterable[Change]:
        for revision, step in zip(count(2), steps, strict=False):
            for key, record in step.items():
                versions[key] = versions.get(key, 0) + 1 if record is not None else 0
                value = None if record is None else json.dumps(record).encode()
                yield Change(revision, STATE + key, value, versions[key])

    return tuple(changes())


def ledger(claimed: dict[str, int], allocatable: dict[str, int] | None = None) -> Step:
    return {"allocatable": allocatable or ROOM, "claimed": claimed, "fingerprint": ""}


def claim(vm_id: str, node_id: str = "n1", kind: str = "RUN", charged: dict[str, int] | None = None) -> Step:
    return {"vm_id": vm_id, "vm_uid": f"u-{vm_id}", "node_id": node_id, "kind": kind, "charged": charged or SLOT, "operation_id": ""}


def vm(vm_id: str, node_id: str = "n1", epoch: int = 1, own_volumes: tuple[str, ...] = ()) -> Step:
    return {"vm_id": vm_id, "uid": f"u-{vm_id}", "owner": {"node_id": node_id, "epoch": epoch}, "own_volumes": own_volumes}


def volume(vm_id: str, node_id: str = "", charged_mib: int = 0) -> Step:
    return {"vm_id": vm_id, "node_id": node_id, "pool_id": "shared", "charged_mib": charged_mib}


def operation(state: str, reason: str = "") -> Step:
    error = {"reason": reason} if reason else None
    return {"state": state, "verb": "CreateVM", "target_id": "a", "phase": "VOLUMES", "error": error}


EMPTY: Step = {"ledger/n1": ledger({}), "ledger/n2": ledger({})}
ONE: Step = {"vm/a": vm("a"), "claim/n1/a": claim("a"), "ledger/n1": ledger(SLOT)}
TWO: Step = {"vm/b": vm("b"), "claim/n1/b": claim("b"), "ledger/n1": ledger(TWO_SLOTS)}
GONE: Step = {"vm/b": None, "claim/n1/b": None, "ledger/n1": ledger(SLOT)}


def found(*steps: Step) -> list[tuple[int, Rule]]:
    """Every breach, as revision and rule."""
    return [(breach.revision, breach.rule) for breach in judge(history(*steps), OFFERS).breaches]


def test_a_history_without_a_breach_has_none() -> None:
    """Breaks when an honest history is accused: VMs come, grow in epoch, go, and one of the same name comes again."""
    again = {"vm/b": vm("b") | {"uid": "u-2"}, "claim/n1/b": claim("b") | {"vm_uid": "u-2"}, "ledger/n1": ledger(TWO_SLOTS)}
    verdict = judge(history(EMPTY, ONE, TWO, {"vm/b": vm("b", epoch=2)}, GONE, again), OFFERS)
    assert (verdict.breaches, verdict.revisions) == ((), 6)
    assert at_rest(verdict.last) == ()


def test_an_overcommit_of_one_revision_is_seen() -> None:
    """Breaks when only the end is looked at, or a sum is compared with what is free instead of what there is."""
    three = {quantity: 3 * amount for quantity, amount in SLOT.items()}
    third: Step = {"vm/c": vm("c"), "claim/n1/c": claim("c"), "ledger/n1": ledger(three)}
    back: Step = {"vm/c": None, "claim/n1/c": None, "ledger/n1": ledger(TWO_SLOTS)}
    breaches = judge(history(EMPTY, ONE, TWO, third, back), OFFERS).breaches
    assert {(breach.revision, breach.rule) for breach in breaches} == {(5, Rule.FITS)}
    assert "1754 memory_mib/0, claimed is 1755" in breaches[0].story


def test_each_cell_is_an_account_of_its_own() -> None:
    """Breaks when memory of several cells is added up: a claim that no cell can hold fits into their sum."""
    cells = {"cpu_milli": 1000, "memory_mib/0": 300, "memory_mib/1": 1000}
    took: Step = {"vm/a": vm("a"), "claim/n1/a": claim("a"), "ledger/n1": ledger(SLOT, cells)}
    assert [b.rule for b in judge(history({"ledger/n1": ledger({}, cells)}, took), {"n1": cells}).breaches] == [Rule.FITS, Rule.FITS]


def test_a_ledger_that_says_more_than_was_built_is_not_believed() -> None:
    """Breaks when what is allocatable is taken from the ledger alone, which the product writes itself."""
    generous = {quantity: 9 * amount for quantity, amount in ROOM.items()}
    three = {quantity: 3 * amount for quantity, amount in SLOT.items()}
    full: Step = {f"claim/n1/{name}": claim(name) for name in "abc"} | {f"vm/{name}": vm(name) for name in "abc"}
    assert found(full | {"ledger/n1": ledger(three, generous)}) == [(2, Rule.FITS)]


@pytest.mark.parametrize("claimed", [{}, TWO_SLOTS, SLOT | {"memory_mib/1": 1}], ids=["less", "more", "of something else"])
def test_a_ledger_that_disagrees_is_seen(claimed: dict[str, int]) -> None:
    """Breaks when a ledger's own word is taken for the sum of its claims."""
    assert set(found(EMPTY, ONE | {"ledger/n1": ledger(claimed)})) >= {(3, Rule.LEDGER_IS_SUM)}


def test_a_claim_on_a_node_without_a_ledger_is_too_much() -> None:
    """Breaks when nodes are taken from the ledgers alone."""
    assert set(found({"vm/a": vm("a", "n9"), "claim/n9/a": claim("a", "n9")})) == {(2, Rule.FITS), (2, Rule.LEDGER_IS_SUM)}


def test_a_leaked_claim_is_seen() -> None:
    """Breaks when a claim whose VM is gone counts as an ordinary one."""
    assert found(EMPTY, ONE, {"vm/a": None}) == [(4, Rule.CLAIM_HAS_VM)]


def test_a_claim_of_another_vm_of_the_same_name_is_seen() -> None:
    """Breaks when claims and VMs are compared by name: the claim of a VM that is gone passes for that of its namesake."""
    assert found(EMPTY, ONE, {"vm/a": vm("a") | {"uid": "u-2"}}) == [(4, Rule.CLAIM_HAS_VM)]


def test_a_vm_without_its_claim_is_seen() -> None:
    """Breaks when a VM can live on nobody's account."""
    assert found(EMPTY, ONE, {"claim/n1/a": None, "ledger/n1": ledger({})}) == [(4, Rule.VM_HAS_CLAIM)]


def test_two_run_claims_of_one_vm_are_seen() -> None:
    """Breaks when a VM may be claimed twice as long as each node has room."""
    twice: Step = {"claim/n2/a": claim("a", "n2"), "ledger/n2": ledger(SLOT)}
    assert found(EMPTY, ONE, twice) == [(4, Rule.ONE_RUN_CLAIM)]
    moving: Step = {"claim/n2/a": claim("a", "n2", kind="MIGRATE_IN"), "ledger/n2": ledger(SLOT)}
    verdict = judge(history(EMPTY, ONE, moving), OFFERS)
    assert verdict.breaches == ()
    assert [breach.rule for breach in at_rest(verdict.last)] == [Rule.ONE_CLAIM]


def test_a_claim_under_the_wrong_key_is_seen() -> None:
    """Breaks when a claim is counted for the node of its key while it says another one."""
    assert (3, Rule.CLAIM_IN_PLACE) in found(EMPTY, ONE | {"claim/n1/a": claim("a", "n2")})


def test_an_epoch_that_goes_back_is_seen() -> None:
    """Breaks when an epoch is compared with the one before it alone: back by a detour is back too."""
    assert found(EMPTY, ONE, {"vm/a": vm("a", epoch=3)}, {"vm/a": vm("a", epoch=2)}) == [(5, Rule.EPOCH_GROWS)]
    assert found(EMPTY, ONE, {"vm/a": vm("a", epoch=3)}, {"vm/a": None, "claim/n1/a": None, "ledger/n1": ledger({})}, ONE) == [
        (6, Rule.EPOCH_GROWS)
    ]


def test_a_shared_pool_is_an_account_too() -> None:
    """Breaks when volumes of a shared pool are not counted, or may be more than the pool has."""
    pool = {"pool/shared": ledger({"pool_mib/shared": 64}, {"pool_mib/shared": 100})}
    one: Step = pool | {"volume/v1": volume("a", charged_mib=64)}
    assert found(one) == []
    assert found(one, {"volume/v2": volume("a", charged_mib=64)}) == [(3, Rule.FITS), (3, Rule.LEDGER_IS_SUM)]


def test_a_volume_with_a_charge_of_its_own_counts_for_its_node() -> None:
    """Breaks when an unattached volume in a node's own pool is on nobody's account."""
    room = ROOM | {"pool_mib/shared": 64}
    own: Step = {"volume/v1": volume("", "n1", 64), "ledger/n1": ledger({"pool_mib/shared": 64}, room)}
    assert judge(history(own), {"n1": room}).breaches == ()
    assert [b.rule for b in judge(history(own | {"ledger/n1": ledger({}, room)}), {"n1": room}).breaches] == [Rule.LEDGER_IS_SUM]


def test_a_breach_that_lasts_is_told_once_and_one_that_returns_again() -> None:
    """Breaks when a breach of thousands of revisions hides the others, or one that was mended is not told when it comes back."""
    assert found(EMPTY, ONE, {"vm/a": None}, EMPTY | ONE, {"vm/a": None}, {"flavor/f": {}}) == [
        (4, Rule.CLAIM_HAS_VM),
        (6, Rule.CLAIM_HAS_VM),
    ]


def left(step: Step) -> list[Rule]:
    return [breach.rule for breach in at_rest(judge(history(EMPTY, ONE | step), OFFERS).last)]


def test_what_is_left_over_is_seen() -> None:
    """Breaks when an operation may stay open, a failure may say nothing, or a volume may outlive its VM."""
    assert left({"op/1": operation("RUNNING")}) == [Rule.OPERATION_ENDED]
    assert left({"op/1": operation("FAILED")}) == [Rule.FAILURE_EXPLAINED]
    assert left({"op/1": operation("FAILED", "HYPERVISOR_REFUSED"), "op/2": operation("SUCCEEDED")}) == []
    assert left({"volume/v": volume("b")}) == [Rule.VOLUME_HAS_VM]
    assert left({"volume/v": volume("a")}) == [Rule.VOLUME_HAS_VM]
    assert left({"volume/v": volume("a"), "vm/a": vm("a", own_volumes=("v",))}) == []


def test_a_breach_can_be_read() -> None:
    """Breaks when the line that fails a run does not say where to look."""
    assert (
        str(Breach(7, Rule.EPOCH_GROWS, "a is at 1 after 2"))
        == "revision 7: not so that an owner's epoch never goes back: a is at 1 after 2"
    )


# ---- whether the history is whole


def listing(changes: Iterable[Change]) -> dict[str, Listed]:
    """What a store that was told these lists."""
    last = {change.key: change for change in changes}
    return {key: Listed(change.value, change.revision) for key, change in last.items() if change.value is not None}


WHOLE = history(EMPTY, ONE, TWO, GONE)


def test_a_whole_history_is_whole() -> None:
    """Breaks when deletions, or keys that are made again, are taken for holes."""
    require_whole(WHOLE, 5, listing(WHOLE))


@pytest.mark.parametrize("lost", range(len(WHOLE)))
def test_a_lost_change_is_noticed(lost: int) -> None:
    """Breaks when a watch that drops any one event passes for the whole history: what happened in the hole would never be judged."""
    with pytest.raises(Incomplete):
        require_whole((*WHOLE[:lost], *WHOLE[lost + 1 :]), 5, listing(WHOLE))


def test_a_history_that_ends_early_is_noticed() -> None:
    """Breaks when the last revisions may be missing."""
    with pytest.raises(Incomplete, match="1 of 6 revisions are missing, the first is 6"):
        require_whole(WHOLE, 6, listing(WHOLE))


def test_a_value_that_the_store_does_not_list_is_noticed() -> None:
    """Breaks when the history's values are not the store's."""
    doctored = tuple(replace(change, value=b"{}") if change.key.endswith("vm/a") else change for change in WHOLE)
    with pytest.raises(Incomplete, match="vm/a"):
        require_whole(doctored, 5, listing(WHOLE))
