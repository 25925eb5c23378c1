"""One moment of a handoff, as a value: the store's real records, one driver, and of each host its agent (what is on its disk, and what a crash
loses), its hypervisor's work and its copy of the VM; the messages on their way, and what may still go wrong.

Hosts are alike: each may send the VM and receive it. Hashable and compared by content, so that a search knows where it has been. A store is kept
once per content, as the bytes that etcd would hold, its decoded state with it. What no decision reads is left out of it: a key's revision is the
number of times it was written, not that of the whole store, and an operation has no history. So orders of events that nobody can tell
apart lead to one state.
"""

from collections.abc import Mapping
from dataclasses import replace as changed
from enum import StrEnum
from functools import lru_cache
from typing import Any

import msgspec

from hostler.model.copy import Copy, Stage
from hostler.model.owner import Owner, OwnerRead
from nodeagent.core.definitions import Outgoing
from nodeagent.core.observed import Locks
from nodeagent.core.outgoing import Copying, Ending
from scheduler.core.decide_fence import is_fenced
from scheduler.core.records import OperationRecord, Record, VMRecord
from scheduler.core.state import ClusterState, Kept
from scheduler.core.transaction import Transaction
from scheduler.core.view import Health
from scheduler.engine.codec import decode, encode
from scheduler.engine.mirror import put_record
from tests.unit.scheduler.core.kept import Cluster, asked

NODES = ("n1", "n2", "n3")
"""Everything below names a node by its place here."""

VM, UID = "web", "uid-web"
REQUESTS = tuple(asked(name) for name in ("migrate 1", "migrate 2", "fence n1", "fence n2", "fence n3", "start 1", "start 2"))
"""What may be asked for. Everything below names it by its place here."""

STEPS = 1000
"""More than one operation takes."""

MIGRATIONS, FENCES, STARTS = range(2), range(2, 5), range(5, 7)
"""Their places: migrations and starts in the order in which they are asked for, fences by node."""

OPERATIONS = tuple(request.operation_id for request in REQUESTS)
HEALTH = dict.fromkeys(NODES, Health.READY)


class Value(msgspec.Struct, frozen=True, cache_hash=True, gc=False):
    """Compared by content; copied and hashed by compiled code, which is most of what a search does."""


class Store:
    """What etcd holds: key, revision, value. Two with the same content are the same object. `gone`: revisions of keys that were removed."""

    __slots__ = ("_gone", "content", "owner", "state", "vm")
    _known: "dict[bytes, Store]" = {}

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.state, self._gone = _decoded(content)
        self.vm: Kept[VMRecord] = self.state.vms[VM]
        self.owner: Owner = self.vm.record.owner

    @classmethod
    def of(cls, state: ClusterState, gone: Mapping[str, int]) -> "Store":
        content = _encoded(state, gone)
        known = cls._known.get(content)
        if known is None:
            known = cls._known[content] = Store(content)
        return known

    def write(self, transaction: Transaction) -> "Store | None":
        """The store after it; None: a guard is out of date, nothing is written."""
        state, gone = _decoded(self.content)
        now = Cluster(state)
        if any(now.revision_of(key) != revision for key, revision in transaction.guards.items()):
            return None
        for key, record in transaction.puts.items():
            revision = max(now.revision_of(key), gone.pop(key, 0)) + 1
            put_record(state, key, revision, _without_history(record))
        for key in transaction.deletes:
            gone[key] = now.revision_of(key)
            put_record(state, key, 0, None)
        return Store.of(state, gone)

    def fenced(self, node: int) -> bool:
        return is_fenced(self.state, NODES[node])

    def incarnation(self, node: int) -> int:
        return self.state.nodes[NODES[node]].record.registrations

    def revision_of_node(self, node: int) -> int:
        return self.state.nodes[NODES[node]].revision

    def read_owner(self) -> OwnerRead:
        """As GetOwner answers. `read_revision` decides nothing and is left out, so that equal records are equal reads."""
        return OwnerRead(UID, self.owner, self.vm.revision, 0)

    def operation(self, op: int) -> OperationRecord | None:
        kept = self.state.operations.get(OPERATIONS[op])
        return None if kept is None else kept.record

    def order(self, op: int) -> int:
        """Of a command of this operation that is sent now: what is written later orders higher. (A VM has one operation at a time, each writes the
        VM's record when it is accepted, and each step the operation's.)"""
        kept = self.state.operations.get(OPERATIONS[op])
        return self.vm.revision * STEPS + (0 if kept is None else kept.revision)

    def ends(self, op: int) -> tuple[int, int]:
        """Source and destination of a migration."""
        operation = self.operation(op)
        if operation is None or operation.migration is None:
            raise RuntimeError(f"operation {op} is no migration")
        return NODES.index(operation.migration.source_node_id), NODES.index(operation.migration.destination_node_id)


