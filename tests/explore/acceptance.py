"""Whether a recording of a real migration is a history that the search knows: some path of moves whose transactions leave exactly these owner
records and phases, one after the other.

Names become places in the order in which they appear, epochs are counted from the first: nothing else of a recording is changed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from msgspec import structs

from hostler.model.owner import OwnerState
from tests.explore.moves import Moves
from tests.explore.recorder import Recording, Seen
from tests.explore.rules import Rules
from tests.explore.world import MIGRATIONS, NODES, OPERATIONS, Budget, Store, World, begin

MAX_STATES = 400_000
"""A history that needs more was given too many faults."""

MET: Mapping[str, Budget] = {
    "plain": Budget(),
    "cancelled": Budget(cancels=1),
    "driver-killed": Budget(schedulers=1),
    "source-agent-killed": Budget(agents=1),
    "destination-agent-killed": Budget(agents=1),
}
"""What each recording has met, by its file's name."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What of a store a recording shows: the owner, and of each operation its phase, whether it has ended and whether it is cancelled."""

    state: str
    node: str
    epoch: int
    operation: int
    destination: str
    phases: tuple[tuple[str, bool, bool], ...]


def shown(store: Store, first_epoch: int) -> Shown:
    owner = store.owner
    operations = [operation for op in MIGRATIONS if (operation := store.operation(op)) is not None]
    return Shown(
        owner.state.value,
        owner.node_id,
        owner.epoch - first_epoch,
        OPERATIONS.index(owner.operation_id) if owner.operation_id in OPERATIONS else -1,
        owner.destination_node_id,
        tuple([("DONE" if one.done else one.phase, one.done, one.cancel_requested) for one in operations]),
    )


def renamed(recording: Recording) -> tuple[Shown, ...]:
    """The recording in the search's names."""
    nodes: dict[str, str] = {"": ""}
    operations: dict[str, int] = {}
    told: list[Shown] = []
    for seen in recording.seen:
        for node in (seen.owner.node, seen.owner.destination):
            nodes.setdefault(node, NODES[min(len(nodes) - 1, len(NODES) - 1)])
        for operation in seen.operations:
            operations.setdefault(operation, len(operations))
        told.append(_shown(seen, nodes, operations, recording.seen[0].owner.epoch))
    return tuple(told)


def _shown(seen: Seen, nodes: dict[str, str], operations: dict[str, int], first_epoch: int) -> Shown:
    owner = seen.owner
    phases = [seen.operations[name] for name in operations if name in seen.operations]
    return Shown(
        owner.state,
        nodes[owner.node],
        owner.epoch - first_epoch,
        operations.get(owner.operation, -1),
        nodes[owner.destination],
        tuple([(one.phase, one.state not in ("PENDING", "RUNNING"), one.cancelled) for one in phases]),
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """`told`: how many of the recording's records some path of moves leaves, in order; accepted if that is all. `story`: that path."""

    told: int
    records: int
    story: tuple[str, ...]

    @property
    def accepted(self) -> bool:
        return self.told == self.records


def judge(recording: Recording, budget: Budget, rules: Rules | None = None, max_states: int = MAX_STATES) -> Verdict:
    """Depth first, so that a history that is known is found soon; one that is refused was searched for in every state that tells its beginning.
    Raises RuntimeError if those are more than `max_states`."""
    wanted = renamed(recording)
    first = begin(sized(budget, wanted))
    epoch = first.store.owner.epoch
    if shown(first.store, epoch) != wanted[0]:
        return Verdict(0, len(wanted), ())
    moves = Moves(rules or Rules())
    known: dict[tuple[World, int], tuple[World, int] | None] = {(first, 1): None}
    todo, best = [(first, 1)], (first, 1)
    while todo and best[1] < len(wanted):
        here = todo.pop()
        ahead: list[tuple[World, int]] = []
        for move in moves(here[0]):
            told = here[1]
            if move.world.store is not here[0].store:
                after = shown(move.world.store, epoch)
                if after != wanted[told - 1]:
                    if after != wanted[told]:
                        continue
                    told += 1
            place = (move.world, told)
            if place in known:
                continue
            known[place] = here
            ahead.append(place)
            if told > best[1]:
                best = place
                if told == len(wanted):
                    break
        if len(known) > max_states:
            raise RuntimeError(f"more than {max_states} states tell the beginning of {recording.what}")
        todo.extend(reversed(ahead))
        if ahead and max(told for _, told in ahead) > here[1]:
            todo.sort(key=lambda place: place[1])
    return Verdict(best[1], len(wanted), _story(moves, known, best))


def sized(budget: Budget, wanted: Sequence[Shown]) -> Budget:
    """As many nodes as the recording names, and its migrations."""
    moves: list[int] = []
    for before, after in pairwise(wanted):
        if len(after.phases) > len(before.phases):
            moves.append(NODES.index(after.destination) if after.destination else 1)
    return structs.replace(budget, nodes=1 + max([1, *moves]), moves=tuple(moves))


def _story(moves: Moves, known: dict[tuple[World, int], tuple[World, int] | None], place: tuple[World, int]) -> tuple[str, ...]:
    says: list[str] = []
    while (parent := known[place]) is not None:
        says.append(next(move.says for move in moves(parent[0]) if move.world == place[0]))
        place = parent
    return tuple(reversed(says))


def doctored(recording: Recording) -> dict[str, Recording]:
    """Histories that must never be: what each would mean, and the recording changed so."""
    seen = list(recording.seen)
    commit = next((place for place, one in enumerate(seen) if one.owner.state == OwnerState.COMMITTED), None)
    if commit is None:
        return {}
    last = seen[-1]

    def owner_of(one: Seen, **changes: object) -> Seen:
        return replace(one, owner=replace(one.owner, **changes))  # type: ignore[arg-type]

    without_handoff = [
        owner_of(one, state=OwnerState.RUNNING.value, destination="") if one.owner.state == OwnerState.HANDOFF else one for one in seen
    ]
    same_epoch = [owner_of(one, epoch=seen[commit - 1].owner.epoch) if place >= commit else one for place, one in enumerate(seen)]
    back = [*seen[:-1], owner_of(last, epoch=last.owner.epoch - 1)]
    uncommitted = [one for one in seen if one.owner.state != OwnerState.COMMITTED]
    to_another = [owner_of(one, node="another") if place >= commit else one for place, one in enumerate(seen)]
    early = [*seen[: commit - 1], owner_of(seen[commit], operation=seen[commit].owner.operation), *seen[commit:]]
    early[commit - 1] = replace(early[commit - 1], operations=seen[commit - 2].operations)
    return {
        "a commit without HANDOFF": replace(recording, seen=tuple(without_handoff)),
        "a commit under the epoch of the source": replace(recording, seen=tuple(same_epoch)),
        "an epoch that goes back": replace(recording, seen=tuple(back)),
        "RUNNING at the destination without COMMITTED": replace(recording, seen=tuple(uncommitted)),
        "a commit to a node that is not the destination": replace(recording, seen=tuple(to_another)),
        "a commit before the journal says COPYING": replace(recording, seen=tuple(early)),
    }
