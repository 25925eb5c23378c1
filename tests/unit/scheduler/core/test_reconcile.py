"""What is proposed for a VM by what the nodes say: each row by name, and the laws over every combination."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest

from hostler.model.node import VMPower, VMStatus
from hostler.model.owner import OwnerState
from hostler.model.records import VMRecord
from scheduler.core.reconcile import Deed, reconcile
from tests.unit.scheduler.core.kept import Cluster

EPOCH = 2


@pytest.fixture(scope="module")
def web() -> VMRecord:
    cluster = Cluster()
    cluster.node("n1")
    cluster.running("web")
    record = cluster.state.vms["web"].record
    assert (record.owner.node_id, record.owner.epoch) == ("n1", EPOCH)
    return record


def stopped(vm: VMRecord) -> VMRecord:
    return replace(vm, owner=replace(vm.owner, state=OwnerState.STOPPED))


def has(power: VMPower, *, defined: bool = True, epoch: int = EPOCH) -> VMStatus:
    return VMStatus("uid-web", epoch, defined, power)


ON, OFF, PAUSED = has(VMPower.ON), has(VMPower.OFF), has(VMPower.PAUSED)
NOTHING = has(VMPower.OFF, defined=False, epoch=0)
ROWS = [
    ("as it should be", False, ON, NOTHING, []),
    ("stopped, as it should be", True, OFF, NOTHING, []),
    ("it does not run", False, OFF, NOTHING, [(Deed.NOTE_STOPPED, "n1", False)]),
    ("it is paused", False, PAUSED, NOTHING, [(Deed.RESUME, "n1", False)]),
    ("it runs and should not", True, ON, NOTHING, [(Deed.END_COPY, "n1", True)]),
    ("its owner has lost its definition", True, NOTHING, NOTHING, [(Deed.DEFINE, "n1", False)]),
    ("another node is charged for it", False, ON, OFF, [(Deed.FORGET, "n2", False)]),
    ("a stray paused copy beside the one that runs", False, ON, PAUSED, [(Deed.END_COPY, "n2", False)]),
    ("a stray paused copy, and nothing runs", True, OFF, PAUSED, [(Deed.END_COPY, "n2", True)]),
    ("two run", False, ON, ON, [(Deed.END_COPY, "n2", True)]),
    ("nobody knows whether it runs, and another runs it", False, None, ON, [(Deed.END_COPY, "n2", True)]),
]


@pytest.mark.parametrize(("off", "home", "away", "actions"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_each_row(off: bool, home: VMStatus, away: VMStatus, actions: list[tuple[Deed, str, bool]], web: VMRecord) -> None:
    verdict = reconcile(stopped(web) if off else web, {"n1": home, "n2": away})
    assert [(action.deed, action.node_id, action.destructive) for action in verdict.actions] == actions


def every() -> Iterator[VMStatus | None]:
    yield None
    for power, defined in product(VMPower, (True, False)):
        yield has(power, defined=defined)


def test_the_owners_guest_that_runs_is_never_touched(web: VMRecord) -> None:
    """A guest that is ended although the record lets it run."""
    for away in every():
        assert all(action.node_id != "n1" for action in reconcile(web, {"n1": ON, "n2": away}).actions)


def test_memory_is_never_lost_unasked(web: VMRecord) -> None:
    """A copy that executes, or the last one there is, is ended without anybody's leave."""
    for vm, home, away in product((web, stopped(web)), every(), every()):
        for action in reconcile(vm, {"n1": home, "n2": away}).actions:
            status = {"n1": home, "n2": away}[action.node_id]
            if action.deed is Deed.END_COPY and not action.destructive:
                assert status is not None
                assert (status.power, home is not None and home.power is VMPower.ON) == (VMPower.PAUSED, True)


def test_what_does_not_answer_is_named_and_left_alone(web: VMRecord) -> None:
    """A node that is judged by its silence."""
    for vm, away in product((web, stopped(web)), every()):
        verdict = reconcile(vm, {"n1": None, "n2": away})
        assert "n1" in verdict.unknown
        assert all(action.node_id != "n1" for action in verdict.actions)


def test_an_operations_vm_and_one_from_the_future_are_left_alone(web: VMRecord) -> None:
    """A copy that is ended in the middle of its migration; or by a cluster that was restored from an old snapshot."""
    busy = reconcile(replace(web, operation_id="op-1"), {"n1": OFF, "n2": ON})
    future = reconcile(web, {"n1": OFF, "n2": has(VMPower.ON, epoch=EPOCH + 1)})
    assert (busy.actions, future.actions) == ((), ())
    assert "op-1" in busy.unknown
    assert "newer epoch" in future.unknown
