"""What a domain is made of, read from the XML in which libvirt tells how it runs: the observed half of a comparison with its definition (`drift`).

Only what Hostler decides about a domain is read, and what somebody could change of it past Hostler. A size or device that is written in a way
which Hostler never writes is kept as text where a person can use it, and is never an error: the document describes what somebody else did.
"""

from lxml import etree

from nodeagent.core.domain_xml import ALIAS_PREFIX, parse_document, tag_of
from nodeagent.core.observed import DiskShape, DomainShape, NicShape

EXTRA_DEVICES = ("filesystem", "hostdev", "memory", "redirdev", "shmem", "tpm", "vsock")
"""Devices that Hostler gives to no VM, as libvirt's elements are called."""

_SOURCE_ATTRIBUTES = ("file", "dev", "name", "dir", "volume")
_BRIDGE_ATTRIBUTES = ("bridge", "network", "dev")
_KIB_BY_UNIT = {"KiB": 1, "MiB": 1024, "GiB": 1024 * 1024}


def parse_shape(xml: str, *, active: bool, suspended: bool, persistent: bool, autostart: bool) -> DomainShape:
    """The shape of a domain from its XML; the keywords are what libvirt tells beside it. Raises ValueError: not a domain's XML."""
    domain = parse_document(xml)
    uuid = domain.findtext("uuid", "")
    if domain.tag != "domain" or not uuid:
        raise ValueError("not a domain")
    vcpu = domain.find("vcpu")
    return DomainShape(
        uuid=uuid,
        name=domain.findtext("name", ""),
        tag=tag_of(domain),
        vcpus=0 if vcpu is None else _number(vcpu.get("current") or vcpu.text),
        memory_mib=_memory_mib(domain),
        cpu_weight=_number(domain.findtext("cputune/shares")),
        cpu_quota_us=_number(domain.findtext("cputune/vcpu_quota")),
        disks=tuple(_disk(disk) for disk in domain.iterfind("devices/disk")),
        nics=tuple(_nic(nic) for nic in domain.iterfind("devices/interface")),
        extra_devices=tuple(kind for kind in EXTRA_DEVICES for _ in domain.iterfind(f"devices/{kind}")),
        active=active,
        suspended=suspended,
        persistent=persistent,
        autostart=autostart,
    )


def disk_targets(xml: str) -> dict[str, str]:
    """Of a domain's XML: what its disks are called in it ("vda"), by volume uid; those that Hostler gave it. Raises ValueError."""
    disks = (_disk(disk) for disk in parse_document(xml).iterfind("devices/disk"))
    return {disk.volume_uid: disk.target for disk in disks if disk.volume_uid}


def disk_sources(xml: str) -> list[str]:
    """Of a domain's XML: where the disks that Hostler gave it are, a path each. Raises ValueError."""
    disks = (_disk(disk) for disk in parse_document(xml).iterfind("devices/disk"))
    return [disk.source for disk in disks if disk.volume_uid]


def _memory_mib(domain: etree._Element) -> int:
    """What the guest has now, less than its maximum while a balloon holds some of it."""
    element = domain.find("currentMemory")
    if element is None:
        element = domain.find("memory")
    return 0 if element is None else _number(element.text) * _KIB_BY_UNIT.get(element.get("unit", "KiB"), 1) // 1024


def _disk(disk: etree._Element) -> DiskShape:
    source, alias, target = disk.find("source"), disk.find("alias"), disk.find("target")
    given = "" if source is None else next((source.get(name, "") for name in _SOURCE_ATTRIBUTES if source.get(name)), "")
    name = "" if alias is None else alias.get("name", "")
    return DiskShape(
        volume_uid=name.removeprefix(ALIAS_PREFIX) if name.startswith(ALIAS_PREFIX) else "",
        source=given,
        target="" if target is None else target.get("dev", ""),
    )


def _nic(nic: etree._Element) -> NicShape:
    mac, source, link = nic.find("mac"), nic.find("source"), nic.find("link")
    return NicShape(
        mac_address="" if mac is None else mac.get("address", "").lower(),
        bridge="" if source is None else next((source.get(name, "") for name in _BRIDGE_ATTRIBUTES if source.get(name)), ""),
        up=link is None or link.get("state") != "down",
    )


def _number(text: str | None) -> int:
    stripped = (text or "").strip()
    return int(stripped) if stripped.lstrip("-").isdecimal() else 0
