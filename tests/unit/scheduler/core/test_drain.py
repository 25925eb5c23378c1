"""A drain's decisions: what is planned and held, what follows from how each step ended, and that nothing stays held or stopped."""

from dataclasses import replace

import pytest

from hostler.errors import FailedPrecondition, Reason, Unavailable
from hostler.model.journal import ABORTING, ACCEPTED, COMMITTED, COPYING, DEFINED, MOVING, RELEASING, RESERVED, STARTING, STOPPING
from hostler.model.node import PoolFacts
from hostler.model.owner import OwnerState
from hostler.model.quantities import memory_key
from hostler.model.records import MoveFallback, Observed, OperationState, Priority, StoredError
from hostler.model.wishes import NewDisk
from scheduler.core.claims import audit
from scheduler.core.cold_steps import abort_cold, change_owner, finish_cold, finish_cold_abort
from scheduler.core.decide_migration import migrate_vm
from scheduler.core.decide_nodes import set_state
from scheduler.core.decide_power import cancel, delete_vm
from scheduler.core.drain import advance, claim_places, drain_node, finish_drain, release_places, stop_drain
from scheduler.core.placement.policy import SPREAD
from scheduler.core.records import ClaimKind, DrainEntry, DrainState, NodeState, OperationRecord, Verb, node_key, vm_key
from scheduler.core.steps import (
    abort_handoff,
    commit_handoff,
    enter_phase,
    finish_abort,
    finish_migration,
    finish_vm,
    let_run,
    remove_vm,
)
from scheduler.core.transaction import Transaction
from scheduler.core.view import Health
from tests.unit.scheduler.core.kept import BY, GONE_WRONG, NAS, Cluster, asked

BROKE = StoredError("FailedPrecondition", "MIGRATION_FAILED", "The link broke.", "Mend it.")
STORE_MOST = 128


