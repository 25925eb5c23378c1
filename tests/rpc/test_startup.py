"""A daemon that cannot start says why in one line and exits non-zero; it never prints a traceback at an operator."""

import grp
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hostler.server import pki
from hostler.server.identity import Principal, PrincipalKind
from nodeagent.adapters.state_directory import alone_in

TIMEOUT_S = 60
DAEMONS = ("scheduler", "nodeagent")


def start(daemon: str, config: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", daemon, "--config", str(config)], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def refused(result: subprocess.CompletedProcess[str]) -> str:
    """The one line."""
    assert result.returncode != 0
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def tls(tmp_path: Path) -> str:
    """The [tls] table of a node's settings."""
    authority = pki.create_ca("test")
    pki.write(pki.issue(authority, Principal("test", PrincipalKind.NODE, "n1")), tmp_path / "tls")
    where = tmp_path / "tls"
    return f'[tls]\ncert = "{where}/tls.crt"\nkey = "{where}/tls.key"\nca = "{where}/ca.crt"\n'


@pytest.mark.parametrize("daemon", DAEMONS)
def test_settings_that_are_not_there(daemon: str, tmp_path: Path) -> None:
    """A missing file that ends in a traceback, or in a daemon that runs with defaults nobody chose."""
    assert "nowhere.toml" in refused(start(daemon, tmp_path / "nowhere.toml"))


@pytest.mark.parametrize("daemon", DAEMONS)
def test_a_misspelt_key(daemon: str, tmp_path: Path, tls: str) -> None:
    """A misspelt limit that is silently ignored."""
    config = tmp_path / "daemon.toml"
    config.write_text(f'lisen = "127.0.0.1:0"\n{tls}')
    line = refused(start(daemon, config))
    assert "lisen" in line
    assert "listen" in line


def test_certificates_that_are_not_there(tmp_path: Path) -> None:
    """An agent that listens without client verification because its certificate is missing."""
    config = tmp_path / "agent.toml"
    config.write_text(
        f'schedulers = ["127.0.0.1:1"]\nlisten = "127.0.0.1:0"\nstate_dir = "{tmp_path}/state"\n'
        '[tls]\ncert = "/nonexistent/tls.crt"\nkey = "/nonexistent/tls.key"\nca = "/nonexistent/ca.crt"\n'
    )
    assert "/nonexistent/tls.crt" in refused(start("nodeagent", config))


def test_a_cluster_agent_without_schedulers(tmp_path: Path, tls: str) -> None:
    """An agent that waits for ever for a scheduler that was never named."""
    config = tmp_path / "agent.toml"
    config.write_text(tls)
    assert "schedulers" in refused(start("nodeagent", config))


def test_an_agent_beside_one_that_has_not_ended(tmp_path: Path, tls: str) -> None:
    """An old agent that was stopped by a signal, and wakes beside the new one: it acts on what it decided before, on the same guests."""
    config = tmp_path / "agent.toml"
    config.write_text(
        f'schedulers = ["127.0.0.1:1"]\nlisten = "127.0.0.1:0"\nstate_dir = "{tmp_path}/state"\ntunnel_dir = "{tmp_path}/tunnel"\n'
        f'qemu_group = "{grp.getgrgid(os.getgid()).gr_name}"\n{tls}'
    )
    with alone_in(tmp_path / "state"):
        line = refused(start("nodeagent", config))
    assert f"in use by process {os.getpid()}" in line
    with alone_in(tmp_path / "state"):
        assert (tmp_path / "state" / ".lock").read_text() == str(os.getpid())
