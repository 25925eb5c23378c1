"""A VM as libvirt's domain XML and back: the only place that writes XML, from typed values and an allow-list of nodes.

Nothing from the API can become an element, an attribute name, a path or a hypervisor argument. Identifiers must match the patterns below or
the spec is refused; the user's name is a label that only ever lands in one attribute, whatever it contains. Choices and why:
- machine q35: boots as fast as pc under emulation (1.8-2.1 s against 2.0-2.4 s) and has PCIe ports to plug into later;
- emulated CPU `qemu64`: the same on every host and migratable, which `max` is not; with KVM `host-model`;
- no memory hard limit: QEMU's overhead has no upper bound that could be proved, and a limit reached kills the guest; the charge is in the ledger
  and the host as a whole is capped. GUARANTEED memory is allocated at the start, never merged, and has no balloon;
- CPU weight = floor, 100 a CPU (cgroup v2 ends at 10,000). No quota: the number of vCPUs is the ceiling, and under cgroup v1 a child's quota
  above its parent's is an error, so a quota would fail on every host that is capped;
- cache=none and error_policy=stop, or neither the image locks nor an I/O error mean what the handoff takes them for;
- no graphics, no USB, no sound, no raw seclabel: libvirt labels the guest.
"""

import re
from collections.abc import Mapping
from enum import StrEnum

from lxml import etree

from hostler.model.domain import DiskSpec, DomainSpec, NicSpec, ServiceClass
from hostler.model.migration_facts import GuestFacts
from nodeagent.core.observed import CopyTag

NAMESPACE = "https://hostler.dev/domain/1"
"""Of our element in a domain's metadata. libvirt keeps the content of a namespace only as one element: `copy`."""

SERIAL_BYTES = 20
"""virtio-blk shows that much of a serial to the guest: the volume's uid without hyphens, cut."""

ALIAS_PREFIX = "ua-"
"""libvirt keeps aliases that begin so and makes up the rest anew."""

CPU_WEIGHT_PER_CPU = 100
CPU_WEIGHT_MIN, CPU_WEIGHT_MAX = 2, 10_000
DISKS_MAX = 26
"""vda to vdz."""
XML_BYTES_MAX = 1 << 20
"""Of a document that is read: libvirt's own are below 30 KiB."""
LABEL_CHARS_MAX = 256

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_OPERATION = re.compile(r"[A-Za-z0-9_.:/-]{0,128}")
_BRIDGE = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")
_PATH = re.compile(r"/[A-Za-z0-9_.+@%=/-]{1,1023}")
_FORMATS = frozenset({"qcow2", "raw"})
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Acceleration(StrEnum):
    """How guest code is executed."""

    KVM = "KVM"
    EMULATION = "EMULATION"


class DomainSpecRefused(ValueError):
    """A spec that must not become a domain. `str()` is one sentence safe to show."""


def domain_xml(spec: DomainSpec, tag: CopyTag, disk_paths: Mapping[str, str], acceleration: Acceleration, console_log: str = "") -> str:
    """The XML of a transient domain; its name and UUID are the VM's uid. `disk_paths` by volume uid. Raises DomainSpecRefused.

    `console_log`: file that the serial console is also written to; empty: none.
    """
    _check(spec, tag, disk_paths, console_log)
    kvm = acceleration is Acceleration.KVM
    domain = etree.Element("domain", type="kvm" if kvm else "qemu")
    _leaf(domain, "name", spec.vm_uid)
    _leaf(domain, "uuid", spec.vm_uid)
    etree.SubElement(domain, "metadata").append(_copy_element(tag, spec.vm_id))
    _leaf(domain, "memory", str(spec.memory_mib), unit="MiB")
    _memory_backing(domain, spec.service_class)
    _leaf(domain, "vcpu", str(spec.vcpus), placement="static")
    _leaf(etree.SubElement(domain, "cputune"), "shares", str(cpu_weight(spec.cpu_floor_milli)))
    _leaf(etree.SubElement(domain, "os"), "type", "hvm", arch="x86_64", machine="q35")
    features = etree.SubElement(domain, "features")
    etree.SubElement(features, "acpi")
    etree.SubElement(features, "apic")
    _cpu(domain, spec.vcpus, kvm)
    etree.SubElement(domain, "clock", offset="utc")
    _leaf(domain, "on_poweroff", "destroy")
    _leaf(domain, "on_reboot", "restart")
    _leaf(domain, "on_crash", "destroy")
    _devices(domain, spec, disk_paths, console_log)
    return _text(domain)