class Drained(Cluster):
    """n1 with VMs, and others; `moves` are carried out by hand."""

    def drain(self, parallel: int = 0) -> str:
        """Accepted, with every place held."""
        operation_id = self.accept(drain_node(self.state, asked("drain"), "n1", "", parallel, SPREAD))
        while self.state.operations[operation_id].record.phase != MOVING:
            transaction = claim_places(self.state, operation_id, SPREAD, BY)
            assert transaction is not None
            assert len(transaction.guards) < STORE_MOST
            assert self.write(transaction)
        return operation_id

    def advance(self, operation_id: str) -> None:
        """Everything that can be done now."""
        while self.write(advance(self.state, operation_id, SPREAD, BY)):
            assert self.sums_agree()

    def release(self, operation_id: str) -> None:
        while self.write(release_places(self.state, operation_id, SPREAD, BY)):
            assert self.sums_agree()

    def op(self, operation_id: str) -> OperationRecord:
        return self.state.operations[operation_id].record

    def entry(self, operation_id: str, vm_id: str) -> DrainEntry:
        drain = self.op(operation_id).drain
        assert drain is not None
        return next(entry for entry in drain.entries if entry.vm_id == vm_id)

    def states(self, operation_id: str) -> dict[str, DrainState]:
        drain = self.op(operation_id).drain
        assert drain is not None
        return {entry.vm_id: entry.state for entry in drain.entries}

    def child(self, operation_id: str, vm_id: str = "web") -> OperationRecord:
        return self.op(self.entry(operation_id, vm_id).operation_id)

    def permit_restart(self, vm_id: str = "web") -> None:
        kept = self.state.vms[vm_id]
        changed = replace(kept.record, move_fallback=MoveFallback.RESTART)
        assert self.write(Transaction({vm_key(vm_id): kept.revision}, {vm_key(vm_id): changed}))

    def acceleration(self, node_id: str, acceleration: str) -> None:
        kept = self.state.nodes[node_id]
        changed = replace(kept.record, acceleration=acceleration)
        assert self.write(Transaction({node_key(node_id): kept.revision}, {node_key(node_id): changed}))

    # ---- what the flows of the children do

    def moved(self, child: str) -> None:
        """A live move, to its end."""
        vm = self.state.vms[self.op(child).target_id].record
        assert self.write(enter_phase(self.state, child, RESERVED, COPYING, "", BY))
        assert self.write(commit_handoff(self.state, vm.uid, child, self.state.vms[vm.vm_id].revision))
        assert self.write(enter_phase(self.state, child, COPYING, COMMITTED, "", BY))
        migration = self.op(child).migration
        assert migration is not None
        assert self.write(finish_migration(self.state, child, migration, BY))

    def failed(self, child: str) -> None:
        """A live move that is taken back."""
        assert self.write(abort_handoff(self.state, child, RESERVED, BROKE, BY))
        assert self.write(finish_abort(self.state, child, True, BY))

    def stopped(self, child: str) -> None:
        assert self.write(enter_phase(self.state, child, ACCEPTED, STOPPING, "", BY))
        assert self.write(finish_vm(self.state, child, STOPPING, Observed.STOPPED, OwnerState.STOPPED, BY))

    def moved_cold(self, child: str) -> None:
        assert self.write(enter_phase(self.state, child, RESERVED, DEFINED, "", BY))
        assert self.write(change_owner(self.state, child, self.state.vms[self.op(child).target_id].revision, BY))
        assert self.write(finish_cold(self.state, child, BY))

    def failed_cold(self, child: str) -> None:
        assert self.write(abort_cold(self.state, child, BROKE, BY))
        assert self.op(child).phase == ABORTING
        assert self.write(finish_cold_abort(self.state, child, BY))

    def started(self, child: str) -> None:
        assert self.write(enter_phase(self.state, child, ACCEPTED, STARTING, "", BY, lambda vm: let_run(vm, child)))
        assert self.write(finish_vm(self.state, child, STARTING, Observed.RUNNING, OwnerState.RUNNING, BY))

    def sums_agree(self) -> bool:
        state = self.state
        return not audit(
            {node: kept.record for node, kept in state.ledgers.items()},
            [kept.record for kept in state.claims.values()],
            {pool: kept.record for pool, kept in state.shared_pools.items()},
            [kept.record for kept in state.volumes.values()],
        )

    def kinds(self) -> list[tuple[str, ClaimKind]]:
        return sorted((node_id, kept.record.kind) for (node_id, _), kept in self.state.claims.items())


@pytest.fixture
def cluster() -> Drained:
    """`web` runs on n1; n2 and n3 have room."""
    cluster = Drained()
    cluster.node("n1")
    cluster.running("web")
    cluster.node("n2")
    cluster.node("n3")
    return cluster


def test_every_place_is_held_in_as_many_transactions_as_it_takes() -> None:
    """A store that refuses the plan of a large host, two VMs that are promised one place, or a place that nobody counted."""
    cluster = Drained()
    large = PoolFacts("nas", shared=True, fingerprint="fs-1", total_mib=100_000, free_mib=100_000, ofd_locks=True)
    cluster.node("n1", large, memory_mib=200_000, cpu_milli=20_000)
    for number in range(140):
        cluster.off(f"vm-{number:03}")
    for number in range(2, 6):
        cluster.node(f"n{number}", large, memory_mib=585 * 33)
    operation_id = cluster.drain()
    states = list(cluster.states(operation_id).values())
    assert (states.count(DrainState.PLANNED), states.count(DrainState.BLOCKED)) == (132, 8)
    assert cluster.kinds().count(("n2", ClaimKind.HOLD)) == 33
    assert cluster.sums_agree()
    assert "memory short by" in cluster.entry(operation_id, "vm-139").reason
    assert stop_drain(cluster.state, operation_id, BROKE, BY) is not None
    cluster.write(stop_drain(cluster.state, operation_id, BROKE, BY))
    cluster.release(operation_id)
    assert cluster.kinds() == [("n1", ClaimKind.RUN)] * 140
    assert cluster.write(finish_drain(cluster.state, operation_id, BY))
    assert cluster.op(operation_id).state is OperationState.FAILED


