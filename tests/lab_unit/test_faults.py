"""The nft rules of a fault, and freezing and killing by identity."""

import signal
import subprocess

import pytest

from hostlerlab.faults import Drop, freeze, frozen, kill
from hostlerlab.processes import identify


def test_direction_decides_hook_and_which_port_is_ours() -> None:
    """Breaks when "in" on a local port drops what the host sends, or a remote port is taken for a local one."""
    assert Drop("in", local_port=7).rules() == {"input": 'iifname != "lo" tcp dport 7 counter name dropped drop'}
    assert Drop("out", remote_port=7, peer="10.91.7.1").rules() == {
        "output": 'oifname != "lo" ip daddr 10.91.7.1 tcp dport 7 counter name dropped drop'
    }
    both = Drop("both", local_port=7, protocol="udp", chance_milli=250).rules()
    assert both["output"] == 'oifname != "lo" udp sport 7 numgen random mod 1000 < 250 counter name dropped drop'
    assert set(both) == {"input", "output"}


def test_freeze_thaw_kill() -> None:
    """Breaks when a frozen process still runs after `freeze`, stays frozen after the block, or survives `kill`."""
    with subprocess.Popen(["cat", "/dev/zero"], stdout=subprocess.DEVNULL) as spinning:
        try:
            process = identify(spinning.pid)
            assert process is not None
            with frozen(process):
                assert process.state() == "T"
            assert process.state() in ("R", "S")
            freeze(process)
            kill(process)
            assert spinning.wait() == -signal.SIGKILL
            with pytest.raises(ProcessLookupError):
                freeze(process)
        finally:
            spinning.kill()
