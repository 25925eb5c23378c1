"""What was seen on this host, as values: domains, locks, pools, totals. The ports hand them in, the core decides on them."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Power(StrEnum):
    """What a domain is doing."""

    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    """Not executing, for a reason that the other values do not name (user, I/O error, starting up)."""
    INCOMING = "INCOMING"
    """Destination of a migration that is not complete."""
    SWITCHED = "SWITCHED"
    """Source of a migration, stopped by the switchover: its images are inactive."""
    CRASHED = "CRASHED"
    SHUTTING_DOWN = "SHUTTING_DOWN"


@dataclass(frozen=True, slots=True)
class CopyTag:
    """What a domain carries in its metadata: which VM it is, under which epoch it runs, and which operation made this copy."""

    vm_uid: str
    epoch: int
    operation_id: str


@dataclass(frozen=True, slots=True)
class DomainView:
    """One domain of the hypervisor. `tag` is None for a domain that Hostler did not make. `pid` is QEMU's, 0 where there is none."""

    name: str
    uuid: str
    power: Power
    tag: CopyTag | None
    vcpus: int
    memory_mib: int
    pid: int = 0


@dataclass(frozen=True, slots=True)
class DiskShape:
    """A disk of a domain. `volume_uid`: "" for one that Hostler did not give it. `source`: its path; "": nothing is in it. `target`: as "vda"."""

    volume_uid: str
    source: str
    target: str


@dataclass(frozen=True, slots=True)
class NicShape:
    """A network card of a domain, and whether its link is up."""

    mac_address: str
    bridge: str
    up: bool = True


@dataclass(frozen=True, slots=True)
class DomainShape:
    """What a domain is made of now. `vcpus` and `memory_mib` are what the guest has, not the most that it could have.

    `cpu_weight`, `cpu_quota_us`: 0: none given. `suspended`: by a request, not by an error or a migration. `persistent`, `autostart`: libvirt keeps
    a definition of its own, and starts it when the host boots. `active`: there is a process; else libvirt keeps a definition and that is all.
    """

    uuid: str
    name: str
    tag: CopyTag | None
    vcpus: int
    memory_mib: int
    cpu_weight: int
    disks: tuple[DiskShape, ...] = ()
    nics: tuple[NicShape, ...] = ()
    extra_devices: tuple[str, ...] = ()
    cpu_quota_us: int = 0
    active: bool = True
    suspended: bool = False
    persistent: bool = False
    autostart: bool = False


class Locks(StrEnum):
    """Whether a copy can still write to its exclusive disks, as the storage itself says."""

    FREE = "FREE"
    HELD = "HELD"
    UNPROVABLE = "UNPROVABLE"
    """The disks have no lock that can be asked: the hypervisor's word that it migrated away is needed instead."""


@dataclass(frozen=True, slots=True)
class MigrationProgress:
    """Bytes of memory and disk; `downtime_ms` as the hypervisor counts it, 0 before it knows: what it expects while it copies.

    `remaining_bytes` of memory in this iteration; `iteration` counts the passes over memory, from 1; `dirty_bytes_per_s` as measured over the last
    one, 0 in the first; `throttle_percent`: how much of the guest's speed the hypervisor takes now.
    """

    bytes_done: int
    bytes_total: int
    rate_bytes_per_s: int
    downtime_ms: int
    remaining_bytes: int = 0
    dirty_bytes_per_s: int = 0
    iteration: int = 0
    throttle_percent: int = 0


@dataclass(frozen=True, slots=True)
class PoolView:
    """One storage pool of this host. Sizes in MiB; `fingerprint` is the same on every host that sees the same file system.

    `foreign_mib`: what of the file system no volume can have, because images, other files or its own reserve take it.
    `images`: what volumes can be made from, size of each by name. `ofd_locks`: image locks can be asked on this host, and may be relied on as far as
    it knows. `filesystem`: the kernel's name of its type.
    """

    pool_id: str
    shared: bool
    fingerprint: str
    total_mib: int
    free_mib: int
    ofd_locks: bool
    images: Mapping[str, int]
    foreign_mib: int = 0
    filesystem: str = ""


class ProbeOutcome(StrEnum):
    """What one act of a probe of a pool's locks found; meanings in proto hostler.internal.v1.ProbePoolResponse.Outcome."""

    HELD = "HELD"
    REFUSED = "REFUSED"
    TAKEN = "TAKEN"
    MISSING = "MISSING"
    UNCLEAR = "UNCLEAR"


@dataclass(frozen=True, slots=True)
class HostTotals:
    """What the host has: thousandths of CPU, MiB of memory by NUMA cell, bridges that guests can be attached to."""

    boot_id: str
    cpu_milli: int
    memory_mib_by_cell: Mapping[int, int]
    bridges: tuple[str, ...]
