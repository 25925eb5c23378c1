"""Each rule by itself: a node that can take a demanding VM gets one fault, and exactly the rule of that fault refuses it."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from hostler.model.domain import ServiceClass
from hostler.model.quantities import CPU_MILLI, memory_key, pool_key
from scheduler.core.placement.cluster import ClusterView
from scheduler.core.placement.fleet import Fleet
from scheduler.core.placement.place import NoFit, Placement, place
from scheduler.core.placement.policy import SPREAD, Policy
from scheduler.core.placement.reject import Rule
from scheduler.core.placement.request import LocalVolume, PlacementRequest
from scheduler.core.records import LedgerRecord, NodePool, NodeState
from scheduler.core.view import Health, NodeView, PoolView
from tests.unit.scheduler.core.placement.clusters import LOCAL, SHARED, roomy

DEMANDING = PlacementRequest(
    vm_id="web-9",
    vcpus=2,
    memory_mib=500,
    service_class=ServiceClass.GUARANTEED,
    local_mib={LOCAL: 10},
    shared_mib={SHARED: 10},
    fingerprints={SHARED: "fp1"},
    local_volumes=(LocalVolume("data", LOCAL, "n1"),),
    images=((LOCAL, "cirros"), (SHARED, "cirros")),
    networks=("br0",),
    only_node_id="n1",
    excluded={"n2": "it has just refused"},
    acceleration="KVM",
)
SOUND = roomy("n1", DEMANDING)
NAS = PoolView(SHARED, LedgerRecord({pool_key(SHARED): 100}), 9)


def asked(view: NodeView, request: PlacementRequest = DEMANDING, policy: Policy = SPREAD) -> Placement | NoFit:
    return place(ClusterView(5, Fleet((view,)), {SHARED: NAS}), request, policy, 1)


def with_pool(view: NodeView, pool_id: str, change: Callable[[NodePool], NodePool]) -> NodeView:
    pools = tuple(change(pool) if pool.pool_id == pool_id else pool for pool in view.node.pools)
    return replace(view, node=replace(view.node, pools=pools))


def without(view: NodeView, key: str) -> NodeView:
    """All of the quantity is promised to others."""
    return replace(view, ledger=replace(view.ledger, claimed={key: view.ledger.allocatable[key]}))


NODE_FAULTS: dict[str, tuple[Rule, NodeView]] = {
    "cordoned": (Rule.NODE_STATE, replace(SOUND, node=replace(SOUND.node, state=NodeState.CORDONED))),
    "silent": (Rule.NODE_HEALTH, replace(SOUND, health=Health.SILENT)),
    "hypervisor down": (Rule.NODE_HEALTH, replace(SOUND, health=Health.HYPERVISOR_DOWN)),
    "network absent": (Rule.NETWORK, replace(SOUND, node=replace(SOUND.node, networks=("br1",)))),
    "shared pool absent": (Rule.POOL, with_pool(SOUND, SHARED, lambda pool: replace(pool, pool_id="other"))),
    "another file system": (Rule.POOL, with_pool(SOUND, SHARED, lambda pool: replace(pool, fingerprint="fp2"))),
    "shared pool is local": (Rule.POOL, with_pool(SOUND, SHARED, lambda pool: replace(pool, shared=False))),
    "local pool is shared": (Rule.POOL, with_pool(SOUND, LOCAL, lambda pool: replace(pool, shared=True))),
    "local image absent": (Rule.IMAGE, with_pool(SOUND, LOCAL, lambda pool: replace(pool, images={"debian": 1}))),
    "shared image absent": (Rule.IMAGE, with_pool(SOUND, SHARED, lambda pool: replace(pool, images={}))),
    "emulates": (Rule.ACCELERATION, replace(SOUND, node=replace(SOUND.node, acceleration="EMULATION"))),
    "not probed": (Rule.ACCELERATION, replace(SOUND, node=replace(SOUND.node, acceleration=""))),
    "no cpu": (Rule.CAPACITY, without(SOUND, CPU_MILLI)),
    "no memory": (Rule.CAPACITY, without(SOUND, memory_key(0))),
    "no local space": (Rule.CAPACITY, without(SOUND, pool_key(LOCAL))),
}
REQUEST_FAULTS: dict[str, tuple[Rule, PlacementRequest]] = {
    "another node": (Rule.NODE_NAMED, replace(DEMANDING, only_node_id="n2")),
    "excluded": (Rule.NODE_EXCLUDED, replace(DEMANDING, excluded={"n1": "it runs there now"})),
    "volume elsewhere": (Rule.LOCAL_VOLUME, replace(DEMANDING, local_volumes=(LocalVolume("data", LOCAL, "n2"),))),
    "volumes on two nodes": (
        Rule.LOCAL_VOLUME,
        replace(DEMANDING, local_volumes=(*DEMANDING.local_volumes, LocalVolume("more", LOCAL, "n2"))),
    ),
}


def test_the_sound_node_takes_it() -> None:
    """Every test of a fault below would pass for a reason of its own."""
    answer = asked(SOUND)
    assert isinstance(answer, Placement)
    assert answer.pool_revisions == {SHARED: 9}


@pytest.mark.parametrize("fault", NODE_FAULTS)
def test_a_node_with_one_fault_is_refused_by_its_rule(fault: str) -> None:
    """The VM would land on a node that cannot run it; or the user would be told a wrong reason."""
    rule, view = NODE_FAULTS[fault]
    answer = asked(view)
    assert isinstance(answer, NoFit)
    assert [reject.rule for refusal in answer.told for reject in refusal.rejects] == [rule]


@pytest.mark.parametrize("fault", REQUEST_FAULTS)
def test_a_request_that_rules_the_node_out_is_obeyed(fault: str) -> None:
    """The VM would land where its user, its volumes or the migration say it must not."""
    rule, request = REQUEST_FAULTS[fault]
    answer = asked(SOUND, request)
    assert isinstance(answer, NoFit)
    assert answer.refused == {rule: 1}


def test_every_rule_has_a_fault_here() -> None:
    """A new rule would come without a test."""
    assert {rule for rule, _ in (*NODE_FAULTS.values(), *REQUEST_FAULTS.values())} == set(Rule) == {row.rule for row in SPREAD.filters}


def test_all_reasons_are_told_at_once() -> None:
    """The user would mend one thing, and then hear of the next."""
    view = replace(SOUND, node=replace(SOUND.node, state=NodeState.CORDONED, networks=()), health=Health.SILENT)
    answer = asked(view)
    assert isinstance(answer, NoFit)
    assert answer.told[0].detail == "cordoned, silent, no network br0"


def test_a_shared_pool_without_an_account_takes_nothing() -> None:
    """A volume would be promised in a pool whose size nobody knows."""
    answer = place(ClusterView(5, Fleet((SOUND,)), {}), DEMANDING, SPREAD, 1)
    assert isinstance(answer, NoFit)
    assert [pool.detail for pool in answer.pools] == ["shared pool nas is not known in the cluster"]


def test_the_policy_prints_its_rules_and_weights() -> None:
    """An operator could not see by which policy VMs are placed, or two policies would have one name."""
    table = SPREAD.table()
    assert all(row.rule in table for row in SPREAD.filters)
    assert all(f"{score.name:<14} {score.meaning}, weight {score.weight}" in table for score in SPREAD.scores)
    heavier = replace(SPREAD, scores=(replace(SPREAD.scores[0], weight=2), *SPREAD.scores[1:]))
    assert heavier.digest != SPREAD.digest
