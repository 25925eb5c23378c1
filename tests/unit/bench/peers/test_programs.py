"""Peers that are programs: one that is missing or fails must be told, or the comparison without it reads as won."""

import os
import time
from pathlib import Path

import pytest

from tests.bench.placement.peers.programs import PeerFailed, PeerMissing, found, last_line, run

INSTALL = "apt-get install wonder"


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_an_absent_program_is_told_with_how_to_install_it() -> None:
    """Somebody who runs the comparison for the first time."""
    with pytest.raises(PeerMissing, match=r"^wonder-no-such-program is not installed: apt-get install wonder\.$"):
        found("wonder-no-such-program", None, INSTALL)


def test_a_wrong_path_is_not_made_up_for(tmp_path: Path) -> None:
    """Another program than the one that was given would be measured."""
    with pytest.raises(PeerMissing, match="none is no file, but was given as sh"):
        found("sh", tmp_path / "none", INSTALL)


def test_a_program_is_found_by_its_path_by_its_name_or_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """hail, which is in nobody's PATH, would never be found."""
    program = script(tmp_path / "wonder", "exit 0")
    assert found("other", program, INSTALL) == program
    assert found("wonder", None, INSTALL, [str(tmp_path)]) == program
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert found("wonder", None, INSTALL) == program


def test_a_failure_is_told_in_the_programs_words(tmp_path: Path) -> None:
    """An answer that is none would be parsed."""
    program = script(tmp_path / "wonder", "echo half; echo 'Error: no nodes' >&2; exit 3")
    with pytest.raises(PeerFailed, match="wonder ended with 3: Error: no nodes"):
        run([str(program)], 10.0)


def test_a_program_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """A peer whose time grows with the square of the hosts would keep the comparison for hours."""
    began_s = time.monotonic()
    with pytest.raises(TimeoutError, match="wonder did not end within 0 s"):
        run([str(script(tmp_path / "wonder", "exec sleep 30"))], 0.3)
    assert time.monotonic() - began_s < 20


def test_its_cpu_time_is_its_own(tmp_path: Path) -> None:
    """On a busy machine the wall's time alone blames the peer for the neighbours."""
    busy = run([str(script(tmp_path / "busy", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"))], 60.0)
    idle = run([str(script(tmp_path / "idle", "sleep 0.3; echo done"))], 60.0)
    assert idle.stdout == "done\n"
    assert idle.took_s >= 0.3
    assert 0 < idle.cpu_s < 0.2
    assert busy.cpu_s > 2 * idle.cpu_s


def test_silence_is_told_too() -> None:
    """A program that dies without a word."""
    assert last_line(" \n") == "it said nothing"
    assert last_line("a\nb\n\n") == "b"