def cpu_weight(cpu_floor_milli: int) -> int:
    """The CPU weight of a floor: CPU_WEIGHT_PER_CPU for each whole CPU, within what cgroup v1 and v2 both take."""
    return min(max(cpu_floor_milli * CPU_WEIGHT_PER_CPU // 1000, CPU_WEIGHT_MIN), CPU_WEIGHT_MAX)


def parse_tag(xml: str) -> CopyTag | None:
    """The tag in a domain's XML; None: Hostler did not make it (or what is there is not a tag of ours). Raises ValueError: not XML."""
    return tag_of(parse_document(xml))


def parse_size(xml: str) -> tuple[int, int]:
    """(vcpus, memory in MiB) of a domain's XML as libvirt writes it. Raises ValueError."""
    domain = parse_document(xml)
    memory = domain.find("memory")
    vcpu = domain.find("vcpu")
    if memory is None or vcpu is None or memory.get("unit", "KiB") != "KiB":
        raise ValueError("a domain without memory in KiB or without vcpu")
    return int(vcpu.text or ""), int(memory.text or "") // 1024


def parse_guest(xml: str) -> GuestFacts:
    """What a running domain's XML asks of a host: live, for the migratable one leaves out what QEMU has added to the CPU. Raises ValueError."""
    domain = parse_document(xml)
    machine, cpu = domain.find("os/type"), domain.find("cpu")
    if machine is None or not machine.get("machine"):
        raise ValueError("a domain without a machine type")
    devices = set()
    for device in domain.iterfind("devices/*"):
        target, model = device.find("target"), device.find("model")
        kind = (
            (target.get("bus") if target is not None else None) or (model.get("type") if model is not None else None) or device.get("model")
        )
        devices.add("/".join(part for part in (str(device.tag), kind or "") if part))
    return GuestFacts(machine.get("machine", ""), "" if cpu is None else _text(cpu), tuple(sorted(devices)))


def destination_xml(migratable: str, tag: CopyTag, disk_paths: Mapping[str, str]) -> str:
    """The source's own migratable XML as the destination is to run it: another tag, other disk paths; nothing else may differ, because guest
    ABI is checked by libvirt. Raises DomainSpecRefused when a disk has no path in `disk_paths` (by volume uid)."""
    _check_tag(tag)
    domain = parse_document(migratable)
    old = _copy_of(domain)
    if old is None:
        raise DomainSpecRefused("The domain carries no tag of ours.")
    parent = old.getparent()
    assert parent is not None
    parent.replace(old, _copy_element(tag, old.get("label", "")))
    for disk in domain.iterfind("devices/disk"):
        alias, source = disk.find("alias"), disk.find("source")
        volume_uid = "" if alias is None else alias.get("name", "").removeprefix(ALIAS_PREFIX)
        path = disk_paths.get(volume_uid)
        if path is None or source is None:
            raise DomainSpecRefused("The domain has a disk that the destination has no path for.")
        _require(_PATH, path, "A disk path")
        source.set("file", path)
    return _text(domain)


def _check(spec: DomainSpec, tag: CopyTag, disk_paths: Mapping[str, str], console_log: str) -> None:
    _require(_UUID, spec.vm_uid, "A VM uid")
    _check_tag(tag)
    if tag.vm_uid != spec.vm_uid:
        raise DomainSpecRefused("The tag is of another VM.")
    if spec.vcpus < 1 or spec.memory_mib < 1 or spec.cpu_floor_milli < 0:
        raise DomainSpecRefused("A VM needs at least one vCPU, 1 MiB of memory and a CPU floor that is not negative.")
    if len(spec.disks) > DISKS_MAX:
        raise DomainSpecRefused(f"A VM has at most {DISKS_MAX} disks.")
    if len({disk.volume_uid for disk in spec.disks}) != len(spec.disks):
        raise DomainSpecRefused("A volume can be a disk of a VM only once.")
    for disk in spec.disks:
        _require(_UUID, disk.volume_uid, "A volume uid")
        _require(_PATH, disk_paths.get(disk.volume_uid, ""), "A disk path")
        if disk.format not in _FORMATS:
            raise DomainSpecRefused("A disk's format is qcow2 or raw.")
    for nic in spec.nics:
        _require(_BRIDGE, nic.bridge, "A bridge's name")
        _require(_MAC, nic.mac_address, "A MAC address")
    if console_log:
        _require(_PATH, console_log, "A console log's path")


def _check_tag(tag: CopyTag) -> None:
    _require(_UUID, tag.vm_uid, "A VM uid")
    _require(_OPERATION, tag.operation_id, "An operation id")


def _require(pattern: re.Pattern[str], value: str, what: str) -> None:
    if not pattern.fullmatch(value):
        raise DomainSpecRefused(f"{what} is not of the allowed form.")


def _memory_backing(domain: etree._Element, service_class: ServiceClass) -> None:
    if service_class is ServiceClass.GUARANTEED:
        backing = etree.SubElement(domain, "memoryBacking")
        etree.SubElement(backing, "nosharepages")
        etree.SubElement(backing, "allocation", mode="immediate")


def _cpu(domain: etree._Element, vcpus: int, kvm: bool) -> None:
    if kvm:
        cpu = etree.SubElement(domain, "cpu", mode="host-model", check="partial")
    else:
        cpu = etree.SubElement(domain, "cpu", mode="custom", match="exact", check="none")
        _leaf(cpu, "model", "qemu64", fallback="forbid")
    etree.SubElement(cpu, "topology", sockets="1", cores=str(vcpus), threads="1")


def _devices(domain: etree._Element, spec: DomainSpec, disk_paths: Mapping[str, str], console_log: str) -> None:
    devices = etree.SubElement(domain, "devices")
    for index, disk in enumerate(spec.disks):
        _disk(devices, index, disk, disk_paths[disk.volume_uid])
    etree.SubElement(devices, "controller", type="usb", model="none")
    for nic in spec.nics:
        _nic(devices, nic)
    serial = etree.SubElement(devices, "serial", type="pty")
    if console_log:
        etree.SubElement(serial, "log", file=console_log, append="on")
    etree.SubElement(devices, "memballoon", model="none" if spec.service_class is ServiceClass.GUARANTEED else "virtio")
    rng = etree.SubElement(devices, "rng", model="virtio")
    _leaf(rng, "backend", "/dev/urandom", model="random")


def _disk(devices: etree._Element, index: int, disk: DiskSpec, path: str) -> None:
    element = etree.SubElement(devices, "disk", type="file", device="disk")
    etree.SubElement(
        element, "driver", name="qemu", type=disk.format, cache="none", io="threads", discard="unmap", error_policy="stop"
    )  # io=native would block QEMU's main loop in io_submit while a sparse image grows
    etree.SubElement(element, "source", file=path)
    etree.SubElement(element, "target", dev=f"vd{chr(ord('a') + index)}", bus="virtio")
    _leaf(element, "serial", disk.volume_uid.replace("-", "")[:SERIAL_BYTES])
    etree.SubElement(element, "boot", order=str(index + 1))
    # A user's alias travels in the migratable XML: the way back from a disk to its volume.
    etree.SubElement(element, "alias", name=f"{ALIAS_PREFIX}{disk.volume_uid}")


def _nic(devices: etree._Element, nic: NicSpec) -> None:
    element = etree.SubElement(devices, "interface", type="bridge")
    etree.SubElement(element, "mac", address=nic.mac_address)
    etree.SubElement(element, "source", bridge=nic.bridge)
    etree.SubElement(element, "model", type="virtio")


def _copy_element(tag: CopyTag, label: str) -> etree._Element:
    element = etree.Element(f"{{{NAMESPACE}}}copy", nsmap={"hostler": NAMESPACE})
    element.set("uid", tag.vm_uid)
    element.set("epoch", str(tag.epoch))
    element.set("operation", tag.operation_id)
    element.set("label", _NOT_XML.sub("\ufffd", label[:LABEL_CHARS_MAX]))
    return element


def _copy_of(domain: etree._Element) -> etree._Element | None:
    return domain.find(f"metadata/{{{NAMESPACE}}}copy")


def tag_of(domain: etree._Element) -> CopyTag | None:
    """Ours only if it says so of this very domain: a foreign domain with a copied tag is foreign."""
    element = _copy_of(domain)
    if element is None:
        return None
    vm_uid, epoch, operation = element.get("uid", ""), element.get("epoch", ""), element.get("operation", "")
    if not _UUID.fullmatch(vm_uid) or domain.findtext("uuid") != vm_uid or not epoch.isdecimal() or not _OPERATION.fullmatch(operation):
        return None
    return CopyTag(vm_uid, int(epoch), operation)


def parse_document(xml: str) -> etree._Element:
    """The root of a document from libvirt: nothing in it is followed or fetched. Raises ValueError."""
    if len(xml) > XML_BYTES_MAX:
        raise ValueError("an XML document that is too long")
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, dtd_validation=False, huge_tree=False)
    try:
        root = etree.fromstring(xml.encode(), parser)
    except etree.XMLSyntaxError as err:
        raise ValueError("not an XML document") from err
    if root.getroottree().docinfo.doctype:
        raise ValueError("an XML document with a document type")
    return root


def _leaf(parent: etree._Element, name: str, text: str, **attributes: str) -> None:
    etree.SubElement(parent, name, attributes).text = text


def _text(root: etree._Element) -> str:
    etree.indent(root)
    return etree.tostring(root, encoding="unicode")
