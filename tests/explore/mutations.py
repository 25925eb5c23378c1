"""The guards of the handoff, each taken out by wrapping the product's own function: without it the search must find a violation, or the guard
(or the search) is worth nothing."""

from collections.abc import Mapping
from dataclasses import replace

from hostler.model.copy import Copy, Stage
from hostler.model.journal import Request
from hostler.model.node import NodeReport
from hostler.model.owner import Owner, OwnerRead, OwnerState
from nodeagent.core.definitions import Outgoing
from nodeagent.core.observed import Locks
from nodeagent.core.outgoing import Act, Copying, Ending, Evidence, next_act
from scheduler.core.accept import Accepted
from scheduler.core.decide_fence import stop_vms
from scheduler.core.decide_nodes import register
from scheduler.core.decide_power import start_vm
from scheduler.core.placement.policy import Policy
from scheduler.core.records import NodeRecord, NodeState, VMRecord
from scheduler.core.state import ClusterState, Kept
from scheduler.core.steps import commit_handoff
from scheduler.core.transaction import Transaction
from tests.explore.configurations import Configuration
from tests.explore.rules import Rules
from tests.explore.world import UID, Budget


def _unguarded_commit(state: ClusterState, vm_uid: str, operation_id: str, owner_revision: int) -> Transaction | None:
    transaction = commit_handoff(state, vm_uid, operation_id, owner_revision)
    return None if transaction is None else replace(transaction, guards={})


def _commit_of_whatever_is_there(state: ClusterState, vm_uid: str, operation_id: str, owner_revision: int) -> Transaction | None:
    """The revision that the source read before it inspected is not compared, nor is the operation: only that there is a handoff."""
    kept = state.vm_by_uid(UID)
    return None if kept is None else commit_handoff(state, vm_uid, kept.record.owner.operation_id, kept.revision)


def _commit_by_operation(state: ClusterState, vm_uid: str, operation_id: str, owner_revision: int) -> Transaction | None:
    """The operation is compared, the revision is not."""
    kept = state.vm_by_uid(UID)
    return None if kept is None else commit_handoff(state, vm_uid, operation_id, kept.revision)


def _no_freeze(handoff: Outgoing, evidence: Evidence) -> Act:
    """Inspects, and commits, a source that nobody has stopped."""
    act = next_act(handoff, evidence)
    return next_act(handoff, replace(evidence, frozen=True)) if act is Act.FREEZE else act


def _no_inspection(handoff: Outgoing, evidence: Evidence) -> Act:
    """The event that it is switched over is enough."""
    return next_act(handoff, replace(evidence, locks=Locks.FREE))


def _any_arrival(owner: Owner, node_id: str, operation_id: str) -> bool:
    """That the copy is here is enough."""
    return True


def _any_owned_arrival(owner: Owner, node_id: str, operation_id: str) -> bool:
    """COMMITTED to this node is not asked for, a handoff to it is enough."""
    return owner.state is OwnerState.HANDOFF or owner.node_id == node_id


def _no_epoch(handoff: Outgoing, evidence: Evidence) -> Act:
    """A record of another epoch is read like one of ours."""
    if evidence.owner is None:
        return next_act(handoff, evidence)
    owner = replace(evidence.owner.owner, epoch=handoff.epoch)
    return next_act(handoff, replace(evidence, owner=replace(evidence.owner, owner=owner)))


def _no_epoch_nor_state(handoff: Outgoing, evidence: Evidence) -> Act:
    """What is no handoff any more was aborted, whoever owns it now."""
    if evidence.owner is None or evidence.owner.owner.state is not OwnerState.COMMITTED:
        return _no_epoch(handoff, evidence)
    owner = replace(evidence.owner.owner, state=OwnerState.RUNNING)
    return _no_epoch(handoff, replace(evidence, owner=replace(evidence.owner, owner=owner)))


def _thaw_before_abort(handoff: Outgoing, evidence: Evidence) -> Act:
    """A call that failed is taken for a verdict: the source goes on without waiting for the abort to be written."""
    read = evidence.owner
    if read is None or evidence.copying is not Copying.FAILED or read.owner.state is not OwnerState.HANDOFF:
        return next_act(handoff, evidence)
    aborted = OwnerRead(read.vm_uid, replace(read.owner, state=OwnerState.RUNNING), read.revision, read.read_revision)
    act = next_act(handoff, replace(evidence, owner=aborted))
    return Act.FAIL if act is Act.ABORTED else act


def _gone_is_enough(handoff: Outgoing, told: Ending, written: Ending, copying: Copying) -> Copy:
    """Decision 9 undone: a source that is gone has migrated."""
    return Copy.GONE_MIGRATED if handoff.stage is not Stage.PREPARED else Copy.ABSENT


def _arrival_is_word(handoff: Outgoing, evidence: Evidence) -> Act:
    """Without locks, a copy that has arrived is taken for libvirt's word that the source is ended."""
    return next_act(handoff, replace(evidence, leaving=evidence.leaving or evidence.arrived))