def _without_history(record: Record) -> Record:
    return changed(record, phases=(), final_vm=None) if isinstance(record, OperationRecord) else record


def _encoded(state: ClusterState, gone: Mapping[str, int]) -> bytes:
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
    return msgspec.json.encode((sorted(gone.items()), rows))


def _decoded(content: bytes) -> tuple[ClusterState, dict[str, int]]:
    gone, rows = msgspec.json.decode(content, type=tuple[list[tuple[str, int]], list[tuple[str, int, msgspec.Raw]]])
    state = ClusterState(health=HEALTH)
    for key, mod_revision, value in rows:
        put_record(state, key, mod_revision, decode(key, bytes(value)))
    return state, dict(gone)


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


class Job(Value, frozen=True):
    """A migration in the hypervisor of the source. `epoch`: of the domain that it moves; `tunnel`: it still reaches the other side."""

    op: int
    to: int
    epoch: int
    phase: Phase
    tunnel: bool = True
    stopped: bool = False
    """It has been asked to stop."""


class Has(StrEnum):
    """What a QEMU is doing."""

    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    """Started and not let run yet; its images are open for writing."""
    SWITCHED = "SWITCHED"
    """Migrated away as far as it knows; its images are inactive."""
    INCOMING = "INCOMING"
    ARRIVED = "ARRIVED"
    """A complete copy that was never let run; its images are inactive."""


class Domain(Value, frozen=True):
    """A QEMU with the VM in it. `op`: the migration that brought it, -1: it was started here. `frozen`: by a signal. `stale`: another copy has
    executed since its memory was current."""

    epoch: int
    has: Has = Has.RUNNING
    op: int = -1
    frozen: bool = False
    stale: bool = False

    @property
    def executes(self) -> bool:
        return self.has is Has.RUNNING and not self.frozen

    @property
    def locks(self) -> bool:
        """Whether it holds the disk's lock."""
        return self.has is Has.RUNNING or self.has is Has.PAUSED


class Event(StrEnum):
    """What the hypervisor says to its agent, in order."""

    SWITCHED = "SWITCHED"
    RESUMED = "RESUMED"
    MIGRATED = "MIGRATED"
    ENDED = "ENDED"


class Handoff(Value, frozen=True):
    """What of an Outgoing record changes; on the source's disk."""

    op: int
    to: int
    epoch: int
    revision: int
    stage: Stage
    mark: str = ""

    @property
    def record(self) -> Outgoing:
        return _outgoing(self)


