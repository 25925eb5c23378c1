"""Where a VM's domain differs from what Hostler made it, because somebody changed it past Hostler: one sentence per finding.

A sentence says what was expected, what was found and what undoes it; nothing is repaired from here, because whoever changed a running guest by hand
had a reason that a program does not know. Findings are about what somebody can do with virsh and the like: sizes, disks, cards, power, libvirt's own
persistent definitions, our mark, and a second domain that uses a disk of the VM. Order is fixed, so equal findings are equal values.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from nodeagent.core.definitions import Definition
from nodeagent.core.domain_xml import cpu_weight
from nodeagent.core.observed import DomainShape

FINDINGS_MAX = 16
"""Of one VM: who changed more than that finds the rest when these are undone; the record that they are kept in stays small."""
SHOWN_CHARS_MAX = 120
"""Of a name or path that somebody else chose."""
RESTART = "or stop and start it with Hostler"


def findings(definition: Definition, disk_paths: Mapping[str, str], shapes: Sequence[DomainShape], *, power_taken: bool) -> tuple[str, ...]:
    """What is different from `definition`. `disk_paths`: where this host has the VM's disks, by volume uid. `shapes`: every domain of the host.

    `power_taken`: its domain ended because somebody else than the agent destroyed it, and it was not started since.
    """
    own = next((shape for shape in shapes if shape.uuid == definition.spec.vm_uid), None)
    others = [shape for shape in shapes if shape.uuid != definition.spec.vm_uid]
    found = [
        *_power(definition, own, power_taken),
        *(_domain(definition, disk_paths, own) if own is not None and own.active else ()),
        *(_kept_by_libvirt(own) if own is not None else ()),
        *_second_users(disk_paths, others),
    ]
    return tuple(found[:FINDINGS_MAX])


def _power(definition: Definition, own: DomainShape | None, power_taken: bool) -> Iterator[str]:
    if own is None or not own.active:
        if power_taken:
            yield (
                "Its power was taken past Hostler (`virsh destroy` or the like) though it was to run; "
                f"`hostler vm start {definition.spec.vm_id}` starts it again."
            )
    elif own.suspended:
        yield f"Its guest is suspended past Hostler though it is to run; `virsh resume {own.name}` lets it go on."


def _domain(definition: Definition, disk_paths: Mapping[str, str], own: DomainShape) -> Iterator[str]:
    yield from _mark(definition, own)
    yield from _sizes(definition, own)
    yield from _disks(disk_paths, own)
    yield from _nics(definition, own)
    for kind, count in sorted(Counter(own.extra_devices).items()):
        yield f"It has {count} device(s) of kind {kind}, expected none; `virsh detach-device {own.name}` takes it out, {RESTART}."


def _mark(definition: Definition, own: DomainShape) -> Iterator[str]:
    if own.tag is None:
        yield (
            f"Its domain {_shown(own.name)} no longer carries Hostler's mark, so that Hostler takes it for somebody else's and does not touch it; "
            "put the element `hostler:copy` back into its metadata, or `virsh destroy` it and start the VM with Hostler."
        )
    elif own.tag.epoch != definition.epoch:
        yield f"Its domain carries epoch {own.tag.epoch}, expected {definition.epoch}; put it back into its metadata, {RESTART}."


def _sizes(definition: Definition, own: DomainShape) -> Iterator[str]:
    spec, weight = definition.spec, cpu_weight(definition.spec.cpu_floor_milli)
    if own.vcpus != spec.vcpus:
        yield f"It has {own.vcpus} vCPUs, expected {spec.vcpus}; `virsh setvcpus {own.name} {spec.vcpus} --live`, {RESTART}."
    if own.memory_mib != spec.memory_mib:
        yield f"It has {own.memory_mib} MiB of memory, expected {spec.memory_mib}; `virsh setmem {own.name} {spec.memory_mib}M --live`, {RESTART}."
    if own.cpu_weight != weight:
        yield f"Its CPU weight is {own.cpu_weight}, expected {weight}; `virsh schedinfo {own.name} --live cpu_shares={weight}`, {RESTART}."
    if own.cpu_quota_us > 0:
        yield f"Its CPU use is limited to {own.cpu_quota_us} us, expected no limit; `virsh schedinfo {own.name} --live vcpu_quota=-1`, {RESTART}."


def _disks(disk_paths: Mapping[str, str], own: DomainShape) -> Iterator[str]:
    by_volume = {disk.volume_uid: disk for disk in own.disks if disk.volume_uid in disk_paths}
    for volume_uid, path in sorted(disk_paths.items()):
        disk = by_volume.get(volume_uid)
        if disk is None:
            yield f"Its disk {path} was taken out of it; stop and start it with Hostler."
        elif disk.source != path:
            yield f"Its disk {disk.target} is {_shown(disk.source)}, expected {path}; commit or pivot it back with `virsh blockcommit`, {RESTART}."
    for disk in own.disks:
        if disk.volume_uid not in disk_paths:
            target = _shown(disk.target)
            undo = f"`virsh detach-disk {own.name} {target} --live`, {RESTART}."
            yield f"It has a disk {target} ({_shown(disk.source)}) that Hostler did not give it; {undo}"


def _nics(definition: Definition, own: DomainShape) -> Iterator[str]:
    there = {nic.mac_address: nic for nic in own.nics}
    expected = {nic.mac_address: nic.bridge for nic in definition.spec.nics}
    for mac, bridge in expected.items():
        nic = there.get(mac)
        if nic is None:
            yield f"Its network card {mac} on {bridge} was taken out of it; stop and start it with Hostler, or attach it again with that address."
        elif nic.bridge != bridge:
            yield f"Its network card {mac} is attached to {_shown(nic.bridge)}, expected {bridge}; `virsh update-device {own.name}`, {RESTART}."
        elif not nic.up:
            yield f"The link of its network card {mac} is down, expected up; `virsh domif-setlink {own.name} {mac} up`."
    for nic in own.nics:
        if nic.mac_address not in expected:
            yield (
                f"It has a network card {_shown(nic.mac_address)} on {_shown(nic.bridge)} that Hostler did not give it; "
                f"`virsh detach-interface {own.name} bridge --mac {_shown(nic.mac_address)} --live`, {RESTART}."
            )


def _kept_by_libvirt(own: DomainShape) -> Iterator[str]:
    """A persistent definition starts a second life of the VM that nobody has asked the owner record about."""
    if own.autostart:
        yield f"libvirt is to start its domain when the host boots, which is Hostler's to decide; `virsh autostart --disable {own.name}`."
    if own.persistent:
        yield (
            "libvirt keeps a definition of its domain, where Hostler alone keeps one: it could be started without its owner being asked; "
            f"`virsh undefine {own.name}` removes it and leaves the guest alone."
        )


def _second_users(disk_paths: Mapping[str, str], others: Sequence[DomainShape]) -> Iterator[str]:
    paths = set(disk_paths.values())
    for other in sorted(others, key=lambda shape: shape.uuid):
        for disk in other.disks:
            if disk.source in paths:
                name, state = _shown(other.name), "runs and has" if other.active else "is off and has"
                undo = f"`virsh detach-disk {name} {_shown(disk.target)}`, or remove that domain."
                yield f"A second domain, {name}, {state} its disk {disk.source}; {undo}"


def _shown(text: str) -> str:
    """What somebody else wrote, fit for a sentence."""
    clean = "".join(character if character.isprintable() else "?" for character in text)
    return clean if len(clean) <= SHOWN_CHARS_MAX else f"{clean[:SHOWN_CHARS_MAX]}..."
