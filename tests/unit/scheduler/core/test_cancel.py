"""A cancel that was answered is heeded: no step forward is taken after it."""

from itertools import pairwise

import pytest

from hostler.errors import FailedPrecondition
from hostler.model.owner import OwnerState
from hostler.model.records import Observed, OperationState
from scheduler.core.decide_migration import migrate_vm
from scheduler.core.decide_power import cancel
from scheduler.core.placement.policy import SPREAD
from scheduler.core.steps import (
    COMMITTED,
    COPYING,
    DEFINED,
    DESTINATION_READY,
    RESERVED,
    ROLLBACK,
    STARTING,
    VOLUMES,
    abort_handoff,
    commit_handoff,
    enter_phase,
    finish_vm,
    let_run,
    remove_vm,
)
from tests.unit.scheduler.core.kept import BY, GONE_WRONG, Cluster, asked

CREATE = ("ACCEPTED", VOLUMES, DEFINED)
MIGRATE = (RESERVED, DESTINATION_READY, COPYING)


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.node("n1")
    cluster.node("n2")
    return cluster


@pytest.mark.parametrize("reached", CREATE)
def test_a_create_that_was_cancelled_does_not_start(cluster: Cluster, reached: str) -> None:
    """A VM that is started although its caller was told that the operation will stop."""
    operation_id = cluster.create("web")
    for come_from, phase in pairwise(CREATE[: CREATE.index(reached) + 1]):
        assert cluster.write(enter_phase(cluster.state, operation_id, come_from, phase, "", BY))
    assert cluster.write(cancel(cluster.state, operation_id))
    following = {"ACCEPTED": VOLUMES, VOLUMES: DEFINED, DEFINED: STARTING}[reached]
    assert not cluster.write(enter_phase(cluster.state, operation_id, reached, following, "", BY, lambda vm: let_run(vm, operation_id)))
    assert not cluster.write(finish_vm(cluster.state, operation_id, reached, Observed.STOPPED, OwnerState.STOPPED, BY))
    assert cluster.write(enter_phase(cluster.state, operation_id, reached, ROLLBACK, "", BY, change_error=GONE_WRONG))
    assert cluster.write(remove_vm(cluster.state, operation_id, ROLLBACK, BY, GONE_WRONG))
    assert cluster.state.operations[operation_id].record.state is OperationState.CANCELLED
    assert not cluster.state.vms
    assert not cluster.state.claims


def test_a_create_that_starts_cannot_be_cancelled(cluster: Cluster) -> None:
    """A cancel that is accepted when it is too late for it."""
    operation_id = cluster.create("web")
    for come_from, phase in ((CREATE[0], CREATE[1]), (CREATE[1], CREATE[2]), (DEFINED, STARTING)):
        assert cluster.write(enter_phase(cluster.state, operation_id, come_from, phase, "", BY))
    with pytest.raises(FailedPrecondition):
        cancel(cluster.state, operation_id)


def migration(cluster: Cluster, reached: str) -> str:
    cluster.running("web")
    operation_id = cluster.accept(migrate_vm(cluster.state, asked("move"), "web", "", "", 0, SPREAD))
    for come_from, phase in pairwise(MIGRATE[: MIGRATE.index(reached) + 1]):
        assert cluster.write(enter_phase(cluster.state, operation_id, come_from, phase, "", BY))
    return operation_id


@pytest.mark.parametrize("reached", MIGRATE)
def test_a_migration_that_was_cancelled_goes_no_further(cluster: Cluster, reached: str) -> None:
    """A copy that is begun after the cancel."""
    operation_id = migration(cluster, reached)
    assert cluster.write(cancel(cluster.state, operation_id))
    if reached != COPYING:
        following = MIGRATE[MIGRATE.index(reached) + 1]
        assert not cluster.write(enter_phase(cluster.state, operation_id, reached, following, "", BY))
    assert cluster.write(abort_handoff(cluster.state, operation_id, reached, GONE_WRONG, BY))


def test_a_commit_that_won_against_a_cancel_goes_on(cluster: Cluster) -> None:
    """A migration that waits for ever between a cancel that came too late and a commit that has happened."""
    operation_id = migration(cluster, COPYING)
    vm = cluster.state.vms["web"]
    assert cluster.write(cancel(cluster.state, operation_id))
    assert cluster.write(commit_handoff(cluster.state, vm.record.uid, operation_id, vm.revision))
    assert not cluster.write(abort_handoff(cluster.state, operation_id, COPYING, GONE_WRONG, BY))
    assert cluster.write(enter_phase(cluster.state, operation_id, COPYING, COMMITTED, "", BY))
