"""One copy of a VM on one host, as evidence: what both ends of a handoff report and what verdicts are formed from."""

from dataclasses import dataclass
from enum import StrEnum

DEFAULT_DOWNTIME_MS = 300
"""The ceiling of a migration's downtime where nobody asks for another: QEMU's own, which most services and TCP do not notice."""


class Copy(StrEnum):
    """What there is of a VM on a host; meanings in proto hostler.internal.v1.HandoffReport.Copy."""

    UNKNOWN = "COPY_UNKNOWN"
    ABSENT = "ABSENT"
    GONE_MIGRATED = "GONE_MIGRATED"
    INCOMING = "INCOMING"
    ARRIVED = "ARRIVED"
    RUNNING = "RUNNING"
    SWITCHED = "SWITCHED"
    PAUSED = "PAUSED"


GONE = frozenset({Copy.ABSENT, Copy.GONE_MIGRATED})
"""There is no process any more."""

IN_DOUBT = frozenset({Copy.UNKNOWN, Copy.SWITCHED})
"""Nobody can tell yet whether it goes on or ends: no operation is ended on such an answer."""


class Stage(StrEnum):
    """What one end of a handoff is doing; meanings in proto hostler.internal.v1.HandoffReport.Stage."""

    NONE = "STAGE_UNSPECIFIED"
    PREPARED = "PREPARED"
    COPYING = "COPYING"
    COMMITTING = "COMMITTING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    ABORTED = "ABORTED"


@dataclass(frozen=True, slots=True)
class HandoffReport:
    """One end of one handoff. Times are milliseconds of the host's wall clock, 0 when not known: for figures, never for decisions."""

    node_id: str
    operation_id: str
    copy: Copy
    stage: Stage
    frozen: bool = False
    error: str = ""
    bytes_done: int = 0
    bytes_total: int = 0
    rate_bytes_per_s: int = 0
    begin_ms: int = 0
    suspend_ms: int = 0
    resume_ms: int = 0
    hypervisor_downtime_ms: int = 0
    remaining_bytes: int = 0
    dirty_bytes_per_s: int = 0
    throttle_percent: int = 0
    iterations: int = 0
    bandwidth_mib_s: int = 0
    max_downtime_ms: int = 0
