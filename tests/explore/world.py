"""One moment of a handoff, as a value: the store's real records, one driver, two agents (what is on their disks, and what a crash loses), the
hypervisor's work, the copies of one VM, the messages on their way, and what may still go wrong.

Hashable, so that a search knows where it has been. A store is kept once per content, as the bytes that etcd would hold; its decoded state with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

import msgspec

from hostler.model.copy import Copy, Stage
from hostler.model.owner import Owner, OwnerRead
from nodeagent.core.definitions import Outgoing
from nodeagent.core.observed import Locks, Power
from nodeagent.core.outgoing import Copying, Ending
from scheduler.core.decide_fence import is_fenced
from scheduler.core.records import OperationRecord, VMRecord
from scheduler.core.state import ClusterState, Kept
from scheduler.core.transaction import Transaction
from scheduler.core.view import Health
from scheduler.engine.codec import decode, encode
from scheduler.engine.mirror import put_record
from tests.unit.scheduler.core.kept import Cluster, asked

SOURCE, DESTINATION = "n1", "n2"
VM, UID = "web", "uid-web"
REQUESTS = (asked("migrate 1"), asked("migrate 2"), asked("fence n1"), asked("fence n2"), asked("start 1"), asked("start 2"))
"""What may be asked for. Everything below names it by its place here."""

MIGRATIONS, FENCES, STARTS = range(2), range(2, 4), range(4, 6)
"""Their places: migrations and starts in the order in which they are asked for, fences by node."""

OPERATIONS = tuple(request.operation_id for request in REQUESTS)
HEALTH = {SOURCE: Health.READY, DESTINATION: Health.READY}


class Store:
    """What etcd holds: key, revision, value. Two with the same content are the same object."""

    __slots__ = ("content", "state")
    _known: "dict[bytes, Store]" = {}

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.state = _decoded(content)

    @classmethod
    def of(cls, state: ClusterState) -> "Store":
        content = _encoded(state)
        known = cls._known.get(content)
        if known is None:
            known = cls._known[content] = Store(content)
        return known

    def write(self, transaction: Transaction) -> "Store | None":
        """The store after it; None: a guard is out of date, nothing is written."""
        cluster = Cluster(_decoded(self.content))
        return Store.of(cluster.state) if cluster.write(transaction) else None

    @property
    def vm(self) -> Kept[VMRecord]:
        return self.state.vms[VM]

    @property
    def owner(self) -> Owner:
        return self.vm.record.owner

    def fenced(self, node_id: str) -> bool:
        return is_fenced(self.state, node_id)

    def read_owner(self) -> OwnerRead:
        """As GetOwner answers. `read_revision` decides nothing and is left out, so that equal records are equal reads."""
        return OwnerRead(UID, self.owner, self.vm.revision, 0)

    def operation(self, op: int) -> OperationRecord | None:
        kept = self.state.operations.get(OPERATIONS[op])
        return None if kept is None else kept.record


def _encoded(state: ClusterState) -> bytes:
    rows: list[tuple[str, int, msgspec.Raw]] = []
    tables: dict[str, Mapping[str, Kept[Any]]] = {
        "node": state.nodes,
        "ledger": state.ledgers,
        "pool": state.shared_pools,
        "vm": state.vms,
        "volume": state.volumes,
        "op": state.operations,
        "claim": {f"{node}/{vm}": kept for (node, vm), kept in state.claims.items()},
    }
    for kind, table in tables.items():
        for name, kept in sorted(table.items()):
            rows.append((f"/hostler/state/{kind}/{name}", kept.revision, msgspec.Raw(encode(kept.record))))
    return msgspec.json.encode((state.revision, rows))


def _decoded(content: bytes) -> ClusterState:
    revision, rows = msgspec.json.decode(content, type=tuple[int, list[tuple[str, int, msgspec.Raw]]])
    state = ClusterState(revision=revision, health=HEALTH)
    for key, mod_revision, value in rows:
        put_record(state, key, mod_revision, decode(key, bytes(value)))
    return state


class Phase(StrEnum):
    """How far the hypervisor has come with a migration; it goes on when the agent that asked for it is gone."""

    ASKED = "ASKED"
    COPYING = "COPYING"
    SWITCHED = "SWITCHED"
    """The source is switched over, the copy is not complete."""
    ARRIVED = "ARRIVED"
    """The copy is complete and paused; the source's side does not know it yet."""
    ACKNOWLEDGED = "ACKNOWLEDGED"
    """The source's side knows it."""
    WRITTEN = "WRITTEN"
    """The record says that it migrated; the process is being ended."""
    GOES_BACK = "GOES_BACK"
    """Taken for a failure: the source is to run on, as soon as it answers."""


@dataclass(frozen=True, slots=True)
class Job:
    """A migration in the hypervisor. `tunnel`: it still reaches the other side."""

    op: int
    phase: Phase
    tunnel: bool = True
    stopped: bool = False
    """It has been asked to stop."""


