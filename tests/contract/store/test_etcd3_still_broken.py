"""Why there is an etcd client of our own: `etcd3`'s last release cannot be imported beside a current protobuf (docs/decisions/0001).

When the first test fails because the import works, the decision can be looked at again. The release is fetched once and kept under build/;
where it cannot be fetched, the tests say so and are skipped.
"""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

RELEASE = "etcd3-0.12.0"
CACHE = Path(__file__).parents[3] / "build" / "etcd3"
FETCH_TIMEOUT_S, IMPORT_TIMEOUT_S = 60, 30


@pytest.fixture(scope="module")
def release() -> Path:
    """A directory from which the released `etcd3` can be imported."""
    folder = CACHE / RELEASE
    if not folder.is_dir():
        archive = CACHE / f"{RELEASE}.tar.gz"
        if not archive.is_file():
            _fetch()
        with tarfile.open(archive) as packed:
            packed.extractall(CACHE, filter="data")
    return folder


def _fetch() -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    download = ["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", str(CACHE)]
    try:
        done = subprocess.run(
            [sys.executable, *download, RELEASE.replace("-", "==")], capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"cannot run here: {RELEASE} was not fetched within {FETCH_TIMEOUT_S} s")
    if done.returncode != 0:
        pytest.skip(f"cannot run here: {RELEASE} cannot be fetched ({done.stderr.strip().splitlines()[-1:]})")


def _import(release: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "import etcd3"],
        env={**os.environ, "PYTHONPATH": str(release), **environment},
        capture_output=True,
        text=True,
        timeout=IMPORT_TIMEOUT_S,
        check=False,
    )


def test_etcd3_cannot_be_imported_beside_our_protobuf(release: Path) -> None:
    """The day this fails, the reason for the client of our own has to be looked at again."""
    done = _import(release)
    assert done.returncode != 0
    assert "TypeError: Descriptors cannot be created directly" in done.stderr


def test_its_generated_code_is_the_reason(release: Path) -> None:
    """With protobuf's slow pure-Python implementation the same import gets past its generated code, so the download is sound."""
    done = _import(release, PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION="python")
    assert "Descriptors cannot be created directly" not in done.stderr
    assert done.returncode == 0 or "ModuleNotFoundError" in done.stderr
