"""What libvirt's migration means: the flags and parameters of a call, the role of a paused domain, progress.

Always live, peer to peer (it survives the agent), arriving paused (the owner changes before anything runs there), aborted on a disk error, over
two unix sockets that a tunnel of ours carries; never VIR_MIGRATE_UNSAFE. An error of the call is not a verdict: the reply may be lost.
"""

from typing import Any
from urllib.parse import quote

import libvirt

from nodeagent.core.observed import MigrationProgress, Power
from nodeagent.ports import MigrationSockets

FLAGS = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PEER2PEER | libvirt.VIR_MIGRATE_PAUSED | libvirt.VIR_MIGRATE_ABORT_ON_ERROR


def destination_uri(sockets: MigrationSockets) -> str:
    """Where the source's libvirtd finds the destination's: the near end of the tunnel."""
    return f"qemu+unix:///system?socket={quote(sockets.libvirt)}"


def parameters(sockets: MigrationSockets, destination_xml: str, bandwidth_mib_s: int) -> dict[str, Any]:
    """Of virDomainMigrateToURI3. `bandwidth_mib_s` 0: no limit."""
    chosen: dict[str, Any] = {
        libvirt.VIR_MIGRATE_PARAM_URI: f"unix://{quote(sockets.qemu)}",
        libvirt.VIR_MIGRATE_PARAM_DEST_XML: destination_xml,
    }
    if bandwidth_mib_s > 0:
        chosen[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = bandwidth_mib_s
    return chosen


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


def progress_of(stats: dict[str, Any]) -> MigrationProgress | None:
    """Of virDomainGetJobStats; None: no job, or one that is over."""
    if stats.get("type", libvirt.VIR_DOMAIN_JOB_NONE) not in (libvirt.VIR_DOMAIN_JOB_BOUNDED, libvirt.VIR_DOMAIN_JOB_UNBOUNDED):
        return None
    return MigrationProgress(
        bytes_done=int(stats.get(libvirt.VIR_DOMAIN_JOB_DATA_PROCESSED, 0)),
        bytes_total=int(stats.get(libvirt.VIR_DOMAIN_JOB_DATA_TOTAL, 0)),
        rate_bytes_per_s=int(stats.get(libvirt.VIR_DOMAIN_JOB_MEMORY_BPS, 0)),
        downtime_ms=int(stats.get(libvirt.VIR_DOMAIN_JOB_DOWNTIME, 0)),
    )
