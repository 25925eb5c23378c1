"""What a user may wish of a VM, already checked for form: the input of the decisions, in a cluster and on a standalone host."""

from dataclasses import dataclass, field

from hostler.errors import Violation, invalid
from hostler.model.domain import ServiceClass
from hostler.model.records import MoveFallback

DEFAULT_GRACE_S = 60
DEFAULT_VOLUME_MIB = 1024
"""Size of a volume that nobody gave a size and that is made from no image: room for a small guest; qcow2 takes what is written only."""


def volume_mib(size_mib: int, image: str, image_mib: int, field_name: str) -> int:
    """The size of a new volume: what was asked for, else its image's. Raises InvalidRequest if the image does not fit into what was asked for.

    `image_mib`: 0 for no image, or one whose size is not known.
    """
    if 0 < size_mib < image_mib:
        raise invalid(Violation(field_name, f"image {image} needs {image_mib} MiB; give that or more, or leave it out"))
    return size_mib or image_mib or DEFAULT_VOLUME_MIB


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
    move_fallback: MoveFallback = MoveFallback.STAY
