"""The host as the kernel describes it: boot id, CPUs, memory of each NUMA cell, bridges. Read anew at every question; it costs microseconds."""

import os
import re
from pathlib import Path

from nodeagent.core.observed import HostTotals

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
CELLS = Path("/sys/devices/system/node")
NETWORK_CARDS = Path("/sys/class/net")
_MEMORY = re.compile(r"MemTotal:\s+(\d+) kB")


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
    cells = {int(cell.name.removeprefix("node")): _mib((cell / "meminfo").read_text()) for cell in CELLS.glob("node[0-9]*")}
    return cells or {0: _mib(Path("/proc/meminfo").read_text())}


def _mib(meminfo: str) -> int:
    found = _MEMORY.search(meminfo)
    if found is None:
        raise OSError("the kernel does not say how much memory there is")
    return int(found[1]) // 1024
