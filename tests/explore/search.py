"""Breadth first over all moves: the first violation is the shortest story; then whether every state can still end well without another fault."""

from collections import deque
from dataclasses import dataclass

from hostler.model.owner import OwnerState, may_run
from nodeagent.core.observed import Power
from tests.explore.moves import Moves
from tests.explore.rules import Rules
from tests.explore.world import DESTINATION, OPERATIONS, SOURCE, VM, Budget, World, begin

MAX_STATES = 1_500_000
"""Some GiB of memory; a configuration that needs more is to be cut."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found. `violation` is empty if there is none; `story` leads to it; `states` are those that were told apart."""

    states: int
    violation: str = ""
    story: tuple[str, ...] = ()
    last: World | None = None


def explore(rules: Rules, budget: Budget, max_states: int = MAX_STATES) -> Found:
    """Raises RuntimeError if there are more than `max_states`: what was not searched proves nothing."""
    moves, first = Moves(rules), begin(budget)
    epoch = first.store.owner.epoch
    worlds, places = [first], {first: 0}
    came: list[tuple[int, str]] = [(0, "")]
    before: list[list[int]] = [[]]
    todo = deque([0])
    while todo:
        here = todo.popleft()
        for move in moves(worlds[here]):
            place = places.get(move.world)
            if place is None:
                if len(worlds) >= max_states:
                    raise RuntimeError(f"more than {max_states} states")
                place = places[move.world] = len(worlds)
                worlds.append(move.world)
                came.append((here, move.says))
                before.append([])
                todo.append(place)
                if violation := broken(move.world, epoch):
                    return Found(len(worlds), violation, _story(came, place), move.world)
            if not move.fault:
                before[place].append(here)
    stuck = _cannot_end(worlds, before)
    if stuck is not None:
        return Found(len(worlds), "limbo: no end can be reached from here", _story(came, stuck), worlds[stuck])
    return Found(len(worlds))


def _story(came: list[tuple[int, str]], place: int) -> tuple[str, ...]:
    says: list[str] = []
    while place:
        place, sentence = came[place]
        says.append(sentence)
    return tuple(reversed(says))


def _cannot_end(worlds: list[World], before: list[list[int]]) -> int | None:
    """The first state from which no end can be reached by moves that are no faults; None: there is none."""
    good = [ended_well(world) for world in worlds]
    todo = deque(place for place, ends in enumerate(good) if ends)
    while todo:
        for place in before[todo.popleft()]:
            if not good[place]:
                good[place] = True
                todo.append(place)
    return next((place for place, ends in enumerate(good) if not ends), None)


def broken(world: World, epoch: int) -> str:
    """The promise that this state breaks, or "". `epoch` is the source's, the destination's copy is of the next. What runs on a node that was
    fenced all the same is promised nothing by the record: two that execute, or write, are still a violation."""
    owner, process, arriving = world.store.owner, world.process, world.arriving
    source_runs = process is not None and process.executes
    copy_runs = arriving is not None and arriving.power is Power.RUNNING
    started = [cold for cold in world.colds if cold.runs]
    if source_runs + copy_runs + len(started) > 1:
        return "I1: two copies execute"
    if (copy_runs or started) and process is not None and process.can_write:
        return "I2: two processes can write the disk"
    if copy_runs and arriving is not None and arriving.stale:
        return "I8: stale memory was resumed"
    if world.wronged:
        return f"the owner's guest: {world.wronged}"
    may_source = owner.node_id == SOURCE and owner.epoch == epoch and owner.state in (OwnerState.RUNNING, OwnerState.HANDOFF)
    if source_runs and not may_source and not world.store.fenced(SOURCE):
        return f"I7: the source executes, the owner record says {owner.state.value} of {owner.node_id} under epoch {owner.epoch}"
    may_copy = owner.node_id == DESTINATION and owner.epoch == epoch + 1 and owner.state in (OwnerState.COMMITTED, OwnerState.RUNNING)
    if copy_runs and not may_copy and not world.store.fenced(DESTINATION):
        return f"I7: the copy executes, the owner record says {owner.state.value} of {owner.node_id} under epoch {owner.epoch}"
    for cold in started:
        if not may_run(owner, cold.node, cold.epoch) and not world.store.fenced(cold.node):
            return (
                f"I7: what was started on {cold.node} executes, the record says {owner.state.value} of {owner.node_id}, epoch {owner.epoch}"
            )
    return ""


def ended_well(world: World) -> bool:
    """Every operation is done, the VM runs where its owner is or is stopped and nowhere, and it is charged there alone: in the ledger and by the
    agents' definitions. One that ended by itself may still be taken for running: its owner's next report says so."""
    store = world.store
    operations = [operation for op in range(len(OPERATIONS)) if (operation := store.operation(op)) is not None]
    if not all(operation.done for operation in operations) or store.vm.record.operation_id:
        return False
    owner = store.owner
    claims = {node_id for node_id, vm_id in store.state.claims if vm_id == VM}
    heard = {node for node in (SOURCE, DESTINATION) if node not in world.off and not (store.fenced(node) or node in world.unheard)}
    defined = {node for node in heard if world.defined_under(node)}
    if world.starting or world.laying or claims != {owner.node_id} or defined != claims & heard:
        return False
    copies: dict[str, bool] = {}
    if world.process is not None:
        copies[SOURCE] = world.process.executes
    if world.arriving is not None:
        copies[DESTINATION] = world.arriving.power is Power.RUNNING
    for cold in world.colds:
        copies[cold.node] = cold.runs
    if owner.state is OwnerState.STOPPED:
        return not copies and bool(store.vm.record.reason or world.budget.migrations == 0)
    if owner.state is not OwnerState.RUNNING or set(copies) - {owner.node_id}:
        return False
    return copies.get(owner.node_id, world.died)
