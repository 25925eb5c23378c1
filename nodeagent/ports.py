"""What the agent's engine needs from the outside, as Protocols; the adapters implement them, `app` joins them.

Three hypervisors stand behind `Hypervisor` (libvirt on QEMU, libvirt's test driver where it suffices, a simulated one) and pass one
contract suite.
An adapter raises `HypervisorUnavailable` when it cannot be asked, `HypervisorRefused` when the answer is no: refusals of the taxonomy, so that
whoever called reads them as they are. Their `detail` is for the log.
"""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from hostler.errors import FailedPrecondition, NoCapacity, NotFound, Reason, Unavailable
from hostler.model.domain import DomainSpec, VolumeSpec
from hostler.model.migration_facts import GuestFacts as GuestFacts
from hostler.model.migration_facts import Reception as Reception
from hostler.model.node import NodeReport
from hostler.model.owner import OwnerRead
from nodeagent.core.observed import CopyTag as CopyTag
from nodeagent.core.observed import DomainShape as DomainShape
from nodeagent.core.observed import DomainView as DomainView
from nodeagent.core.observed import HostTotals as HostTotals
from nodeagent.core.observed import Locks as Locks
from nodeagent.core.observed import MigrationProgress as MigrationProgress
from nodeagent.core.observed import PoolView as PoolView
from nodeagent.core.observed import Power as Power
from nodeagent.core.observed import ProbeOutcome as ProbeOutcome
from nodeagent.core.precopy import Limits as Limits
from nodeagent.core.precopy import Tune as Tune

RETRY_AFTER_S = 2.0
"""What an unavailable part is given before the caller tries again."""


class HypervisorUnavailable(Unavailable):
    """It does not answer in time, or the connection is lost. What was asked may or may not have happened: look again."""

    def __init__(self, detail: str) -> None:
        super().__init__(
            Reason.HYPERVISOR_UNAVAILABLE, "The hypervisor on this host does not answer.", "Try again.", retry_after_s=RETRY_AFTER_S
        )
        self.detail = detail


class HypervisorRefused(FailedPrecondition):
    """The hypervisor answered no. `detail` is one sentence safe to show."""

    def __init__(self, detail: str) -> None:
        super().__init__(Reason.HYPERVISOR_REFUSED, detail)
        self.detail = detail


class EventKind(StrEnum):
    """What happened to a domain."""

    STARTED = "STARTED"
    RESUMED = "RESUMED"
    SUSPENDED = "SUSPENDED"
    SWITCHED = "SWITCHED"
    """Source: suspended by the switchover of a migration."""
    ARRIVED = "ARRIVED"
    """Destination: the copy is complete and paused."""
    STOPPED = "STOPPED"
    STOPPED_MIGRATED = "STOPPED_MIGRATED"
    """Source: ended because it migrated away."""
    DESTROYED = "DESTROYED"
    """Its power was taken by somebody else than this agent."""
    CRASHED = "CRASHED"
    REBOOTED = "REBOOTED"
    """Its machine was reset, by the guest or by anybody else; the domain stays."""
    CONNECTION_LOST = "CONNECTION_LOST"
    """No domain: the hypervisor went away; `vm_uid` is empty."""
    CONNECTION_BACK = "CONNECTION_BACK"
    """No domain: it is back, everything is to be looked at again."""


@dataclass(frozen=True, slots=True)
class DomainEvent:
    """One event. `at_ms` is the host's wall clock when it was received."""

    kind: EventKind
    vm_uid: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class MigrationSockets:
    """Unix sockets on the source that lead to the destination: its libvirt, its waiting QEMU, and the same QEMU's disks, to be written (the last
    two at the same path on both hosts)."""

    libvirt: str
    qemu: str
    disks: str


@dataclass(frozen=True, slots=True)
class LiveMigration:
    """One live migration, as the source's hypervisor is asked for it. `disk_paths` are the destination's, by volume uid. Disks in `copied` (volume
    uids) are copied along, into files of the same size that are there; the others are the same files."""

    tag: CopyTag
    disk_paths: Mapping[str, str]
    sockets: MigrationSockets
    limits: Limits
    copied: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class HypervisorFacts:
    """Versions for a person; `acceleration` "KVM" | "EMULATION" | "SIMULATION", proved by running something; `confinement` as in Node."""

    description: str
    acceleration: str
    confinement: str
    libvirt_version: int = 0
    """9000000 for 9.0.0; so is QEMU's."""
    qemu_version: int = 0


