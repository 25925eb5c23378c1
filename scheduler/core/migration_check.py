"""Whether a guest can move from one host to another: the facts of both, compared rule by rule. A finding is a sentence, with the fix where it fails.

What libvirt would find out in the middle, or not at all, is found out before anything is touched. A rule that cannot be judged because a
hypervisor does not answer is not judged: that it does not answer is a finding of its own.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hostler.errors import FailedPrecondition, Reason, Violation
from hostler.model.migration_facts import MigrationCheck, MigrationFacts

CERTIFICATE_LEAST_S = 3600
"""The longest copy of memory is half an hour: a tunnel whose certificate ends during it cannot be opened again."""


@dataclass(frozen=True, slots=True)
class CopiedVolume:
    """A volume in a local pool: its size, and how long copying it may take."""

    size_mib: int
    copy_s: float


NONE_COPIED: Mapping[str, CopiedVolume] = {}


def checks(
    source: MigrationFacts, destination: MigrationFacts, volumes: Mapping[str, str], copied: Mapping[str, CopiedVolume] = NONE_COPIED
) -> tuple[MigrationCheck, ...]:
    """`volumes`: names of the VM's volumes by uid; `copied`: those of them that are copied along."""
    both = (source, destination)
    least_s = CERTIFICATE_LEAST_S + math.ceil(sum(one.copy_s for one in copied.values()))
    found = [_hypervisors(both), _certificates(both, least_s), _disks(source, destination, volumes, copied), _networks(destination)]
    if all(end.hypervisor_answers for end in both):
        found += [
            _copies(source, destination),
            _acceleration(source, destination),
            _cpu(destination),
            _machine(source, destination),
            _devices(destination),
            _versions(source, destination),
        ]
    return tuple(found)


def refusal(found: Iterable[MigrationCheck]) -> FailedPrecondition | None:
    """With one violation for each rule that fails; None: all hold."""
    failed = [check for check in found if not check.ok]
    if not failed:
        return None
    violations = tuple(Violation(f"migration.checks.{check.name}", f"{check.message} {check.fix}".rstrip()) for check in failed)
    many = f" ({len(failed)} rules forbid it)" if len(failed) > 1 else ""
    return FailedPrecondition(Reason.NOT_MIGRATABLE, f"{failed[0].message}{many}", failed[0].fix, violations)


def _hypervisors(both: tuple[MigrationFacts, ...]) -> MigrationCheck:
    silent = [end.node_id for end in both if not end.hypervisor_answers]
    if silent:
        text = f"The hypervisor of {' and '.join(silent)} does not answer."
        return MigrationCheck("hypervisor", False, text, f"Restart libvirtd on {' and '.join(silent)}; that harms no guest.")
    return MigrationCheck("hypervisor", True, "The hypervisors of both nodes answer.")


def _certificates(both: tuple[MigrationFacts, ...], least_s: int) -> MigrationCheck:
    ending = [end for end in both if end.certificate_left_s < least_s]
    if ending:
        text = " ".join(f"The certificate of {end.node_id} is valid for {max(0, end.certificate_left_s)} s more." for end in ending)
        return MigrationCheck("certificates", False, text, "Issue new ones with `hostler pki issue`, and put them in place.")
    least = min(end.certificate_left_s for end in both) // 3600
    return MigrationCheck("certificates", True, f"The certificates of both nodes are valid for {least} h at least.")


def _disks(
    source: MigrationFacts, destination: MigrationFacts, volumes: Mapping[str, str], copied: Mapping[str, CopiedVolume]
) -> MigrationCheck:
    there = [uid for uid in volumes if source.disks.get(uid)]
    other = [uid for uid in volumes if uid not in there or (uid not in copied and source.disks[uid] != destination.disks.get(uid))]
    if other:
        text = f"{_named(other, volumes)} is not the same file on {source.node_id} and {destination.node_id}."
        return MigrationCheck("disks", False, text, "Mount the same file system under the volume's pool on both nodes.")
    if taken := [uid for uid in copied if destination.disks.get(uid)]:
        text = f"{destination.node_id} has a file of {_named(taken, volumes)} already."
        return MigrationCheck("disks", False, text, f"If no VM needs it, remove it from the pool's directory on {destination.node_id}.")
    if odd := [uid for uid, volume in copied.items() if source.size_bytes.get(uid) != volume.size_mib << 20]:
        text = f"The file of {_named(odd, volumes)} on {source.node_id} is not of the size that its record tells."
        return MigrationCheck("disks", False, text, "It was resized past Hostler; give it back its size.")
    if copied:
        return MigrationCheck("disks", True, f"{_named(copied, volumes)} is copied along; every other disk is the same file on both nodes.")
    return MigrationCheck("disks", True, "Every disk is the same file on both nodes.")


