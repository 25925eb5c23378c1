"""Fencing a node: who is refused, what becomes of its VMs, where they start again, what is owed, and how the node comes back."""

from dataclasses import replace

import pytest

from hostler.errors import FailedPrecondition, NoCapacity, Reason
from hostler.model.domain import VolumeSpec
from hostler.model.node import NodeReport, PoolFacts
from hostler.model.owner import OwnerState
from hostler.model.quantities import CPU_MILLI, memory_key
from hostler.model.records import Observed, OperationState
from hostler.model.wishes import NewDisk
from scheduler.core.claims import recount
from scheduler.core.decide_fence import BATCH, fence_node, finish_fence, stop_vms
from scheduler.core.decide_migration import migrate_vm
from scheduler.core.decide_nodes import register, set_state, take_report
from scheduler.core.decide_power import start_vm
from scheduler.core.drain import claim_places, drain_node
from scheduler.core.owed import due, owe, paid
from scheduler.core.placement.policy import SPREAD
from scheduler.core.records import NodeState
from scheduler.core.steps import RESERVED, abort_handoff, commit_handoff, finish_abort
from scheduler.core.view import Health
from tests.unit.scheduler.core.kept import BY, GONE_WRONG, Cluster, asked

LOCAL = PoolFacts("local", shared=False, fingerprint="", total_mib=10_000, free_mib=10_000, ofd_locks=True)


def silent(cluster: Cluster, node_id: str) -> None:
    cluster.state.health = {**cluster.state.health, node_id: Health.SILENT}


def fenced(cluster: Cluster, node_id: str) -> str:
    """Silent, then fenced; the operation's id."""
    silent(cluster, node_id)
    return cluster.accept(fence_node(cluster.state, asked(f"fence {node_id}"), node_id, ""))


def report(node_id: str) -> NodeReport:
    return NodeReport(node_id, {CPU_MILLI: 4000, memory_key(0): 4096}, {}, {}, {}, (), (), "TCG", "qemu", "1", "dac", 0, False, "")


@pytest.fixture
def cluster() -> Cluster:
    """`web` runs on n1; n2 came later."""
    cluster = Cluster()
    cluster.node("n1")
    cluster.running("web")
    cluster.node("n2")
    return cluster


def test_a_node_that_answers_is_not_fenced(cluster: Cluster) -> None:
    """Two running copies, on the word of somebody who was at the wrong host."""
    with pytest.raises(FailedPrecondition) as refused:
        fence_node(cluster.state, asked("fence"), "n1", "")
    assert refused.value.reason is Reason.NODE_ANSWERS


def test_its_vms_are_stopped_and_start_on_another_node(cluster: Cluster) -> None:
    """A VM that stays with a node that is gone, is charged twice, or starts under the epoch that its old copy has."""
    before = cluster.state.vms["web"].record
    operation_id = fenced(cluster, "n1")
    assert finish_fence(cluster.state, operation_id, BY) is None, "its VM is not stopped yet"
    assert cluster.write(stop_vms(cluster.state, operation_id))
    assert stop_vms(cluster.state, operation_id) is None
    assert cluster.write(finish_fence(cluster.state, operation_id, BY))
    stopped = cluster.state.vms["web"].record
    assert (stopped.owner.state, stopped.observed, "fenced" in stopped.reason) == (OwnerState.STOPPED, Observed.CRASHED, True)
    assert cluster.state.operations[operation_id].record.state is OperationState.SUCCEEDED
    cluster.accept(start_vm(cluster.state, asked("start"), "web", "", SPREAD))
    moved = cluster.state.vms["web"].record.owner
    assert (moved.node_id, moved.state) == ("n2", OwnerState.STOPPED)
    assert moved.epoch > before.owner.epoch
    assert set(cluster.state.claims) == {("n2", "web")}
    sums = recount(kept.record for kept in cluster.state.claims.values())
    for node_id, ledger in cluster.state.ledgers.items():
        assert {key: amount for key, amount in ledger.record.claimed.items() if amount} == sums.get(node_id, {})


def test_a_place_that_a_drain_holds_for_it_is_not_claimed_twice(cluster: Cluster) -> None:
    """A start that is refused again and again, because the drain of the node that was then fenced has not given its places back yet."""
    drain = cluster.accept(drain_node(cluster.state, asked("drain"), "n1", "", 0, SPREAD))
    assert cluster.write(claim_places(cluster.state, drain, SPREAD, BY))
    assert ("n2", "web") in cluster.state.claims
    assert cluster.write(stop_vms(cluster.state, fenced(cluster, "n1")))
    with pytest.raises(NoCapacity) as refused:
        start_vm(cluster.state, asked("start"), "web", "", SPREAD)
    assert "a place is held for it there" in refused.value.message
    cluster.node("n3")
    assert cluster.write(start_vm(cluster.state, asked("start again"), "web", "", SPREAD).transaction)
    assert cluster.state.vms["web"].record.owner.node_id == "n3"


def test_a_vm_whose_disk_is_on_the_fenced_node_is_not_started_without_it() -> None:
    """A VM that starts elsewhere with nothing on its disk."""
    cluster = Cluster()
    cluster.node("n1", LOCAL)
    cluster.running("db", disk=NewDisk("local", 100, "", "uid-db-disk0"))
    cluster.node("n2", LOCAL)
    cluster.write(stop_vms(cluster.state, fenced(cluster, "n1")))
    with pytest.raises(FailedPrecondition) as refused:
        start_vm(cluster.state, asked("start"), "db", "", SPREAD)
    assert refused.value.reason is Reason.NOT_MIGRATABLE
    assert "n1" in refused.value.message


