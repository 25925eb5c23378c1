"""How often each recovery row, journal step and fault was hit: what a run has really tried. The names that a full run must have tried are here."""

from collections import Counter

ENOUGH = 100

ROWS = (
    "unread RUNNING WAIT",
    "HANDOFF RUNNING BEGIN_COPY",
    "HANDOFF RUNNING WAIT",
    "HANDOFF RUNNING FREEZE",
    "HANDOFF RUNNING FAIL",
    "HANDOFF SWITCHED WAIT",
    "HANDOFF SWITCHED FREEZE",
    "HANDOFF SWITCHED INSPECT",
    "HANDOFF SWITCHED COMMIT",
    "HANDOFF GONE_MIGRATED COMMIT",
    "HANDOFF ABSENT FAIL",
    "HANDOFF COPY_UNKNOWN WAIT",
    "other epoch SWITCHED KILL",
    "other epoch GONE_MIGRATED FINISH",
    "other epoch ABSENT FINISH",
    "RUNNING RUNNING STOP_COPY",
    "RUNNING RUNNING ABORTED",
    "RUNNING RUNNING THAW",
    "RUNNING SWITCHED THAW",
    "RUNNING SWITCHED RESUME",
    "RUNNING ABSENT ABORTED",
    "RUNNING COPY_UNKNOWN WAIT",
)
"""Of the source's table (`nodeagent.core.outgoing`): what the record says, the copy, and what is done."""

STEPS = (
    "CreateVM: ACCEPTED -> VOLUMES",
    "CreateVM: VOLUMES -> DEFINED",
    "CreateVM: DEFINED -> STARTING",
    "CreateVM: DEFINED -> DONE",
    "CreateVM: STARTING -> DONE",
    "CreateVM: ACCEPTED -> ROLLBACK",
    "CreateVM: VOLUMES -> ROLLBACK",
    "CreateVM: DEFINED -> ROLLBACK",
    "CreateVM: STARTING -> ROLLBACK",
    "CreateVM: ROLLBACK -> DONE",
    "StartVM: ACCEPTED -> STARTING",
    "StartVM: STARTING -> DONE",
    "StartVM: STARTING -> ROLLBACK",
    "StartVM: ROLLBACK -> DONE",
    "StopVM: ACCEPTED -> STOPPING",
    "StopVM: STOPPING -> DONE",
    "RebootVM: ACCEPTED -> REBOOTING",
    "RebootVM: REBOOTING -> DONE",
    "DeleteVM: ACCEPTED -> STOPPING",
    "DeleteVM: STOPPING -> REMOVING",
    "DeleteVM: REMOVING -> DONE",
    "MigrateVM: RESERVED -> DESTINATION_READY",
    "MigrateVM: DESTINATION_READY -> COPYING",
    "MigrateVM: COPYING -> COMMITTED",
    "MigrateVM: COMMITTED -> DONE",
    "MigrateVM: RESERVED -> ABORTING",
    "MigrateVM: COPYING -> ABORTING",
    "MigrateVM: ABORTING -> DONE",
    "MigrateVM cold: RESERVED -> DEFINED",
    "MigrateVM cold: DEFINED -> COMMITTED",
    "MigrateVM cold: COMMITTED -> DONE",
    "MigrateVM cold: RESERVED -> ABORTING",
    "MigrateVM cold: ABORTING -> DONE",
    "CreateVolume: ACCEPTED -> DONE",
    "DeleteVolume: ACCEPTED -> REMOVING",
    "DeleteVolume: REMOVING -> DONE",
    "FenceNode: ACCEPTED -> DONE",
)

FAULTS = (
    "agent killed",
    "agent killed at a step",
    "replica killed",
    "replica killed at a step",
    "replica stopped by a signal",
    "hypervisor daemon crashes",
    "hypervisor daemon hangs",
    "hypervisor hangs for one domain",
    "hypervisor refuses to create",
    "host loses power",
    "host off and fenced",
    "guest's process dies",
    "migrations go wrong",
    "migration FAILS_MIDWAY",
    "migration STALLS",
    "migration FINISH_REPLY_LOST",
    "migration RESULT_LOST",
    "error but moved, and nobody to ask",
    "error but moved, and heard late",
    "source killed at its commit",
    "source killed, and nobody to ask",
    "source cut off at its commit, and cancelled",
    "source killed, its hypervisor silent, and cancelled",
    "driver killed at a definition, and cancelled",
    "commit told that was not made",
    "old commands come once more",
    "link between nodes cut",
    "node cut off from every replica",
    "node cut off from one replica",
    "network storm",
    "store errs",
    "store UNREACHABLE",
    "store REQUEST_LOST",
    "store REPLY_LOST",
    "store freezes",
    "store compacted",
    "lease revoked",
    "watch stalls",
    "no tunnel can be opened",
    "wall clock jumps",
)

MESSAGES = ("message late", "request lost", "reply lost", "request twice")

MUST_BE_HIT = (
    *(f"row {row}" for row in ROWS),
    *(f"step {step}" for step in STEPS),
    *(f"fault {fault}" for fault in FAULTS),
    *MESSAGES,
)


def thin(hit: Counter[str]) -> list[str]:
    """What was hit less than ENOUGH times."""
    return [name for name in MUST_BE_HIT if hit[name] < ENOUGH]


def table(hit: Counter[str]) -> str:
    """Everything that was counted, by name; what must be hit also if it was not."""
    names = sorted({*hit, *MUST_BE_HIT})
    return "\n".join(f"{hit[name]:10} {name}{'' if name in MUST_BE_HIT else '  (not asked for)'}" for name in names)