@lru_cache(maxsize=4096)
def _outgoing(handoff: Handoff) -> Outgoing:
    to = NODES[handoff.to]
    return Outgoing(
        OPERATIONS[handoff.op],
        UID,
        handoff.epoch,
        handoff.revision,
        to,
        f"{to}:7500",
        f"{to}:9000",
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


class Drive(Value, frozen=True):
    """One `Run` of the source's engine: lost with the agent's process."""

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
    leaving: bool = False
    """It has read that libvirt ends the source because it migrated away."""


class Memory(Value, frozen=True):
    """What an agent knows of what leaves by having been there: its runs, and what its observer saw. `events`: said, and not heard yet."""

    drives: tuple[Drive, ...] = ()
    switched: bool = False
    ending: Ending = Ending.UNTOLD
    events: tuple[Event, ...] = ()

    def drive(self, op: int) -> Drive | None:
        return next((drive for drive in self.drives if drive.op == op), None)


class Doing(StrEnum):
    """What the destination's agent is about to do under the VM's lock."""

    KEEP_PREPARED = "KEEP_PREPARED"
    """The host is charged; its journal does not know for what."""
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
    INSPECT_COLD = "InspectHandoff of a VM that is off"
    FORGET = "ForgetVM"
    DEFINE = "DefineVM"
    START_VM = "StartVM"
    STOP_VM = "StopVM"
    REPORT = "the answer of an owner that was asked whether its VM is off"
    NOTE_COMMITTED = "NoteCommitted"
    COMMIT_KNOWN = "the answer to AwaitCommit"
    COMMIT = "CommitHandoff"
    COMMIT_WRITE = "the commit's transaction"
    STEP_WRITE = "a step's transaction"


OF_DESTINATION = frozenset({Ask.PREPARE, Ask.FINISH_INCOMING, Ask.INSPECT_INCOMING, Ask.ABORT_INCOMING})
OF_SOURCE = frozenset({Ask.START, Ask.FOLLOW, Ask.FINISH_OUTGOING, Ask.LOST_OUTGOING, Ask.ABORT_OUTGOING})
"""Whom the driver of a live migration asks."""

NOBODY = -1

Decision = tuple[str, int, str]
"""A transaction to be decided on: its name, the operation, and one argument."""

Proofs = tuple[tuple[str, int], ...]
"""What a decision rests on: fenced nodes, and the revision of each one's record when it was answered for."""


class Message(Value, frozen=True):
    """On its way to `node`. `late`: 0 while its sender waits for the answer, afterwards told apart from its equals by this number.
    `seen`: the store that a transaction was decided on."""

    ask: Ask
    op: int
    node: int = NOBODY
    late: int = 0
    epoch: int = 0
    revision: int = 0
    order: int = 0
    """Orders the commands of one epoch."""
    decision: Decision = ("", 0, "")
    seen: Store | None = None
    proofs: Proofs = ()
    incarnation: int = 0
    """Of the node that a command is for."""


class Task(Value, frozen=True):
    """A command in the destination agent's hands."""

    doing: Doing
    message: Message
    epoch: int = 0


class Driver(Value, frozen=True):
    """The leading replica's memory of one operation. At most one of: a call it waits for, a transaction to decide on, one decided on."""

    op: int = -1
    asked: Ask | None = None
    node: int = NOBODY
    """Who was asked."""
    follows: bool = False
    decision: Decision | None = None
    seen: Store | None = None
    proofs: Proofs = ()
    """Of the nodes that were answered for in this step."""


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
    AGAIN = "AGAIN"
    """It was at one of the last four, says its disk: where it goes on depends on what it hears when it registers."""


class Starting(Value, frozen=True):
    """A StartVM in an agent's hands, under the VM's lock."""

    step: Step
    message: Message


class Zombie(Value, frozen=True):
    """An agent's process that was stopped by a signal, and may wake beside the one that was started in its place."""

    memory: Memory
    task: Task | None
    starting: Starting | None
    handoffs: tuple[Handoff, ...]
    """Its journal as it has it in memory; what the other one writes since it does not see."""


class Host(Value, frozen=True):
    """One host. `up`: its agent's process is there. On the agent's disk: `epoch` of its definition (0: it has none), `incoming` (the migration whose
    copy that definition awaits, -1: none), `handoffs`, `arrivals`. Lost with the process: `memory`, `task`, `starting`, `listening`."""

    up: bool = True
    memory: Memory = Memory()
    epoch: int = 0
    incoming: int = -1
    order: int = 0
    """Of the newest command about its definition; `gone`: epoch and order of the newest one about a VM that is not here."""
    ran: int = 0
    """The epoch under which a start has let its guest run here last."""
    gone: tuple[int, int] = (0, 0)
    handoffs: tuple[Handoff, ...] = ()
    arrivals: tuple[tuple[int, Stage], ...] = ()
    domain: Domain | None = None
    record: Ending = Ending.UNTOLD
    """What libvirt has written down of the domain's end since the last copy began."""
    job: Job | None = None
    listening: frozenset[int] = frozenset()
    """Migrations for which this end of the tunnel is open."""
    task: Task | None = None
    starting: Starting | None = None
    laying: Step | None = None
    """The agent is laying down what it has. That it is at it, not how far, is on its disk."""
    off: bool = False
    """Without power."""
    unheard: bool = False
    """It has power again, and has not registered since."""
    incarnation: int = 1
    """As its agent heard when it registered last."""
    zombie: Zombie | None = None

    @property
    def dark(self) -> bool:
        """Without power, or back with nobody who listens yet: a call fails at once, and is not heard later."""
        return self.off or (self.unheard and not self.up)

    @property
    def busy(self) -> bool:
        """The VM's lock is taken."""
        return self.task is not None or self.starting is not None

    def handoff(self, op: int) -> Handoff | None:
        return next((handoff for handoff in self.handoffs if handoff.op == op), None)

    def stage_in(self, op: int) -> Stage | None:
        return next((stage for other, stage in self.arrivals if other == op), None)

    def copy_of(self, op: int) -> Domain | None:
        """The domain, if this migration brought it."""
        return self.domain if self.domain is not None and self.domain.op == op else None


class Budget(Value, frozen=True):
    """How large the cluster is, what people may still ask for, and what may still go wrong."""

    nodes: int = 2
    moves: tuple[int, ...] = (1,)
    """Where the next migrations go."""
    off: bool = False
    """The VM begins stopped, and moves cold."""
    agents: int = 0
    zombies: int = 0
    """Agents that are stopped by a signal, taken for dead, and wake once more."""
    schedulers: int = 0
    sleepers: int = 0
    """Replicas that stop between deciding to send a command and sending it, and wake when another drives."""
    messages: int = 0
    cuts: int = 0
    """Links that break for a while."""
    libvirt: int = 0
    deaths: int = 0
    cancels: int = 0
    power: int = 0
    """Hosts that may lose their power."""
    fences: int = 0
    """Nodes that a person may fence: rightly, while they are off or their agent has not been heard since."""
    wrong_fences: int = 0
    """Nodes that a person may fence while their agent alone is gone, or cut off."""
    starts: int = 0
    stays_off: int = 0
    """1: a host that lost its power does not come back."""


SCHEDULERS = -1
"""As an end of a link."""

Link = tuple[int, int]


class World(Value, frozen=True):
    """Everything."""

    store: Store
    budget: Budget
    hosts: tuple[Host, ...]
    driver: Driver | None = Driver()
    net: frozenset[Message] = frozenset()
    asleep: frozenset[Message] = frozenset()
    """What a stopped replica will send when it wakes."""
    cut: frozenset[Link] = frozenset()
    died: bool = False
    """A copy ended by itself."""
    wronged: str = ""
    """A guest that its record let run, and that Hostler ended all the same: by whom."""

    def heard(self, node: int) -> bool:
        """Whether the node and the schedulers reach each other."""
        return not self.cut or (SCHEDULERS, node) not in self.cut

    def linked(self, one: int, other: int) -> bool:
        return not self.cut or (min(one, other), max(one, other)) not in self.cut

    def locked_against(self, node: int) -> bool:
        """Whether a copy on another node holds the disk's lock."""
        return any(host.domain is not None and host.domain.locks for other, host in enumerate(self.hosts) if other != node)


BYSTANDER = "db"


def begin(budget: Budget, *, bystander: bool = False) -> World:
    """One VM that runs on the first node, or is off there; its disk is in a pool that all have. `bystander`: another VM runs there too, and nobody
    does anything to it."""
    cluster = Cluster()
    cluster.node(NODES[0])
    if budget.off:
        cluster.off(VM)
    else:
        cluster.running(VM)
    for node in NODES[1 : budget.nodes]:
        cluster.node(node)
    if bystander:
        cluster.running(BYSTANDER)
    for operation_id in list(cluster.state.operations):
        del cluster.state.operations[operation_id]  # its creation is over, and retention has taken it
    store = Store.of(cluster.state, {})
    epoch = max(store.owner.epoch, 1)
    first = Host(epoch=epoch, order=1, domain=None if budget.off else Domain(epoch))
    return World(store, budget, (first, *(Host() for _ in NODES[1 : budget.nodes])))
