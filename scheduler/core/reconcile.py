"""What is true of a VM by every node's word, and what would make nodes and record agree: the record says who may run it, and is not bent to nodes.

What may cost a guest its memory is marked: ending a copy that executes, or a paused one while the owner runs none. Everything else only removes
what cannot run any more, or writes down what has happened.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from hostler.model.node import VMPower, VMStatus
from hostler.model.owner import OwnerState
from scheduler.core.records import VMRecord

THERE = frozenset({VMPower.ON, VMPower.PAUSED})


class Deed(StrEnum):
    """What can be done."""

    NOTE_STOPPED = "NOTE_STOPPED"
    """In the record."""
    END_COPY = "END_COPY"
    FORGET = "FORGET"
    """The definition, which frees the host's charge."""
    DEFINE = "DEFINE"
    RESUME = "RESUME"


@dataclass(frozen=True, slots=True)
class Action:
    """`destructive`: a guest's memory may be lost by it. `why`: one sentence."""

    deed: Deed
    node_id: str
    destructive: bool
    why: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """`actions` in order; `unknown`: what cannot be told or done now, and what to do about it, empty if there is nothing."""

    actions: tuple[Action, ...]
    unknown: str = ""


def reconcile(vm: VMRecord, seen: Mapping[str, VMStatus | None]) -> Verdict:
    """`seen`: by node, what it has; None for one that does not answer."""
    if vm.operation_id:
        return Verdict((), f"Operation {vm.operation_id} has it in hand and will end by itself: `hostler op watch {vm.operation_id}`.")
    newer = [node_id for node_id, status in sorted(seen.items()) if status is not None and status.epoch > vm.owner.epoch]
    if newer:
        return Verdict(
            (), f"{newer[0]} has seen a newer epoch than the record has: the store is older than the cluster. Nothing is safe to do."
        )
    at_home = seen.get(vm.owner.node_id)
    actions = list(_at_home(vm, at_home))
    owner_runs = at_home is not None and at_home.power is VMPower.ON
    for node_id, status in sorted(seen.items()):
        if node_id != vm.owner.node_id and status is not None:
            actions += _elsewhere(vm, node_id, status, owner_runs)
    return Verdict(tuple(sorted(actions, key=lambda action: action.destructive)), _unknown(vm, seen))


def _at_home(vm: VMRecord, status: VMStatus | None) -> list[Action]:
    home = vm.owner.node_id
    if status is None or status.power is VMPower.UNKNOWN:
        return []
    actions = []
    if not status.defined and status.power not in THERE:
        actions.append(Action(Deed.DEFINE, home, False, f"{home} owns it and has lost its definition."))
    match vm.owner.state, status.power:
        case OwnerState.RUNNING, VMPower.OFF | VMPower.CRASHED:
            actions.append(Action(Deed.NOTE_STOPPED, home, False, f"It should run on {home} and does not; then it can be started again."))
        case OwnerState.RUNNING, VMPower.PAUSED:
            actions.append(Action(Deed.RESUME, home, False, f"It should run on {home} and is paused there."))
        case OwnerState.STOPPED, VMPower.ON | VMPower.PAUSED:
            actions.append(Action(Deed.END_COPY, home, True, f"It is stopped in the record, and {home} has a copy that is {_is(status)}."))
        case _:
            pass
    return actions


def _elsewhere(vm: VMRecord, node_id: str, status: VMStatus, owner_runs: bool) -> list[Action]:
    home = vm.owner.node_id
    if status.power in THERE:
        lost = status.power is VMPower.ON or not owner_runs
        return [Action(Deed.END_COPY, node_id, lost, f"{home} owns it, and {node_id} has a copy that is {_is(status)}.")]
    if status.defined and status.power is not VMPower.UNKNOWN:
        return [Action(Deed.FORGET, node_id, False, f"{home} owns it, and {node_id} still keeps its definition and is charged for it.")]
    return []


def _is(status: VMStatus) -> str:
    return "running" if status.power is VMPower.ON else "paused"


def _unknown(vm: VMRecord, seen: Mapping[str, VMStatus | None]) -> str:
    silent = [node_id for node_id, status in sorted(seen.items()) if status is None or status.power is VMPower.UNKNOWN]
    if vm.owner.node_id in silent:
        home = vm.owner.node_id
        return (
            f"{home} owns it and cannot say how it is. Make its agent and libvirtd answer; if the host is powered off for good: "
            f"`hostler node fence {home} --confirm-powered-off`."
        )
    return f"Not heard: {', '.join(silent)}. What they have of it is not known." if silent else ""
