"""The probe that decides between KVM and emulation."""

import subprocess
from pathlib import Path

from nodeagent.adapters.acceleration import PROBE, comes_through

WORKS_S = 60.0


def test_the_committed_probe_is_its_source(tmp_path: Path) -> None:
    """A binary that nobody can rebuild cannot be reviewed."""
    assembled, linked = tmp_path / "probe.o", tmp_path / "probe.bin"
    subprocess.run(["as", "--64", "-o", assembled, PROBE.with_suffix(".S")], check=True)
    subprocess.run(["ld", "-Ttext=0x7c00", "--oformat", "binary", "-o", linked, assembled], check=True)
    assert linked.read_bytes() == PROBE.read_bytes()


async def test_it_comes_through_on_an_accelerator_that_works() -> None:
    """A probe that cannot succeed would call every host an emulating one."""
    assert await comes_through("tcg", deadline_s=WORKS_S)


async def test_it_does_not_come_through_in_no_time() -> None:
    """A probe that cannot fail would call this host's broken KVM usable; QEMU that is killed is not a success."""
    assert not await comes_through("tcg", deadline_s=0.01)


async def test_an_accelerator_or_a_qemu_that_does_not_exist_is_not_usable() -> None:
    """QEMU's own failures must not look like the probe's success."""
    assert not await comes_through("hvf", deadline_s=WORKS_S)
    assert not await comes_through("tcg", qemu="no-such-qemu")
