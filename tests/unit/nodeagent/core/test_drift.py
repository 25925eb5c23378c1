"""What is called a hand edit: every change that virsh can make of what Hostler made, and nothing else."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from hostler.model.domain import DiskSpec, DomainSpec, NicSpec, ServiceClass
from nodeagent.core.definitions import Definition
from nodeagent.core.domain_shape import parse_shape
from nodeagent.core.domain_xml import Acceleration, domain_xml
from nodeagent.core.drift import FINDINGS_MAX, findings
from nodeagent.core.observed import CopyTag, DiskShape, DomainShape, NicShape

VM = "0b6f0f4e-7b0e-4d8e-8a54-2f6f0c9f0a01"
VOLUME = "5e1c0b5a-02d4-4c0f-9d4e-6a1f2b3c4d01"
PATHS = {VOLUME: "/pool/volumes/a.qcow2"}
MAC = "52:54:00:00:00:01"
SPEC = DomainSpec(VM, "web-1", 2, 500, 64, ServiceClass.BURSTABLE, (DiskSpec(VOLUME, "p", "qcow2"),), (NicSpec("br0", MAC),))
DEFINITION = Definition(SPEC, 3, "op-1")
XML = domain_xml(SPEC, CopyTag(VM, 3, "op-1"), PATHS, Acceleration.EMULATION)


def shape(xml: str = XML, **told: bool) -> DomainShape:
    return parse_shape(xml, **({"active": True, "suspended": False, "persistent": False, "autostart": False} | told))


def drift(*shapes: DomainShape, power_taken: bool = False) -> tuple[str, ...]:
    return findings(DEFINITION, PATHS, shapes, power_taken=power_taken)


def test_what_hostler_made_is_no_drift() -> None:
    """A false alarm on every VM teaches everybody not to look."""
    assert drift(shape()) == ()
    assert drift() == (), "a VM that is off"
    assert drift(shape(), replace(shape(), uuid="other", disks=())) == ()


DISK = DiskShape("", "/tmp/extra.img", "vdb")
EDITS: dict[str, tuple[Callable[[DomainShape], DomainShape], tuple[str, ...]]] = {
    "vcpus": (lambda s: replace(s, vcpus=1), ("1 vCPUs", "expected 2", "setvcpus")),
    "memory": (lambda s: replace(s, memory_mib=32), ("32 MiB", "expected 64", "setmem")),
    "weight": (lambda s: replace(s, cpu_weight=1024), ("weight is 1024", "expected 50", "schedinfo")),
    "quota": (lambda s: replace(s, cpu_quota_us=1000), ("1000 us", "vcpu_quota=-1")),
    "disk attached": (lambda s: replace(s, disks=(*s.disks, DISK)), ("/tmp/extra.img", "detach-disk", "vdb")),
    "disk detached": (lambda s: replace(s, disks=()), (PATHS[VOLUME], "taken out")),
    "disk replaced": (lambda s: replace(s, disks=(DiskShape(VOLUME, "/x", "vda"),)), ("vda is /x", PATHS[VOLUME])),
    "card detached": (lambda s: replace(s, nics=()), (MAC, "taken out")),
    "card on another bridge": (lambda s: replace(s, nics=(NicShape(MAC, "br9"),)), ("br9", "expected br0")),
    "card without link": (lambda s: replace(s, nics=(NicShape(MAC, "br0", False),)), ("link", "domif-setlink")),
    "card attached": (
        lambda s: replace(s, nics=(*s.nics, NicShape("52:54:00:00:00:99", "br0"))),
        ("52:54:00:00:00:99", "detach-interface"),
    ),
    "device attached": (lambda s: replace(s, extra_devices=("hostdev",)), ("hostdev", "expected none")),
    "suspended": (lambda s: replace(s, suspended=True), ("suspended", "virsh resume")),
    "defined": (lambda s: replace(s, persistent=True), ("virsh undefine",)),
    "autostarted": (lambda s: replace(s, autostart=True), ("autostart --disable",)),
    "epoch": (lambda s: replace(s, tag=CopyTag(VM, 2, "op-1")), ("epoch 2", "expected 3")),
    "mark removed": (lambda s: replace(s, tag=None), ("mark",)),
}


@pytest.mark.parametrize("edit", EDITS)
def test_each_hand_edit_is_one_finding_with_what_was_expected_and_the_fix(edit: str) -> None:
    """A change that nobody is told of, or one that is told without what to do."""
    change, words = EDITS[edit]
    (finding,) = drift(change(shape()))
    for word in words:
        assert word in finding, finding


def test_a_domain_that_only_libvirt_keeps_is_compared_in_nothing_else() -> None:
    """A definition left behind by `virsh define` has no live sizes; it is the definition itself that is wrong."""
    (finding,) = drift(replace(shape(), active=False, persistent=True, memory_mib=1, tag=None, disks=()))
    assert "virsh undefine" in finding


def test_a_second_user_of_a_disk_is_told_whether_it_runs() -> None:
    """The one hand edit that can cost data."""
    other = DomainShape("u2", "by-hand", None, 1, 64, 0, (DiskShape("", PATHS[VOLUME], "sda"),))
    (runs,) = drift(shape(), other)
    (off,) = drift(shape(), replace(other, active=False))
    assert "by-hand, runs" in runs
    assert "by-hand, is off" in off


def test_power_taken_by_hand_is_told_until_it_runs_again() -> None:
    """A VM that is off without anybody having asked for it."""
    (finding,) = drift(power_taken=True)
    assert "hostler vm start web-1" in finding
    assert drift(shape(), power_taken=True) == ()


def test_findings_are_bounded_and_fit_to_be_shown() -> None:
    """Whoever attaches a thousand disks with control characters in their names fills a record, or a terminal."""
    odd = DiskShape("", "/a\x1b[31m" + "b" * 4000, "vdz")
    found = drift(replace(shape(), disks=(*shape().disks, *[odd] * 1000)))
    assert len(found) == FINDINGS_MAX
    assert all(finding.isprintable() and len(finding) < 500 for finding in found)


def test_libvirts_live_xml_is_read_as_it_is_written() -> None:
    """libvirt adds what the builder does not write: units in KiB, a present number of vCPUs, aliases, a link's state."""
    live = (
        XML.replace('<memory unit="MiB">64</memory>', '<memory unit="KiB">65536</memory><currentMemory unit="KiB">32768</currentMemory>')
        .replace('<vcpu placement="static">2</vcpu>', '<vcpu placement="static" current="1">2</vcpu>')
        .replace('<model type="virtio"/>', '<target dev="vnet0"/><model type="virtio"/><link state="down"/>')
        .replace(
            "</devices>", '<disk type="file" device="cdrom"><target dev="sda" bus="sata"/></disk><hostdev mode="subsystem"/></devices>'
        )
    )
    seen = shape(live)
    assert (seen.memory_mib, seen.vcpus, seen.cpu_weight) == (32, 1, 50)
    assert seen.nics == (NicShape(MAC, "br0", up=False),)
    assert seen.disks == (DiskShape(VOLUME, PATHS[VOLUME], "vda"), DiskShape("", "", "sda"))
    assert seen.extra_devices == ("hostdev",)
    assert seen.tag == CopyTag(VM, 3, "op-1")


def test_what_is_no_domain_is_an_error() -> None:
    """A shape of nothing would be compared, and everything found missing."""
    for text in ("<domain/>", "<network/>", "x"):
        with pytest.raises(ValueError, match=r"not a"):
            shape(text)
