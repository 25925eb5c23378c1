"""The sweep as data: which fault hits whom at which step of a handoff, and which forty of these are run first.

A step is a place between two actions of the protocol (docs/handoff.md), reached by a gate around a port of one daemon (`pause`) or, where nobody of
ours acts, by a fact that shows from outside. A cell holds the daemon there, strikes, and lets it go on.
"""

from dataclasses import dataclass
from enum import StrEnum


class Who(StrEnum):
    """Whose gate a step is."""

    SOURCE = "source"
    DESTINATION = "destination"
    SCHEDULER = "scheduler"
    NOBODY = "nobody"


@dataclass(frozen=True, slots=True)
class Step:
    """`point`: the gate's name, see `pause`, `agent` and `scheduler`. `phases`: what the journal may say there."""

    name: str
    who: Who
    point: str
    phases: tuple[str, ...]
    meaning: str


STEPS = (
    Step("prepare", Who.DESTINATION, "before save incoming PREPARED", ("RESERVED",), "H1: checked, not written down"),
    Step("ready", Who.SCHEDULER, "after txn DESTINATION_READY", ("DESTINATION_READY",), "H1 is journaled"),
    Step("open", Who.SOURCE, "before open_outgoing", ("COPYING",), "H2 is ordered, no tunnel yet"),
    Step("migrate", Who.SOURCE, "before migrate", ("COPYING",), "H2: COPYING is written down, libvirt not called"),
    Step("copy", Who.NOBODY, "", ("COPYING",), "H2: the destination's QEMU waits for memory"),
    Step("arrived", Who.SOURCE, "before freeze", ("COPYING",), "H3: the copy is complete and paused, the source not frozen"),
    Step("frozen", Who.SOURCE, "before locks", ("COPYING",), "H4: frozen, not looked at"),
    Step("inspected", Who.SOURCE, "before commit_handoff", ("COPYING",), "H4: looked at, the commit not asked for"),
    Step("commit", Who.SCHEDULER, "before txn owner COMMITTED", ("COPYING",), "H5: asked for, not written"),
    Step("committed", Who.SCHEDULER, "after txn owner COMMITTED", ("COPYING", "COMMITTED"), "H5: written, not answered"),
    Step("kill", Who.SOURCE, "before kill", ("COPYING", "COMMITTED"), "H7: the source knows, the old copy stands frozen"),
    Step("killed", Who.SOURCE, "after kill", ("COPYING", "COMMITTED"), "H7: the old copy is dead, not written down"),
    Step("resume", Who.DESTINATION, "before resume", ("COPYING", "COMMITTED"), "H6: the record was read, the copy is still paused"),
    Step("resumed", Who.DESTINATION, "after resume", ("COPYING", "COMMITTED"), "H6: it runs, nothing is written down"),
    Step("finish", Who.SCHEDULER, "before txn SUCCEEDED", ("COMMITTED",), "H7: both ends are done, the journal is not"),
)

BY_NAME = {step.name: step for step in STEPS}
ORDER = {step.name: index for index, step in enumerate(STEPS)}


class Victim(StrEnum):
    """A process, or a link."""

    SOURCE_AGENT = "source agent"
    DESTINATION_AGENT = "destination agent"
    SOURCE_LIBVIRTD = "source libvirtd"
    DESTINATION_LIBVIRTD = "destination libvirtd"
    SOURCE_QEMU = "source QEMU"
    DESTINATION_QEMU = "destination QEMU"
    SCHEDULER = "scheduler"
    ETCD_LEADER = "etcd leader"
    SOURCE_TO_SCHEDULER = "link source agent - schedulers"
    SOURCE_TO_DESTINATION = "link source - destination"
    DESTINATION_TO_SCHEDULER = "link destination agent - schedulers"
    SCHEDULER_TO_ETCD = "link scheduler - etcd"
    TUNNEL_REPLIES = "link tunnel, destination to source"


LINKS = frozenset(victim for victim in Victim if victim.value.startswith("link "))


class Blow(StrEnum):
    """What is done to it. A cut lasts as long as makes libvirt's keepalive (8 s) give up."""

    KILL = "kill -9"
    FREEZE_5 = "freeze 5 s"
    FREEZE_20 = "freeze 20 s"
    CUT = "cut 12 s"


LASTS_S = {Blow.KILL: 0.0, Blow.FREEZE_5: 5.0, Blow.FREEZE_20: 20.0, Blow.CUT: 12.0}


class Pool(StrEnum):
    """Where the guest's disk is. `LOCAL`: on its host, and copied along. `LOCKLESS`: see `lockless`."""

    SHARED = "shared"
    LOCKLESS = "lockless"
    LOCAL = "local"