def test_nobody_else_is_promised_a_place_that_is_held(cluster: Drained) -> None:
    """A drain that stops in the middle because a new VM took the place of its last one."""
    cluster.node("n2", memory_mib=600)
    cluster.node("n3", memory_mib=100)
    cluster.drain()
    with pytest.raises(Exception, match="0 of 3 nodes can take"):
        cluster.create("new")


def test_a_move_takes_the_place_that_is_held_for_it(cluster: Drained) -> None:
    """A VM that is charged twice at its destination, by the drain and by its move; or a move that somebody asks for and that finds no room."""
    operation_id = cluster.drain(parallel=1)
    destination = cluster.entry(operation_id, "web").destination_node_id
    child = cluster.accept(migrate_vm(cluster.state, asked("move"), "web", "", "", 0, SPREAD))
    assert cluster.kinds() == [("n1", ClaimKind.RUN), (destination, ClaimKind.MIGRATE_IN)]
    cluster.advance(operation_id)
    assert cluster.states(operation_id) == {"web": DrainState.MOVING}, "the drain waits for it as for its own"
    cluster.moved(child)
    cluster.advance(operation_id)
    assert cluster.write(finish_drain(cluster.state, operation_id, BY))
    assert cluster.op(operation_id).state is OperationState.SUCCEEDED
    assert cluster.kinds() == [(destination, ClaimKind.RUN)]


def test_somebody_moves_it_elsewhere_and_the_place_is_given_back(cluster: Drained) -> None:
    """A place that is held for ever for a VM that has gone to another node."""
    operation_id = cluster.drain()
    other = "n3" if cluster.entry(operation_id, "web").destination_node_id == "n2" else "n2"
    cluster.accept(migrate_vm(cluster.state, asked("move"), "web", "", other, 0, SPREAD))
    cluster.advance(operation_id)
    assert cluster.kinds() == [("n1", ClaimKind.RUN), (other, ClaimKind.MIGRATE_IN)]


def test_its_moves_are_low_and_so_many_at_once(cluster: Drained) -> None:
    """A drain that takes every VM in hand at once, or goes before what a person wants now."""
    for number in range(3):
        cluster.node("n2", memory_mib=0)
        cluster.node("n3", memory_mib=0)
        cluster.running(f"more-{number}")
    cluster.node("n2")
    cluster.node("n3")
    operation_id = cluster.drain(parallel=2)
    cluster.advance(operation_id)
    states = list(cluster.states(operation_id).values())
    assert (states.count(DrainState.MOVING), states.count(DrainState.PLANNED)) == (2, 2)
    children = [kept.record for kept in cluster.state.operations.values() if kept.record.verb is Verb.MIGRATE_VM]
    assert {(one.migration.priority, one.migration.named) for one in children if one.migration} == {(Priority.LOW, False)}
    cluster.moved(children[0].operation_id)
    cluster.advance(operation_id)
    assert list(cluster.states(operation_id).values()).count(DrainState.MOVING) == 2


def test_a_destination_that_was_cordoned_is_not_gone_to(cluster: Drained) -> None:
    """A VM that is moved onto the next host that is to be serviced."""
    operation_id = cluster.drain()
    first = cluster.entry(operation_id, "web").destination_node_id
    assert cluster.write(set_state(cluster.state, first, NodeState.CORDONED, ""))
    cluster.advance(operation_id)
    entry = cluster.entry(operation_id, "web")
    assert (entry.state, entry.destination_node_id) == (DrainState.MOVING, "n3" if first == "n2" else "n2")
    assert len(cluster.kinds()) == 2


def test_a_vm_that_is_deleted_is_left_alone(cluster: Drained) -> None:
    """A drain that breaks on a VM that is gone."""
    operation_id = cluster.drain()
    deleting = cluster.accept(delete_vm(cluster.state, asked("delete"), "web", "", force=True))
    cluster.advance(operation_id)
    assert cluster.states(operation_id) == {"web": DrainState.PLANNED}, "in other hands: it waits"
    assert finish_drain(cluster.state, operation_id, BY) is None
    assert cluster.write(remove_vm(cluster.state, deleting, ACCEPTED, BY))
    cluster.advance(operation_id)
    assert cluster.states(operation_id) == {"web": DrainState.SKIPPED}
    assert cluster.write(finish_drain(cluster.state, operation_id, BY))
    assert cluster.op(operation_id).state is OperationState.SUCCEEDED
    assert cluster.kinds() == []


