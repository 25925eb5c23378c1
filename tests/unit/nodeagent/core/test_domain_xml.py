"""The XML builder: what it refuses, what it reads back, and what a destination's XML may differ in."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from hostler.model.domain import DiskSpec, DomainSpec, NicSpec, ServiceClass
from nodeagent.core.domain_xml import (
    CPU_WEIGHT_MAX,
    CPU_WEIGHT_MIN,
    DISKS_MAX,
    NAMESPACE,
    Acceleration,
    DomainSpecRefused,
    cpu_weight,
    destination_xml,
    domain_xml,
    parse_size,
    parse_tag,
)
from nodeagent.core.observed import CopyTag

VM = "0b6f0f4e-7b0e-4d8e-8a54-2f6f0c9f0a01"
VOLUME = "5e1c0b5a-02d4-4c0f-9d4e-6a1f2b3c4d01"
OTHER = "5e1c0b5a-02d4-4c0f-9d4e-6a1f2b3c4d02"
PATHS = {VOLUME: "/pool/a.qcow2", OTHER: "/pool/b.raw"}
TAG = CopyTag(VM, 1, "op-1")
SPEC = DomainSpec(VM, "web", 1, 500, 64, ServiceClass.BURSTABLE, (DiskSpec(VOLUME, "p", "qcow2"),), (NicSpec("br0", "52:54:00:00:00:01"),))


def build(spec: DomainSpec = SPEC, tag: CopyTag = TAG, paths: dict[str, str] | None = None) -> str:
    return domain_xml(spec, tag, PATHS if paths is None else paths, Acceleration.EMULATION)


HOSTILE = ("", "a</name>", "x\ny", "x\0y", "../../etc", "a'b", 'a"b', "a b", "-x y", "\ud800", "a\n")


@pytest.mark.parametrize("text", HOSTILE)
def test_an_identifier_of_another_form_is_refused(text: str) -> None:
    """An identifier that is passed on as it came ends up in a path, a socket name or a command line."""
    disk, nic = SPEC.disks[0], SPEC.nics[0]
    for spec in (
        replace(SPEC, vm_uid=text),
        replace(SPEC, disks=(replace(disk, volume_uid=text),)),
        replace(SPEC, disks=(replace(disk, format=text),)),
        replace(SPEC, nics=(replace(nic, bridge=text),)),
        replace(SPEC, nics=(replace(nic, mac_address=text),)),
    ):
        with pytest.raises(DomainSpecRefused):
            domain_xml(spec, replace(TAG, vm_uid=spec.vm_uid), PATHS | {text: "/pool/c"}, Acceleration.EMULATION)
    with pytest.raises(DomainSpecRefused):
        build(paths={VOLUME: text})


@pytest.mark.parametrize("bridge", ["sixteen-letters-", "eth0;reboot", "br0/x"])
def test_a_bridge_that_no_kernel_has_is_refused(bridge: str) -> None:
    """Names longer than 15 bytes are cut by some tools and refused by others."""
    with pytest.raises(DomainSpecRefused):
        build(replace(SPEC, nics=(NicSpec(bridge, "52:54:00:00:00:01"),)))


def test_a_multicast_address_is_no_cards_address() -> None:
    """A card with a group address gets no traffic."""
    with pytest.raises(DomainSpecRefused):
        build(replace(SPEC, nics=(NicSpec("br0", "01:00:5e:00:00:01"),)))


def test_too_many_disks_or_one_twice_are_refused() -> None:
    """vdaa is not the name after vdz here, and the same image twice is two writers in one guest."""
    many = tuple(DiskSpec(f"5e1c0b5a-02d4-4c0f-9d4e-{i:012x}", "p", "raw") for i in range(DISKS_MAX + 1))
    with pytest.raises(DomainSpecRefused):
        build(replace(SPEC, disks=many), paths={disk.volume_uid: "/pool/x" for disk in many})
    with pytest.raises(DomainSpecRefused):
        build(replace(SPEC, disks=SPEC.disks * 2))


@pytest.mark.parametrize("change", [{"vcpus": 0}, {"vcpus": -1}, {"memory_mib": 0}, {"cpu_floor_milli": -1}])
def test_an_impossible_size_is_refused(change: dict[str, int]) -> None:
    """libvirt takes a memory of 0 for "unlimited" in places."""
    with pytest.raises(DomainSpecRefused):
        build(replace(SPEC, **change))  # type: ignore[arg-type]  # the values are integers as the fields are


def test_the_tag_of_another_vm_is_refused() -> None:
    """A domain that says it is somebody else would be resumed as somebody else."""
    with pytest.raises(DomainSpecRefused):
        build(tag=CopyTag(VOLUME, 1, "op-1"))


@given(st.text(st.characters(codec=None, exclude_categories=()), max_size=400), st.integers(0, 1 << 62))
def test_any_label_is_data_and_the_tag_survives_it(label: str, epoch: int) -> None:
    """The user's name must never become structure, whatever it contains."""
    tag = CopyTag(VM, epoch, "op-1")
    xml = build(replace(SPEC, vm_id=label), tag)
    assert parse_tag(xml) == tag
    plain, with_label = etree.fromstring(build()), etree.fromstring(xml)
    assert [element.tag for element in with_label.iter()] == [element.tag for element in plain.iter()]