class Hypervisor(Protocol):
    """Domains of one host. Calls are bounded by deadlines; one stuck domain never delays another."""

    async def facts(self) -> HypervisorFacts: ...

    async def domains(self) -> tuple[DomainView, ...]:
        """Every domain there is, ours or not."""

    async def domain(self, vm_uid: str) -> DomainView | None:
        """The domain of one VM, asked now; None: there is none."""

    async def shapes(self) -> Mapping[str, DomainShape | None]:
        """What every domain is made of, ours or not, running or only defined, by uuid. None: it does not answer in time, which delays no other."""

    async def create_paused(self, spec: DomainSpec, tag: CopyTag, disk_paths: Mapping[str, str]) -> DomainView:
        """A transient domain, not executing yet. `disk_paths` by volume uid. Refused if it exists."""

    async def resume(self, vm_uid: str) -> None:
        """Let it execute; taking the write locks of its images is part of it. No error if it runs."""

    async def press_power_button(self, vm_uid: str) -> None: ...

    async def reboot(self, vm_uid: str) -> None:
        """Ask the guest to reboot; REBOOTED tells when it does."""

    async def reset(self, vm_uid: str) -> None:
        """Reset its machine, whatever the guest does; REBOOTED follows."""

    async def destroy(self, vm_uid: str) -> None:
        """Take its power and wait until it is gone; no error if it is gone. SIGKILL through a pidfd where it does not go by itself."""

    def freeze(self, vm_uid: str) -> bool:
        """SIGSTOP its process at once, without asking the hypervisor (it must not block); False: there is no process."""

    def thaw(self, vm_uid: str) -> bool:
        """SIGCONT its process; False: there is none."""

    def is_frozen(self, vm_uid: str) -> bool:
        """Whether its process is stopped by a signal."""

    async def kill(self, vm_uid: str) -> None:
        """SIGKILL its process through a pidfd and wait until it is dead (4-12 ms); works while it is frozen; no error if there is none."""

    async def locks(self, disk_paths: tuple[str, ...]) -> Locks:
        """Whether any of these exclusive images is open for writing, by the storage's own locks (F_OFD_GETLK on QEMU's bytes). Raises
        StorageUnavailable."""

    async def migrate(self, migration: LiveMigration) -> None:
        """Copy the VM of the migration's tag to the destination, where it arrives paused and carries that tag. The copy of a disk is complete and on
        the destination's storage before the source lets go of its own. Returns when libvirt says that it is there. Raises HypervisorRefused or
        HypervisorUnavailable: neither is a verdict, look at both ends. Cancelling this call does not stop the migration; `abort_migration` does."""

    async def abort_migration(self, vm_uid: str) -> None:
        """Stop the copying; no error if there is none."""

    async def tune_migration(self, vm_uid: str, change: Tune) -> None:
        """Change what a running copy may take. The throttle is a wish: the hypervisor takes it at its next step, when the guest still dirties too
        fast, and ends it with the copy, however that ends. Raises HypervisorRefused if nothing is copied."""

    async def migration_progress(self, vm_uid: str) -> MigrationProgress | None:
        """Of a running migration; None: there is none."""

    async def received_bytes(self, vm_uid: str) -> int:
        """What the copying of a domain that has arrived here took, the last part included; 0: the hypervisor does not know."""

    async def record_mark(self, vm_uid: str) -> str:
        """How far the hypervisor has written its own record of this VM's life here: opaque, for `recorded_ending`; "": there is no record."""

    async def recorded_ending(self, vm_uid: str, mark: str) -> EventKind | None:
        """How its domain ended since that mark, for somebody who missed the event: STOPPED, STOPPED_MIGRATED or CRASHED. None: the record does
        not say, or began anew since the mark, or a domain was started after that end. Raises HypervisorUnavailable."""

    async def guest_facts(self, vm_uid: str) -> GuestFacts | None:
        """What the running guest asks of a host that is to receive it; None: there is none."""

    async def reception(self, guest: GuestFacts) -> Reception:
        """Whether this host could run a guest that asks for that."""

    async def dirty_rate(self, vm_uid: str) -> int | None:
        """Bytes of memory that the guest dirties in a second, measured now, which takes about one; None: it cannot be measured."""

    def libvirt_socket(self) -> str:
        """The socket that an incoming migration's tunnel leads to."""

    def events(self) -> AsyncGenerator[DomainEvent, None]:
        """Every event from now on, to each caller of its own; one that falls behind its bounded queue gets CONNECTION_BACK (look again)."""