def test_a_move_is_tried_twice_and_then_left(cluster: Drained) -> None:
    """A drain that tries for ever, gives up at the first hiccup, or stops a VM whose owner has not permitted it."""
    operation_id = cluster.drain()
    for _ in range(2):
        cluster.advance(operation_id)
        assert cluster.child(operation_id).verb is Verb.MIGRATE_VM
        cluster.failed(cluster.child(operation_id).operation_id)
    cluster.advance(operation_id)
    entry = cluster.entry(operation_id, "web")
    assert (entry.state, entry.reason, entry.tries) == (DrainState.FAILED, "The link broke.", 2)
    assert cluster.write(finish_drain(cluster.state, operation_id, BY))
    ended = cluster.op(operation_id)
    assert ended.error is not None
    assert (ended.state, ended.error.reason, ended.error.fix) == (OperationState.FAILED, "DRAIN_INCOMPLETE", "Mend it.")
    assert ended.error.message == "1 VM is still on n1, which stays cordoned. web: The link broke."
    assert cluster.kinds() == [("n1", ClaimKind.RUN)]
    assert cluster.state.nodes["n1"].record.state is NodeState.CORDONED


def restarting(cluster: Drained) -> str:
    """A drain that has stopped `web`, after two failures, as its owner permits."""
    cluster.permit_restart()
    operation_id = cluster.drain()
    for _ in range(2):
        cluster.advance(operation_id)
        cluster.failed(cluster.child(operation_id).operation_id)
    cluster.advance(operation_id)
    stop = cluster.child(operation_id)
    assert (stop.verb, stop.stop and stop.stop.force) == (Verb.STOP_VM, False)
    cluster.stopped(stop.operation_id)
    return operation_id


def test_after_two_failures_it_is_stopped_moved_and_started_if_its_owner_permits(cluster: Drained) -> None:
    """A VM that is stopped and not moved, or moved and not started."""
    operation_id = restarting(cluster)
    cluster.advance(operation_id)
    cluster.moved_cold(cluster.child(operation_id).operation_id)
    cluster.advance(operation_id)
    assert cluster.child(operation_id).verb is Verb.START_VM
    cluster.started(cluster.child(operation_id).operation_id)
    cluster.advance(operation_id)
    vm = cluster.state.vms["web"].record
    assert (vm.owner.state, vm.owner.node_id != "n1") == (OwnerState.RUNNING, True)
    assert cluster.states(operation_id) == {"web": DrainState.MOVED}
    assert [kind for _, kind in cluster.kinds()] == [ClaimKind.RUN]


def test_what_was_stopped_and_cannot_be_moved_is_started_where_it_is(cluster: Drained) -> None:
    """A VM that is off because a drain failed."""
    operation_id = restarting(cluster)
    cluster.advance(operation_id)
    cluster.failed_cold(cluster.child(operation_id).operation_id)
    cluster.advance(operation_id)
    cluster.started(cluster.child(operation_id).operation_id)
    cluster.advance(operation_id)
    entry = cluster.entry(operation_id, "web")
    assert (entry.state, entry.reason) == (DrainState.FAILED, "The link broke.")
    assert cluster.state.vms["web"].record.owner.state is OwnerState.RUNNING
    assert cluster.kinds() == [("n1", ClaimKind.RUN)]


