"""Whether this host's libvirt and QEMU could run a guest that runs elsewhere now, and how fast a guest dirties memory: libvirt's answers, read.

The machine type and the kinds of devices are asked of the domain capabilities (which name the buses of disks and the models of random number
generators; what they do not name cannot be asked), the CPU is compared by libvirt itself with what QEMU can give on this host.
"""

import re

import libvirt
from lxml import etree

from nodeagent.core import domain_xml
from nodeagent.ports import GuestFacts, Reception

ARCHITECTURE = "x86_64"
DIRTY_RATE_S = 1
"""The least that libvirt measures over."""
DIRTY_RATE_LOOKS = 12
"""Three times as long, then it is not to be had."""
MEASURED = 2
"""libvirt's VIR_DOMAIN_DIRTYRATE_MEASURED."""
MIB = 1 << 20
MISSING = re.compile(r"required features: ([a-z0-9_., -]{1,400})$")
"""In libvirt's sentence about a CPU: names of features, which are safe to show."""
ASKABLE = {"disk": "devices/disk/enum[@name='bus']/value", "rng": "devices/rng/enum[@name='model']/value"}
"""Kind of device -> where its models are in the domain capabilities."""


def reception(connection: libvirt.virConnect, kind: str, guest: GuestFacts) -> Reception:
    """`kind`: "kvm" or "qemu". Raises libvirtError where libvirt itself fails."""
    try:
        capabilities = domain_xml.parse_document(connection.getDomainCapabilities(None, ARCHITECTURE, guest.machine, kind, 0))
    except libvirt.libvirtError as err:
        if err.get_error_code() not in (libvirt.VIR_ERR_INVALID_ARG, libvirt.VIR_ERR_CONFIG_UNSUPPORTED):
            raise
        return Reception(machine_refused=f"its QEMU does not know the machine type {guest.machine}.")
    return Reception("", _cpu_refused(connection, kind, guest), tuple(one for one in guest.devices if not _known(capabilities, one)))


def _cpu_refused(connection: libvirt.virConnect, kind: str, guest: GuestFacts) -> str:
    flags = libvirt.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE
    try:
        connection.compareHypervisorCPU(None, ARCHITECTURE, guest.machine, kind, guest.cpu_xml, flags)
    except libvirt.libvirtError as err:
        if err.get_error_code() == libvirt.VIR_ERR_CPU_INCOMPATIBLE:
            missing = MISSING.search(err.get_error_message() or "")
            return f"it cannot give {_name(guest.cpu_xml)}{f', it lacks {missing[1]}' if missing else ''}."
        if err.get_error_code() in (libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_ERR_CONFIG_UNSUPPORTED):
            return f"it does not know {_name(guest.cpu_xml)}."
        raise
    return ""


def _name(cpu_xml: str) -> str:
    model = domain_xml.parse_document(cpu_xml).findtext("model") or "of the guest"
    return f"the CPU {model} with the guest's features"


def _known(capabilities: etree._Element, device: str) -> bool:
    kind, _, model = device.partition("/")
    path = ASKABLE.get(kind)
    return path is None or model in [value.text for value in capabilities.iterfind(path)]


def dirty_rate(connection: libvirt.virConnect, domain: libvirt.virDomain) -> int | None:
    """Bytes a second; None: not measured yet."""
    found = connection.domainListGetStats([domain], libvirt.VIR_DOMAIN_STATS_DIRTYRATE, 0)
    stats = found[0][1] if found else {}
    if stats.get("dirtyrate.calc_status") != MEASURED:
        return None
    return int(stats.get("dirtyrate.megabytes_per_second", 0)) * MIB
