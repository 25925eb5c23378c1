"""libvirtd's log of a domain as evidence: only its own last word, and only about the life that is asked about."""

from pathlib import Path

import pytest

from nodeagent.adapters import libvirt_record
from nodeagent.ports import EventKind

UID = "4f0c1d2e-0000-4000-8000-000000000001"
STARTED = "2026-11-23 04:30:37.859+0000: starting up libvirt version: 9.0.0, package: 9.0.0-4+deb12u2 (Debian), hostname: n1\n"
SIGNAL = "2026-11-23T04:30:44.165157Z qemu-system-x86_64: terminating on signal 15 from pid 9929 (libvirtd)\n"


def said(reason: str) -> str:
    return f"2026-11-23 04:30:44.164+0000: shutting down, reason={reason}\n"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A domain that runs, recorded by libvirt 9.0."""
    path = tmp_path / f"{UID}.log"
    path.write_text(STARTED + "char device redirected to /dev/pts/1 (label charserial0)\n")
    return path


def written_since(log: Path, *lines: str) -> EventKind | None:
    """What the record says once these lines have been added."""
    mark = libvirt_record.mark(log.parent, UID)
    with log.open("a") as file:
        file.writelines(lines)
    return libvirt_record.ending(log.parent, UID, mark)


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        ([said("migrated"), SIGNAL], EventKind.STOPPED_MIGRATED),
        ([said("migrated"), said("failed")], EventKind.STOPPED_MIGRATED),
        ([said("failed"), STARTED, said("migrated"), said("crashed")], EventKind.STOPPED_MIGRATED),
        ([SIGNAL, said("destroyed")], EventKind.STOPPED),
        ([said("shutdown")], EventKind.STOPPED),
        ([said("crashed")], EventKind.CRASHED),
        ([said("failed")], EventKind.CRASHED),
        ([SIGNAL], None),
        ([said("migrated"), STARTED], None),
        ([said("migrated"), STARTED, said("crashed")], EventKind.CRASHED),
        (["qemu-system-x86_64: " + said("migrated")], None),
        ([said("migrated").rstrip("\n") + " or not\n"], None),
    ],
)
def test_the_last_word_of_libvirt_itself_counts(log: Path, lines: list[str], kind: EventKind | None) -> None:
    """A copy resumed on the strength of a line that was not libvirt's, or was of another life; one that is thrown away because a libvirtd that was
    started while its predecessor was ending the source found that dead."""
    assert written_since(log, *lines) is kind


def test_an_earlier_life_vouches_for_nothing(log: Path) -> None:
    """The VM migrated away once, came back, and crashed on a full disk that took no more lines."""
    log.write_text(STARTED + said("migrated"))
    assert written_since(log) is None


def test_a_record_that_began_anew_proves_nothing(log: Path) -> None:
    """Rotated or emptied: the mark is of another file, and what it counted from is not known."""
    mark = libvirt_record.mark(log.parent, UID)
    log.rename(log.with_suffix(".log.0"))
    log.write_text("x" * 400 + "\n" + said("migrated"))
    assert libvirt_record.ending(log.parent, UID, mark) is None
    mark = libvirt_record.mark(log.parent, UID)
    log.write_text(said("migrated"))
    assert libvirt_record.ending(log.parent, UID, mark) is None


def test_no_record_is_no_proof(tmp_path: Path) -> None:
    """A host whose libvirt keeps no such log: absence must be an answer."""
    assert libvirt_record.mark(tmp_path, UID) == ""
    assert libvirt_record.ending(tmp_path, UID, "") is None
    assert libvirt_record.ending(tmp_path, UID, "7:0") is None
