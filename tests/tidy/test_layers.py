"""The architecture, as contracts: who may import whom. The contracts are in pyproject.toml."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_imports_keep_to_the_layers() -> None:
    """A core that reads the clock, a daemon that imports the other one, or an adapter used past its port."""
    lint = Path(sys.executable).with_name("lint-imports")
    paths = os.pathsep.join(str(ROOT / path) for path in (".", "client/python", "deploy/lab"))
    environment = os.environ | {"PYTHONPATH": paths}
    result = subprocess.run([lint, "--no-cache"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-1000:]