@given(st.integers(0, 10**9))
def test_a_weight_is_what_every_cgroup_takes(floor: int) -> None:
    """cgroup v2 refuses more than 10,000, v1 less than 2: the VM would not start."""
    assert CPU_WEIGHT_MIN <= cpu_weight(floor) <= CPU_WEIGHT_MAX
    assert cpu_weight(floor) <= cpu_weight(floor + 1000)


@pytest.mark.parametrize(
    "xml",
    [
        "",
        "not xml",
        "<domain>",
        f'<!DOCTYPE d [<!ENTITY e "{VM}">]><domain><uuid>&e;</uuid></domain>',
        '<!DOCTYPE d SYSTEM "file:///etc/passwd"><domain/>',
        "<domain>" + " " * (1 << 20) + "</domain>",
    ],
)
def test_what_is_not_a_plain_document_is_not_read(xml: str) -> None:
    """Entities read files and eat memory."""
    with pytest.raises(ValueError, match="XML document"):
        parse_tag(xml)


@pytest.mark.parametrize(
    "inner",
    [
        "",
        '<x:copy xmlns:x="https://example.org/other" uid="{vm}" epoch="1" operation=""/>',
        '<h:copy xmlns:h="{ns}" uid="{vm}" epoch="-1" operation=""/>',
        '<h:copy xmlns:h="{ns}" uid="{vm}" epoch="one" operation=""/>',
        '<h:copy xmlns:h="{ns}" uid="{other}" epoch="1" operation=""/>',
        '<h:copy xmlns:h="{ns}" uid="{vm}" epoch="1" operation="a b"/>',
    ],
)
def test_a_domain_without_a_whole_tag_of_its_own_is_not_ours(inner: str) -> None:
    """A stranger taken for ours could be killed; ours taken for a stranger is only counted as unmanaged."""
    xml = f"<domain><uuid>{VM}</uuid><metadata>{inner.format(vm=VM, ns=NAMESPACE, other=OTHER)}</metadata></domain>"
    assert parse_tag(xml) is None


def test_the_size_is_read_in_the_unit_libvirt_writes() -> None:
    """A unit misread by 1024 makes unmanaged memory vanish from the ledger."""
    assert parse_size("<domain><memory unit='KiB'>262144</memory><vcpu>3</vcpu></domain>") == (3, 256)
    with pytest.raises(ValueError, match="KiB"):
        parse_size("<domain><memory unit='MiB'>256</memory><vcpu>3</vcpu></domain>")


def test_a_destination_differs_in_tag_and_paths_alone() -> None:
    """Anything else that changed would change what the guest sees in the middle of its life."""
    two = replace(SPEC, disks=(*SPEC.disks, DiskSpec(OTHER, "p", "raw")), vm_id="a <label>")
    source = build(two)
    moved = destination_xml(source, CopyTag(VM, 2, "op-2"), {VOLUME: "/there/a.qcow2", OTHER: "/there/b.raw"})
    assert parse_tag(moved) == CopyTag(VM, 2, "op-2")
    back = destination_xml(moved, TAG, PATHS)
    assert etree.tostring(etree.fromstring(back), method="c14n2", strip_text=True) == etree.tostring(
        etree.fromstring(source), method="c14n2", strip_text=True
    )
    assert [source.get("file") for source in etree.fromstring(moved).iterfind("devices/disk/source")] == ["/there/a.qcow2", "/there/b.raw"]


def test_a_destination_without_a_path_for_each_disk_is_refused() -> None:
    """The source's path on the destination may be another VM's file."""
    with pytest.raises(DomainSpecRefused):
        destination_xml(build(), CopyTag(VM, 2, "op-2"), {OTHER: "/there/b.raw"})


def test_a_stranger_is_not_migrated() -> None:
    """A domain without our tag is never touched."""
    with pytest.raises(DomainSpecRefused):
        destination_xml(f"<domain><uuid>{VM}</uuid></domain>", CopyTag(VM, 2, "op-2"), {})
