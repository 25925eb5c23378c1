"""A VM that is off changes its owner: only on a word about the very record, only once, and nothing is charged twice or for ever."""

import pytest

from hostler.errors import FailedPrecondition, NoCapacity, Reason
from hostler.model.owner import OwnerState
from hostler.model.records import OperationState
from scheduler.core.claims import audit
from scheduler.core.cold_steps import abort_cold, change_owner, finish_cold, finish_cold_abort, relocated
from scheduler.core.decide_migration import migrate_vm
from scheduler.core.decide_power import cancel, start_vm
from scheduler.core.placement.policy import SPREAD
from scheduler.core.records import ClaimKind
from scheduler.core.steps import COMMITTED, DEFINED, RESERVED, enter_phase
from tests.unit.scheduler.core.kept import BY, GONE_WRONG, Cluster, asked


@pytest.fixture
def cluster() -> Cluster:
    """`web` is off on its node, and there is another node."""
    cluster = Cluster()
    cluster.node("n1")
    cluster.off("web")
    cluster.node("n2")
    return cluster


def defined(cluster: Cluster) -> str:
    """A move that has come to where the source is asked."""
    operation_id = cluster.accept(migrate_vm(cluster.state, asked("move"), "web", "", "", 0, SPREAD))
    assert cluster.write(enter_phase(cluster.state, operation_id, RESERVED, DEFINED, "", BY))
    return operation_id


def sums_agree(cluster: Cluster) -> bool:
    state = cluster.state
    return not audit(
        {node: kept.record for node, kept in state.ledgers.items()},
        [kept.record for kept in state.claims.values()],
        {pool: kept.record for pool, kept in state.shared_pools.items()},
        [kept.record for kept in state.volumes.values()],
    )


def test_the_owner_changes_under_a_new_epoch_and_one_claim_is_left(cluster: Cluster) -> None:
    """A VM that two nodes are charged for, or that its old owner's commands still reach."""
    operation_id = defined(cluster)
    before = cluster.state.vms["web"]
    assert cluster.write(change_owner(cluster.state, operation_id, before.revision, BY))
    owner = cluster.state.vms["web"].record.owner
    assert (owner.node_id, owner.state, owner.epoch) == ("n2", OwnerState.STOPPED, before.record.owner.epoch + 1)
    assert cluster.write(finish_cold(cluster.state, operation_id, BY))
    assert cluster.state.operations[operation_id].record.state is OperationState.SUCCEEDED
    assert [(node, kept.record.kind) for (node, _), kept in cluster.state.claims.items()] == [("n2", ClaimKind.RUN)]
    assert sums_agree(cluster)
    cluster.accept(start_vm(cluster.state, asked("start"), "web", "", SPREAD))


def test_a_word_about_another_record_moves_nothing(cluster: Cluster) -> None:
    """A source that was asked before the record became what it is now."""
    operation_id = defined(cluster)
    assert change_owner(cluster.state, operation_id, cluster.state.vms["web"].revision - 1, BY) is None


def test_a_vm_that_may_run_is_never_relocated(cluster: Cluster) -> None:
    """A second writer, made by whoever calls this without the proof."""
    cluster.running("on")
    vm = cluster.state.vms["on"].record
    with pytest.raises(ValueError, match="cannot be changed while it may run"):
        relocated(vm, "n2", "boot:1", vm.domain.charged)


def test_a_cancel_that_was_answered_is_heeded(cluster: Cluster) -> None:
    """A VM that moves although its caller was told that it would not."""
    operation_id = defined(cluster)
    before = cluster.state.vms["web"]
    assert cluster.write(cancel(cluster.state, operation_id))
    assert change_owner(cluster.state, operation_id, before.revision, BY) is None
    assert cluster.write(abort_cold(cluster.state, operation_id, GONE_WRONG, BY))
    assert cluster.write(finish_cold_abort(cluster.state, operation_id, BY))
    after = cluster.state.vms["web"].record
    assert (after.owner, after.operation_id) == (before.record.owner, "")
    assert [node for node, _ in cluster.state.claims] == ["n1"]
    assert sums_agree(cluster)


def test_after_the_owner_changed_there_is_no_way_back(cluster: Cluster) -> None:
    """A VM of n2 that is given back to n1, which has forgotten it."""
    operation_id = defined(cluster)
    assert cluster.write(change_owner(cluster.state, operation_id, cluster.state.vms["web"].revision, BY))
    assert cluster.state.operations[operation_id].record.phase == COMMITTED
    assert abort_cold(cluster.state, operation_id, GONE_WRONG, BY) is None
    with pytest.raises(FailedPrecondition) as refused:
        cancel(cluster.state, operation_id)
    assert refused.value.reason is Reason.NOT_CANCELLABLE


def test_one_that_does_not_fit_says_why_for_every_node(cluster: Cluster) -> None:
    """A move that is accepted onto a node without room, because the VM does not run anyway."""
    cluster.node("n2", memory_mib=256)
    with pytest.raises(NoCapacity) as refused:
        migrate_vm(cluster.state, asked("move"), "web", "", "", 0, SPREAD)
    assert "it is there now" in refused.value.message
