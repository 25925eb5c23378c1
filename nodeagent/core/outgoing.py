"""The source's end of a handoff, as one decision: what is known -> what to do next. The safety of the handoff rests on the order of this table.

The owner record decides first, because it alone is true for everybody:
  - another epoch than ours: somebody committed (or took over). Our copy must never run again: kill it.
  - ours, RUNNING, our epoch: the handoff was aborted. The copy goes on, and only now (abort before continue).
  - ours, STOPPED: a person has proved that this host is off, and was wrong. The copy must not run: kill it.
  - ours, HANDOFF by this operation: go on. Once the copy has arrived: freeze, inspect while frozen, commit. A commit is asked for only when the
    frozen source is switched over and holds no lock, or when the hypervisor says that it is gone because it migrated away, or that it
    is about to end it for that reason (written down, never taken back) and it is frozen and switched over.
  - not known now: change nothing.
There is no memory but the arguments, so a restarted agent takes the same decisions.

A source whose process is gone is not enough to go forward, however complete the copy at the destination: libvirt may have taken a lost reply for a
failure and let the source run on before it ended, and then the copy is older than the disk. What proves that it never ran again is libvirt's own
word that it ended because it migrated away: its event, the success of its call, or (for an agent that was not there) what it wrote down.

A disk in a local pool is copied along, and judged by the same table. QEMU lets go of an image only after libvirt has told it to go on, and libvirt
does so only once every copy of a disk has ended whole, with the guest stopped. So the free lock of the source's own file, which no other host need
see, says of a copied disk what it says of a shared one: nothing more will be written here, and everything that was is where it is to be.
"""

from dataclasses import dataclass
from enum import StrEnum

from hostler.model.copy import GONE, Copy, Stage
from hostler.model.owner import OwnerRead, OwnerState
from nodeagent.core.definitions import Outgoing
from nodeagent.core.observed import Locks


class Copying(StrEnum):
    """The hypervisor's migration call, as this process knows it."""

    NOT_BEGUN = "NOT_BEGUN"
    RUNNING = "RUNNING"
    RETURNED = "RETURNED"
    """It said that the copy is there."""
    FAILED = "FAILED"
    """It said that it failed, which is not a verdict."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known now. `locks` is None before the frozen copy was inspected; `copy` is what the hypervisor said after the freeze, if frozen."""

    owner: OwnerRead | None
    copy: Copy
    frozen: bool
    copying: Copying
    arrived: bool
    locks: Locks | None
    lockless: bool
    """The disks have no lock that can be asked: inspection proves nothing, the hypervisor's word that it migrated away is waited for."""
    settled: bool = False
    """The failed call is long over, and the hypervisor, asked now, still has the copy switched over and no job for it: no word will come."""
    leaving: bool = False
    """The hypervisor has written down, since this copy began, that it ends the domain because it migrated away. Its process may be there still:
    to end it takes seconds."""


class Act(StrEnum):
    """What the engine does next."""

    BEGIN_COPY = "BEGIN_COPY"
    WAIT = "WAIT"
    FREEZE = "FREEZE"
    INSPECT = "INSPECT"
    COMMIT = "COMMIT"
    KILL = "KILL"
    FINISH = "FINISH"
    STOP_COPY = "STOP_COPY"
    THAW = "THAW"
    RESUME = "RESUME"
    ABORTED = "ABORTED"
    FAIL = "FAIL"


class Ending(StrEnum):
    """Why the domain ended, as the hypervisor said or wrote down."""

    UNTOLD = "UNTOLD"
    MIGRATED = "MIGRATED"
    OTHERWISE = "OTHERWISE"


def gone_copy(handoff: Outgoing, told: Ending, written: Ending, copying: Copying) -> Copy:
    """What a source that has no domain any more is: GONE_MIGRATED only if the hypervisor vouches for it, for a copy that this handoff began. That it
    migrated away is never taken back: a process that died while it was being ended for that reason is gone for that reason."""
    begun = handoff.stage is not Stage.PREPARED
    vouched = Ending.MIGRATED in (told, written) or copying is Copying.RETURNED
    return Copy.GONE_MIGRATED if begun and vouched else Copy.ABSENT


def next_act(handoff: Outgoing, evidence: Evidence) -> Act:
    """The next step of the source; see the module's docstring for the argument."""
    if evidence.owner is None:
        return Act.WAIT
    owner = evidence.owner.owner
    if owner.epoch != handoff.epoch:
        return Act.FINISH if evidence.copy in GONE else Act.KILL
    if owner.state is OwnerState.HANDOFF and owner.operation_id == handoff.operation_id:
        return _go_on(evidence)
    if owner.state is OwnerState.RUNNING:
        return _go_back(evidence)
    if owner.state is OwnerState.STOPPED:
        return Act.ABORTED if evidence.copy in GONE else Act.KILL
    return Act.WAIT


def _go_on(evidence: Evidence) -> Act:
    if evidence.copy is Copy.GONE_MIGRATED:
        return Act.COMMIT
    if evidence.copy is Copy.UNKNOWN:
        return Act.WAIT
    if evidence.copy is Copy.ABSENT:
        return Act.FAIL
    if evidence.copying is Copying.NOT_BEGUN and not evidence.frozen and evidence.copy is Copy.RUNNING:
        return Act.BEGIN_COPY
    if evidence.arrived or evidence.frozen or evidence.leaving or evidence.copying is Copying.RETURNED:
        return _await_word(evidence) if evidence.lockless else _inspect(evidence)
    return Act.WAIT if evidence.copying is Copying.RUNNING else Act.FAIL


def _await_word(evidence: Evidence) -> Act:
    """Without locks only the hypervisor's word counts, that it migrated away. It can still come while the call runs, or until the copy has settled
    as switched over: then the source, which is the newest and still the owner's, is to go on. Written down it counts before the process has ended:
    nothing that the hypervisor does after it lets the source run. It is frozen all the same, against whoever is not the hypervisor."""
    if evidence.leaving and evidence.copy is Copy.SWITCHED:
        return Act.COMMIT if evidence.frozen else Act.FREEZE
    to_come = evidence.copying in (Copying.RUNNING, Copying.RETURNED) or (evidence.copy is Copy.SWITCHED and not evidence.settled)
    return Act.WAIT if to_come else Act.FAIL


def _inspect(evidence: Evidence) -> Act:
    if not evidence.frozen:
        return Act.FREEZE
    if evidence.locks is None:
        return Act.INSPECT
    clean = evidence.copy is Copy.SWITCHED and evidence.locks is Locks.FREE
    return Act.COMMIT if clean else Act.FAIL


def _go_back(evidence: Evidence) -> Act:
    if evidence.frozen:
        return Act.THAW
    if evidence.copying is Copying.RUNNING:
        return Act.STOP_COPY
    if evidence.copy in (Copy.SWITCHED, Copy.PAUSED):
        return Act.RESUME
    return Act.WAIT if evidence.copy is Copy.UNKNOWN else Act.ABORTED
