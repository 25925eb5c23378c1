"""What libvirt's migration means: the flags and parameters of a call, how it is steered and ended, the role of a paused domain, progress.

Always live, peer to peer (it survives the agent), arriving paused (the owner changes before anything runs there), aborted on a disk error, over
unix sockets that a tunnel of ours carries; never VIR_MIGRATE_UNSAFE. An error of the call is not a verdict: the reply may be lost.

Local disks are copied along by QEMU's mirror jobs, over NBD. libvirt lets QEMU switch over only once these have ended whole, with the guest stopped
(QEMU pauses before it lets go of its images): a source that holds no image has nothing under way any more (docs/decisions/0015).

The guest is throttled by QEMU (auto-converge), which ends it with the copy whatever happens to us. Its first step and the size of the next ones
are what a running copy's throttle is steered by; libvirt can set them only at the start, so later they go to QEMU past it (docs/decisions/0010).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import libvirt
import libvirt_qemu

from nodeagent.adapters import libvirt_errors
from nodeagent.core import domain_shape, domain_xml
from nodeagent.core.domain_xml import DomainSpecRefused
from nodeagent.core.observed import CopyTag, MigrationProgress, Power
from nodeagent.core.precopy import MOST_PERCENT
from nodeagent.ports import HypervisorRefused, LiveMigration, MigrationSockets, Tune

FLAGS = (
    libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PEER2PEER
    | libvirt.VIR_MIGRATE_PAUSED
    | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
    | libvirt.VIR_MIGRATE_AUTO_CONVERGE
)

_NO_JOB_CODES = frozenset({libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_OPERATION_UNSUPPORTED})
"""Of virDomainGetJobStats where no job can be: not running, or the destination of a migration."""
NOT_MIGRATED = "The VM is not being migrated."

COMPLETED = libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED | libvirt.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED
"""Of virDomainGetJobStats: of the migration that brought the domain here, for whoever asks after us too."""

UNLIMITED_MIB_S = (2**63 - 1) // (1 << 20)
"""What libvirt itself sets where no limit is asked for; 0 would be a limit of nothing."""

USUAL_PAGE_BYTES = 4096

FIRST_STEP_PERCENT, NEXT_STEP_PERCENT = 20, 10
"""QEMU's defaults, until the rates are measured: that is before QEMU's first step, which it takes after the second iteration at the earliest."""


def migrate(domain: libvirt.virDomain, migration: LiveMigration) -> None:
    """virDomainMigrateToURI3, from its beginning to its end, which is no verdict. Blocks for as long; raises HypervisorRefused, libvirtError."""
    xml = _destination_xml(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE), migration.tag, migration.disk_paths)
    targets = _targets(domain.XMLDesc(), migration.copied)
    domain.migrateSetMaxDowntime(migration.limits.downtime_ms)
    libvirt_qemu.qemuMonitorCommand(domain, highest_throttle_command(MOST_PERCENT), 0)
    sockets = migration.sockets
    domain.migrateToURI3(destination_uri(sockets), parameters(sockets, xml, migration.limits.bandwidth_mib_s, targets), flags(targets))


def abort(domain: libvirt.virDomain) -> None:
    """virDomainAbortJob; nothing if there is no job. Blocks; raises libvirtError."""
    if progress(domain) is None:
        return
    try:
        domain.abortJob()
    except libvirt.libvirtError as err:
        if not libvirt_errors.is_absent(err) and progress(domain) is not None:
            raise  # else it ended between the two calls


def tune(domain: libvirt.virDomain, change: Tune) -> None:
    """Of the running job. Blocks; raises HypervisorRefused if there is none, libvirtError."""
    job = progress(domain)
    if job is None:
        raise HypervisorRefused(NOT_MIGRATED)
    if change.bandwidth_mib_s is not None:
        domain.migrateSetMaxSpeed(change.bandwidth_mib_s or UNLIMITED_MIB_S)
    if change.max_downtime_ms is not None:
        domain.migrateSetMaxDowntime(change.max_downtime_ms)
    if change.throttle_percent is not None:
        libvirt_qemu.qemuMonitorCommand(domain, throttle_command(change.throttle_percent, job.throttle_percent), 0)


def progress(domain: libvirt.virDomain) -> MigrationProgress | None:
    """Of the running job; None: there is none. Blocks; raises libvirtError."""
    return progress_of(_job_stats(domain))


def received_bytes(domain: libvirt.virDomain) -> int:
    """By the migration that brought it here. Blocks; raises libvirtError."""
    return bytes_of(_job_stats(domain, COMPLETED))


def destination_uri(sockets: MigrationSockets) -> str:
    """Where the source's libvirtd finds the destination's: the near end of the tunnel."""
    return f"qemu+unix:///system?socket={quote(sockets.libvirt)}"


def flags(copied_targets: Sequence[str]) -> int:
    """Of virDomainMigrateToURI3."""
    chosen: int = FLAGS | (libvirt.VIR_MIGRATE_NON_SHARED_DISK if copied_targets else 0)
    return chosen


def parameters(sockets: MigrationSockets, destination_xml: str, bandwidth_mib_s: int, copied_targets: Sequence[str] = ()) -> dict[str, Any]:
    """Of virDomainMigrateToURI3. `bandwidth_mib_s` 0: no limit. `copied_targets`: disks that are copied along, as "vda"."""
    chosen: dict[str, Any] = {
        libvirt.VIR_MIGRATE_PARAM_URI: f"unix://{quote(sockets.qemu)}",
        libvirt.VIR_MIGRATE_PARAM_DEST_XML: destination_xml,
        libvirt.VIR_MIGRATE_PARAM_AUTO_CONVERGE_INITIAL: FIRST_STEP_PERCENT,
        libvirt.VIR_MIGRATE_PARAM_AUTO_CONVERGE_INCREMENT: NEXT_STEP_PERCENT,
    }
    if copied_targets:
        chosen[libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = list(copied_targets)
        chosen[libvirt.VIR_MIGRATE_PARAM_DISKS_URI] = f"unix://{quote(sockets.disks)}"
    if bandwidth_mib_s > 0:
        chosen[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = bandwidth_mib_s
    return chosen


def highest_throttle_command(percent: int) -> str:
    """QMP: no step goes higher. A copy that was given up has left its own there."""
    return json.dumps({"execute": "migrate-set-parameters", "arguments": {"max-cpu-throttle": percent}})


def throttle_command(wanted_percent: int, now_percent: int) -> str:
    """QMP: QEMU's next step takes the throttle from where it is to `wanted_percent`, and no step goes higher."""
    step = {"cpu-throttle-increment": wanted_percent - now_percent} if 0 < now_percent < wanted_percent else {}
    arguments = {"cpu-throttle-initial": wanted_percent, "max-cpu-throttle": wanted_percent, **step}
    return json.dumps({"execute": "migrate-set-parameters", "arguments": arguments})


