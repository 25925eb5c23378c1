"""Starting what runs and stopping what is off; etags; who does not answer."""

import pytest

from hostler.errors import Conflict, FailedPrecondition, Reason, Unavailable
from hostler.model.records import OperationState
from scheduler.core.decide_nodes import set_state
from scheduler.core.decide_power import reboot_vm, start_vm, stop_vm
from scheduler.core.placement.policy import SPREAD
from scheduler.core.records import NodeState
from scheduler.core.view import Health
from tests.unit.scheduler.core.kept import Cluster, asked


@pytest.fixture
def cluster() -> Cluster:
    """One node, with `on` and `off`."""
    cluster = Cluster()
    cluster.node("n1")
    cluster.running("on")
    cluster.off("off")
    return cluster


def test_what_runs_is_left_alone(cluster: Cluster) -> None:
    """A start that fails because somebody else's came first, or that disturbs a VM that runs."""
    before = cluster.state.vms["on"]
    accepted = start_vm(cluster.state, asked("start"), "on", "", SPREAD)
    cluster.accept(accepted)
    assert (accepted.operation.state, accepted.operation.reason) == (OperationState.SUCCEEDED, "It was running already.")
    assert cluster.state.vms["on"] == before
    again = start_vm(cluster.state, asked("start"), "on", "", SPREAD)
    assert (again.operation, again.transaction.puts) == (accepted.operation, {})


def test_what_is_off_is_left_alone(cluster: Cluster) -> None:
    """The same of a stop."""
    before = cluster.state.vms["off"]
    accepted = stop_vm(cluster.state, asked("stop"), "off", "", 0, force=False)
    cluster.accept(accepted)
    assert (accepted.operation.state, accepted.operation.reason) == (OperationState.SUCCEEDED, "It was off already.")
    assert cluster.state.vms["off"] == before


def test_what_is_so_already_does_not_mind_an_old_etag(cluster: Cluster) -> None:
    """A repeat, after its answer was lost, that is refused because of what the first one did."""
    assert start_vm(cluster.state, asked("start"), "on", "1", SPREAD).operation.done
    assert stop_vm(cluster.state, asked("stop"), "off", "1", 0, force=False).operation.done
    cluster.write(set_state(cluster.state, "n1", NodeState.CORDONED, ""))
    assert set_state(cluster.state, "n1", NodeState.CORDONED, "1") is None


def test_what_changes_does_mind(cluster: Cluster) -> None:
    """A change made on a state that its caller has never seen."""
    with pytest.raises(Conflict):
        start_vm(cluster.state, asked("start"), "off", "1", SPREAD)
    with pytest.raises(Conflict):
        stop_vm(cluster.state, asked("stop"), "on", "1", 0, force=False)
    with pytest.raises(Conflict):
        set_state(cluster.state, "n1", NodeState.CORDONED, "99")


def test_nobody_is_told_that_a_vm_of_a_silent_node_runs(cluster: Cluster) -> None:
    """ "It was running already", of a VM that went down with its host an hour ago."""
    cluster.state.health = {"n1": Health.SILENT}
    with pytest.raises(Unavailable) as refused:
        start_vm(cluster.state, asked("start"), "on", "", SPREAD)
    assert refused.value.reason is Reason.NODE_UNREACHABLE


def test_a_vm_in_hand_is_refused(cluster: Cluster) -> None:
    """Two operations on one VM."""
    cluster.accept(stop_vm(cluster.state, asked("stop"), "on", "", 0, force=False))
    with pytest.raises(FailedPrecondition) as refused:
        start_vm(cluster.state, asked("start"), "on", "", SPREAD)
    assert refused.value.reason is Reason.VM_BUSY


def test_what_is_off_cannot_be_rebooted(cluster: Cluster) -> None:
    with pytest.raises(FailedPrecondition) as refused:
        reboot_vm(cluster.state, asked("reboot"), "off", "", force=False)
    assert refused.value.reason is Reason.VM_NOT_RUNNING