class PoolMissing(NotFound):
    """No pool, or no image or volume, of that name on this host. `detail` is one sentence safe to show."""

    def __init__(self, detail: str) -> None:
        super().__init__(Reason.POOL_NOT_FOUND, detail)
        self.detail = detail


class VolumeRemoved(NotFound):
    """This volume was removed, for good: whoever asks for it is late."""

    def __init__(self, volume_uid: str) -> None:
        super().__init__(Reason.VOLUME_NOT_FOUND, f"Volume {volume_uid} was removed.")


class PoolFull(NoCapacity):
    """The file system has no room. `detail` is one sentence safe to show."""

    def __init__(self, detail: str) -> None:
        super().__init__(Reason.POOL_CAPACITY_EXCEEDED, detail)
        self.detail = detail


class StorageUnavailable(Unavailable):
    """A pool's file system does not answer in time. What was asked may or may not have happened: look again. `detail` is for the log."""

    def __init__(self, detail: str) -> None:
        super().__init__(
            Reason.POOL_UNAVAILABLE,
            "The storage of this host does not answer.",
            "Look at the file systems of its pools; what is asked is tried again.",
            retry_after_s=RETRY_AFTER_S,
        )
        self.detail = detail


@dataclass(frozen=True, slots=True)
class VolumeSize:
    """Of a volume's file: the guest's view of it, and what of it takes room in the pool."""

    size_bytes: int
    allocated_bytes: int


class Volumes(Protocol):
    """Volumes in directory pools. A volume's file is named after its uid; nothing from the API becomes part of a path."""

    async def pools(self) -> tuple[PoolView, ...]: ...

    async def ensure(self, volume: VolumeSpec) -> int:
        """Make it if it is not there, whole or not at all; returns its size in MiB. Raises PoolMissing, PoolFull, StorageUnavailable, and
        VolumeRemoved for one that was removed, by whichever host of the pool, before or while it is made: a late request must not bring it back."""

    async def remove(self, volume: VolumeSpec) -> None:
        """Remove its file for good; no error if it is gone, or never was. Raises PoolMissing."""

    async def readmit(self, volume: VolumeSpec) -> None:
        """One that was removed comes back to this pool with a copy of it: `ensure` makes its file again. Raises PoolMissing."""

    async def uids(self, pool_id: str) -> tuple[str, ...]:
        """The volumes whose files are there."""

    def path(self, pool_id: str, volume_uid: str, image_format: str) -> str:
        """Where its file is. Raises PoolMissing."""

    async def identity(self, pool_id: str, volume_uid: str, image_format: str) -> str:
        """File system and inode of its file: equal on two hosts if and only if it is the same file. Raises PoolMissing."""

    async def size(self, pool_id: str, volume_uid: str, image_format: str) -> VolumeSize:
        """Of its file. Raises PoolMissing."""

    async def hold_probe(self, pool_id: str, probe_id: str) -> ProbeOutcome:
        """Make the probe's file and lock a byte of it, as QEMU locks an image, from a process of its own that gives up after a while: HELD, or
        REFUSED. Again for one that is held: HELD. Raises PoolMissing, StorageUnavailable; likewise below."""

    async def try_probe(self, pool_id: str, probe_id: str) -> ProbeOutcome:
        """Ask for that lock and try to take it, from this host: REFUSED, TAKEN (and let go of again), MISSING, UNCLEAR."""

    async def end_probe(self, pool_id: str, probe_id: str, *, remove: bool) -> None:
        """Kill this host's holder, if there is one, and with `remove` remove the file; no error if they are gone."""


