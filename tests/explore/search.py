"""Breadth first over all moves: the first violation is the shortest story; then whether every state can still end well without another fault."""

from array import array
from collections import deque
from dataclasses import dataclass

from hostler.model.owner import OwnerState
from tests.explore.changes import may_execute
from tests.explore.moves import Moves
from tests.explore.rules import Rules
from tests.explore.world import NODES, OPERATIONS, STARTS, VM, Budget, Has, World, begin

MAX_STATES = 2_500_000
"""Some GiB of memory; a configuration that needs more is to be cut."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found. `violation` is empty if there is none; `story` leads to it; `states` are those that were told apart.
    `bounded`: the search was ended at its limit, and proves nothing beyond it."""

    states: int
    violation: str = ""
    story: tuple[str, ...] = ()
    last: World | None = None
    bounded: bool = False


def explore(rules: Rules, budget: Budget, max_states: int = MAX_STATES, *, bound: bool = False) -> Found:
    """Raises RuntimeError if there are more than `max_states`, for what was not searched proves nothing; with `bound`, says so in what it found
    (and does not ask whether every state can end, since the ends may lie beyond)."""
    moves, first = Moves(rules), begin(budget)
    worlds, places = [first], {first: 0}
    parents = array("l", [0])
    edges_from, edges_to = array("l"), array("l")
    here = 0
    while here < len(worlds):
        world = worlds[here]
        for move in moves(world):
            place = places.setdefault(move.world, len(worlds))
            if place == len(worlds):
                if place >= max_states:
                    if bound:
                        return Found(place, bounded=True)
                    raise RuntimeError(f"more than {max_states} states")
                worlds.append(move.world)
                parents.append(here)
                if violation := broken(move.world, world):
                    return Found(len(worlds), violation, _story(moves, worlds, parents, place), move.world)
            if not move.fault:
                edges_from.append(here)
                edges_to.append(place)
        here += 1
    stuck = _cannot_end(worlds, edges_from, edges_to)
    if stuck is not None:
        return Found(len(worlds), "limbo: no end can be reached from here", _story(moves, worlds, parents, stuck), worlds[stuck])
    return Found(len(worlds))


def _story(moves: Moves, worlds: list[World], parents: "array[int]", place: int) -> tuple[str, ...]:
    says: list[str] = []
    while place:
        parent = parents[place]
        says.append(next(move.says for move in moves(worlds[parent]) if move.world == worlds[place]))
        place = parent
    return tuple(reversed(says))


def _cannot_end(worlds: list[World], edges_from: "array[int]", edges_to: "array[int]") -> int | None:
    """The first state from which no end can be reached by moves that are no faults; None: there is none."""
    good = bytearray(ended_well(world) for world in worlds)
    starts = array("l", bytes(array("l").itemsize * (len(worlds) + 1)))
    for place in edges_to:
        starts[place + 1] += 1
    for place in range(len(worlds)):
        starts[place + 1] += starts[place]
    before, filled = array("l", edges_from), array("l", starts)
    for origin, place in zip(edges_from, edges_to, strict=True):
        before[filled[place]] = origin
        filled[place] += 1
    todo = deque(place for place, ends in enumerate(good) if ends)
    while todo:
        place = todo.popleft()
        for origin in before[starts[place] : starts[place + 1]]:
            if not good[origin]:
                good[origin] = True
                todo.append(origin)
    return next((place for place, ends in enumerate(good) if not ends), None)


def broken(world: World, before: World) -> str:
    """The promise that this state breaks, or "". What runs on a node that was fenced all the same is promised nothing by the record: two that
    execute, or write, are still a violation."""
    if world.store is not before.store and world.store.owner.epoch < before.store.owner.epoch:
        return "I7: the epoch goes back"
    running = [(node, host.domain) for node, host in enumerate(world.hosts) if host.domain is not None and host.domain.has is Has.RUNNING]
    executing = [(node, domain) for node, domain in running if not domain.frozen]
    if len(executing) > 1:
        return "I1: two copies execute"
    if len(running) > 1:
        return "I2: two processes can write the disk"
    if world.wronged:
        return f"the owner's guest: {world.wronged}"
    for node, domain in executing:
        if domain.stale:
            return "I8: stale memory was resumed"
        if not may_execute(world.store, node, domain) and not world.store.fenced(node):
            what = "what was started" if domain.op < 0 else f"the copy that migration {domain.op + 1} brought"
            owner = world.store.owner
            says = f"the record says {owner.state.value} of {owner.node_id} under epoch {owner.epoch}"
            return f"I7: {NODES[node]} executes {what} under epoch {domain.epoch}; {says}"
    return ""


def ended_well(world: World) -> bool:
    """Every operation is done, the VM runs where its owner is or is stopped and nowhere, and it is charged there alone: in the ledger and by the
    agents' definitions (of a VM that is stopped its owner may have lost it: a start defines it anew). One that ended by itself may still be taken
    for running: its owner's next report says so."""
    store = world.store
    operations = [operation for op in range(len(OPERATIONS)) if (operation := store.operation(op)) is not None]
    if not all(operation.done for operation in operations) or store.vm.record.operation_id:
        return False
    owner = store.owner
    claims = {node_id for node_id, vm_id in store.state.claims if vm_id == VM}
    hosts = {NODES[node]: host for node, host in enumerate(world.hosts)}
    heard = {name for node, (name, host) in enumerate(hosts.items()) if not (host.off or host.unheard or store.fenced(node))}
    charged = {name for name in heard if hosts[name].epoch}
    if any(host.starting is not None or host.laying is not None for host in world.hosts):
        return False
    if claims != {owner.node_id} or charged - claims:
        return False
    if owner.state is not OwnerState.STOPPED and charged != claims & heard:
        return False
    copies = {name: host.domain.executes for name, host in hosts.items() if host.domain is not None}
    if owner.state is OwnerState.STOPPED:
        told = bool(store.vm.record.reason) or any(store.operation(op) is not None for op in STARTS)
        return not copies and (told or world.budget.off)
    if owner.state is not OwnerState.RUNNING or set(copies) - {owner.node_id}:
        return False
    return copies.get(owner.node_id, world.died)
