"""The product's decision functions, as the moves call them; a mutation is the same set with one of them wrapped."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import cast

from hostler.errors import HostlerError
from hostler.model.copy import GONE, Copy, HandoffReport
from hostler.model.journal import Request
from hostler.model.node import NodeReport, VMPower, VMStatus
from hostler.model.owner import Owner, OwnerState, may_resume_arrival
from hostler.model.quantities import CPU_MILLI, memory_key
from nodeagent.core.definitions import Outgoing
from nodeagent.core.outgoing import Act, Copying, Ending, Evidence, gone_copy, next_act
from scheduler.core.accept import Accepted
from scheduler.core.cold_steps import abort_cold, change_owner, finish_cold, finish_cold_abort
from scheduler.core.decide_fence import fence_node, finish_fence, stop_vms, while_fenced
from scheduler.core.decide_migration import migrate_vm
from scheduler.core.decide_nodes import register, take_status
from scheduler.core.decide_power import cancel, start_vm
from scheduler.core.placement.policy import SPREAD, Policy
from scheduler.core.records import NodeRecord, NodeState, Observed
from scheduler.core.state import ClusterState, Kept
from scheduler.core.steps import (
    COMMITTED,
    COPYING,
    DEFINED,
    DESTINATION_READY,
    RESERVED,
    ROLLBACK,
    STARTING,
    By,
    abort_handoff,
    commit_handoff,
    enter_phase,
    finish_abort,
    finish_lost,
    finish_migration,
    finish_running,
    finish_vm,
    let_run,
)
from scheduler.core.transaction import Transaction
from scheduler.core.view import Health
from scheduler.engine.fenced_nodes import FencedNodes
from scheduler.engine.mirror import Mirror
from scheduler.ports import Departure, NodeGateway, Order
from tests.explore.world import NODES, OPERATIONS, REQUESTS, UID, VM, Ask, Decision, Host, Message, Proofs, Store
from tests.unit.scheduler.core.kept import GONE_WRONG, NAS

BY = By("s1@1", 7)
REPORTS = {
    node: NodeReport(node, {CPU_MILLI: 4000, memory_key(0): 4096}, {}, {}, {}, (NAS,), (), "TCG", "qemu", "1", "dac", 0, False, "")
    for node in NODES
}
"""As the nodes registered first."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the gateway reads of the mirror."""

    state: ClusterState


@lru_cache(maxsize=4096)
def _gateway_answer(store: Store, node_id: str, ask: Ask) -> HandoffReport | VMStatus | HostlerError | None:
    """What the gateway says; None to a ForgetVM.

    The coroutine runs without a loop: for a fenced node it awaits nobody; were it to ask, there is nobody to be asked."""
    nodes = store.state.nodes
    fenced = {**nodes, node_id: Kept(replace(nodes[node_id].record, state=NodeState.FENCED), nodes[node_id].revision)}
    gateway = FencedNodes(cast(NodeGateway, None), cast(Mirror, _Seen(replace(store.state, nodes=fenced))))
    order, domain = Order("", UID), store.vm.record.domain
    calls: dict[Ask, Coroutine[object, object, object]] = {
        Ask.PREPARE: gateway.prepare_incoming(node_id, order, domain, NODES[0]),
        Ask.START: gateway.start_outgoing(node_id, order, Departure("", "", "", (), 0, 0)),
        Ask.FOLLOW: gateway.inspect_handoff(node_id, order),
        Ask.INSPECT_INCOMING: gateway.inspect_handoff(node_id, order),
        Ask.FINISH_INCOMING: gateway.finish_incoming(node_id, order),
        Ask.FINISH_OUTGOING: gateway.finish_outgoing(node_id, order),
        Ask.LOST_OUTGOING: gateway.finish_outgoing(node_id, order),
        Ask.ABORT_INCOMING: gateway.abort_incoming(node_id, order),
        Ask.ABORT_OUTGOING: gateway.abort_outgoing(node_id, order),
        Ask.INSPECT_COLD: gateway.inspect_handoff(node_id, order),
        Ask.FORGET: gateway.forget(node_id, order),
        Ask.DEFINE: gateway.define(node_id, order, domain),
        Ask.START_VM: gateway.start(node_id, order),
        Ask.STOP_VM: gateway.stop(node_id, order, 0),
    }
    try:
        calls[ask].send(None)
    except StopIteration as answered:
        answer = answered.value
        if answer is None or isinstance(answer, HandoffReport | VMStatus):
            return answer
        raise RuntimeError(f"{ask} was answered {answer!r}") from None
    except HostlerError as refusal:
        return refusal
    finally:
        for call in calls.values():
            call.close()
    raise RuntimeError(f"{ask} awaits a node that is off")


