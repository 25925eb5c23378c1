"""The host as the kernel describes it: boot id, CPUs, memory of each NUMA cell, bridges. Read anew at every question; it costs microseconds."""

import os
import re
from pathlib import Path

from nodeagent.core.memory_cells import cells_mib
from nodeagent.core.observed import HostTotals

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
CELLS = Path("/sys/devices/system/node")
HOST_MEMORY = Path("/proc/meminfo")
ZONES = Path("/proc/zoneinfo")
NETWORK_CARDS = Path("/sys/class/net")
_MEMORY = re.compile(r"MemTotal:\s+(\d+) kB")
_ZONE = re.compile(r"^Node (\d+), zone|^ +present +(\d+)$", re.MULTILINE)
_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024


class LinuxHostFacts:
    """Implements HostFacts for the machine (and network namespace) the agent runs in."""

    async def totals(self) -> HostTotals:
        return _read()


def _read() -> HostTotals:
    return HostTotals(
        boot_id=BOOT_ID.read_text().strip(),
        cpu_milli=1000 * len(os.sched_getaffinity(0)),
        memory_mib_by_cell=_memory_by_cell(),
        bridges=tuple(sorted(card.name for card in NETWORK_CARDS.iterdir() if (card / "bridge").is_dir())),
    )


def _memory_by_cell() -> dict[int, int]:
    managed_kib = {int(cell.name.removeprefix("node")): _kib((cell / "meminfo").read_text()) for cell in sorted(CELLS.glob("node[0-9]*"))}
    return cells_mib(_kib(HOST_MEMORY.read_text()), managed_kib, _present_kib())


def _present_kib() -> dict[int, int]:
    """By cell; empty where the kernel does not say (it lists zones by name, one after the other)."""
    try:
        text = ZONES.read_text()
    except OSError:
        return {}
    present: dict[int, int] = {}
    cell = 0
    for node, pages in _ZONE.findall(text):
        if node:
            cell = int(node)
        else:
            present[cell] = present.get(cell, 0) + int(pages) * _PAGE_KIB
    return present


def _kib(meminfo: str) -> int:
    found = _MEMORY.search(meminfo)
    if found is None:
        raise OSError("the kernel does not say how much memory there is")
    return int(found[1])