def _word_unfrozen(handoff: Outgoing, evidence: Evidence) -> Act:
    """Libvirt's word that it ends the source is enough, whether it is frozen or not."""
    act = next_act(handoff, evidence)
    return Act.COMMIT if act is Act.FREEZE and evidence.lockless else act


def _register_at_once(
    state: ClusterState, report: NodeReport, boot_id: str, endpoint: str, laid_down: bool = False
) -> tuple[NodeRecord, Transaction | None]:
    """Whatever its agent has done before."""
    return register(state, report, boot_id, endpoint, True)


def _stop_whatever_is_there(state: ClusterState, operation_id: str) -> Transaction | None:
    """As long as the operation is not done, fenced or not."""
    node_id = state.operations[operation_id].record.target_id
    kept = state.nodes[node_id]
    fenced = Kept(replace(kept.record, state=NodeState.FENCED), kept.revision)
    return stop_vms(replace(state, nodes={**state.nodes, node_id: fenced}), operation_id)


def _same_epoch(state: ClusterState, request: Request, vm_id: str, etag: str, policy: Policy) -> Accepted:
    """The new owner under the old epoch."""
    accepted, before = start_vm(state, request, vm_id, etag, policy), state.vms[vm_id].record.owner.epoch
    puts = {
        key: replace(record, owner=replace(record.owner, epoch=before)) if isinstance(record, VMRecord) else record
        for key, record in accepted.transaction.puts.items()
    }
    return replace(accepted, transaction=replace(accepted.transaction, puts=puts))


REDUNDANT: Mapping[str, Configuration] = {
    "word-unfrozen": Configuration(
        Rules(lockless=True, next_act=_word_unfrozen),
        Budget(libvirt=1, agents=1),
        why="without locks the source is not frozen before the commit: redundant as long as libvirt keeps its word, and nobody resumes by hand",
    ),
    "commit-by-operation": Configuration(
        Rules(commit_handoff=_commit_by_operation),
        Budget(agents=1, moves=(1, 1)),
        why="the operation alone is compared: redundant while nothing else changes the record during a handoff",
    ),
    "start-elsewhere-same-epoch": Configuration(
        Rules(locks_bar=True, start_vm=_same_epoch),
        Budget(agents=1, wrong_fences=1, starts=2, moves=(), off=True),
        why="a start elsewhere takes no epoch of its own: redundant, since the start takes one before anything executes",
    ),
    "start-reads-once": Configuration(
        Rules(locks_bar=True, start_reads_again=False),
        Budget(agents=1, wrong_fences=1, starts=2, moves=(), off=True),
        why="the record is not read again after the domain exists: redundant here, since a fenced host waits for a start in its agent's hands",
    ),
    "unread-is-yes": Configuration(
        Rules(locks_bar=True, unread_is_no=False),
        Budget(moves=(), off=True, cuts=1, wrong_fences=1, starts=2),
        why="a host that is cut off lets a VM run unread: redundant, since only a fence takes its right away, and then the lock stops the second one",
    ),
}
"""Guards that nothing was found without, within these slices: no reason to drop them."""

