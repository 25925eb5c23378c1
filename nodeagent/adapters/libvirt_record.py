"""libvirtd's own record of a domain's life, the log file that it keeps for each: why a domain ended, for an agent that was not there to hear it.

libvirtd writes one line when it starts a domain and one, with the reason, before it ends or buries one; a transient domain leaves nothing else
behind. Measured on libvirt 9.0: "shutting down, reason=migrated" is written when the migration's last step has been confirmed and by nothing
else, so it is worth as much as the event STOPPED_MIGRATED. QEMU's own output is in the same file: a QEMU that its guest has taken over could write
such a line, to the harm of that guest alone.

A mark is the file's inode and length. Only what stands after it counts: the line of an earlier life must never vouch for this one. A file that was
begun anew since (rotated, emptied) proves nothing.
"""

import os
import re
from pathlib import Path

from nodeagent.ports import EventKind

LIBVIRT_LOG_DIR = Path("/var/log/libvirt/qemu")
RECORD_BYTES_MAX = 1 << 22
"""libvirt begins a new file at 2 MiB by default; more than this after the mark is QEMU's chatter, and is not read."""

_STAMP = rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}\+0000: "
_LINE = re.compile(rb"^" + _STAMP + rb"(?:(starting up) |shutting down, reason=([a-z]+)\r?$)", re.MULTILINE)
MIGRATED = b"migrated"
_ENDINGS = {MIGRATED: EventKind.STOPPED_MIGRATED, b"crashed": EventKind.CRASHED, b"failed": EventKind.CRASHED}


def mark(log_dir: Path, name: str) -> str:
    """Where the record ends now; "": there is none. Blocks; raises OSError."""
    try:
        about = os.stat(log_dir / f"{name}.log")
    except FileNotFoundError:
        return ""
    return f"{about.st_ino}:{about.st_size}"


def ending(log_dir: Path, name: str, since: str) -> EventKind | None:
    """What libvirt's lines say that were written after `since` and the last start; None: nothing. Blocks; raises OSError.

    That it migrated away is not taken back by a later line: a libvirtd that finds a domain which its predecessor was ending says "failed" if its
    QEMU does not answer.
    """
    inode, _, offset = since.partition(":")
    if not offset:
        return None
    try:
        with (log_dir / f"{name}.log").open("rb") as file:
            about = os.fstat(file.fileno())
            if about.st_ino != int(inode) or not 0 <= about.st_size - int(offset) <= RECORD_BYTES_MAX:
                return None
            file.seek(int(offset))
            written = _LINE.findall(file.read(RECORD_BYTES_MAX))
    except FileNotFoundError:
        return None
    started = max((place for place, line in enumerate(written) if line[0]), default=-1)
    reasons = [reason for _, reason in written[started + 1 :]]
    if not reasons:
        return None
    return _ENDINGS.get(MIGRATED if MIGRATED in reasons else reasons[-1], EventKind.STOPPED)
