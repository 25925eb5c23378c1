"""The host as the kernel says it is: what placement and the ledger count with."""

import os
from pathlib import Path

import pytest

from nodeagent.adapters import linux_host_facts
from nodeagent.adapters.linux_host_facts import LinuxHostFacts


async def test_this_machine_is_described_as_its_kernel_does() -> None:
    """Too much memory here is memory promised that is not there."""
    totals = await LinuxHostFacts().totals()
    assert totals.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()  # noqa: ASYNC240 a file of the kernel's memory
    assert totals.cpu_milli == 1000 * len(os.sched_getaffinity(0))
    host_mib = int(Path("/proc/meminfo").read_text().split()[1]) // 1024  # noqa: ASYNC240
    assert host_mib - len(totals.memory_mib_by_cell) < sum(totals.memory_mib_by_cell.values()) <= host_mib


async def test_memory_is_counted_by_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest bound to one cell must fit into that cell."""
    for cell, kib in ((0, 4 << 20), (1, 2 << 20), (10, 1 << 20)):
        folder = tmp_path / f"node{cell}"
        folder.mkdir()
        (folder / "meminfo").write_text(f"Node {cell} MemTotal:       {kib} kB\nNode {cell} MemFree:  17 kB\n")
    (tmp_path / "online").write_text("0-1,10\n")
    (tmp_path / "meminfo").write_text(f"MemTotal:       {8 << 20} kB\nMemFree:  17 kB\n")
    zone = "Node {}, zone   Normal\n  pages free     17\n        spanned  9999999\n        present  {}\n        managed  17\n"
    pages_of_gib = (1 << 30) // os.sysconf("SC_PAGE_SIZE")
    (tmp_path / "zoneinfo").write_text("".join(zone.format(cell, gib * pages_of_gib) for cell, gib in ((0, 3), (0, 1), (1, 3), (10, 1))))
    monkeypatch.setattr(linux_host_facts, "CELLS", tmp_path)
    monkeypatch.setattr(linux_host_facts, "HOST_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(linux_host_facts, "ZONES", tmp_path / "zoneinfo")
    assert (await LinuxHostFacts().totals()).memory_mib_by_cell == {0: 4096, 1: 3072, 10: 1024}


async def test_bridges_are_told_from_other_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest attached to a card that is no bridge has no network."""
    for card, kind in (("eth0", "device"), ("br1", "bridge"), ("br0", "bridge"), ("tap0", "brport")):
        (tmp_path / card / kind).mkdir(parents=True)
    monkeypatch.setattr(linux_host_facts, "NETWORK_CARDS", tmp_path)
    assert (await LinuxHostFacts().totals()).bridges == ("br0", "br1")