MUTATIONS: Mapping[str, Configuration] = {
    "commit-unguarded": Configuration(Rules(commit_handoff=_unguarded_commit), Budget(agents=1), "I7", "the store compares nothing"),
    "commit-whatever": Configuration(
        Rules(commit_handoff=_commit_of_whatever_is_there), Budget(agents=1, moves=(1, 1)), "I7", "neither revision nor operation compared"
    ),
    "no-freeze": Configuration(Rules(next_act=_no_freeze), Budget(libvirt=1), "I7", "inspected while it can run on"),
    "no-inspection": Configuration(Rules(next_act=_no_inspection), Budget(libvirt=1), "I2", "an event instead of the locks"),
    "arrival-is-word": Configuration(
        Rules(lockless=True, next_act=_arrival_is_word),
        Budget(libvirt=1),
        "I2",
        "without locks, the copy's arrival instead of libvirt's word",
    ),
    "no-paused-arrival": Configuration(Rules(arrives_paused=False), Budget(), "I7", "libvirt lets the copy run at once"),
    "any-arrival": Configuration(Rules(may_resume_arrival=_any_arrival), Budget(messages=1), "I7", "a message is believed"),
    "any-owned-arrival": Configuration(Rules(may_resume_arrival=_any_owned_arrival), Budget(messages=1), "I7", "HANDOFF is enough"),
    "no-epoch": Configuration(Rules(next_act=_no_epoch), Budget(), "limbo", "safe without, but the source never ends"),
    "no-epoch-nor-state": Configuration(Rules(next_act=_no_epoch_nor_state), Budget(libvirt=1), "I7", "COMMITTED is read like RUNNING"),
    "thaw-before-abort": Configuration(Rules(next_act=_thaw_before_abort), Budget(agents=1), "I7", "goes on before the abort is written"),
    "gone-is-enough": Configuration(Rules(gone_copy=_gone_is_enough), Budget(agents=1, deaths=1), "I8", "decision 9 undone"),
    "doubt-ends-abort": Configuration(
        Rules(doubt_asks_again=False),
        Budget(libvirt=1),
        "I7: n1 executes what was started under epoch 2; the record says STOPPED",
        "the scheduler takes every answer of the source but RUNNING for a dead guest",
    ),
    "abort-forgotten": Configuration(
        Rules(abort_remembered=False),
        Budget(messages=1, cancels=1),
        "limbo",
        "the destination does not write down an abort of what it does not know: a PrepareIncoming that comes later charges it for ever",
    ),
    "half-made-kept": Configuration(
        Rules(half_made_freed=False),
        Budget(agents=1, cancels=1),
        "limbo",
        "an agent dies between the charge and the journal of an arrival: the abort, which finds no arrival, leaves the host charged for ever",
    ),
    "torn-look": Configuration(
        Rules(looks_whole=False),
        Budget(libvirt=1, cancels=1),
        "limbo",
        "the source judges a copy that it looked at before the call ended by the call's end: ABORTED with a guest left paused",
    ),
    "wrong-fence-lockless": Configuration(
        Rules(lockless=True),
        Budget(agents=1, wrong_fences=1, starts=1),
        "I1",
        "no guard is missing: what a person's wrong word does on storage without locks (docs/handoff.md)",
    ),
    "fence-no-laying-down": Configuration(
        Rules(locks_bar=True, lays_down=False),
        Budget(agents=1, wrong_fences=1),
        "I7: n1 executes what was started under epoch 2; the record says STOPPED",
        "a fenced host is heard with its guests alive",
    ),
    "fence-register-at-once": Configuration(
        Rules(locks_bar=True, register=_register_at_once),
        Budget(agents=1, wrong_fences=1),
        "I7: n1 executes what was started under epoch 2; the record says STOPPED",
        "a fenced node's registration is taken as it comes",
    ),
    "fence-start-in-hand": Configuration(
        Rules(locks_bar=True, laying_ends_all=False),
        Budget(agents=1, wrong_fences=1, starts=2, moves=(), off=True),
        "I7: n1 executes what was started",
        "a start that was in the agent's hands is not waited for",
    ),
    "fence-start-taken-in": Configuration(
        Rules(locks_bar=True, laying_refuses=False),
        Budget(agents=1, wrong_fences=1, starts=2, moves=(), off=True),
        "I7: n1 executes what was started",
        "a start that comes while the host is being laid down is begun",
    ),
    "fence-forgets-once": Configuration(
        Rules(locks_bar=True, laying_forgets_last=False),
        Budget(agents=1, wrong_fences=1, starts=1, moves=(), off=True),
        "limbo",
        "what is started elsewhere just before its host is heard stays charged there",
    ),
    "fence-laying-down-forgotten": Configuration(
        Rules(laying_kept=False),
        Budget(power=1, fences=1, agents=1, starts=1, moves=(), off=True),
        "limbo",
        "an agent that is killed before it has looked again does not know that it has to",
    ),
    "fence-carried-on": Configuration(
        Rules(locks_bar=True, stop_vms=_stop_whatever_is_there),
        Budget(agents=1, wrong_fences=1, starts=1),
        "I7",
        "the fence of a node that is back goes on stopping its VMs",
    ),
    "fence-let-go-unheeded": Configuration(
        Rules(let_go_heeded=False),
        Budget(power=1, fences=1, starts=1),
        "the owner's guest",
        "a handoff that was ended with its fenced host acts on what it had read before",
    ),
    "fence-laid-down-unfinished": Configuration(
        Rules(laid_down_is_finished=False),
        Budget(power=1, fences=1),
        "limbo",
        "a source that was fenced after the commit, and is back, is asked for ever for the end of a handoff that it ended in its own way",
    ),
    "late-commands": Configuration(
        Rules(ranks_heeded=False),
        Budget(off=True, messages=1, cancels=1, starts=1),
        "limbo",
        "a DefineVM that comes after the VM was forgotten charges the host for ever (decision 16)",
    ),
    "late-for-another-life": Configuration(
        Rules(incarnations_heeded=False),
        Budget(sleepers=1, power=1, fences=1, starts=2, moves=(), off=True),
        "limbo",
        "a DefineVM for a node from before it was fenced charges it for ever when it is back (decision 19)",
    ),
    "unheard-takes-in": Configuration(
        Rules(heard_first=False),
        Budget(sleepers=1, power=1, fences=1, starts=2, moves=(), off=True),
        "I1",
        "an agent that no scheduler has heard yet starts what a replica sends it from before its host was fenced",
    ),
    "runs-twice": Configuration(
        Rules(runs_once=False),
        Budget(off=True, moves=(), deaths=1, messages=1, starts=1),
        "I7: n1 executes what was started under epoch 2; the record says STOPPED",
        "a StartVM that comes once more starts a guest whose end is on its way to the record",
    ),
    "two-agents": Configuration(
        Rules(one_agent=False),
        Budget(zombies=1),
        "limbo",
        "an agent begins while the process before it is stopped, not dead: that one wakes, and does once more what it had decided",
    ),
    "gone-if-silent": Configuration(
        Rules(silence_is_proof=True),
        Budget(agents=1),
        "I7: n1 executes what was started under epoch 2; the record says STOPPED",
        "a node whose agent is gone is answered for as if it were fenced",
    ),
}
