"""Guards of the product, each taken out by wrapping the product's own code: without it the simulation must notice, or it is worth nothing."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

from hostler.model.copy import Copy, Stage
from nodeagent.core.definitions import EpochVerdict, Rank
from nodeagent.core.observed import Locks
from nodeagent.core.outgoing import Act, Copying, next_act
from nodeagent.engine import heeding, incoming, outgoing, outgoing_evidence, vms
from scheduler.core.steps import commit_handoff
from scheduler.engine import writer
from scheduler.engine.codec import guards_and_writes
from scheduler.ports import OutcomeUnknown, StoreUnavailable
from scheduler.rpc import cluster_link

Wrapped = Any
"""A function of the product, or what it takes and answers: the wrappers pass it on."""


@contextmanager
def _act(change: Callable[[Wrapped, Wrapped, Wrapped], Wrapped]) -> Iterator[None]:
    """Put `change(next_act, handoff, evidence)` in the place of the source's decision."""
    with mock.patch.object(outgoing, "next_act", lambda handoff, evidence: change(next_act, handoff, evidence)):
        yield


def _no_freeze() -> AbstractContextManager[object]:
    def change(inner: Wrapped, handoff: Wrapped, evidence: Wrapped) -> Wrapped:
        act = inner(handoff, evidence)
        return inner(handoff, replace(evidence, frozen=True)) if act is Act.FREEZE else act

    return _act(change)


def _no_inspection() -> AbstractContextManager[object]:
    return _act(lambda inner, handoff, evidence: inner(handoff, replace(evidence, locks=Locks.FREE, copy=_as_switched(evidence))))


def _as_switched(evidence: Wrapped) -> Copy:
    return Copy.SWITCHED if evidence.frozen and evidence.copy in (Copy.RUNNING, Copy.PAUSED) else evidence.copy


def _failed_is_aborted() -> AbstractContextManager[object]:
    """A call that failed is taken for a verdict: the source goes on without the abort."""

    def change(inner: Wrapped, handoff: Wrapped, evidence: Wrapped) -> Wrapped:
        if evidence.copying is Copying.FAILED and evidence.frozen:
            return Act.THAW
        if evidence.copying is Copying.FAILED and evidence.copy is Copy.SWITCHED:
            return Act.RESUME
        return inner(handoff, evidence)

    return _act(change)


def _gone_is_enough() -> AbstractContextManager[object]:
    def gone(handoff: Wrapped, told: Wrapped, written: Wrapped, copying: Wrapped) -> Copy:
        return Copy.GONE_MIGRATED if handoff.stage is not Stage.PREPARED else Copy.ABSENT

    return mock.patch.object(outgoing_evidence, "gone_copy", gone)


def _arrival_is_word() -> AbstractContextManager[object]:
    """Without locks, a copy that has arrived is taken for libvirt's word that it ends the source, which is then not looked at."""

    def change(inner: Wrapped, handoff: Wrapped, evidence: Wrapped) -> Wrapped:
        if not evidence.lockless or not evidence.arrived:
            return inner(handoff, evidence)
        standing = evidence.copy in (Copy.RUNNING, Copy.PAUSED)
        return inner(handoff, replace(evidence, leaving=True, copy=Copy.SWITCHED if standing else evidence.copy))

    return _act(change)


def _any_owned_arrival() -> AbstractContextManager[object]:
    """COMMITTED by that very operation is not asked for: a handoff to the node, or that it owns the VM, is enough."""

    def owns(owner: Wrapped, node_id: str, operation_id: str) -> bool:
        return node_id in (owner.node_id, owner.destination_node_id)

    return mock.patch.object(incoming, "may_resume_arrival", owns)


def _no_read_before_resume() -> AbstractContextManager[object]:
    return mock.patch.object(vms, "may_run", return_value=True)


@contextmanager
def _no_epochs() -> Iterator[None]:
    """Whatever comes is heeded, however old."""
    with (
        mock.patch.object(heeding, "judge_epoch", return_value=EpochVerdict.CURRENT),
        mock.patch.object(Rank, "__lt__", return_value=False),
    ):
        yield


@contextmanager
def _no_ranks() -> Iterator[None]:
    """Under the right epoch everything is heeded, however late it comes."""
    with mock.patch.object(Rank, "__lt__", return_value=False):
        yield


def _runs_twice() -> AbstractContextManager[object]:
    """A start that comes once more starts a guest that has ended, as long as the record has not heard of it."""
    return mock.patch.object(vms, "has_run", return_value=False)


def _commit_whatever() -> AbstractContextManager[object]:
    """Neither the revision that was read nor the guards are compared."""

    def commit(state: Wrapped, vm_uid: str, operation_id: str, owner_revision: int) -> Wrapped:
        kept = state.vm_by_uid(vm_uid)
        return None if kept is None else commit_handoff(state, vm_uid, kept.record.owner.operation_id, kept.revision)

    return mock.patch.object(cluster_link, "commit_handoff", commit)


def _no_guards() -> AbstractContextManager[object]:
    """The store compares nothing but the leader's term."""
    inner = guards_and_writes

    def unguarded(transaction: Wrapped) -> Wrapped:
        return [], inner(transaction)[1]

    return mock.patch.object(writer, "guards_and_writes", unguarded)


def _ledger_unguarded() -> AbstractContextManager[object]:
    """Two deciders may spend the same free amount."""
    inner = guards_and_writes

    def unguarded(transaction: Wrapped) -> Wrapped:
        compares, writes = inner(transaction)
        return [one for one in compares if "/ledger/" not in one.key], writes

    return mock.patch.object(writer, "guards_and_writes", unguarded)


def _unknown_is_no() -> AbstractContextManager[object]:
    """A write whose reply was lost is taken for one that did not happen.

    Redundant, and not expected to be noticed: it ends as Unavailable, and whoever gets that asks again. A user repeats the request, which names the
    same operation; a driver takes the step again, from the phase that the journal is in; an agent asks for the outcome of its commit. Reading the
    state back at once saves them the pause.
    """

    class Never(Exception):
        """Raised by nobody."""

    return mock.patch.multiple(writer, OutcomeUnknown=Never, StoreUnavailable=(StoreUnavailable, OutcomeUnknown))


@dataclass(frozen=True, slots=True)
class Missing:
    """`without`: the product without that guard. `aim`: the kind of fault (`Faults`) whose story needs it, drawn more often; empty: the usual mix."""

    without: Callable[[], AbstractContextManager[object]]
    aim: str = ""


MUTATIONS: Mapping[str, Missing] = {
    "no-freeze": Missing(_no_freeze, "moved_and_nobody_to_ask"),
    "no-inspection": Missing(_no_inspection, "moved_and_heard_late"),
    "failed-is-aborted": Missing(_failed_is_aborted, "source_killed_at_its_commit"),
    "gone-is-enough": Missing(_gone_is_enough, "moved_and_heard_late"),
    "arrival-is-word": Missing(_arrival_is_word, "moved_and_heard_late"),
    "any-owned-arrival": Missing(_any_owned_arrival, "commit_told_that_was_not_made"),
    "no-read-before-resume": Missing(_no_read_before_resume, "old_commands"),
    "no-epochs": Missing(_no_epochs, "old_commands"),
    "no-ranks": Missing(_no_ranks, "old_commands"),
    "runs-twice": Missing(_runs_twice, "old_commands"),
    "commit-whatever": Missing(_commit_whatever, "old_commands"),
    "no-guards": Missing(_no_guards),
    "ledger-unguarded": Missing(_ledger_unguarded),
    "unknown-is-no": Missing(_unknown_is_no),
}
