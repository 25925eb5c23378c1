"""What the scheduler's engine needs from the outside, as Protocols; the adapters implement them, `app` joins them.

`Store` is the cluster's memory: a linearizable key-value store with revisions (etcd in production, `memory_store` in one process). Every
write is a transaction whose compares are its guards. A write whose outcome is not known is `OutcomeUnknown`, never a silent retry.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from hostler.model.copy import HandoffReport
from hostler.model.domain import DomainSpec, VolumeSpec
from hostler.model.migration_facts import GuestFacts, MigrationFacts
from hostler.model.node import VMStatus


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as the store had it. Revisions are the store's global counter; `version` counts writes since creation."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Unchanged:
    """Guard: the key's last change is `mod_revision`; 0 means the key must not exist."""

    key: str
    mod_revision: int


@dataclass(frozen=True, slots=True)
class SameCreation:
    """Guard: the key was created at `create_revision` (a leader's term); 0 means the key must not exist."""

    key: str
    create_revision: int


Compare = Unchanged | SameCreation


@dataclass(frozen=True, slots=True)
class Put:
    """Write a value, bound to a lease if `lease_id` is not 0."""

    key: str
    value: bytes
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a key; removing an absent one is not an error."""

    key: str


Write = Put | Delete


@dataclass(frozen=True, slots=True)
class Committed:
    """All compares held and all writes are durable at `revision`."""

    revision: int


@dataclass(frozen=True, slots=True)
class Refused:
    """At least one compare failed; nothing was written.

    `current` has each compared key as it is now (None: absent), in the order of the compares.
    """

    revision: int
    current: tuple[KeyValue | None, ...]


TxnResult = Committed | Refused


@dataclass(frozen=True, slots=True)
class Listing:
    """Every key under a prefix at one revision, in key order."""

    revision: int
    items: tuple[KeyValue, ...]


@dataclass(frozen=True, slots=True)
class Got:
    """One linearizable read: the key (None: absent) and the store's revision at that read."""

    revision: int
    item: KeyValue | None


@dataclass(frozen=True, slots=True)
class KeyPut:
    item: KeyValue


@dataclass(frozen=True, slots=True)
class KeyDeleted:
    key: str
    mod_revision: int


KeyEvent = KeyPut | KeyDeleted


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """Events of one or more whole revisions, in order, never a part of a revision.

    Empty `events`: progress, everything up to `revision` was delivered.
    """

    revision: int
    events: tuple[KeyEvent, ...]


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """`version` as the server reports it ("3.4.23"); `cluster_id` in hex; database size for the alarm."""

    version: str
    cluster_id: str
    db_size_bytes: int
    is_etcd: bool


class StoreUnavailable(Exception):
    """A read did not happen, or a write certainly did not: no server answered, or the one that did refused to serve us."""


class OutcomeUnknown(Exception):
    """A write was sent and its reply was lost: it may or may not have happened. Read back before doing anything else."""


class RevisionCompacted(Exception):
    """The store does not have the revision asked for: compacted, or not reached (a restored cluster). List again.

    `compact_revision` is the oldest one still known (0: not told).
    """

    def __init__(self, compact_revision: int) -> None:
        super().__init__(f"compacted at revision {compact_revision}")
        self.compact_revision = compact_revision


class LeaseLost(Exception):
    """The lease is gone or its local deadline (time of the last successful renewal's *send* + TTL) has passed."""


class Lease(Protocol):
    """A hint of liveness, never a lock (etcd can revoke leases that are renewed, and keep dead ones)."""

    @property
    def lease_id(self) -> int: ...

    async def keep_alive(self) -> None:
        """Renew until cancelled; raises LeaseLost when the lease is gone or its local deadline has passed."""

    async def revoke(self) -> bool:
        """Give it up now, bounded by a short deadline; never raises StoreUnavailable. False: nobody answered, and it may last for its whole time."""


