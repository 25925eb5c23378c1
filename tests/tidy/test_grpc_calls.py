"""Who handles the failure of a gRPC call keeps a cancellation that came with it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CALLERS = sorted(
    path
    for top in ("client/python/hostler", "nodeagent", "scheduler")
    for path in (ROOT / top).rglob("*.py")
    if re.search(r"except .*AioRpcError", path.read_text())
)


def test_there_are_callers() -> None:
    """A search that finds nothing, and so forbids nothing."""
    assert len(CALLERS) >= 6


@pytest.mark.parametrize("path", CALLERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_cancellation_is_kept(path: Path) -> None:
    """A loop that takes the end of a call for news, and so misses that it was told to stop."""
    assert re.search(r"with .*cancellation_kept\(\)", path.read_text())
