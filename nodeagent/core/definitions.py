"""What this host has been told about its VMs and its handoffs: the records that the agent keeps over a crash, and which commands are heeded.

The rule: a command under an epoch older than one the host has seen for that VM is refused, and under the same epoch one that was sent before a
command that the host has heard (a message can be late, or come twice). A newer one is remembered before it is acted on, and of a VM that is gone
from here its rank stays: a definition that comes after the removal would charge this host for ever.
"""

from dataclasses import dataclass
from enum import StrEnum

from hostler.model.copy import Stage
from hostler.model.domain import DomainSpec, VolumeSpec
from nodeagent.core.precopy import Limits


@dataclass(frozen=True, slots=True, order=True)
class Rank:
    """How new a command about one VM is: its epoch first, then the store's revision of the record that orders it (0: there is no store)."""

    epoch: int = 0
    order_revision: int = 0


@dataclass(frozen=True, slots=True)
class Command:
    """Who commands: the operation, the VM, its epoch, the store revision of the owner record that the driver acted on, and of what orders it; and
    which incarnation of this host is meant."""

    operation_id: str
    vm_uid: str
    epoch: int
    owner_revision: int
    order_revision: int = 0
    incarnation: str = ""

    @property
    def rank(self) -> Rank:
        return Rank(self.epoch, self.order_revision)


@dataclass(frozen=True, slots=True)
class Definition:
    """A VM that this host holds (or, `incoming`, is to receive): its charge is in the host's ledger as long as this exists."""

    spec: DomainSpec
    epoch: int
    operation_id: str
    incoming: bool = False
    order_revision: int = 0
    rebooted_by: str = ""
    """The operation that has rebooted it last: the same command once more does not."""
    ran_epoch: int = 0
    """Under which a start has let its guest run here last; 0: under none. Written before the guest runs: see `has_run`."""

    @property
    def rank(self) -> Rank:
        """Of the newest command that was heard about it."""
        return Rank(self.epoch, self.order_revision)


@dataclass(frozen=True, slots=True)
class Incoming:
    """The destination's end of a handoff. `stage` is PREPARED, FINISHED or ABORTED. `copied`: volumes whose files it made for the copy to fill."""

    operation_id: str
    vm_uid: str
    source_node_id: str
    epoch: int
    stage: Stage
    resume_ms: int = 0
    received_bytes: int = 0
    copied: tuple[VolumeSpec, ...] = ()


@dataclass(frozen=True, slots=True)
class DiskTarget:
    """A volume as the destination sees it: its identity (to be the same here; "": a file of its own, which the copy fills) and its path there."""

    volume_uid: str
    identity: str
    path: str


@dataclass(frozen=True, slots=True)
class Outgoing:
    """The source's end of a handoff. `owner_revision` is that of the HANDOFF record: read before the copy is ever inspected."""

    operation_id: str
    vm_uid: str
    epoch: int
    owner_revision: int
    destination_node_id: str
    destination_endpoint: str
    tunnel_endpoint: str
    disks: tuple[DiskTarget, ...]
    bandwidth_mib_s: int
    stage: Stage
    error: str = ""
    begin_ms: int = 0
    suspend_ms: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    hypervisor_downtime_ms: int = 0
    record_mark: str = ""
    """How far the hypervisor's record of the VM had been written when the copy began: what it says after that is about this copy."""
    locked_pools: tuple[str, ...] = ()
    """Pools whose locks were proved between the two nodes; those of no other are relied on."""
    max_downtime_ms: int = 0
    iterations: int = 0
    throttle_percent: int = 0
    """The most of its speed that the copy has cost the guest, as far as seen."""

    @property
    def copied(self) -> frozenset[str]:
        """Volumes that are copied along, by uid."""
        return frozenset(disk.volume_uid for disk in self.disks if not disk.identity)

    @property
    def limits(self) -> Limits:
        return Limits(self.bandwidth_mib_s, self.max_downtime_ms)


def has_run(definition: Definition, command: Command) -> bool:
    """Whether a start has let the guest run here under the command's epoch. Each start takes an epoch of its own, so a guest runs once under each:
    the same command once more, after the guest has ended, starts nothing, whatever the owner record says until it has heard of that end."""
    return definition.ran_epoch == command.epoch


class EpochVerdict(StrEnum):
    """What an epoch in a command means to a host that knows another."""

    CURRENT = "CURRENT"
    NEWER = "NEWER"
    STALE = "STALE"


def judge_epoch(known: int, commanded: int) -> EpochVerdict:
    """Compare a command's epoch with the highest one seen."""
    if commanded < known:
        return EpochVerdict.STALE
    return EpochVerdict.NEWER if commanded > known else EpochVerdict.CURRENT