@dataclass(frozen=True, slots=True)
class Process:
    """The source's QEMU: RUNNING, PAUSED (images still open for writing) or SWITCHED (images inactive). `frozen`: by a signal."""

    power: Power = Power.RUNNING
    frozen: bool = False

    @property
    def executes(self) -> bool:
        return self.power is Power.RUNNING and not self.frozen

    @property
    def can_write(self) -> bool:
        return self.power is not Power.SWITCHED


@dataclass(frozen=True, slots=True)
class Arriving:
    """The destination's QEMU, made by `op`. `stale`: the source has executed since its memory was taken."""

    op: int
    power: Power = Power.INCOMING
    stale: bool = False


class Event(StrEnum):
    """What the hypervisor says to the source's agent, in order."""

    SWITCHED = "SWITCHED"
    RESUMED = "RESUMED"
    MIGRATED = "MIGRATED"
    ENDED = "ENDED"


@dataclass(frozen=True, slots=True)
class Handoff:
    """What of an Outgoing record changes; on the source's disk."""

    op: int
    epoch: int
    revision: int
    stage: Stage
    mark: str = ""

    @property
    def record(self) -> Outgoing:
        return _outgoing(self)


@lru_cache(maxsize=4096)
def _outgoing(handoff: Handoff) -> Outgoing:
    return Outgoing(
        OPERATIONS[handoff.op],
        UID,
        handoff.epoch,
        handoff.revision,
        DESTINATION,
        f"{DESTINATION}:7500",
        f"{DESTINATION}:9000",
        (),
        0,
        handoff.stage,
        record_mark=handoff.mark,
    )


class At(StrEnum):
    """Where the source's loop is: between which two awaits."""

    TOP = "TOP"
    GONE = "GONE"
    """The hypervisor said that there is no domain; its record is asked for next."""
    LOOKED = "LOOKED"
    COMMITTING = "COMMITTING"
    ENDING = "ENDING"
    """The definition is dropped, the journal does not say FINISHED yet."""


@dataclass(frozen=True, slots=True)
class Drive:
    """One `_Run` of the source's engine: lost with the agent's process."""

    op: int
    copying: Copying = Copying.NOT_BEGUN
    at: At = At.TOP
    copy: Copy = Copy.UNKNOWN
    told: Ending = Ending.UNTOLD
    owner: OwnerRead | None = None
    arrived: bool = False
    locks: Locks | None = None
    looked: Copying = Copying.NOT_BEGUN
    """What `copying` was when the look at the copy began."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What the source's agent knows by having been there: its runs, and what its observer saw. `events`: said, and not heard yet."""

    drives: tuple[Drive, ...] = ()
    switched: bool = False
    ending: Ending = Ending.UNTOLD
    events: tuple[Event, ...] = ()

    def drive(self, op: int) -> Drive | None:
        return next((drive for drive in self.drives if drive.op == op), None)


class Doing(StrEnum):
    """What the destination's agent is about to do under the VM's lock, having read the owner record."""

    RESUME = "RESUME"
    KEEP_RESUMED = "KEEP_RESUMED"
    CLOSE = "CLOSE"
    """The tunnel."""
    DESTROY = "DESTROY"
    KEEP_ABORTED = "KEEP_ABORTED"


class Ask(StrEnum):
    """Messages."""

    PREPARE = "PrepareIncoming"
    START = "StartOutgoing"
    FINISH_INCOMING = "FinishIncoming"
    INSPECT_INCOMING = "InspectHandoff"
    FINISH_OUTGOING = "FinishOutgoing"
    LOST_OUTGOING = "FinishOutgoing of a lost copy"
    ABORT_INCOMING = "AbortIncoming"
    ABORT_OUTGOING = "AbortOutgoing"
    FOLLOW = "InspectHandoff while it copies"
    DEFINE = "DefineVM"
    START_VM = "StartVM"
    STOP_VM = "StopVM"
    REPORT = "the answer of an owner that was asked whether its VM is off"
    NOTE_COMMITTED = "NoteCommitted"
    COMMIT = "CommitHandoff"
    COMMIT_WRITE = "the commit's transaction"
    STEP_WRITE = "a step's transaction"


ASKED_OF = {
    Ask.PREPARE: DESTINATION,
    Ask.FINISH_INCOMING: DESTINATION,
    Ask.INSPECT_INCOMING: DESTINATION,
    Ask.ABORT_INCOMING: DESTINATION,
    Ask.START: SOURCE,
    Ask.FOLLOW: SOURCE,
    Ask.FINISH_OUTGOING: SOURCE,
    Ask.LOST_OUTGOING: SOURCE,
    Ask.ABORT_OUTGOING: SOURCE,
}
"""Whom the driver of a migration asks."""


Decision = tuple[str, int, str]
"""A transaction to be decided on: its name, the operation, and one argument."""


@dataclass(frozen=True, slots=True)
class Message:
    """On its way. `call`: which try of the driver waits for the answer. `seen`: the store that a transaction was decided on."""

    ask: Ask
    op: int
    call: int = -1
    epoch: int = 0
    revision: int = 0
    decision: Decision = ("", 0, "")
    seen: Store | None = None
    node: str = ""
    """The addressee, where the question does not tell."""


