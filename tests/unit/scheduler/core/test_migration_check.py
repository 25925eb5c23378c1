"""The look at both nodes: each rule fails alone, for its own fact, with a sentence and a fix; and all that fail are told together."""

from dataclasses import replace

import pytest

from hostler.errors import Reason
from hostler.model.migration_facts import GuestFacts, MigrationFacts, Reception
from scheduler.core.migration_check import CERTIFICATE_LEAST_S, CopiedVolume, checks, refusal

VOLUMES = {"uid-1": "web-1-disk-0"}
GUEST = GuestFacts("pc-q35-7.2", "<cpu/>", ("disk/virtio",))
SOURCE = MigrationFacts("n1", True, 9_000_000, 7_002_000, "KVM", 86_400, {"uid-1": "fs:7"}, True, guest=GUEST)
DESTINATION = MigrationFacts("n2", True, 9_000_000, 7_002_000, "KVM", 86_400, {"uid-1": "fs:7"}, False)


def failing(source: MigrationFacts, destination: MigrationFacts) -> dict[str, str]:
    return {check.name: f"{check.message} {check.fix}" for check in checks(source, destination, VOLUMES) if not check.ok}


def test_two_alike_hosts_pass_every_rule() -> None:
    """A rule that forbids what is fine, or one that is left out."""
    found = checks(SOURCE, DESTINATION, VOLUMES)
    assert all(check.ok for check in found)
    assert [check.name for check in found] == [
        "hypervisor", "certificates", "disks", "networks", "copies", "acceleration", "cpu", "machine", "devices", "versions",
    ]  # fmt: skip
    assert refusal(found) is None


@pytest.mark.parametrize(
    ("source", "destination", "name", "says"),
    [
        (replace(SOURCE, hypervisor_answers=False), DESTINATION, "hypervisor", "n1"),
        (SOURCE, replace(DESTINATION, hypervisor_answers=False), "hypervisor", "n2"),
        (SOURCE, replace(DESTINATION, certificate_left_s=CERTIFICATE_LEAST_S - 1), "certificates", "n2"),
        (replace(SOURCE, certificate_left_s=-5), DESTINATION, "certificates", "0 s more"),
        (SOURCE, replace(DESTINATION, disks={"uid-1": "fs:8"}), "disks", "web-1-disk-0"),
        (SOURCE, replace(DESTINATION, disks={}), "disks", "web-1-disk-0"),
        (replace(SOURCE, disks={"uid-1": ""}), replace(DESTINATION, disks={"uid-1": ""}), "disks", "web-1-disk-0"),
        (SOURCE, replace(DESTINATION, bridges_missing=("br9",)), "networks", "br9"),
        (replace(SOURCE, holds_copy=False), DESTINATION, "copies", "n1"),
        (SOURCE, replace(DESTINATION, holds_copy=True), "copies", "n2"),
        (SOURCE, replace(DESTINATION, acceleration="EMULATION"), "acceleration", "EMULATION"),
        (SOURCE, replace(DESTINATION, reception=Reception(cpu_refused="it has no avx512.")), "cpu", "avx512"),
        (SOURCE, replace(DESTINATION, reception=Reception(machine_refused="no pc-q35-7.2.")), "machine", "pc-q35-7.2"),
        (SOURCE, replace(DESTINATION, reception=Reception(devices_missing=("rng/virtio",))), "devices", "rng/virtio"),
        (SOURCE, replace(DESTINATION, libvirt_version=8_010_000), "versions", "8.10.0"),
        (SOURCE, replace(DESTINATION, qemu_version=7_001_000), "versions", "7.1.0"),
    ],
)
def test_each_fact_fails_its_own_rule(source: MigrationFacts, destination: MigrationFacts, name: str, says: str) -> None:
    """A host that cannot take the guest, found out in the middle of the copy or never."""
    failed = failing(source, destination)
    assert list(failed) == [name]
    assert says in failed[name]


@pytest.mark.parametrize(
    ("source", "destination", "says"),
    [
        (SOURCE, DESTINATION, "has a file of web-1-disk-0 already"),
        (replace(SOURCE, size_bytes={"uid-1": 65 << 20}), replace(DESTINATION, disks={"uid-1": ""}), "not of the size"),
        (replace(SOURCE, disks={"uid-1": ""}), replace(DESTINATION, disks={"uid-1": ""}), "not the same file"),
        (SOURCE, replace(DESTINATION, disks={"uid-1": ""}), ""),
    ],
)
def test_a_disk_that_is_copied_along_has_to_be_at_the_source_alone(source: MigrationFacts, destination: MigrationFacts, says: str) -> None:
    """A file that is written over, or a copy that QEMU refuses because the two are not of one size."""
    source = replace(source, size_bytes=source.size_bytes or {"uid-1": 64 << 20})
    (disks,) = [check for check in checks(source, destination, VOLUMES, {"uid-1": CopiedVolume(64, 4.0)}) if check.name == "disks"]
    assert disks.ok is not bool(says)
    assert says in disks.message


def test_a_certificate_has_to_outlast_the_copy_of_the_disks_too() -> None:
    """The stream of memory is opened when the disks are copied: hours later, for large ones."""
    source, absent = replace(SOURCE, size_bytes={"uid-1": 1 << 40}), replace(DESTINATION, disks={"uid-1": ""})
    failed = [check.name for check in checks(source, absent, VOLUMES, {"uid-1": CopiedVolume(1 << 20, 90_000.0)}) if not check.ok]
    assert failed == ["certificates"]


def test_a_newer_destination_is_fine() -> None:
    """Migration to a newer host is how hosts are brought up to date."""
    assert failing(SOURCE, replace(DESTINATION, libvirt_version=10_000_000, qemu_version=8_000_000)) == {}


def test_all_that_forbids_it_is_told_at_once() -> None:
    """A user who mends one thing after the other, with a failed migration for each."""
    found = checks(SOURCE, replace(DESTINATION, bridges_missing=("br9",), qemu_version=6_000_000), VOLUMES)
    error = refusal(found)
    assert error is not None
    assert error.reason is Reason.NOT_MIGRATABLE
    assert {violation.field for violation in error.violations} == {"migration.checks.networks", "migration.checks.versions"}
    assert "2 rules" in error.message
