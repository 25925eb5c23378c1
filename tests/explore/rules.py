"""The product's decision functions, as the moves call them; a mutation is the same set with one of them wrapped."""

from collections.abc import Callable
from dataclasses import dataclass

from hostler.model.copy import GONE, Copy
from hostler.model.owner import Owner, may_resume_arrival
from nodeagent.core.definitions import Outgoing
from nodeagent.core.outgoing import Act, Copying, Ending, Evidence, gone_copy, next_act
from scheduler.core.decide_migration import migrate_vm
from scheduler.core.decide_power import cancel
from scheduler.core.placement.policy import SPREAD
from scheduler.core.state import ClusterState
from scheduler.core.steps import (
    COMMITTED,
    COPYING,
    DESTINATION_READY,
    RESERVED,
    By,
    abort_handoff,
    commit_handoff,
    enter_phase,
    finish_abort,
    finish_lost,
    finish_migration,
)
from scheduler.core.transaction import Transaction
from tests.explore.world import DESTINATION, OPERATIONS, REQUESTS, UID, VM, Decision
from tests.unit.scheduler.core.kept import GONE_WRONG

BY = By("s1@1", 7)


@dataclass(frozen=True, eq=False)
class Rules:
    """What decides, and two facts about the hosts. `lockless`: the disks have no locks to be asked. `arrives_paused`: libvirt's PAUSED flag.

    Guards in the engines' own order, which the search mirrors; each was missing once, and found here:
    `doubt_asks_again`: an abort is finished only on a copy that lives or is gone; an answer in doubt is asked for again.
    `abort_remembered`: a destination that is told to abort what it does not know writes that down, and refuses it when it comes.
    `looks_whole`: the source looks again if its call ended while it looked, so that no copy is judged by an older look.
    """

    next_act: Callable[[Outgoing, Evidence], Act] = next_act
    gone_copy: Callable[[Outgoing, Ending, Ending, Copying], Copy] = gone_copy
    may_resume_arrival: Callable[[Owner, str, str], bool] = may_resume_arrival
    commit_handoff: Callable[[ClusterState, str, str, int], Transaction | None] = commit_handoff
    lockless: bool = False
    arrives_paused: bool = True
    doubt_asks_again: bool = True
    abort_remembered: bool = True
    looks_whole: bool = True

    def decide(self, state: ClusterState, decision: Decision) -> Transaction | None:
        """The transaction that a driver's step (or a person) wants now; None: it wants nothing any more."""
        name, op, argument = decision
        operation_id = OPERATIONS[op]
        match name:
            case "migrate":
                return migrate_vm(state, REQUESTS[op], VM, "", DESTINATION, 0, SPREAD).transaction
            case "cancel":
                return cancel(state, operation_id)
            case "ready":
                return enter_phase(state, operation_id, RESERVED, DESTINATION_READY, "", BY)
            case "copying":
                return enter_phase(state, operation_id, DESTINATION_READY, COPYING, "", BY)
            case "committed":
                return enter_phase(state, operation_id, COPYING, COMMITTED, "", BY)
            case "abort":
                return abort_handoff(state, operation_id, argument, GONE_WRONG, BY)
            case "finish abort":
                lives = Copy(argument) not in GONE if self.doubt_asks_again else argument == Copy.RUNNING.value
                return finish_abort(state, operation_id, lives, BY)
            case "lost":
                return finish_lost(state, operation_id, GONE_WRONG, BY)
            case "finish":
                migration = state.operations[operation_id].record.migration
                return None if migration is None else finish_migration(state, operation_id, migration, BY)
            case "commit":
                return self.commit_handoff(state, UID, operation_id, int(argument))
        raise ValueError(f"no decision {name}")