@dataclass(frozen=True, slots=True)
class Task:
    """A command in the destination agent's hands."""

    doing: Doing
    message: Message
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Driver:
    """The leading replica's memory of one operation. At most one of: a call it waits for, a transaction to decide on, one decided on."""

    op: int = -1
    asked: Ask | None = None
    follows: bool = False
    decision: Decision | None = None
    seen: Store | None = None
    node: str = ""
    """Who was asked, where the question does not tell."""


@dataclass(frozen=True, slots=True)
class Cold:
    """A copy that a StartVM made: paused, or running."""

    node: str
    epoch: int
    runs: bool = False


class Step(StrEnum):
    """Where an agent's start of a VM is; and what a fenced host does before it is heard."""

    CREATE = "CREATE"
    READ = "READ"
    RESUME = "RESUME"
    REFUSE = "REFUSE"
    KILL = "KILL"
    LET_GO = "LET_GO"
    REGISTER = "REGISTER"
    FORGET = "FORGET"


@dataclass(frozen=True, slots=True)
class Starting:
    """A StartVM in an agent's hands, under the VM's lock."""

    node: str
    step: Step
    message: Message


@dataclass(frozen=True, slots=True)
class Budget:
    """What may still go wrong, and what people may still ask for."""

    agents: int = 0
    schedulers: int = 0
    messages: int = 0
    libvirt: int = 0
    deaths: int = 0
    cancels: int = 0
    migrations: int = 1
    power: int = 0
    """Hosts that may lose their power."""
    fences: int = 0
    """Nodes that a person may fence: rightly, while they are off or their agent has not been heard since."""
    wrong_fences: int = 0
    """Nodes that a person may fence while their agent alone is gone."""
    starts: int = 0
    stays_off: int = 0
    """1: a host that lost its power does not come back."""


@dataclass(frozen=True, slots=True)
class World:
    """Everything."""

    store: Store
    budget: Budget
    driver: Driver | None = Driver()
    call: int = 0
    net: frozenset[Message] = frozenset()
    source: Memory | None = Memory()
    handoffs: tuple[Handoff, ...] = ()
    source_epoch: int = 1
    """Of the source's definition; 0: it has none."""
    process: Process | None = Process()
    record: Ending = Ending.UNTOLD
    job: Job | None = None
    destination: bool = True
    """Its agent is up."""
    incoming: tuple[tuple[int, Stage], ...] = ()
    task: Task | None = None
    listening: frozenset[int] = frozenset()
    """Migrations for which the destination's end of the tunnel is open."""
    destination_epoch: int = 0
    """Of the destination's definition; 0: it has none."""
    taken: bool = False
    """The destination's definition is its own, not that of a copy on its way."""
    arriving: Arriving | None = None
    died: bool = False
    """A copy ended by itself."""
    off: frozenset[str] = frozenset()
    """Nodes without power."""
    unheard: frozenset[str] = frozenset()
    """Nodes that have power again, and have not registered since."""
    colds: tuple[Cold, ...] = ()
    """At most one on a node."""
    starting: tuple[Starting, ...] = ()
    laying: tuple[tuple[str, Step], ...] = ()
    """Nodes whose agent is laying down what it has."""
    wronged: str = ""
    """A guest that its record let run, and that Hostler ended all the same: by whom."""

    def cold_at(self, node: str) -> Cold | None:
        return next((cold for cold in self.colds if cold.node == node), None)

    def without_cold(self, node: str) -> tuple[Cold, ...]:
        return tuple(cold for cold in self.colds if cold.node != node)

    def starting_at(self, node: str) -> Starting | None:
        return next((starting for starting in self.starting if starting.node == node), None)

    def agent_up(self, node: str) -> bool:
        return self.source is not None if node == SOURCE else self.destination

    def defined_under(self, node: str) -> int:
        """The epoch of the node's definition; 0: it has none."""
        return self.source_epoch if node == SOURCE else self.destination_epoch

    def locked_against(self, node: str) -> bool:
        """Whether a copy on another node holds the disk's lock."""
        if self.without_cold(node):
            return True
        if node == SOURCE:
            return self.arriving is not None and self.arriving.power is Power.RUNNING
        return self.process is not None and self.process.can_write

    def handoff(self, op: int) -> Handoff | None:
        return next((handoff for handoff in self.handoffs if handoff.op == op), None)

    def stage_in(self, op: int) -> Stage | None:
        return dict(self.incoming).get(op)


def begin(budget: Budget) -> World:
    """One VM that runs on the first of two nodes (or is off there, if no migration may be asked for), its disk in a pool that both have."""
    cluster = Cluster()
    cluster.node(SOURCE)
    if budget.migrations:
        cluster.running(VM)
    else:
        cluster.off(VM)
    cluster.node(DESTINATION)
    for operation_id in list(cluster.state.operations):
        del cluster.state.operations[operation_id]  # its creation is over, and retention has taken it
    store = Store.of(cluster.state)
    process = Process() if budget.migrations else None
    return World(store, budget, source_epoch=max(store.owner.epoch, 1), process=process)
