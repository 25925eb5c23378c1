"""Laws of a placement, over random clusters. The rules are stated here a second time, from the records, not by calling the filters."""

from collections import Counter
from dataclasses import replace

import numpy as np
from hypothesis import event, given, settings
from hypothesis import strategies as st

from hostler.model.cost import memory_overhead_mib
from hostler.model.domain import ServiceClass
from hostler.model.quantities import CPU_MILLI, memory_key, pool_key
from scheduler.core.claims import add_claim
from scheduler.core.placement.cluster import ClusterView
from scheduler.core.placement.explain import MEMORY_MIB_MIN, explain, no_capacity
from scheduler.core.placement.fleet import FIRST_PLACES, Fleet, spread_of
from scheduler.core.placement.place import NoFit, Placement, place, seed_of, tie_break
from scheduler.core.placement.policy import SPREAD
from scheduler.core.placement.reject import Rule
from scheduler.core.placement.request import PlacementRequest
from scheduler.core.placement.sift import refusals
from scheduler.core.records import LedgerRecord, NodeState
from scheduler.core.view import Health, NodeView
from tests.examples import share
from tests.unit.scheduler.core.placement.clusters import DEMANDING, LOCAL, SHARED, clusters, requests, roomy

laws = settings(max_examples=share(400), deadline=None)
seeds = st.integers(0, 2**64 - 1)


def chosen(view: ClusterView, placement: Placement) -> NodeView:
    return view.nodes[placement.node_id]


def wrongs(view: NodeView, request: PlacementRequest) -> set[Rule]:
    """Every rule that the node breaks, from the records alone."""
    node = view.node
    pools = {pool.pool_id: pool for pool in node.pools}
    local = {*request.local_mib, *(volume.pool_id for volume in request.local_volumes)}
    needed = {*local, *request.shared_mib, *request.fingerprints, *(pool_id for pool_id, _ in request.images)}
    holds = {
        Rule.NODE_NAMED: request.only_node_id in ("", node.node_id),
        Rule.NODE_EXCLUDED: node.node_id not in request.excluded,
        Rule.NODE_STATE: node.state is NodeState.ACTIVE,
        Rule.NODE_HEALTH: view.health is Health.READY,
        Rule.NETWORK: set(request.networks) <= set(node.networks),
        Rule.LOCAL_VOLUME: {volume.node_id for volume in request.local_volumes} <= {node.node_id},
        Rule.POOL: needed <= pools.keys()
        and not any(pools[pool_id].shared for pool_id in local)
        and all(pools[pool_id].shared for pool_id in request.shared_mib)
        and all(print_ in ("", pools[pool_id].fingerprint) for pool_id, print_ in request.fingerprints.items()),
        Rule.IMAGE: all(pool_id not in pools or image in pools[pool_id].images for pool_id, image in request.images),
        Rule.ACCELERATION: request.acceleration in ("", node.acceleration),
        Rule.CAPACITY: any(isinstance(add_claim(view.ledger, request.charge_in(cell)), LedgerRecord) for cell in range(3)),
    }
    return {rule for rule, kept in holds.items() if not kept}


@laws
@given(
    clusters(),
    requests() | requests(always=DEMANDING) | requests(always=frozenset({"only"})) | requests(always=frozenset({"excluded"})),
    seeds,
)
def test_a_node_is_refused_for_exactly_what_is_wrong_with_it(view: ClusterView, request: PlacementRequest, seed: int) -> None:
    """A VM would land where it cannot run or must not; a node that can take it would be overlooked; a reason would be untrue or missing."""
    result = place(view, request, SPREAD, seed)
    event(type(result).__name__)
    refused = {one.node_id: {reject.rule for reject in one.rejects} for one in refusals(view.nodes, request, SPREAD)}
    assert Counter(rule for rules in refused.values() for rule in rules) == Counter(result.refused)
    for node in view.nodes:
        wrong = wrongs(node, request)
        final = {Rule.NODE_NAMED} & wrong or {Rule.NODE_EXCLUDED} & wrong
        assert refused.get(node.node.node_id, set()) == (final or wrong)
    if isinstance(result, Placement):
        assert all(not wrongs(node, request) for node in view.nodes if node.node.node_id in {one.node_id for one in result.ranking})
        assert result.incarnation == f"boot-{result.node_id}:{chosen(view, result).node.registrations}"


@laws
@given(clusters(sound=True), requests() | requests(always=frozenset({"shared"})), seeds)
def test_the_claim_of_a_placement_fits(view: ClusterView, request: PlacementRequest, seed: int) -> None:
    """The decision and the claim would disagree on what fits: endless retries, or too much promised."""
    result = place(view, request, SPREAD, seed)
    event(type(result).__name__)
    if not isinstance(result, Placement):
        return
    node = chosen(view, result)
    assert isinstance(add_claim(node.ledger, result.charged), LedgerRecord)
    assert result.ledger_revision == node.ledger_revision
    for pool_id, charged in result.shared_charged.items():
        assert isinstance(add_claim(view.shared_pools[pool_id].ledger, charged), LedgerRecord)
        assert result.pool_revisions[pool_id] == view.shared_pools[pool_id].ledger_revision


