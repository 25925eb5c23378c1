"""What is known of the two ends of a migration before it begins, and what was concluded: facts of one host, one rule's finding, a forecast."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class GuestFacts:
    """What a running guest asks of a host: machine type in full, CPU as libvirt's XML element, kinds of devices ("disk/virtio"), each once."""

    machine: str
    cpu_xml: str
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reception:
    """What a host says of a guest that is to come: one sentence for what it cannot give, empty where it can."""

    machine_refused: str = ""
    cpu_refused: str = ""
    devices_missing: tuple[str, ...] = ()


class Convergence(StrEnum):
    """Whether a copy would end; meanings in proto Operation.MigrationForecast.Convergence."""

    CONVERGES = "CONVERGES"
    CONVERGES_THROTTLED = "CONVERGES_THROTTLED"
    DOES_NOT_CONVERGE = "DOES_NOT_CONVERGE"


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a copy would take, as things are now; meanings in proto Operation.MigrationForecast."""

    convergence: Convergence
    dirty_bytes_per_s: int
    dirty_measured: bool
    bandwidth_bytes_per_s: int
    bandwidth_known: bool
    seconds: int
    downtime_ms: int
    throttle_percent: int
    disk_bytes: int = 0


@dataclass(frozen=True, slots=True)
class MigrationFacts:
    """One end, as its agent sees it. `disks`: identity of each volume's file by uid, "" where it is not there. Versions as libvirt counts them,
    9000000 for 9.0.0. `guest`, `forecast` and `size_bytes` (the guest's view of each volume in a local pool, by uid): the source's; `reception` and
    `bridges_missing`: the destination's."""

    node_id: str
    hypervisor_answers: bool
    libvirt_version: int
    qemu_version: int
    acceleration: str
    certificate_left_s: int
    disks: dict[str, str]
    holds_copy: bool
    guest: GuestFacts | None = None
    forecast: Forecast | None = None
    reception: Reception = Reception()
    bridges_missing: tuple[str, ...] = ()
    size_bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MigrationCheck:
    """One rule, and whether it holds. `fix` is empty if it does."""

    name: str
    ok: bool
    message: str
    fix: str = ""
