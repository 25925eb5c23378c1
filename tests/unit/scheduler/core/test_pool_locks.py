"""Between which nodes the locks of a shared pool are relied on: proved by a probe of two nodes, for one boot of each, and by nothing else."""

from dataclasses import replace

import pytest

from hostler.model.node import NodeReport, PoolFacts
from scheduler.core.decide_nodes import register, take_report
from scheduler.core.pool_locks import Probe, locked_between, next_probe, probed
from scheduler.core.pool_promise import DOWNTIME_MS, LiveMove, LockKind, pool_ids, promise
from scheduler.core.records import LocksAcross
from scheduler.core.view import Health
from tests.unit.scheduler.core.kept import NAS, Cluster

LOCAL = replace(NAS, pool_id="ssd", shared=False, fingerprint="", filesystem="ext4")
NO_LOCKS = replace(NAS, ofd_locks=False)
BROKEN = "A lock that n1 holds does not keep n2 out."


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    for node_id in ("n1", "n2", "n3"):
        cluster.node(node_id)
    return cluster


def probe(cluster: Cluster, why_not: str = "") -> Probe:
    """Carry out what is to be probed next."""
    found = next_probe(cluster.state, ())
    assert found is not None
    assert cluster.write(probed(cluster.state, found, why_not))
    return found


def across(cluster: Cluster) -> dict[str, LocksAcross]:
    return {node_id: kept.record.pools[0].across for node_id, kept in cluster.state.nodes.items()}


def report(node_id: str, *pools: PoolFacts) -> NodeReport:
    return NodeReport(node_id, {}, {}, {}, {}, pools or (NAS,), (), "TCG", "qemu", "1", "dac", 0, hypervisor_down=False, reason="")


def test_every_node_is_probed_with_another_until_all_are_proved(cluster: Cluster) -> None:
    """A node that is never probed waits two seconds in every handoff; one that is probed with itself proves nothing."""
    assert locked_between(cluster.state, ["nas"], ("n1", "n2")) == ()
    first, second = probe(cluster), probe(cluster)
    assert (first.node_id, first.partner_id, second.node_id, second.partner_id) == ("n1", "n2", "n3", "n1")
    assert next_probe(cluster.state, ()) is None
    assert locked_between(cluster.state, ["nas", "nas"], ("n1", "n2", "n3")) == ("nas",)


def test_a_node_that_fails_with_a_proved_one_is_at_fault_itself(cluster: Cluster) -> None:
    """One host mounts with `nolock`, and every handoff of the cluster becomes slow; or its own become unsafe."""
    probe(cluster)
    probe(cluster, BROKEN)
    assert across(cluster) == {"n1": LocksAcross.PROVED, "n2": LocksAcross.PROVED, "n3": LocksAcross.REFUTED}
    assert locked_between(cluster.state, ["nas"], ("n1", "n2")) == ("nas",)
    assert locked_between(cluster.state, ["nas"], ("n1", "n3")) == ()


def test_two_that_fail_with_each_other_are_both_refuted_until_a_third_tells(cluster: Cluster) -> None:
    """The fault of one of two first nodes that is laid on both for ever."""
    probe(cluster, BROKEN)
    assert across(cluster)["n1"] is across(cluster)["n2"] is LocksAcross.REFUTED
    third = probe(cluster)
    assert (third.node_id, third.partner_id) == ("n3", "n1")
    assert across(cluster) == {"n1": LocksAcross.PROVED, "n2": LocksAcross.REFUTED, "n3": LocksAcross.PROVED}
    again = next_probe(cluster.state, {("nas", "n2")})
    assert again is not None
    assert (again.node_id, again.partner_id) == ("n2", "n1")


def test_the_word_holds_for_one_boot_of_one_file_system(cluster: Cluster) -> None:
    """What was proved of a mount that is gone."""
    probe(cluster)
    cluster.write(take_report(cluster.state, report("n1", replace(NAS, free_mib=1, images={}))))
    assert across(cluster)["n1"] is LocksAcross.PROVED, "forgotten at every report"
    cluster.write(register(cluster.state, report("n1"), "boot-1", "n1:7500")[1])
    assert across(cluster)["n1"] is LocksAcross.PROVED, "forgotten at the agent's restart"
    late = next_probe(cluster.state, {("nas", "n1")})
    assert late is not None
    cluster.write(register(cluster.state, report("n1"), "boot-2", "n1:7500")[1])
    assert across(cluster)["n1"] is LocksAcross.UNKNOWN
    assert probed(cluster.state, late, "") is None, "the word is about an earlier boot"
    probe(cluster)
    cluster.write(take_report(cluster.state, report("n1", replace(NAS, fingerprint="fs-9"))))
    assert across(cluster)["n1"] is LocksAcross.UNKNOWN
    assert locked_between(cluster.state, ["nas"], ("n1", "n2")) == ()