@dataclass(frozen=True, slots=True)
class Cell:
    """One fault. `why`: what makes it one of the riskiest; "": it is not. `run`: 0, or which repetition."""

    victim: Victim
    blow: Blow
    step: str
    why: str = ""
    pool: Pool = Pool.SHARED
    run: int = 0

    @property
    def name(self) -> str:
        """Of its line in the results."""
        pool = f" {self.pool.value}" if self.pool is not Pool.SHARED else ""
        return f"{self.victim.value}, {self.blow.value}, {self.step}{pool}{f' #{self.run}' if self.run else ''}"


LOST_FINISH = "lost Finish"
"""A step of its own: the tunnel's way back is cut once the memory flows, so that libvirt's last reply is lost."""
LOST_FINISH_RUNS = 20
CONTROL = "plain virsh migrate"
"""The same fault and no Hostler: see `control`."""


def possible(victim: Victim, blow: Blow, step: str) -> bool:
    """Whether there is something to hit, and the blow is a fault rather than the undoing of the protocol's own acts."""
    at = ORDER[step]
    if (victim in LINKS) != (blow is Blow.CUT):
        return False
    match victim:
        case Victim.SOURCE_QEMU:
            # From `frozen` on the agent itself has stopped it: to freeze it again is nothing, and to thaw it then is what nobody may do.
            return at <= ORDER["kill"] if blow is Blow.KILL else at <= ORDER["copy"]
        case Victim.DESTINATION_QEMU:
            return at >= ORDER["copy"]
        case Victim.SOURCE_TO_DESTINATION:
            return at <= ORDER["kill"]
        case Victim.TUNNEL_REPLIES:
            return ORDER["migrate"] <= at <= ORDER["inspected"]
        case _:
            return True


V, B = Victim, Blow
RISKIEST: dict[tuple[Victim, Blow, str], str] = {
    (V.SOURCE_AGENT, B.KILL, "migrate"): "COPYING is written down and nobody knows whether libvirt was called",
    (V.SOURCE_AGENT, B.KILL, "copy"): "the copy goes on without the one who ordered it",
    (V.SOURCE_AGENT, B.KILL, "arrived"): "libvirt ends the source while nobody listens",
    (V.SOURCE_AGENT, B.KILL, "frozen"): "a guest stopped by a signal of a process that is gone",
    (V.SOURCE_AGENT, B.KILL, "inspected"): "the look is lost, and may not be trusted again",
    (V.SOURCE_AGENT, B.KILL, "kill"): "committed, and the old copy's killer is dead",
    (V.SOURCE_AGENT, B.FREEZE_20, "arrived"): "wakes long after libvirt has decided by itself",
    (V.SOURCE_AGENT, B.FREEZE_20, "inspected"): "wakes and commits on a look 20 s old",
    (V.SOURCE_AGENT, B.FREEZE_20, "kill"): "the destination runs while the old copy waits for its death",
    (V.DESTINATION_AGENT, B.KILL, "copy"): "the tunnel ends in the middle of the memory",
    (V.DESTINATION_AGENT, B.KILL, "arrived"): "the arrival is told by nobody any more",
    (V.DESTINATION_AGENT, B.KILL, "resume"): "committed, and nobody resumes it",
    (V.DESTINATION_AGENT, B.KILL, "resumed"): "it runs, and its agent has not written it down",
    (V.DESTINATION_AGENT, B.FREEZE_20, "resume"): "wakes and resumes on a record read 20 s ago",
    (V.SOURCE_LIBVIRTD, B.KILL, "copy"): "libvirt cancels the copy when it is back",
    (V.SOURCE_LIBVIRTD, B.KILL, "arrived"): "killed in the switchover: both copies paused, its word is never said",
    (V.SOURCE_LIBVIRTD, B.KILL, "kill"): "the old copy must die without libvirt",
    (V.SOURCE_LIBVIRTD, B.FREEZE_20, "arrived"): "wakes and may let the source run on",
    (V.SOURCE_LIBVIRTD, B.FREEZE_20, "inspected"): "the same after the look",
    (V.DESTINATION_LIBVIRTD, B.KILL, "copy"): "the destination's QEMU is left to itself",
    (V.DESTINATION_LIBVIRTD, B.KILL, "arrived"): "the reply is lost, the copy complete",
    (V.DESTINATION_LIBVIRTD, B.KILL, "resume"): "committed, and who could resume it is away",
    (V.DESTINATION_LIBVIRTD, B.FREEZE_20, "resume"): "committed, and the order to resume hangs",
    (V.SOURCE_QEMU, B.KILL, "copy"): "a half copy at the destination is all that there is",
    (V.SOURCE_QEMU, B.KILL, "inspected"): "frozen, looked at, then gone for another reason",
    (V.SOURCE_QEMU, B.FREEZE_20, "copy"): "libvirt waits for a monitor that does not answer",
    (V.DESTINATION_QEMU, B.KILL, "arrived"): "the copy dies before the commit",
    (V.DESTINATION_QEMU, B.KILL, "resume"): "the only memory dies after the commit",
    (V.SCHEDULER, B.KILL, "commit"): "asked for, not written, and the one who was asked is dead",
    (V.SCHEDULER, B.KILL, "committed"): "written, and the answer is lost",
    (V.SCHEDULER, B.FREEZE_20, "commit"): "a leader that was replaced wakes and writes",
    (V.SCHEDULER, B.KILL, "finish"): "both ends are done, the journal says COMMITTED",
    (V.ETCD_LEADER, B.FREEZE_20, "commit"): "the commit hangs and its outcome is not known",
    (V.ETCD_LEADER, B.KILL, "commit"): "an election in the middle of the commit",
    (V.SOURCE_TO_SCHEDULER, B.CUT, "inspected"): "libvirt ends the source while the commit cannot get out",
    (V.SOURCE_TO_DESTINATION, B.CUT, "arrived"): "both ends are whole and cannot talk",
    (V.DESTINATION_TO_SCHEDULER, B.CUT, "resume"): "committed to a node that nobody hears",
    (V.SCHEDULER_TO_ETCD, B.CUT, "commit"): "the replica that was asked cannot write",
    (V.TUNNEL_REPLIES, B.CUT, "arrived"): "libvirt's last replies are lost",
    (V.TUNNEL_REPLIES, B.CUT, LOST_FINISH): "the source's libvirt takes a complete copy for a failed one",
}