@laws
@given(clusters(sound=True), requests() | requests(always=frozenset({"stored"})), seeds)
def test_a_placement_charges_what_the_vm_costs(view: ClusterView, request: PlacementRequest, seed: int) -> None:
    """Something would be used that nobody was charged for."""
    result = place(view, request, SPREAD, seed)
    event(type(result).__name__)
    if not isinstance(result, Placement):
        return
    memory = 700 if request.stored_charge else request.memory_mib + memory_overhead_mib(request.vcpus, request.memory_mib)
    assert {key: amount for key, amount in result.charged.items() if key.startswith("memory")} == {memory_key(result.cell): memory}
    assert result.charged.get(pool_key(LOCAL), 0) == request.local_mib.get(LOCAL, 0)
    assert result.shared_charged.get(SHARED, {}).get(pool_key(SHARED), 0) == request.shared_mib.get(SHARED, 0)
    if request.stored_charge:
        assert result.charged[CPU_MILLI] == 300


@laws
@given(clusters(), requests(), seeds)
def test_one_more_empty_node_never_hurts(view: ClusterView, request: PlacementRequest, seed: int) -> None:
    """Adding a host would make a VM unplaceable; or a host that can take it would be overlooked."""
    result = place(view, request, SPREAD, seed)
    free = replace(request, only_node_id="", local_volumes=())
    before, after = (place(one, free, SPREAD, seed) for one in (view, replace(view, nodes=Fleet((*view.nodes, roomy("n99", free))))))
    if isinstance(before, Placement):
        assert isinstance(after, Placement)
    elif not before.pools:
        assert isinstance(after, Placement)
        assert after.node_id == "n99"
    more = replace(view, nodes=Fleet((*view.nodes, roomy("n98", request))))
    assert not isinstance(result, Placement) or isinstance(place(more, request, SPREAD, seed), Placement)


@laws
@given(clusters(), requests(), seeds)
def test_the_same_question_has_the_same_answer(view: ClusterView, request: PlacementRequest, seed: int) -> None:
    """Two replicas would decide differently, or the order in which nodes arrived would decide."""
    result = place(view, request, SPREAD, seed)
    assert place(view, request, SPREAD, seed) == result
    backwards = place(replace(view, nodes=Fleet(reversed(list(view.nodes)))), request, SPREAD, seed)
    assert backwards == result


@laws
@given(clusters(), requests(), seeds)
def test_every_node_that_cannot_is_told_once_and_why(view: ClusterView, request: PlacementRequest, seed: int) -> None:
    """A node would vanish from the answer without a reason."""
    result = place(view, request, SPREAD, seed)
    told = list(refusals(view.nodes, request, SPREAD))
    refused = [refusal.node_id for refusal in told]
    assert refused == sorted(set(refused))
    for refusal in told:
        assert refusal.rejects
        assert all(reject.node_id == refusal.node_id and reject.detail for reject in refusal.rejects)
        assert all(short.missing > 0 for reject in refusal.rejects for short in reject.shortfalls)
        assert all(bool(reject.shortfalls) == (reject.rule is Rule.CAPACITY) for reject in refusal.rejects)
    if isinstance(result, NoFit):
        assert result.pools or len(refused) == result.node_count == len(view.nodes)
        assert result.able_count == len(view.nodes) - len(refused)
        assert result.told == tuple(one for one in told if one.rejects[0].rule is not Rule.NODE_NAMED)
        assert Counter(one.rejects[0].rule for one in told) == Counter(result.first_refused)
        assert result.cordoned == tuple(one.node_id for one in told if [reject.rule for reject in one.rejects] == [Rule.NODE_STATE])
    else:
        assert result.node_id not in refused
        assert len(result.ranking) == min(5, len(view.nodes) - len(refused))


@laws
@given(clusters(), requests() | requests(always=DEMANDING))
def test_a_rule_says_the_same_of_all_nodes_as_of_each(view: ClusterView, request: PlacementRequest) -> None:
    """What decides and what explains would be two policies."""
    nodes, anywhere = view.nodes, view.nodes.present
    for row in SPREAD.filters:
        mask = row.passing(nodes, request)
        passing = {node.node.node_id for node in nodes if row.refuse(node, request) is None}
        assert {nodes.at(int(place)).node.node_id for place in (anywhere if mask is None else anywhere & mask).nonzero()[0]} == passing
    for score in SPREAD.scores:
        rates = score.rates(nodes, request)
        able = [place for place in map(int, anywhere.nonzero()[0]) if not wrongs(nodes.at(place), request)]
        assert [rates[place] for place in able] == [score.rate(nodes.at(place), request) for place in able]


