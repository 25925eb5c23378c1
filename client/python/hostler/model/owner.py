"""Who may run a VM: the owner record and what each of its states allows. The point of truth for *one owner*.

The record changes in compared transactions alone. `revision` is the store's revision of the record: a decision made on one revision is void
as soon as another exists. (The states and the argument: docs/handoff.md.)
"""

from dataclasses import dataclass
from enum import StrEnum


class OwnerState(StrEnum):
    """How the ownership stands."""

    STOPPED = "STOPPED"
    """Owned; nobody may run it."""
    RUNNING = "RUNNING"
    """The owner may run it under this epoch."""
    HANDOFF = "HANDOFF"
    """As RUNNING for the owner (the source); the destination may receive a paused copy."""
    COMMITTED = "COMMITTED"
    """The owner (the destination) may resume the copy that `operation_id` made, and no other."""
    FROZEN = "FROZEN"
    """Nobody may run it before a person proves something."""


@dataclass(frozen=True, slots=True)
class Owner:
    """One owner record. `incarnation` is the owner's boot id and registration number; `destination_*` are set in HANDOFF alone."""

    epoch: int
    node_id: str
    incarnation: str
    state: OwnerState
    operation_id: str = ""
    destination_node_id: str = ""
    destination_incarnation: str = ""


@dataclass(frozen=True, slots=True)
class OwnerRead:
    """An owner record as read: `revision` of the record, `read_revision` that the read is at least as new as."""

    vm_uid: str
    owner: Owner
    revision: int
    read_revision: int


def may_run(owner: Owner, node_id: str, epoch: int) -> bool:
    """Whether `node_id` may let a copy execute that it started itself under `epoch`."""
    return owner.node_id == node_id and owner.epoch == epoch and owner.state in (OwnerState.RUNNING, OwnerState.HANDOFF)


def may_resume_arrival(owner: Owner, node_id: str, operation_id: str) -> bool:
    """Whether `node_id` may resume the paused copy that `operation_id` brought it: committed, to it, by that very operation."""
    return owner.node_id == node_id and owner.state is OwnerState.COMMITTED and owner.operation_id == operation_id