class Store(Protocol):
    """A linearizable key-value store with revisions. Every call has a deadline of its own; none repeats a write that may have happened."""

    async def get(self, key: str) -> Got:
        """Linearizable read. Raises StoreUnavailable."""

    async def list(self, prefix: str, *, revision: int = 0) -> Listing:
        """All keys under the prefix at one revision (0: the newest, linearizable), fetched in pages pinned to that revision.

        Raises StoreUnavailable, RevisionCompacted.
        """

    async def txn(self, compares: Sequence[Compare], writes: Sequence[Write]) -> TxnResult:
        """All or nothing. At most MAX_TXN_OPS compares and as many writes, each key written once, MAX_TXN_BYTES in all (else ValueError).

        Raises StoreUnavailable, OutcomeUnknown; LeaseLost when a Put names a lease that is gone (nothing was written).
        """

    def watch(self, prefix: str, from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        """Every event with revision >= from_revision (1 or more), once and in order. Close it (`contextlib.aclosing`) when done.

        Across lost connections it reconnects for ever, resuming after the last revision delivered. Progress batches come at least every
        PROGRESS_INTERVAL_S while connected; one may repeat the last revision: the connection lives, nothing newer is proved. Raises
        RevisionCompacted, and StoreUnavailable once the store is closed.
        """

    async def grant(self, ttl_s: int) -> Lease:
        """A new lease. Raises StoreUnavailable, OutcomeUnknown."""

    async def status(self) -> StoreStatus:
        """Raises StoreUnavailable."""

    async def close(self) -> None:
        """Cancel every stream and close the channel."""


MAX_TXN_OPS = 128
"""etcd's default --max-txn-ops; one more is refused by the server."""

MAX_TXN_BYTES = 1_400_000
"""Keys and values of one transaction; below etcd's default --max-request-bytes (1.5 MiB) by the most that framing can add."""

PROGRESS_INTERVAL_S = 5.0
"""How often a quiet watch confirms how far it has come: bounds the staleness of the mirror and of bookmarks."""


class NodeUnreachable(Exception):
    """The node's agent does not answer, or not in time: what was asked may or may not have happened. Commands are steps: ask again.

    `node_id`: the node that was asked; empty when it answered, and what it said is not what is waited for.
    """

    def __init__(self, message: str, node_id: str = "") -> None:
        super().__init__(message)
        self.node_id = node_id


@dataclass(frozen=True, slots=True)
class Order:
    """Who commands, under which ownership; see proto hostler.internal.v1.Command."""

    operation_id: str
    vm_uid: str = ""
    epoch: int = 0
    owner_revision: int = 0
    order_revision: int = 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """The destination's answer: where its tunnel is, and (volume uid, identity, path) of each disk; identity "": copied along."""

    tunnel_endpoint: str
    disks: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class Departure:
    """What the source needs to know of the destination."""

    destination_node_id: str
    destination_endpoint: str
    tunnel_endpoint: str
    disks: tuple[tuple[str, str, str], ...]
    bandwidth_mib_s: int
    max_downtime_ms: int
    locked_pools: tuple[str, ...] = ()
    """Pools whose locks were proved between the two nodes."""


class ProbeAct(StrEnum):
    """Meanings in proto hostler.internal.v1.ProbePoolRequest.Act."""

    HOLD = "HOLD"
    TRY = "TRY"
    KILL = "KILL"
    CLEAR = "CLEAR"


class ProbeOutcome(StrEnum):
    """Meanings in proto hostler.internal.v1.ProbePoolResponse.Outcome."""

    HELD = "HELD"
    REFUSED = "REFUSED"
    TAKEN = "TAKEN"
    MISSING = "MISSING"
    UNCLEAR = "UNCLEAR"


@dataclass(frozen=True, slots=True)
class CopyEstimate:
    """What limits a copy is to be estimated under; 0: none, the default."""

    bandwidth_mib_s: int
    max_downtime_ms: int


class NodeGateway(Protocol):
    """The node agents, as the engine commands them. Every call has a deadline of its own.

    Raises NodeUnreachable, or the HostlerError that the agent answered.
    """

    async def ensure_volume(self, node_id: str, order: Order, volume: VolumeSpec) -> int:
        """Size in MiB."""

    async def remove_volume(self, node_id: str, order: Order, volume: VolumeSpec) -> None: ...

    async def define(self, node_id: str, order: Order, domain: DomainSpec) -> VMStatus: ...

    async def start(self, node_id: str, order: Order) -> VMStatus: ...

    async def stop(self, node_id: str, order: Order, grace_s: int) -> VMStatus: ...

    async def reboot(self, node_id: str, order: Order, force: bool) -> VMStatus: ...

    async def forget(self, node_id: str, order: Order) -> None: ...

    async def end_copy(self, node_id: str, order: Order) -> VMStatus:
        """End whatever copy is there, if the owner record lets the node run none. Raises Conflict if it does."""

    async def inspect(self, node_id: str, vm_uid: str) -> VMStatus:
        """What is true of the VM on that node now."""

    async def probe_pool(self, node_id: str, pool_id: str, probe_id: str, act: ProbeAct) -> ProbeOutcome | None:
        """None: done, there is nothing to be told."""

    async def migration_source(self, node_id: str, order: Order, domain: DomainSpec, estimate: CopyEstimate | None) -> MigrationFacts:
        """Facts of the end that it would leave; with an estimate of the copy, if asked for."""

    async def migration_destination(self, node_id: str, order: Order, domain: DomainSpec, guest: GuestFacts) -> MigrationFacts:
        """Facts of the end that it would go to."""

    async def prepare_incoming(
        self, node_id: str, order: Order, domain: DomainSpec, source_node_id: str, copied: tuple[VolumeSpec, ...] = ()
    ) -> Prepared:
        """`copied`: volumes that are copied along, whose files the destination makes."""

    async def start_outgoing(self, node_id: str, order: Order, departure: Departure) -> HandoffReport: ...

    async def tune_outgoing(self, node_id: str, order: Order, bandwidth_mib_s: int, max_downtime_ms: int) -> HandoffReport: ...

    async def inspect_handoff(self, node_id: str, order: Order) -> HandoffReport: ...

    async def finish_incoming(self, node_id: str, order: Order) -> HandoffReport: ...

    async def finish_outgoing(self, node_id: str, order: Order) -> HandoffReport: ...

    async def abort_incoming(self, node_id: str, order: Order) -> HandoffReport: ...

    async def abort_outgoing(self, node_id: str, order: Order) -> HandoffReport: ...
