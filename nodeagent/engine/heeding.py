"""Which commands about a VM are heeded: remembers the newest one before it is acted on, refuses what is older (`core.definitions` has the rule), and
what was meant for this host before its last boot or fence: the cluster has gone on without it, and what it forgot then has left no rank behind.

Held under the VM's lock by whoever calls. A late command is answered "not now": should a scheduler that leads ever be the one who hears it, it
looks at its records again and asks anew, instead of turning back what is well under way.
"""

from dataclasses import replace

from hostler.errors import Conflict, NotFound, Reason, Unavailable
from nodeagent.core.definitions import Command, Definition, EpochVerdict, judge_epoch
from nodeagent.engine.host_state import HostState

RETRY_AFTER_S = 1.0
"""A replica's records are at most an instant behind."""


def heard(state: HostState, node_id: str) -> None:
    """Before anything is taken in or let run. Raises Unavailable until the cluster has heard of this process, and said whether its host was fenced:
    a message from before the fence can still come."""
    if not state.heard:
        raise Unavailable(
            Reason.NODE_UNREACHABLE,
            f"The agent of {node_id} has just begun, and no scheduler has heard of it yet.",
            f"It is tried again; if it stays so: `hostler node get {node_id}`.",
            retry_after_s=RETRY_AFTER_S,
        )


async def heed(state: HostState, node_id: str, command: Command) -> Definition:
    """The definition the command is about, its rank remembered. Raises NotFound, Conflict for an older epoch, Unavailable for a late command."""
    _for_this_incarnation(state, node_id, command)
    definition = state.definitions.get(command.vm_uid)
    if definition is None:
        raise NotFound(Reason.VM_NOT_FOUND, f"{node_id} has no definition of this VM.")
    match judge_epoch(definition.epoch, command.epoch):
        case EpochVerdict.STALE:
            raise stale(node_id, command, definition.epoch)
        case EpochVerdict.NEWER:
            heard = replace(
                definition,
                epoch=command.epoch,
                operation_id=command.operation_id,
                incoming=False,
                order_revision=command.order_revision,
            )
        case EpochVerdict.CURRENT:
            if command.rank < definition.rank:
                raise _late(f"{node_id} has heard a newer command about this VM.")
            heard = replace(definition, order_revision=command.order_revision)
    if heard != definition:
        await state.keep_definition(heard)
    return heard


def not_buried(state: HostState, node_id: str, command: Command) -> None:
    """Before something of a VM that is not here is made. Raises Unavailable if a newer command has removed it, or said that it is not to be."""
    _for_this_incarnation(state, node_id, command)
    if command.rank < state.gone_rank(command.vm_uid):
        raise _late(f"{node_id} has heard a newer command about this VM.")


def _for_this_incarnation(state: HostState, node_id: str, command: Command) -> None:
    """Nothing is compared before this process has registered: then nothing is taken in either."""
    if state.incarnation and command.incarnation != state.incarnation:
        raise _late(f"{node_id} has booted, or was fenced, since this command was made.")


def stale(node_id: str, command: Command, seen_epoch: int) -> Conflict:
    return Conflict(Reason.EPOCH_STALE, f"The command is under epoch {command.epoch}, {node_id} has seen {seen_epoch}.")


def _late(why: str) -> Unavailable:
    return Unavailable(
        Reason.COMMAND_LATE,
        why,
        "Read the records again; if this is still to be done, ask again.",
        retry_after_s=RETRY_AFTER_S,
    )