def test_what_is_declared_or_found_to_have_no_locks_is_never_probed_nor_relied_on(cluster: Cluster) -> None:
    """`locks = "none"` that changes nothing, or is forgotten once it is taken back."""
    probe(cluster)
    cluster.write(take_report(cluster.state, report("n1", NO_LOCKS)))
    assert locked_between(cluster.state, ["nas"], ("n1", "n2")) == ()
    chosen = next_probe(cluster.state, {("nas", "n1"), ("nas", "n2")})
    assert chosen is not None
    assert "n1" not in (chosen.node_id, chosen.partner_id)
    cluster.write(take_report(cluster.state, report("n1")))
    assert across(cluster)["n1"] is LocksAcross.UNKNOWN


def test_only_nodes_that_answer_and_see_the_file_system_are_asked(cluster: Cluster) -> None:
    """A probe that waits for a silent node while others could be probed."""
    cluster.state.health = {**cluster.state.health, "n1": Health.SILENT}
    found = next_probe(cluster.state, ())
    assert found is not None
    assert (found.node_id, found.partner_id) == ("n2", "n3")
    assert next_probe(cluster.state, (), {("nas", "n3"), ("nas", "n2")}) is None
    lonely = Cluster()
    lonely.node("n1")
    lonely.node("n2", replace(NAS, fingerprint="another"))
    assert next_probe(lonely.state, ()) is None


def test_the_weakest_node_decides_what_a_pool_promises(cluster: Cluster) -> None:
    """A pool that is shown to move VMs fast, and does so between two of its three nodes."""
    seen = promise(cluster.state, "nas")
    assert seen is not None
    assert (seen.locks, seen.live_move, seen.node_ids) == (LockKind.UNKNOWN, LiveMove.BY_WORD, ("n1", "n2", "n3"))
    probe(cluster)
    probe(cluster)
    seen = promise(cluster.state, "nas")
    assert seen is not None
    assert (seen.locks, seen.live_move, seen.reason) == (LockKind.OFD, LiveMove.BY_LOCKS, "Proved between n1, n2, n3.")
    cluster.write(take_report(cluster.state, report("n2", NO_LOCKS)))
    seen = promise(cluster.state, "nas")
    assert seen is not None
    assert (seen.locks, seen.live_move) == (LockKind.NONE, LiveMove.BY_WORD)
    assert seen.reason.startswith("n2: ")


def test_what_a_pool_has_is_what_the_account_says(cluster: Cluster) -> None:
    """Figures that differ from those by which creates are accepted."""
    cluster.write(take_report(cluster.state, report("n1", replace(NAS, foreign_mib=500))))
    cluster.running("web")
    seen = promise(cluster.state, "nas")
    assert seen is not None
    claimed = cluster.state.shared_pools["nas"].record.claimed["pool_mib/nas"]
    assert claimed > 0
    assert (seen.total_mib, seen.foreign_mib, seen.claimed_mib) == (10_000, 500, claimed)
    assert seen.free_mib == 10_000 - 500 - claimed
    assert seen.images == (("guest", 300),)


def test_directories_of_one_name_are_told_as_one_whose_disks_are_copied() -> None:
    """Two hosts' own disks that look like storage which both have."""
    cluster = Cluster()
    cluster.node("n1", LOCAL)
    cluster.node("n2", replace(LOCAL, total_mib=5_000))
    seen = promise(cluster.state, "ssd")
    assert seen is not None
    assert (seen.shared, seen.node_ids, seen.total_mib, seen.filesystem) == (False, ("n1", "n2"), 15_000, "ext4")
    assert seen.live_move is LiveMove.BY_COPY
    assert 0 < DOWNTIME_MS[seen.live_move][0] < DOWNTIME_MS[seen.live_move][1]
    assert pool_ids(cluster.state) == ["ssd"]
    assert promise(cluster.state, "other") is None


def test_another_file_system_under_the_name_is_told_and_takes_no_part(cluster: Cluster) -> None:
    """A mount that is missing on one node, shown as if that node had the pool."""
    cluster.write(take_report(cluster.state, report("n3", replace(NAS, fingerprint="elsewhere"))))
    seen = promise(cluster.state, "nas")
    assert seen is not None
    assert seen.node_ids == ("n1", "n2")
    assert "n3 has another file system under this name" in seen.reason
