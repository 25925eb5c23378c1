"""A process is its pid and its start time."""

import signal
import subprocess

from hostlerlab.processes import Process, identify


def test_a_reused_pid_is_not_hit() -> None:
    """Breaks when `down` or a fault kills a stranger that got the pid of a dead process."""
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        real = identify(sleeper.pid)
        assert real is not None
        stranger = Process(real.pid, real.start_ticks - 1)
        assert not stranger.alive()
        assert not stranger.signal(signal.SIGKILL)
        assert sleeper.poll() is None
        assert real.signal(signal.SIGKILL)
        assert real.wait(10)
        sleeper.wait()
        assert not real.alive()
        assert not real.signal(signal.SIGKILL)