def test_what_was_stopped_is_started_although_the_drain_was_cancelled(cluster: Drained) -> None:
    """A VM that is off because somebody cancelled a drain at the wrong moment."""
    operation_id = restarting(cluster)
    assert cluster.write(cancel(cluster.state, operation_id))
    assert advance(cluster.state, operation_id, SPREAD, BY) is None
    assert cluster.write(stop_drain(cluster.state, operation_id, GONE_WRONG, BY))
    cluster.release(operation_id)
    assert cluster.child(operation_id).verb is Verb.START_VM
    cluster.started(cluster.child(operation_id).operation_id)
    cluster.release(operation_id)
    assert cluster.write(finish_drain(cluster.state, operation_id, BY))
    assert cluster.op(operation_id).state is OperationState.CANCELLED
    assert cluster.state.vms["web"].record.owner.state is OwnerState.RUNNING
    assert cluster.kinds() == [("n1", ClaimKind.RUN)]


def test_the_place_for_the_move_is_lost_while_it_is_stopped(cluster: Drained) -> None:
    """The same when there is no other node for it any more."""
    operation_id = restarting(cluster)
    for node_id in ("n2", "n3"):
        assert cluster.write(set_state(cluster.state, node_id, NodeState.CORDONED, ""))
    cluster.advance(operation_id)
    assert cluster.child(operation_id).verb is Verb.START_VM
    cluster.started(cluster.child(operation_id).operation_id)
    cluster.advance(operation_id)
    assert cluster.states(operation_id) == {"web": DrainState.FAILED}
    assert cluster.kinds() == [("n1", ClaimKind.RUN)]


@pytest.mark.parametrize("permitted", [False, True])
def test_one_that_no_node_can_take_live_is_restarted_only_if_its_owner_permits(cluster: Drained, permitted: bool) -> None:
    """A live move that is tried although no other node runs guests in that way; or a stop that nobody has permitted."""
    if permitted:
        cluster.permit_restart()
    for node_id in ("n2", "n3"):
        cluster.acceleration(node_id, "KVM")
    operation_id = cluster.drain()
    entry = cluster.entry(operation_id, "web")
    assert (entry.state, entry.restart) == ((DrainState.PLANNED, True) if permitted else (DrainState.BLOCKED, False))
    cluster.advance(operation_id)
    if permitted:
        assert cluster.child(operation_id).verb is Verb.STOP_VM


def test_what_is_off_and_has_not_begun_to_move_is_started_too(cluster: Drained) -> None:
    """The same between two steps."""
    operation_id = restarting(cluster)
    assert cluster.write(advance(cluster.state, operation_id, SPREAD, BY))
    entry = cluster.entry(operation_id, "web")
    assert (entry.state, entry.stopped) == (DrainState.PLANNED, True)
    assert cluster.write(stop_drain(cluster.state, operation_id, GONE_WRONG, BY))
    cluster.release(operation_id)
    assert cluster.child(operation_id).verb is Verb.START_VM
    cluster.started(cluster.child(operation_id).operation_id)
    cluster.release(operation_id)
    assert cluster.kinds() == [("n1", ClaimKind.RUN)]
    assert cluster.state.vms["web"].record.owner.state is OwnerState.RUNNING


def test_what_is_off_is_started_elsewhere_when_its_node_is_fenced(cluster: Drained) -> None:
    """Limbo: the place that the drain holds is the one that the start wants."""
    operation_id = restarting(cluster)
    assert cluster.write(advance(cluster.state, operation_id, SPREAD, BY))
    kept = cluster.state.nodes["n1"]
    fenced = replace(kept.record, state=NodeState.FENCED)
    assert cluster.write(Transaction({node_key("n1"): kept.revision}, {node_key("n1"): fenced}))
    assert advance(cluster.state, operation_id, SPREAD, BY) is None
    assert cluster.write(stop_drain(cluster.state, operation_id, GONE_WRONG, BY))
    cluster.release(operation_id)
    assert cluster.child(operation_id).verb is Verb.START_VM
    assert [kind for _, kind in cluster.kinds()] == [ClaimKind.RUN]
    assert cluster.state.vms["web"].record.owner.node_id != "n1"