def test_a_commit_on_its_way_from_a_fenced_source_is_refused_once_its_vm_is_stopped(cluster: Cluster) -> None:
    """A VM that is stopped in the records, perhaps started elsewhere, and resumed by a copy that its old node had sent."""
    migration = cluster.accept(migrate_vm(cluster.state, asked("migrate"), "web", "", "n2", 0, SPREAD))
    kept = cluster.state.vms["web"]
    late = commit_handoff(cluster.state, "uid-web", migration, kept.revision)
    fenced(cluster, "n1")
    handed = replace(kept.record, owner=replace(kept.record.owner, state=OwnerState.STOPPED), operation_id="")
    assert late is not None
    assert cluster.write(replace(late, puts={key: handed for key in late.puts}))
    assert not cluster.write(late)


def test_vms_in_other_hands_are_left_to_them(cluster: Cluster) -> None:
    """A VM that is stopped in the records while its migration still decides who owns it."""
    cluster.accept(migrate_vm(cluster.state, asked("migrate"), "web", "", "n2", 0, SPREAD))
    operation_id = fenced(cluster, "n1")
    assert stop_vms(cluster.state, operation_id) is None
    assert finish_fence(cluster.state, operation_id, BY) is None
    assert cluster.state.vms["web"].record.owner.state is OwnerState.HANDOFF


def test_many_vms_are_stopped_in_pieces_that_the_store_takes() -> None:
    """A node with more VMs than one transaction holds, which could never be fenced."""
    cluster = Cluster()
    cluster.node("n1", memory_mib=1_000_000, cpu_milli=1_000_000)
    for index in range(BATCH + 1):
        cluster.running(f"vm-{index}")
    operation_id = fenced(cluster, "n1")
    sizes = []
    while (transaction := stop_vms(cluster.state, operation_id)) is not None:
        sizes.append(len(transaction.puts))
        assert cluster.write(transaction)
    assert sizes == [BATCH, 1]
    assert cluster.write(finish_fence(cluster.state, operation_id, BY))


def test_it_is_heard_again_only_when_every_guest_is_laid_down(cluster: Cluster) -> None:
    """A node that was not off after all, whose guests run on while they are started elsewhere, and which is given new ones."""
    fenced(cluster, "n1")
    before = cluster.state.nodes["n1"].record
    record, transaction = register(cluster.state, report("n1"), "boot-1", "n1:7500")
    assert (record.state, transaction) == (NodeState.FENCED, None)
    assert register(cluster.state, report("n1"), "boot-2", "n1:7500")[1] is None
    assert take_report(cluster.state, report("n1")) is None
    with pytest.raises(FailedPrecondition) as refused:
        set_state(cluster.state, "n1", NodeState.ACTIVE, "")
    assert refused.value.reason is Reason.NODE_FENCED
    cluster.write(register(cluster.state, report("n1"), "boot-1", "n1:7500", laid_down=True)[1])
    after = cluster.state.nodes["n1"].record
    assert (after.state, after.registrations) == (NodeState.CORDONED, before.registrations + 1)
    assert after.incarnation != before.incarnation
    assert set_state(cluster.state, "n1", NodeState.ACTIVE, "") is not None


def test_a_file_on_a_fenced_node_is_owed_until_it_is_back(cluster: Cluster) -> None:
    """A file that lies on a returned node for ever, or a deletion that waits for a node that never returns."""
    fenced(cluster, "n1")
    volume = VolumeSpec("uid-1", "local", 10, "", "qcow2")
    assert cluster.write(owe(cluster.state, "n1", volume))
    assert owe(cluster.state, "n1", volume) is None
    assert due(cluster.state) == []
    cluster.write(register(cluster.state, report("n1"), "boot-2", "n1:7500", laid_down=True)[1])
    (removal,) = due(cluster.state)
    assert (removal.node_id, removal.volume) == ("n1", volume)
    assert cluster.write(paid(cluster.state, removal))
    assert (due(cluster.state), paid(cluster.state, removal)) == ([], None)


def test_fencing_again_is_left_alone(cluster: Cluster) -> None:
    fenced(cluster, "n1")
    again = fence_node(cluster.state, asked("once more"), "n1", "")
    assert (again.operation.state, again.operation.reason) == (OperationState.SUCCEEDED, "It was fenced already.")


def test_a_fence_that_is_not_done_when_its_node_is_back_stops_nothing_more(cluster: Cluster) -> None:
    """A guest that runs while its record says that it is stopped: it was started on the node after that came back."""
    move = cluster.accept(migrate_vm(cluster.state, asked("move"), "web", "", "n2", 0, SPREAD))
    operation_id = fenced(cluster, "n1")
    assert stop_vms(cluster.state, operation_id) is None, "its VM is in the hands of the move"
    assert cluster.write(register(cluster.state, report("n1"), "boot-2", "n1:7500", laid_down=True)[1])
    assert cluster.write(abort_handoff(cluster.state, move, RESERVED, GONE_WRONG, BY))
    assert cluster.write(finish_abort(cluster.state, move, True, BY)), "it runs on n1"
    assert stop_vms(cluster.state, operation_id) is None
    assert cluster.write(finish_fence(cluster.state, operation_id, BY))
    assert cluster.state.vms["web"].record.owner.state is OwnerState.RUNNING
