"""The form of requests of the public API: what can be refused without looking at the cluster or the host.

One violation per wrong field, all of them at once.
"""

import re
from collections.abc import Iterator

from google.protobuf.message import Message

from hostler.api.type.v1 import resources_pb2, vm_pb2
from hostler.errors import Violation, invalid
from hostler.server.validation import check, is_resource_id

MAX_VCPUS = 64
MIN_MEMORY_MIB, MAX_MEMORY_MIB = 16, 4 * 1024 * 1024
MAX_VOLUME_MIB = 64 * 1024 * 1024
MAX_DISKS, MAX_NICS, MAX_LABELS = 16, 8, 64
MAX_REQUEST_ID_CHARS = 64
MAX_GRACE_S = 3600
MAX_DEADLINE_S = 7 * 24 * 3600
MAX_BANDWIDTH_MIB_S = 1024 * 1024
MAX_DOWNTIME_MS = 60_000
"""A guest that may stand still for longer can as well be stopped and moved cold."""

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_BRIDGE = re.compile(r"[a-z0-9][a-z0-9._-]{0,14}")
_IMAGE = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_REQUEST_ID = re.compile(r"[\x21-\x7e]{0,64}")


def require(request: Message, *more: Violation) -> None:
    """Raise InvalidRequest if the message breaks its own annotations, or anything more is wrong."""
    violations = (*check(request), *more)
    if violations:
        raise invalid(*violations)


def resource(field: str, name: str, collection: str) -> Iterator[Violation]:
    """`vms/web-1` and the like; empty is for the caller to judge."""
    prefix, _, resource_id = name.partition("/")
    if name and (prefix != collection or not is_resource_id(resource_id)):
        yield Violation(field, f"must look like {collection}/NAME, where NAME is 1 to 63 characters a-z, 0-9 and -")


def new_id(field: str, name: str) -> Iterator[Violation]:
    if name and not is_resource_id(name):
        yield Violation(field, "must be 1 to 63 characters a-z, 0-9 and -, begin with a letter and not end with -")


def request_id(value: str) -> Iterator[Violation]:
    if not _REQUEST_ID.fullmatch(value):
        yield Violation("request_id", f"must be at most {MAX_REQUEST_ID_CHARS} printable characters without spaces")


def between(field: str, value: int, least: int, most: int) -> Iterator[Violation]:
    if not least <= value <= most:
        yield Violation(field, f"must be between {least} and {most}")


def confirmed(field: str, value: bool, otherwise: str) -> Iterator[Violation]:
    """A person's word that must be given."""
    if not value:
        yield Violation(field, f"must be true: {otherwise}")


def vm(wanted: vm_pb2.VM) -> Iterator[Violation]:
    """The wished VM's own form."""
    yield from resource("vm.flavor", wanted.flavor, "flavors")
    if wanted.flavor and (wanted.vcpus or wanted.memory_mib):
        yield Violation("vm.flavor", "give either a flavor, or vcpus and memory_mib")
    if not wanted.flavor:
        yield from between("vm.vcpus", wanted.vcpus, 1, MAX_VCPUS)
        yield from between("vm.memory_mib", wanted.memory_mib, MIN_MEMORY_MIB, MAX_MEMORY_MIB)
    if wanted.cpu_floor_milli:
        yield from _floor("vm.cpu_floor_milli", wanted.cpu_floor_milli, wanted.vcpus or MAX_VCPUS, wanted.service_class)
    if len(wanted.disks) > MAX_DISKS:
        yield Violation("vm.disks", f"must be at most {MAX_DISKS}")
    if len(wanted.nics) > MAX_NICS:
        yield Violation("vm.nics", f"must be at most {MAX_NICS}")
    if len(wanted.labels) > MAX_LABELS:
        yield Violation("vm.labels", f"must be at most {MAX_LABELS}")
    yield from _disks(wanted)
    yield from _nics(wanted)


def _floor(field: str, floor_milli: int, vcpus: int, service_class: int) -> Iterator[Violation]:
    yield from between(field, floor_milli, 0, 1000 * vcpus)
    if service_class == resources_pb2.SERVICE_CLASS_GUARANTEED and floor_milli != 1000 * vcpus:
        yield Violation(field, "a GUARANTEED VM has every vCPU in full; leave it out")
    if service_class == resources_pb2.SERVICE_CLASS_BEST_EFFORT and floor_milli:
        yield Violation(field, "a BEST_EFFORT VM has no floor; leave it out")


def _disks(wanted: vm_pb2.VM) -> Iterator[Violation]:
    named = [disk.volume for disk in wanted.disks if disk.volume]
    for index, disk in enumerate(wanted.disks[:MAX_DISKS]):
        at = f"vm.disks[{index}]"
        yield from resource(f"{at}.volume", disk.volume, "volumes")
        if disk.volume and named.count(disk.volume) > 1:
            yield Violation(f"{at}.volume", "the same volume is given twice")
        if disk.HasField("new_volume"):
            yield from resource(f"{at}.new_volume.pool", disk.new_volume.pool, "pools")
            yield from between(f"{at}.new_volume.size_mib", disk.new_volume.size_mib, 0, MAX_VOLUME_MIB)
            yield from image(f"{at}.new_volume.image", disk.new_volume.image)


def image(field: str, name: str) -> Iterator[Violation]:
    if name and not _IMAGE.fullmatch(name):
        yield Violation(field, "must be an image's name: a-z, 0-9, ., _ and -, at most 63 characters")


def _nics(wanted: vm_pb2.VM) -> Iterator[Violation]:
    macs = [nic.mac_address.lower() for nic in wanted.nics if nic.mac_address]
    for index, nic in enumerate(wanted.nics[:MAX_NICS]):
        at = f"vm.nics[{index}]"
        prefix, _, bridge = nic.network.partition("/")
        if nic.network and (prefix != "networks" or not _BRIDGE.fullmatch(bridge)):
            yield Violation(f"{at}.network", "must look like networks/BRIDGE, where BRIDGE is a bridge's name of at most 15 characters")
        mac = nic.mac_address.lower()
        if mac and (not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1):
            yield Violation(f"{at}.mac_address", "must be a unicast address like 52:54:00:12:34:56")
        if mac and macs.count(mac) > 1:
            yield Violation(f"{at}.mac_address", "the same address is given twice")


def flavor(wanted: vm_pb2.Flavor) -> Iterator[Violation]:
    yield from between("flavor.vcpus", wanted.vcpus, 1, MAX_VCPUS)
    yield from between("flavor.memory_mib", wanted.memory_mib, MIN_MEMORY_MIB, MAX_MEMORY_MIB)
    if wanted.cpu_floor_milli:
        yield from _floor("flavor.cpu_floor_milli", wanted.cpu_floor_milli, max(1, wanted.vcpus), wanted.service_class)
