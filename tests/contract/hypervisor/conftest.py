"""Runs every hypervisor case on every implementation that can show it.

Plug-in point: a module `rigs_<name>.py` in this directory that defines `RIGS`, a tuple of `rig.RigKind`. Each is a name for the test ids, the
capabilities, an `open` that makes a rig for one case (an async context manager; keep what is dear, such as lab hosts, in the module), and
pytest marks (`pytest.mark.lab` for what needs root and real hosts). Nothing is registered anywhere else.
"""

import importlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.hypervisor.rig import Capability, Rig, RigKind

HERE = Path(__file__).parent
KINDS: tuple[RigKind, ...] = tuple(
    kind for file in sorted(HERE.glob("rigs_*.py")) for kind in importlib.import_module(f"tests.contract.hypervisor.{file.stem}").RIGS
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "rig" in metafunc.fixturenames:
        needed: frozenset[Capability] = getattr(metafunc.function, "needs", frozenset())
        kinds = [pytest.param(kind, id=kind.name, marks=kind.marks) for kind in KINDS if needed <= kind.capabilities]
        metafunc.parametrize("rig", kinds, indirect=True)


@pytest.fixture
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    async with request.param.open() as opened:
        yield opened
