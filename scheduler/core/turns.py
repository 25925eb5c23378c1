"""Whose turn it is to copy: how many live migrations a node sends and receives at once, and one link carries, who goes first, who is held back.

Every operation counts the ones before it that touch the same node, whether those may go already or not. So the first in the order waits for running
copies alone, the second for those and the first: nobody is overtaken for ever by others that happen to need one node less. A higher priority goes
first, and waiting raises the priority step by step, so a LOW one has its turn however many HIGH ones come.

A copy that failed and is tried again is held back, each time twice as long: it took bandwidth from others and will probably fail again. A person who
names a destination or uses HIGH knows better. Times are wall milliseconds here: a clock that is wrong makes a turn early or late, never unsafe.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from hostler.model.records import Priority
from scheduler.core.records import Migration, OperationRecord, OperationState, Verb
from scheduler.core.state import ClusterState
from scheduler.core.steps import COPYING, DESTINATION_READY, RESERVED

SENDS_AT_ONCE = 2
RECEIVES_AT_ONCE = 2
LINK_AT_ONCE = 2
"""Two copies fill a link while one of them switches over; more only make each of them longer, and a longer copy has more to copy again."""

AGES_MS = 300_000
"""Waiting for so long counts as the next higher priority: from LOW to HIGH in ten minutes."""

HOLD_BACK_FIRST_MS = 20_000
HOLD_BACK_MOST_MS = 300_000
"""After the first failed copy of a VM, and at most; doubled in between."""

_RANKS = {Priority.LOW: 0, Priority.NORMAL: 1, Priority.HIGH: 2}


@dataclass(frozen=True, slots=True)
class Limits:
    """Live migrations at once: that a node sends, that it receives, and from one node to one other. Both ways of a link carry at the same time, so
    each has its own count."""

    sends: int = SENDS_AT_ONCE
    receives: int = RECEIVES_AT_ONCE
    link: int = LINK_AT_ONCE


@dataclass(frozen=True, slots=True)
class _Waiting:
    operation: OperationRecord
    migration: Migration
    accepted: int
    """The revision of its claim: the order of acceptance, whatever the clocks say and whoever writes the operation meanwhile."""


@dataclass(frozen=True, slots=True)
class _Lane:
    """What copies go through: so many do, so many have their turn before this one, and so many may at once."""

    running: int
    ahead: int
    limit: int
    name: str

    @property
    def full(self) -> bool:
        return self.running + self.ahead >= self.limit

    @property
    def says(self) -> str:
        return f"{self.name} {self.running} already"


def turn(state: ClusterState, operation_id: str, limits: Limits, now_ms: int, silent: Collection[str] = ()) -> str:
    """Why this live migration waits, as a sentence; empty if it is its turn, or it does not wait. `silent`: nodes that do not answer."""
    return queue(state, limits, now_ms, silent).get(operation_id, "")


def queue(state: ClusterState, limits: Limits, now_ms: int, silent: Collection[str] = ()) -> Mapping[str, str]:
    """Every live migration that has not begun, in the order of their turns, with why it waits; empty for those whose turn it is."""
    sends, receives, links, waiting = _present(state)
    failures = _failed_copies(state, {one.operation.target_id for one in waiting if not _spared(one)})
    answers: dict[str, str] = {}
    out, into, both = Counter[str](), Counter[str](), Counter[tuple[str, str]]()
    for one in sorted(waiting, key=lambda one: (-_rank(one, now_ms), one.accepted, one.operation.operation_id)):
        source, destination = one.migration.source_node_id, one.migration.destination_node_id
        aside = _aside(one, failures.get(one.operation.target_id, ()), now_ms, silent)
        if aside or one.operation.cancel_requested:
            answers[one.operation.operation_id] = "" if one.operation.cancel_requested else aside
            continue
        link = (source, destination)
        nodes = (
            _Lane(sends[source], out[source], limits.sends, f"{source} sends"),
            _Lane(receives[destination], into[destination], limits.receives, f"{destination} receives"),
        )
        between = _Lane(links[link], both[link], limits.link, f"{source} sends {destination}")
        full = [lane.says for lane in nodes if lane.full and lane.running] or [between.says] * (between.full and between.running > 0)
        waits = between.full or any(lane.full for lane in nodes)
        before = out[source] + into[destination] - both[link]
        answers[one.operation.operation_id] = _sentence(full, before) if waits else ""
        out[source] += 1
        into[destination] += 1
        both[link] += 1
    return answers


def _present(state: ClusterState) -> tuple[Counter[str], Counter[str], Counter[tuple[str, str]], list[_Waiting]]:
    """How many copies each node sends and receives now, and each link carries, and what has not begun."""
    sends, receives, links, waiting = Counter[str](), Counter[str](), Counter[tuple[str, str]](), list[_Waiting]()
    for kept in state.operations.values():
        operation, migration = kept.record, kept.record.migration
        if operation.done or migration is None or migration.cold:
            continue
        if operation.phase in (DESTINATION_READY, COPYING):
            sends[migration.source_node_id] += 1
            receives[migration.destination_node_id] += 1
            links[(migration.source_node_id, migration.destination_node_id)] += 1
        elif operation.phase == RESERVED:
            claim = state.claims.get((migration.destination_node_id, operation.target_id))
            waiting.append(_Waiting(operation, migration, claim.revision if claim is not None else kept.revision))
    return sends, receives, links, waiting


def _aside(one: _Waiting, failed: Sequence[OperationRecord], now_ms: int, silent: Collection[str]) -> str:
    """Why it does not even stand in the queue now: nobody waits for it."""
    for node_id in (one.migration.source_node_id, one.migration.destination_node_id):
        if node_id in silent:
            return f"{node_id} does not answer."
    left_ms = held_back_ms(failed, now_ms)
    if not left_ms:
        return ""
    times = "once" if len(failed) == 1 else f"{len(failed)} times in a row"
    why = failed[-1].error.message.rstrip(".") if failed[-1].error is not None else "no reason is known"
    return f"Waits {-(-left_ms // 1000)} s more, because its copy failed {times} ({why}). Name a destination or use the priority HIGH to go at once."


def held_back_ms(failed: Sequence[OperationRecord], now_ms: int) -> int:
    """How long after these failed copies in a row, oldest first, the next one is held back from now on.

    The failure may have been written by a replica whose clock is ahead of this one's. By more than the whole time, and it is not known when it was:
    then nothing is held back, which costs a try, where waiting for this clock to get there might take hours.
    """
    if not failed:
        return 0
    whole_ms = min(HOLD_BACK_FIRST_MS << min(len(failed) - 1, HOLD_BACK_MOST_MS.bit_length()), HOLD_BACK_MOST_MS)
    left_ms = failed[-1].update_ms + whole_ms - now_ms
    return 0 if left_ms > 2 * whole_ms else min(whole_ms, max(0, left_ms))


def _failed_copies(state: ClusterState, vm_ids: Collection[str]) -> Mapping[str, Sequence[OperationRecord]]:
    """Of each VM, the copies that have failed since the last one that did not, oldest first. A cancelled one says nothing about the next."""
    if not vm_ids:
        return {}
    ended: dict[str, list[OperationRecord]] = {}
    for kept in state.operations.values():
        operation = kept.record
        if operation.target_id not in vm_ids or operation.verb is not Verb.MIGRATE_VM or not operation.done:
            continue
        vm = state.vms.get(operation.target_id)
        if vm is not None and operation.create_ms >= vm.record.create_ms and any(entry.phase == COPYING for entry in operation.phases):
            ended.setdefault(operation.target_id, []).append(operation)
    failed: dict[str, Sequence[OperationRecord]] = {}
    for vm_id, operations in ended.items():
        row: list[OperationRecord] = []
        for operation in sorted(operations, key=lambda operation: (operation.update_ms, operation.operation_id)):
            match operation.state:
                case OperationState.SUCCEEDED:
                    row.clear()
                case OperationState.FAILED:
                    row.append(operation)
                case _:
                    pass
        failed[vm_id] = row
    return failed


def _spared(one: _Waiting) -> bool:
    return one.migration.named or one.migration.priority is Priority.HIGH


def _rank(one: _Waiting, now_ms: int) -> int:
    waited_ms = max(0, now_ms - one.operation.create_ms)
    return min(_RANKS[Priority.HIGH], _RANKS[one.migration.priority] + waited_ms // AGES_MS)


def _sentence(full: Sequence[str], before: int) -> str:
    clauses = [*full, *([f"{before} before it"] if before else [])]
    return f"Waits for a turn: {', '.join(clauses)}."
