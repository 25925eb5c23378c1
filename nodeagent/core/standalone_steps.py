"""The steps of a standalone host's operations: what its records become when a phase is entered or the operation ends; and what a look at the host
makes of a VM that no operation has in hand.

Each function answers None when the operation is not in the phase the caller thinks: the driver then looks again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from hostler.model.journal import ACCEPTED, VOLUMES, enter, fail, succeed
from hostler.model.node import VMPower, VMStatus
from hostler.model.owner import OwnerState
from hostler.model.quantities import at_least_zero, plus, pool_key, total
from hostler.model.records import Kept, Observed, OperationRecord, StoredError, VMRecord, VolumeRecord, VolumeState
from nodeagent.core.ledger import Account
from nodeagent.core.standalone import HostRecords, Step, refuse_full_pool, run_charge, volume_charge

KEEP_MS = 24 * 3_600_000
"""Ended operations, and with them the request_ids that they answer to, are kept this long."""

KEEP_MOST = 10_000
"""Or until so many newer ones have ended: a few KiB each, all read when the agent starts (a second or so)."""


@dataclass(frozen=True, slots=True)
class By:
    """Who takes the step, and when (wall milliseconds, to be shown)."""

    driver: str
    now_ms: int


def in_phase(records: HostRecords, operation_id: str, phase: str) -> OperationRecord | None:
    """The operation, if it is in that phase and not done."""
    kept = records.operations.get(operation_id)
    return kept.record if kept is not None and not kept.record.done and kept.record.phase == phase else None


def enter_phase(
    records: HostRecords,
    operation_id: str,
    come_from: str,
    phase: str,
    reason: str,
    by: By,
    change_vm: Callable[[VMRecord], VMRecord] | None = None,
    error: StoredError | None = None,
    *,
    unless_cancelled: bool = False,
) -> Step | None:
    """Move on to `phase`, changing the VM with it. `error` is why it turns back. `unless_cancelled`: None also if it was asked to stop."""
    operation = in_phase(records, operation_id, come_from)
    if operation is None or (unless_cancelled and operation.cancel_requested):
        return None
    entered = enter(operation, phase, reason, by.driver, by.now_ms)
    entered = replace(entered, error=error) if error is not None else entered
    if change_vm is None:
        return Step(entered)
    vm = records.vms[operation.target_id].record
    return Step(entered, {vm.vm_id: change_vm(vm)})


def let_run(vm: VMRecord) -> VMRecord:
    """This host may run it, under a new epoch."""
    owner = replace(vm.owner, epoch=vm.owner.epoch + 1, state=OwnerState.RUNNING, operation_id=vm.operation_id)
    return replace(vm, owner=owner, observed=Observed.STARTING, reason="")


def volumes_made(records: HostRecords, operation_id: str, sizes_mib: Mapping[str, int], account: Account, by: By) -> Step | None:
    """CreateVM: its volumes are there, of these sizes, which is what is charged from now on. Raises NoCapacity if one is larger than what was
    charged and there is no room for the rest."""
    operation = in_phase(records, operation_id, ACCEPTED)
    if operation is None:
        return None
    vm = records.vms[operation.target_id].record
    made = _made({volume_id: records.volumes[volume_id].record for volume_id in sizes_mib}, sizes_mib, account)
    charged = plus(run_charge(vm.domain), total(volume_charge(volume) for volume in made.values()))
    return Step(
        enter(operation, VOLUMES, "Its volumes are made.", by.driver, by.now_ms),
        {vm.vm_id: replace(vm, domain=replace(vm.domain, charged=charged))},
        made,
    )


def _made(volumes: Mapping[str, VolumeRecord], sizes_mib: Mapping[str, int], account: Account) -> dict[str, VolumeRecord]:
    """The volumes as they are now; refused together, if together they are too much more than what was charged."""
    more: dict[str, int] = {}
    made = {}
    for volume_id, volume in volumes.items():
        size_mib = sizes_mib[volume_id]
        charged_mib = size_mib if volume.charged_mib else 0
        more = plus(more, {pool_key(volume.pool_id): charged_mib - volume.charged_mib})
        made[volume_id] = replace(volume, state=VolumeState.READY, size_mib=size_mib, charged_mib=charged_mib, operation_id="")
    refuse_full_pool(at_least_zero(more), account)
    return made


def finish_vm(
    records: HostRecords,
    operation_id: str,
    come_from: str,
    observed: Observed,
    owner_state: OwnerState,
    by: By,
    error: StoredError | None = None,
) -> Step | None:
    """The operation ends and the VM is free again. With an error: it failed, and the VM is as `observed` says."""
    operation = in_phase(records, operation_id, come_from)
    if operation is None:
        return None
    vm = records.vms[operation.target_id].record
    free = replace(vm, observed=observed, owner=replace(vm.owner, state=owner_state), operation_id="", reason="")
    ended = fail(operation, error, by.driver, by.now_ms) if error is not None else succeed(operation, by.driver, by.now_ms, vm=free)
    return Step(ended, {vm.vm_id: free})


def remove_vm(records: HostRecords, operation_id: str, come_from: str, by: By, error: StoredError | None = None) -> Step | None:
    """The VM and its own volumes go; other volumes are free again. Ends a DeleteVM, or (with an error) a CreateVM that was rolled back."""
    operation = in_phase(records, operation_id, come_from)
    if operation is None:
        return None
    vm = records.vms[operation.target_id].record
    ended = fail(operation, error, by.driver, by.now_ms) if error is not None else succeed(operation, by.driver, by.now_ms, vm=vm)
    kept = {volume_id: records.volumes[volume_id].record for volume_id in vm.volume_ids if volume_id in records.volumes}
    volumes = {volume_id: None if volume_id in vm.own_volumes else replace(volume, vm_id="") for volume_id, volume in kept.items()}
    return Step(ended, {vm.vm_id: None}, volumes)


# ---- volumes by themselves


def volume_made(records: HostRecords, operation_id: str, size_mib: int, account: Account, by: By) -> Step | None:
    """CreateVolume ends well. Raises NoCapacity as `volumes_made`."""
    operation = in_phase(records, operation_id, ACCEPTED)
    if operation is None:
        return None
    volume = records.volumes[operation.target_id].record
    ready = _made({volume.volume_id: volume}, {volume.volume_id: size_mib}, account)[volume.volume_id]
    return Step(succeed(operation, by.driver, by.now_ms, volume=ready), volumes={ready.volume_id: ready})


def volume_removed(records: HostRecords, operation_id: str, come_from: str, by: By, error: StoredError | None = None) -> Step | None:
    """Its file is gone: ends a DeleteVolume, or (with an error) a CreateVolume that was rolled back."""
    operation = in_phase(records, operation_id, come_from)
    if operation is None:
        return None
    volume = records.volumes[operation.target_id].record
    ended = fail(operation, error, by.driver, by.now_ms) if error is not None else succeed(operation, by.driver, by.now_ms, volume=volume)
    return Step(ended, volumes={volume.volume_id: None})


def volume_stays(records: HostRecords, operation_id: str, come_from: str, error: StoredError, by: By) -> Step | None:
    """A DeleteVolume that was refused: the volume may be used again."""
    operation = in_phase(records, operation_id, come_from)
    if operation is None:
        return None
    ready = replace(records.volumes[operation.target_id].record, state=VolumeState.READY, operation_id="")
    return Step(fail(operation, error, by.driver, by.now_ms), volumes={ready.volume_id: ready})


# ---- what was seen


def settle(records: HostRecords, statuses: Mapping[str, VMStatus], looked_at: Mapping[str, int]) -> Step | None:
    """What the host showed of VMs that no operation has in hand, by uid; None: nothing new. `looked_at` has the revision that each VM had before
    the look: one that was changed since is left out, for the look is older than its record."""
    changed: dict[str, VMRecord | None] = {}
    for vm_id, kept in records.vms.items():
        if kept.record.operation_id or looked_at.get(vm_id) != kept.revision:
            continue
        seen = _seen(kept, statuses.get(kept.record.uid))
        if seen != kept.record:
            changed[vm_id] = seen
    return Step(vms=changed) if changed else None


def _seen(kept: Kept[VMRecord], status: VMStatus | None) -> VMRecord:
    vm = replace(kept.record, drift=status.drift if status is not None else ())
    stopped = replace(vm.owner, state=OwnerState.STOPPED)
    match status.power if status is not None else VMPower.OFF:
        case VMPower.ON:
            reason = "" if vm.owner.state is OwnerState.RUNNING else "It runs although it was stopped here: somebody else started it."
            return replace(vm, observed=Observed.RUNNING, reason=reason)
        case VMPower.PAUSED:
            return replace(vm, observed=Observed.RUNNING, reason="Its guest is paused by the hypervisor.")
        case VMPower.OFF if vm.observed is Observed.RUNNING:
            said = status.reason if status is not None else ""
            reason = said or "It is not running any more: the guest powered off, or the host was restarted."
            return replace(vm, observed=Observed.STOPPED, owner=stopped, reason=reason)
        case VMPower.CRASHED if vm.observed is Observed.RUNNING:
            return replace(vm, observed=Observed.CRASHED, owner=stopped, reason=status.reason if status is not None else "")
        case _:
            return vm


# ---- retention


def expired(records: HostRecords, now_ms: int) -> tuple[str, ...]:
    """Ended operations that are forgotten now, oldest first. Always the oldest: what a later one undid must not be found without it."""
    ended = sorted((kept for kept in records.operations.values() if kept.record.done), key=lambda kept: kept.revision)
    surplus = len(ended) - KEEP_MOST
    gone = 0
    while gone < len(ended) and (gone < surplus or ended[gone].record.update_ms < now_ms - KEEP_MS):
        gone += 1
    return tuple(kept.record.operation_id for kept in ended[:gone])