@laws
@given(st.lists(st.tuples(st.integers(1, 2 * FIRST_PLACES), clusters(sound=True)), max_size=3 * FIRST_PLACES), requests(), seeds)
def test_nodes_that_were_kept_are_as_nodes_put_in_anew(
    changes: list[tuple[int, ClusterView]], request: PlacementRequest, seed: int
) -> None:
    """What a node had before it changed, or a node that had its place before, would decide."""
    kept, truth = Fleet(), dict[str, NodeView]()
    for number, cluster in changes:
        node_id = f"n{number}"
        if node_id in truth and number % 3 == 0:
            kept.drop(node_id)
            del truth[node_id]
        else:
            sound = cluster.nodes["n9"]
            truth[node_id] = replace(sound, node=replace(sound.node, node_id=node_id))
            kept.put(truth[node_id])
    tried = kept.copy()
    for node_id in truth:
        tried.drop(node_id)
    assert list(kept) == [truth[node_id] for node_id in sorted(truth)]
    asked = replace(request, local_volumes=())
    assert place(ClusterView(1, kept), asked, SPREAD, seed) == place(ClusterView(1, Fleet(truth.values())), asked, SPREAD, seed)
    assert isinstance(place(ClusterView(1, tried), asked, SPREAD, seed), NoFit)


@laws
@given(clusters(), requests(memory_mib_max=12000), seeds)
def test_the_memory_proposed_is_the_largest_that_fits(view: ClusterView, request: PlacementRequest, seed: int) -> None:
    """The advice would fail when followed, or would promise less than there is."""
    result = place(view, request, SPREAD, seed)
    if not isinstance(result, NoFit):
        return
    told = explain(request, result)
    event(f"hint: {told.largest_memory_mib > 0}")
    if told.largest_memory_mib:
        assert told.largest_memory_mib < request.memory_mib
        fitting = place(view, replace(request, memory_mib=told.largest_memory_mib), SPREAD, seed)
        assert isinstance(fitting, Placement)
        assert fitting.node_id == told.roomiest_node_id or len(fitting.ranking) > 1
        assert isinstance(place(view, replace(request, memory_mib=told.largest_memory_mib + 1), SPREAD, seed), NoFit)
    elif not request.stored_charge:
        assert isinstance(place(view, replace(request, memory_mib=MEMORY_MIB_MIN), SPREAD, seed), NoFit)


@laws
@given(clusters(), requests(), seeds)
def test_uncordoning_as_proposed_helps(view: ClusterView, request: PlacementRequest, seed: int) -> None:
    """An operator would uncordon a node in vain."""
    result = place(view, request, SPREAD, seed)
    if not isinstance(result, NoFit):
        return
    proposed = explain(request, result).uncordon
    for node_id in proposed:
        opened, node = view.nodes.copy(), view.nodes[node_id]
        opened.put(replace(node, node=replace(node.node, state=NodeState.ACTIVE)))
        after = place(replace(view, nodes=opened), request, SPREAD, seed)
        assert isinstance(after, Placement)
        assert after.node_id == node_id


@laws
@given(clusters(), requests(), seeds)
def test_a_no_is_always_a_sentence(view: ClusterView, request: PlacementRequest, seed: int) -> None:
    """A caller would read half a sentence, or none."""
    result = place(view, request, SPREAD, seed)
    if not isinstance(result, NoFit):
        return
    error = no_capacity(request, result)
    assert "web-9" in error.message
    assert not error.message.endswith(": .")
    assert error.message.endswith(".")
    assert error.fix == "" or error.fix.endswith(".")
    assert all(violation.field.startswith("nodes/n") and violation.description.endswith(".") for violation in error.violations)


@given(st.integers(2, 6), seeds)
def test_equals_are_chosen_by_the_seed(count: int, seed: int) -> None:
    """All deciders would run to the first of equal nodes, and their claims would collide."""
    request = PlacementRequest("web-9", 1, 100, ServiceClass.BURSTABLE)
    view = ClusterView(1, Fleet(roomy(f"n{number}", request) for number in range(count)))
    result = place(view, request, SPREAD, seed)
    assert isinstance(result, Placement)
    names = [node.node.node_id for node in view.nodes]
    assert result.node_id == names[int(tie_break(seed, np.array([spread_of(name) for name in names], np.uint64)).argmin())]


def test_seeds_reach_every_equal_node() -> None:
    """The tie-break would prefer some nodes for ever."""
    request = PlacementRequest("web-9", 1, 100, ServiceClass.BURSTABLE)
    view = ClusterView(1, Fleet(roomy(f"n{number}", request) for number in range(5)))
    results = [place(view, request, SPREAD, seed_of(f"op-{attempt}")) for attempt in range(500)]
    counts = Counter(result.node_id for result in results if isinstance(result, Placement))
    assert len(counts) == 5
    assert min(counts.values()) > 60
