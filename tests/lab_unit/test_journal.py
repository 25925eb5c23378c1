"""What the lab remembers of what it made."""

from pathlib import Path

import pytest

from hostlerlab.journal import Journal, Record


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    """Breaks when an `up` that was killed while writing makes `down` impossible."""
    journal = Journal(tmp_path / "j")
    journal.add(Record("link", "hostlerbr0"))
    journal.add(Record("process", "n1/libvirtd", 42, 7))
    with journal.path.open("a") as out:
        out.write('{"kind": "netns", "na')
    assert journal.read() == [Record("link", "hostlerbr0"), Record("process", "n1/libvirtd", 42, 7)]


def test_damage_in_the_middle_is_an_error(tmp_path: Path) -> None:
    """Breaks when `down` silently forgets things because a line in between cannot be read."""
    path = tmp_path / "j"
    path.write_text('{"kind": "ne\n{"kind": "link", "name": "x"}\n')
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        Journal(path).read()
    path.write_text('{"kind": "volcano", "name": "x"}\n')
    with pytest.raises(ValueError, match="volcano"):
        Journal(path).read()
