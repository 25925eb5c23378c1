"""How a host shows its VMs: the record, its etag, and whether it is known to be true now. In a cluster a host knows of a VM what it was told to run.

Names of volumes, labels and the time of creation are the cluster's: a host does not have them, and shows none.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from hostler.model.node import VMPower, VMStatus
from hostler.model.owner import Owner, OwnerState
from hostler.model.records import Observed, VMRecord
from nodeagent.core.definitions import Definition
from nodeagent.core.standalone import HostRecords, etag

NOT_KNOWN = "The hypervisor does not answer; whether it runs is not known."

OBSERVED = {
    VMPower.ON: Observed.RUNNING,
    VMPower.PAUSED: Observed.RUNNING,
    VMPower.OFF: Observed.STOPPED,
    VMPower.CRASHED: Observed.CRASHED,
}


@dataclass(frozen=True, slots=True)
class VMView:
    """One VM as it is shown. `stale`: one sentence why this is only what was known last; empty: it is true now."""

    vm: VMRecord
    etag: str
    stale: str = ""


def standalone_views(records: HostRecords, stale: str) -> dict[str, VMView]:
    """Every VM of a standalone host, by name."""
    return {vm_id: VMView(kept.record, etag(kept.record.uid, kept.revision), stale) for vm_id, kept in records.vms.items()}


def held_views(
    node_id: str, definitions: Mapping[str, Definition], statuses: Mapping[str, VMStatus], leaving: frozenset[str], stale: str
) -> dict[str, VMView]:
    """Every VM that a host of a cluster holds, by name. `statuses` are what was seen last, by uid; `leaving` are those on their way out."""
    views = {}
    for uid, definition in sorted(definitions.items(), key=lambda item: (not item[1].incoming, item[1].epoch)):
        vm = _held(node_id, definition, statuses.get(uid), uid in leaving)
        unknown = NOT_KNOWN if stale and uid not in statuses else stale
        views[vm.vm_id] = VMView(vm, _digest(vm), unknown)
    return views


def _held(node_id: str, definition: Definition, status: VMStatus | None, leaving: bool) -> VMRecord:
    """A VM of which nothing was seen yet counts as running: nobody is to take it for free to be started elsewhere."""
    moving = definition.incoming or leaving
    reason = status.reason if status is not None else ""
    if status is not None and status.power is VMPower.PAUSED and not moving:
        reason = "Its guest is paused by the hypervisor."
    return VMRecord(
        vm_id=definition.spec.vm_id,
        uid=definition.spec.vm_uid,
        flavor_id="",
        domain=definition.spec,
        volume_ids=(),
        own_volumes=(),
        owner=Owner(definition.epoch, node_id, "", OwnerState.HANDOFF if moving else OwnerState.RUNNING),
        observed=OBSERVED.get(status.power, Observed.RUNNING) if status is not None else Observed.RUNNING,
        create_ms=0,
        reason="It is on its way to this host." if definition.incoming else reason,
        drift=status.drift if status is not None else (),
    )


def _digest(vm: VMRecord) -> str:
    seed = f"{vm.uid} {vm.owner.epoch} {vm.owner.state} {vm.observed} {vm.reason} {vm.drift}"
    return hashlib.blake2b(seed.encode(), digest_size=8).hexdigest()