RISKIEST_LOCAL: dict[tuple[Victim, Blow, str], str] = {
    (V.SOURCE_AGENT, B.KILL, "copy"): "the disk is copied without the one who ordered it",
    (V.SOURCE_AGENT, B.KILL, "arrived"): "both files are whole, and libvirt ends the source while nobody listens",
    (V.SOURCE_AGENT, B.KILL, "kill"): "committed, and who is to remove the old file is gone",
    (V.SOURCE_AGENT, B.FREEZE_20, "inspected"): "wakes and commits on a look 20 s old",
    (V.DESTINATION_AGENT, B.KILL, "prepare"): "killed before it has written down whose file it makes",
    (V.DESTINATION_AGENT, B.KILL, "copy"): "a half file, and the tunnel ends in the middle of the disk",
    (V.DESTINATION_AGENT, B.KILL, "resume"): "committed, and nobody resumes it on its new disk",
    (V.SOURCE_LIBVIRTD, B.KILL, "copy"): "killed with the mirror's jobs in its hands",
    (V.SOURCE_LIBVIRTD, B.KILL, "arrived"): "its word, that the source has ended, is never said",
    (V.DESTINATION_LIBVIRTD, B.KILL, "copy"): "the QEMU that serves the disk is left to itself",
    (V.DESTINATION_LIBVIRTD, B.KILL, "arrived"): "the reply is lost, memory and disk are complete",
    (V.SOURCE_QEMU, B.KILL, "copy"): "what is at the destination is half a disk and half a memory",
    (V.DESTINATION_QEMU, B.KILL, "copy"): "the target of the mirror is gone",
    (V.DESTINATION_QEMU, B.KILL, "arrived"): "the copy dies before the commit: the old file is the only one that counts",
    (V.DESTINATION_QEMU, B.KILL, "resume"): "the only memory dies after the commit: the new file is the only one that counts",
    (V.SCHEDULER, B.KILL, "committed"): "written, and the answer is lost",
    (V.SOURCE_TO_DESTINATION, B.CUT, "copy"): "the disk's stream stands still until libvirt gives up",
    (V.TUNNEL_REPLIES, B.CUT, "arrived"): "libvirt's last replies are lost",
}
"""Of a guest whose disk is copied along."""


def all_cells() -> tuple[Cell, ...]:
    """Every possible cell: the riskiest first, then the lost Finish on the pool without locks, with its control, then disks that are copied along,
    then the rest."""
    risky = [Cell(victim, blow, step, why) for (victim, blow, step), why in RISKIEST.items()]
    lost = [Cell(V.TUNNEL_REPLIES, B.CUT, LOST_FINISH, pool=Pool.LOCKLESS, run=run) for run in range(1, LOST_FINISH_RUNS + 1)]
    rest = [
        Cell(victim, blow, step.name)
        for victim in Victim
        for blow in Blow
        for step in STEPS
        if possible(victim, blow, step.name) and (victim, blow, step.name) not in RISKIEST
    ]
    control = Cell(V.TUNNEL_REPLIES, B.CUT, CONTROL, pool=Pool.LOCKLESS)
    local = [Cell(victim, blow, step, why, Pool.LOCAL) for (victim, blow, step), why in RISKIEST_LOCAL.items()]
    return (*risky, control, *lost, *local, *rest)


def chosen(everything: bool) -> tuple[Cell, ...]:
    """The riskiest on shared storage and the lost Finish, or all."""
    return tuple(cell for cell in all_cells() if everything or cell.pool is Pool.LOCKLESS or (cell.why and cell.pool is Pool.SHARED))
