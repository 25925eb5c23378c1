"""What a host needs to know to run a VM, resolved: no flavor, no name of a file, nothing left to look up."""

from dataclasses import dataclass, field
from enum import StrEnum

from hostler.model.quantities import Quantities


class ServiceClass(StrEnum):
    """How strongly a share is guaranteed; meanings in proto hostler.api.type.v1.ServiceClass."""

    GUARANTEED = "GUARANTEED"
    BURSTABLE = "BURSTABLE"
    BEST_EFFORT = "BEST_EFFORT"


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """A volume as a disk. `format` ("qcow2" or "raw") is stored with the volume and never probed."""

    volume_uid: str
    pool_id: str
    format: str


@dataclass(frozen=True, slots=True)
class NicSpec:
    """A network card on a bridge of the host."""

    bridge: str
    mac_address: str


@dataclass(frozen=True, slots=True)
class DomainSpec:
    """One VM as a host runs it. `vm_uid` names the domain and everything on disk; `vm_id` is the user's name, a label."""

    vm_uid: str
    vm_id: str
    vcpus: int
    cpu_floor_milli: int
    memory_mib: int
    service_class: ServiceClass
    disks: tuple[DiskSpec, ...] = ()
    nics: tuple[NicSpec, ...] = ()
    charged: Quantities = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VolumeSpec:
    """A volume to be made. `size_mib` 0 means the image's size; `image` is a name in the pool or empty."""

    volume_uid: str
    pool_id: str
    size_mib: int
    image: str
    format: str = "qcow2"