class StateFiles(Protocol):
    """What the agent must not forget over a crash: small files, each replaced atomically and synced before the call returns."""

    def load(self, kind: str) -> Mapping[str, bytes]:
        """Every file of a kind ("vms", "handoffs", "operations"), by key."""

    async def save(self, kind: str, key: str, value: bytes) -> None: ...

    async def remove(self, kind: str, key: str) -> None: ...


class TunnelFailed(FailedPrecondition):
    """An end of a tunnel cannot be opened. `detail` is for the log."""

    def __init__(self, detail: str) -> None:
        super().__init__(
            Reason.MIGRATION_FAILED,
            "The tunnel between the two hosts cannot be opened.",
            "The agent's log on the host says why: its tunnel directory, its ports or its certificate.",
        )
        self.detail = detail


class Tunnel(Protocol):
    """The mutually authenticated way between the two hosts of one handoff; open for that handoff alone."""

    async def open_incoming(self, operation_id: str, source_node_id: str) -> str:
        """Destination: listen for exactly that node; returns host:port. Again for the same operation: the same listener. Raises TunnelFailed."""

    async def close_incoming(self, operation_id: str) -> None: ...

    async def open_outgoing(self, operation_id: str, endpoint: str, destination_node_id: str) -> MigrationSockets:
        """Source: unix sockets whose connections end at the destination's libvirt and QEMU. Raises TunnelFailed, and then nothing is open."""

    async def close_outgoing(self, operation_id: str) -> None: ...


class OwnerAuthority(Protocol):
    """Who may run what: the scheduler's store in a cluster, the agent's own files standalone."""

    async def owner(self, vm_uid: str) -> OwnerRead | None:
        """Read linearizably, now; None: no such VM. Raises AuthorityUnavailable."""

    async def await_commit(self, vm_uid: str, operation_id: str) -> OwnerRead | None:
        """As `owner`, but the answer comes when the record stops being in handoff by that operation, or after a second or two as it is then."""

    async def commit_handoff(self, vm_uid: str, operation_id: str, owner_revision: int) -> OwnerRead:
        """H5iii; answers the record as it is afterwards. Raises AuthorityUnavailable: ask again."""


class AuthorityUnavailable(Unavailable):
    """Nobody who knows the owner answers now."""

    def __init__(self, detail: str) -> None:
        super().__init__(Reason.SCHEDULER_UNAVAILABLE, "No scheduler replica answers this host.", "Try again.", retry_after_s=RETRY_AFTER_S)
        self.detail = detail


class Peer(Protocol):
    """The other agent of a handoff."""

    async def await_arrival(self, operation_id: str, node_id: str, endpoint: str) -> bool:
        """True: the copy is there, complete and paused. False: the other end gave up. Raises PeerUnavailable."""

    async def note_committed(self, operation_id: str, node_id: str, endpoint: str) -> bool:
        """True: the guest runs there now. Raises PeerUnavailable."""

    async def leave(self, operation_id: str) -> None:
        """The handoff is over: whatever connects to the other end for it is closed."""


class PeerUnavailable(Exception):
    """The other agent does not answer."""


class HostFacts(Protocol):
    """The host itself."""

    async def totals(self) -> HostTotals: ...


@dataclass(frozen=True, slots=True)
class Registration:
    """What the cluster answered: this host's incarnation, and how often it wants to hear from it. `fenced`: neither, before it is laid down."""

    incarnation: str
    heartbeat_interval_s: float
    fenced: bool = False


class SchedulerLink(Protocol):
    """The way to the scheduler, over any of its replicas. Raises AuthorityUnavailable when none answers; the next call tries the next one."""

    async def register(self, boot_id: str, endpoint: str, report: NodeReport, *, laid_down: bool = False) -> Registration:
        """`laid_down`: every guest of ours on this host has been ended, because the last answer was `fenced`."""

    async def beat(self, incarnation: str, counter: int, report: NodeReport | None) -> bool:
        """One heartbeat; returns once it is durable. False: the cluster does not know this incarnation, register again."""
