"""The committed API code is what the .proto files say."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_generated_code_is_up_to_date(tmp_path: Path) -> None:
    """A .proto that was changed without `make generate`, or generated code that was edited."""
    subprocess.run([sys.executable, ROOT / "deploy" / "generate_api.py", tmp_path], check=True, capture_output=True, timeout=110)
    committed = ROOT / "client" / "python"
    stale = [
        str(file.relative_to(tmp_path))
        for file in sorted(tmp_path.rglob("*_pb2*.py*"))
        if not (committed / file.relative_to(tmp_path)).exists()
        or (committed / file.relative_to(tmp_path)).read_bytes() != file.read_bytes()
    ]
    assert not stale, f"run `make generate`: {stale}"
