"""libvirtd's own record of a running domain, the file beside its pid file: the two questions that its API cannot be asked in time.

libvirtd writes it, atomically, at every change of state. Source and destination of a migration are both "paused (migration)" to the API, and the
only call that tells them apart waits for a QEMU that may be stopped; and while libvirtd ends a stopped QEMU it holds the domain's lock for
12 s, so a frozen domain is looked at here (it cannot change its state). Anything unexpected in the file is "not known", never an exception.
"""

from dataclasses import dataclass
from pathlib import Path

from lxml import etree

STATUS_BYTES_MAX = 1 << 22

_INCOMING_JOB = "migration in"
_MIGRATION = "migration"


@dataclass(frozen=True, slots=True)
class Status:
    """`state` and `reason` in libvirt's words ("paused", "migration"); `incoming`: an incoming migration runs; `domain`: the domain's XML."""

    state: str
    reason: str
    incoming: bool
    domain: str

    @property
    def switched(self) -> bool:
        """Stopped by the switchover of an outgoing migration."""
        return (self.state, self.reason, self.incoming) == ("paused", _MIGRATION, False)


def read_status(run_dir: Path, name: str) -> Status | None:
    """The record of the domain of that name; None: there is none, or it says something else than was expected."""
    try:
        text = (run_dir / f"{name}.xml").read_bytes()
    except FileNotFoundError:
        return None
    if len(text) > STATUS_BYTES_MAX:
        return None
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    try:
        root = etree.fromstring(text, parser)
    except etree.XMLSyntaxError:
        return None
    domain, job = root.find("domain"), root.find("job")
    if root.tag != "domstatus" or domain is None:
        return None
    incoming = job is not None and job.get("async") == _INCOMING_JOB
    return Status(root.get("state", ""), root.get("reason", ""), incoming, etree.tostring(domain, encoding="unicode"))


def is_incoming(run_dir: Path, name: str) -> bool:
    """Whether the domain is the destination of a migration that runs."""
    status = read_status(run_dir, name)
    return status is not None and status.incoming