def test_a_drain_that_ends_tries_nothing_again(cluster: Drained) -> None:
    """A drain that was cancelled and begins another move."""
    operation_id = cluster.drain()
    cluster.advance(operation_id)
    child = cluster.child(operation_id).operation_id
    assert cluster.write(stop_drain(cluster.state, operation_id, GONE_WRONG, BY))
    cluster.failed(child)
    cluster.release(operation_id)
    assert cluster.states(operation_id) == {"web": DrainState.FAILED}
    assert cluster.kinds() == [("n1", ClaimKind.RUN)]


def test_cancelled_it_begins_nothing_and_waits_for_what_has_begun(cluster: Drained) -> None:
    """A cancel that tears a copy down which is nearly done, or one that lets the drain go on."""
    operation_id = cluster.drain()
    cluster.advance(operation_id)
    child = cluster.child(operation_id).operation_id
    assert cluster.write(cancel(cluster.state, operation_id))
    assert cluster.write(stop_drain(cluster.state, operation_id, GONE_WRONG, BY))
    assert cluster.op(operation_id).phase == RELEASING
    cluster.release(operation_id)
    assert finish_drain(cluster.state, operation_id, BY) is None
    cluster.moved(child)
    cluster.release(operation_id)
    assert cluster.write(finish_drain(cluster.state, operation_id, BY))
    assert cluster.op(operation_id).state is OperationState.SUCCEEDED, "it was the last one: the node is empty"


def test_it_does_not_end_while_one_is_on_its_way_to_the_node(cluster: Drained) -> None:
    """A node that is called empty and gets a VM a second later."""
    cluster.node("n1", memory_mib=100)
    cluster.running("late")
    source = cluster.state.vms["late"].record.owner.node_id
    cluster.node("n1")
    child = cluster.accept(migrate_vm(cluster.state, asked("move"), "late", "", "n1", 0, SPREAD))
    operation_id = cluster.drain()
    cluster.advance(operation_id)
    cluster.moved(cluster.child(operation_id).operation_id)
    cluster.advance(operation_id)
    assert finish_drain(cluster.state, operation_id, BY) is None
    cluster.moved(child)
    cluster.advance(operation_id)
    assert cluster.states(operation_id) == {"web": DrainState.MOVED, "late": DrainState.MOVING}
    assert source != "n1"


def test_a_dry_run_holds_nothing(cluster: Drained) -> None:
    """A question that takes places."""
    accepted = drain_node(cluster.state, asked("drain"), "n1", "", 0, SPREAD, plan_only=True)
    assert not accepted.transaction.puts
    assert accepted.operation.drain is not None
    assert [entry.state for entry in accepted.operation.drain.entries] == [DrainState.PLANNED]


def test_one_drain_of_a_node_at_a_time_and_none_of_a_silent_one(cluster: Drained) -> None:
    """Two that hold places for the same VM, or one that waits for a node that does not answer."""
    cluster.drain()
    with pytest.raises(FailedPrecondition) as refused:
        drain_node(cluster.state, asked("again"), "n1", "", 0, SPREAD)
    assert refused.value.reason is Reason.NODE_DRAINING
    assert drain_node(cluster.state, asked("drain"), "n1", "", 0, SPREAD).transaction.puts == {}, "a repeat is the same operation"
    cluster.state.health = {"n1": Health.READY}
    with pytest.raises(Unavailable) as silent:
        drain_node(cluster.state, asked("other"), "n2", "", 0, SPREAD)
    assert "node fence n2" in silent.value.fix


def test_a_local_volume_blocks_and_says_what_would_help() -> None:
    """A plan that promises what the move will refuse."""
    cluster = Drained()
    cluster.node("n1", NAS, PoolFacts("own", shared=False, fingerprint="", total_mib=1000, free_mib=1000, ofd_locks=True))
    cluster.create("pet", disk=NewDisk("own", 100, "", "uid-pet-disk0"), leave_stopped=True)
    cluster.node("n2")
    operation_id = cluster.drain()
    entry = cluster.entry(operation_id, "pet")
    assert entry.state is DrainState.BLOCKED
    assert "which no other node reaches" in entry.reason
    assert entry.fix
    assert memory_key(0) in cluster.state.ledgers["n1"].record.claimed
