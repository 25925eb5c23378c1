"""How a host of the lab comes to be: what its first process does."""

import subprocess
from pathlib import Path

from hostlerlab.space import holding


def test_a_host_that_is_ready_has_one_process(tmp_path: Path) -> None:
    """Breaks when a program other than the holder says that the host is ready: it ends while `settle` moves what it found in the group,
    which then fails for a process that is no more."""
    ready = tmp_path / "the host's" / "ready"
    ready.parent.mkdir()
    announce, hold = holding(ready)
    subprocess.run(["/bin/sh", "-ec", announce], env={"PATH": "/nowhere"}, check=True)  # no program can be started
    assert ready.exists()
    assert hold.startswith("exec ")
