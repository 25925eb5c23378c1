"""What a user may wish of a VM, already checked for form: the input of the decisions, in a cluster and on a standalone host."""

from dataclasses import dataclass, field

from hostler.model.domain import ServiceClass

DEFAULT_GRACE_S = 60
DEFAULT_VOLUME_MIB = 1024
"""Size of a volume that nobody gave a size: room for a small guest; qcow2 takes what is written only."""


@dataclass(frozen=True, slots=True)
class NewDisk:
    """A volume made with the VM; `uid` was made by the caller of the core."""

    pool_id: str
    size_mib: int
    image: str
    uid: str


@dataclass(frozen=True, slots=True)
class ExistingDisk:
    volume_id: str


@dataclass(frozen=True, slots=True)
class WishedNic:
    bridge: str
    mac_address: str


@dataclass(frozen=True, slots=True)
class WishedVM:
    """A VM to be made. Either `flavor_id`, or `vcpus` and `memory_mib`. `uid` was made by the caller of the core."""

    vm_id: str
    uid: str
    flavor_id: str
    vcpus: int
    memory_mib: int
    cpu_floor_milli: int
    service_class: ServiceClass | None
    disks: tuple[NewDisk | ExistingDisk, ...]
    nics: tuple[WishedNic, ...]
    labels: dict[str, str] = field(default_factory=dict)
    only_node_id: str = ""
    leave_stopped: bool = False