@dataclass(frozen=True, eq=False)
class Rules:
    """What decides, and facts about the hosts. `lockless`: the disks have no locks to be asked. `locks_bar`: their locks stop a second writer
    too, on which nothing may rest but the promise about a wrong fence. `arrives_paused`: libvirt's PAUSED flag.

    Guards in the engines' own order, which the search mirrors; each was missing once, and found here:
    `doubt_asks_again`: an abort is finished only on a copy that lives or is gone; an answer in doubt is asked for again.
    `abort_remembered`: a destination that is told to abort what it does not know writes that down, and refuses it when it comes.
    `looks_whole`: the source looks again if its call ended while it looked, so that no copy is judged by an older look.
    """

    next_act: Callable[[Outgoing, Evidence], Act] = next_act
    gone_copy: Callable[[Outgoing, Ending, Ending, Copying], Copy] = gone_copy
    may_resume_arrival: Callable[[Owner, str, str], bool] = may_resume_arrival
    commit_handoff: Callable[[ClusterState, str, str, int], Transaction | None] = commit_handoff
    start_vm: Callable[[ClusterState, Request, str, str, Policy], Accepted] = start_vm
    register: Callable[[ClusterState, NodeReport, str, str, bool], tuple[NodeRecord, Transaction | None]] = register
    change_owner: Callable[[ClusterState, str, int, By], Transaction | None] = change_owner
    stop_vms: Callable[[ClusterState, str], Transaction | None] = stop_vms
    lockless: bool = False
    locks_bar: bool = False
    arrives_paused: bool = True
    doubt_asks_again: bool = True
    abort_remembered: bool = True
    looks_whole: bool = True
    half_made_freed: bool = True
    """An abort of what the journal does not know frees the charge that its operation has made."""
    proofs_compared: bool = True
    """What rests on a node's being fenced is written only while it is (decision 11)."""
    start_reads_again: bool = True
    """An agent reads the owner record after the domain exists and before it executes."""
    lays_down: bool = True
    """A fenced host ends its guests before it is heard."""
    runs_once: bool = True
    """A guest that a start has let run, and that has ended, is not started again under the same epoch."""
    epochs_judged: bool = True
    """An agent refuses a command under an older epoch than it has seen."""
    laid_down_is_finished: bool = True
    """A source that was fenced, and has laid down what it had, has finished the handoff that was committed before."""
    unread_is_no: bool = True
    """An agent that cannot read the owner record lets nothing run."""
    ranks_heeded: bool = True
    """An agent refuses a command that was sent before one it has heard (decision 16)."""
    heard_first: bool = True
    """An agent takes nothing in, and lets nothing run, before its host is registered: it may have been fenced (decision 11)."""
    incarnations_heeded: bool = True
    """And what was meant for its host before that was fenced, or booted (decision 19)."""
    let_go_heeded: bool = True
    """A handoff that was ended with the others of its host (laid down, or forgotten) acts no more, whatever it has read before."""
    one_agent: bool = True
    """An agent does not begin before the process in whose place it comes has ended."""
    silence_is_proof: bool = False
    """A node whose agent is gone, or that is cut off, is answered for as if it were fenced."""
    laying_refuses: bool = True
    """While it does so it takes no VM in and starts none."""
    laying_forgets_last: bool = True
    """Once it is heard, and its VMs can be started elsewhere no more, it looks again what is not its own."""
    laying_kept: bool = True
    """And that it has to look again is on its disk."""
    laying_ends_all: bool = True
    """It ends what is there once more under the VM's lock, after whatever start was in the agent's hands."""

    def not_heard_yet(self, host: Host) -> bool:
        return self.heard_first and host.unheard

    def for_another_life(self, host: Host, message: Message) -> bool:
        """Whether a command is for the host as it was before its last boot or fence."""
        return self.incarnations_heeded and message.incarnation != host.incarnation

    def answers_for_fenced(self, store: Store, node: int, ask: Ask) -> HandoffReport | VMStatus | HostlerError | None:
        """What the scheduler's own gateway answers for a node that is fenced (or is taken for it)."""
        return _gateway_answer(store, NODES[node], ask)

    def decide(self, state: ClusterState, decision: Decision, proofs: Proofs = ()) -> Transaction | None:
        """The transaction that a driver's step (or a person) wants now, if its proofs hold; None: it wants nothing any more."""
        return while_fenced(state, dict(proofs) if self.proofs_compared else {}, self._decide(state, decision))

    def _decide(self, state: ClusterState, decision: Decision) -> Transaction | None:
        name, op, argument = decision
        operation_id = OPERATIONS[op]
        match name:
            case "migrate":
                return migrate_vm(state, REQUESTS[op], VM, "", argument, 0, SPREAD).transaction
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
            case "cold defined":
                return enter_phase(state, operation_id, RESERVED, DEFINED, "", BY)
            case "change owner":
                return self.change_owner(state, operation_id, int(argument), BY)
            case "abort cold":
                return abort_cold(state, operation_id, GONE_WRONG, BY)
            case "finish cold abort":
                return finish_cold_abort(state, operation_id, BY)
            case "finish cold":
                return finish_cold(state, operation_id, BY)
            case "fence":
                silent = replace(state, health={**state.health, argument: Health.SILENT})
                return fence_node(silent, REQUESTS[op], argument, "").transaction
            case "stop its VMs":
                return self.stop_vms(state, operation_id)
            case "finish fence":
                return finish_fence(state, operation_id, BY)
            case "start":
                return self.start_vm(state, REQUESTS[op], VM, "", SPREAD).transaction
            case "starting":
                return enter_phase(state, operation_id, "ACCEPTED", STARTING, "", BY, lambda vm: let_run(vm, operation_id))
            case "started":
                return finish_running(state, operation_id, STARTING, VMStatus(UID, 0, True, VMPower(argument or VMPower.ON)), BY)
            case "roll back":
                return enter_phase(state, operation_id, STARTING, ROLLBACK, "", BY, change_error=GONE_WRONG)
            case "start failed":
                return finish_vm(state, operation_id, argument, Observed.STOPPED, OwnerState.STOPPED, BY, error=GONE_WRONG)
            case "registers" | "registers, laid down":
                return self.register(state, REPORTS[argument], "boot-2", f"{argument}:7500", name != "registers")[1]
            case "is off":
                node, epoch, revision = argument.split("/")
                status = VMStatus(UID, int(epoch), True, VMPower.OFF)
                return take_status(state, node, status) if state.vms[VM].revision == int(revision) else None
            case "commit":
                return self.commit_handoff(state, UID, operation_id, int(argument))
        raise ValueError(f"no decision {name}")