def _named(uids: Iterable[str], volumes: Mapping[str, str]) -> str:
    return ", ".join(sorted(volumes[uid] for uid in uids))


def _networks(destination: MigrationFacts) -> MigrationCheck:
    if destination.bridges_missing:
        names = ", ".join(destination.bridges_missing)
        return MigrationCheck("networks", False, f"{destination.node_id} has no bridge {names}.", f"Make it on {destination.node_id}.")
    return MigrationCheck("networks", True, f"{destination.node_id} has every bridge.")


def _copies(source: MigrationFacts, destination: MigrationFacts) -> MigrationCheck:
    if not source.holds_copy:
        return MigrationCheck("copies", False, f"The VM does not run on {source.node_id}.", "Start it first.")
    if destination.holds_copy:
        text = f"{destination.node_id} has a domain of this VM already."
        return MigrationCheck(
            "copies", False, text, f"See `virsh list --all` on {destination.node_id}; what is no copy of a handoff is not touched."
        )
    return MigrationCheck("copies", True, f"The VM is on {source.node_id} alone.")


def _acceleration(source: MigrationFacts, destination: MigrationFacts) -> MigrationCheck:
    if source.acceleration != destination.acceleration:
        text = f"{source.node_id} runs guests by {source.acceleration}, {destination.node_id} by {destination.acceleration}."
        return MigrationCheck("acceleration", False, text, "A running guest moves only between nodes of the same kind.")
    return MigrationCheck("acceleration", True, f"Both nodes run guests by {source.acceleration}.")


def _cpu(destination: MigrationFacts) -> MigrationCheck:
    if destination.reception.cpu_refused:
        fix = "Move it to a node with such a CPU, or stop it and start it there."
        return MigrationCheck("cpu", False, f"{destination.node_id}: {destination.reception.cpu_refused}", fix)
    return MigrationCheck("cpu", True, f"{destination.node_id} has the guest's CPU.")


def _machine(source: MigrationFacts, destination: MigrationFacts) -> MigrationCheck:
    if destination.reception.machine_refused:
        fix = f"Bring QEMU on {destination.node_id} to the version of {source.node_id}, or newer."
        return MigrationCheck("machine", False, f"{destination.node_id}: {destination.reception.machine_refused}", fix)
    machine = source.guest.machine if source.guest is not None else "the machine type"
    return MigrationCheck("machine", True, f"{destination.node_id} knows {machine}.")


def _devices(destination: MigrationFacts) -> MigrationCheck:
    if destination.reception.devices_missing:
        text = f"{destination.node_id} knows no {', '.join(destination.reception.devices_missing)}."
        return MigrationCheck("devices", False, text, f"Bring QEMU on {destination.node_id} up to date.")
    return MigrationCheck("devices", True, f"{destination.node_id} knows every device of the guest.")


def _versions(source: MigrationFacts, destination: MigrationFacts) -> MigrationCheck:
    older = [
        f"{what} {version_text(there)} on {destination.node_id} is older than {version_text(here)} on {source.node_id}"
        for what, here, there in (
            ("libvirt", source.libvirt_version, destination.libvirt_version),
            ("QEMU", source.qemu_version, destination.qemu_version),
        )
        if there < here
    ]
    if older:
        fix = f"Bring {destination.node_id} up to date; moving to an older one is not supported by either."
        return MigrationCheck("versions", False, f"{'; '.join(older)}.", fix)
    known = f"libvirt {version_text(destination.libvirt_version)} and QEMU {version_text(destination.qemu_version)}"
    return MigrationCheck("versions", True, f"{destination.node_id} has {known}, not older than {source.node_id}.")


def version_text(number: int) -> str:
    """9000001 is 9.0.1."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