def power_of(state: int, reason: int, is_incoming: bool) -> Power | None:
    """libvirt's state as the port's; None: it does not exist any more. `is_incoming`: see `libvirt_status`."""
    match state:
        case libvirt.VIR_DOMAIN_RUNNING | libvirt.VIR_DOMAIN_BLOCKED:
            return Power.RUNNING
        case libvirt.VIR_DOMAIN_PAUSED if reason in (libvirt.VIR_DOMAIN_PAUSED_MIGRATION, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP):
            if is_incoming:
                return Power.INCOMING
            return Power.SWITCHED if reason == libvirt.VIR_DOMAIN_PAUSED_MIGRATION else Power.PAUSED
        case libvirt.VIR_DOMAIN_SHUTDOWN:
            return Power.SHUTTING_DOWN
        case libvirt.VIR_DOMAIN_SHUTOFF | libvirt.VIR_DOMAIN_NOSTATE:
            return None
        case libvirt.VIR_DOMAIN_CRASHED:
            return Power.CRASHED
        case _:
            return Power.PAUSED


def bytes_of(stats: dict[str, Any]) -> int:
    """What was copied, by the statistics of a job, running or over."""
    return int(stats.get(libvirt.VIR_DOMAIN_JOB_DATA_PROCESSED, 0))


def progress_of(stats: dict[str, Any]) -> MigrationProgress | None:
    """Of virDomainGetJobStats; None: no job, or one that is over."""
    if stats.get("type", libvirt.VIR_DOMAIN_JOB_NONE) not in (libvirt.VIR_DOMAIN_JOB_BOUNDED, libvirt.VIR_DOMAIN_JOB_UNBOUNDED):
        return None
    done, remaining = bytes_of(stats), int(stats.get(libvirt.VIR_DOMAIN_JOB_DATA_REMAINING, 0))
    return MigrationProgress(
        bytes_done=done,
        bytes_total=done + remaining,  # libvirt's own total is the guest's size, however often it is copied
        rate_bytes_per_s=int(stats.get(libvirt.VIR_DOMAIN_JOB_MEMORY_BPS, 0)),
        downtime_ms=int(stats.get(libvirt.VIR_DOMAIN_JOB_DOWNTIME, 0)),
        remaining_bytes=int(stats.get(libvirt.VIR_DOMAIN_JOB_MEMORY_REMAINING, 0)),
        dirty_bytes_per_s=int(stats.get(libvirt.VIR_DOMAIN_JOB_MEMORY_DIRTY_RATE, 0))
        * int(stats.get(libvirt.VIR_DOMAIN_JOB_MEMORY_PAGE_SIZE, USUAL_PAGE_BYTES)),
        iteration=int(stats.get(libvirt.VIR_DOMAIN_JOB_MEMORY_ITERATION, 0)),
        throttle_percent=int(stats.get(libvirt.VIR_DOMAIN_JOB_AUTO_CONVERGE_THROTTLE, 0)),
    )


def _job_stats(domain: libvirt.virDomain, flags: int = 0) -> dict[str, Any]:
    """Empty: no job of an outgoing migration. The destination's end of one has no statistics, which libvirt says with an error."""
    try:
        stats: dict[str, Any] = domain.jobStats(flags)
    except libvirt.libvirtError as err:
        if libvirt_errors.is_absent(err) or err.get_error_code() in _NO_JOB_CODES:
            return {}
        raise
    return stats


def _destination_xml(migratable: str, tag: CopyTag, disk_paths: Mapping[str, str]) -> str:
    try:
        return domain_xml.destination_xml(migratable, tag, disk_paths)
    except DomainSpecRefused as err:
        raise HypervisorRefused(str(err)) from err


def _targets(xml: str, volume_uids: frozenset[str]) -> list[str]:
    """What libvirt calls the disks of these volumes."""
    found = domain_shape.disk_targets(xml)
    if missing := volume_uids - found.keys():
        raise HypervisorRefused(f"The domain has no disk of volume {min(missing)}.")
    return sorted(found[uid] for uid in volume_uids)
