"""`memory.py CONFIG`: reads one guest's heartbeat in the memory of its QEMU processes, about a thousand times a second, until its stdin closes.

The heartbeat is a word that only the executing guest changes, so whoever reads it sees the guest's own time, without the guest's network, disk or
clock between: the page of a copy that is still arriving never holds more than the guest itself wrote. Guest memory is found in the process by the
guest's boot sector at 0x7c00. The same reader looks at every migration, whoever drives it. Only the standard library is imported.
"""

import json
import os
import select
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

PERIOD_S = 0.001
SEARCH_S = 0.01
"""Between two looks for a process, or for a guest in its memory."""
BOOT_SECTOR = 0x7C00
NEEDLE_BYTES = 48
"""The code at the start of a boot sector, which it does not change."""
STEP_BYTES = 2 << 20
"""QEMU aligns a guest's memory to a huge page."""


@dataclass(frozen=True, slots=True)
class Config:
    """`pid_files`: libvirt's, one per host; `beat`: address of the heartbeat; `needle`: hex, as it is at BOOT_SECTOR; `out`: lines of samples."""

    pid_files: list[str]
    beat: int
    memory_mib: int
    needle: str
    out: str


def config_text(pid_files: list[str], beat: int, memory_mib: int, needle: str, out: str) -> str:
    """The argument of this program."""
    return json.dumps(asdict(Config(pid_files, beat, memory_mib, needle, out)))


class Reader:
    """One host's QEMU of the guest, if there is one."""

    def __init__(self, pid_file: Path, config: Config) -> None:
        self._pid_file = pid_file
        self._config = config
        self._needle = bytes.fromhex(config.needle)
        self._file = -1
        self._base: int | None = None
        self._pid = 0
        self._again_s = 0.0

    def read(self) -> tuple[int, int] | None:
        """The heartbeat and the word after it; None: no process, or nothing of the guest in it yet."""
        try:
            if self._file < 0:
                if time.monotonic() < self._again_s:
                    return None
                self._again_s = time.monotonic() + SEARCH_S
                self._pid = int(self._pid_file.read_text())
                self._file = os.open(f"/proc/{self._pid}/mem", os.O_RDONLY)
            if self._base is None:
                self._base = next((base for base in self._bases() if self._at(base + BOOT_SECTOR, len(self._needle)) == self._needle), None)
            found = b"" if self._base is None else self._at(self._base + self._config.beat, 8)
            if len(found) == 8:
                beat, next_word = struct.unpack("<II", found)
                return beat, next_word
            self.close()  # gone, or opened before the process had become QEMU: an open file stays with the memory of the program before
        except (OSError, ValueError):
            self.close()
        return None

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file, self._base = -1, None

    def _at(self, address: int, size: int) -> bytes:
        try:
            return os.pread(self._file, size, address)
        except OSError:
            return b""

    def _bases(self) -> Iterator[int]:
        """Where the guest's memory may begin: writable, anonymous, large enough."""
        size = self._config.memory_mib << 20
        for line in Path(f"/proc/{self._pid}/maps").read_text().splitlines():
            span, rights, _, _, inode, *_ = line.split()
            start, end = (int(part, 16) for part in span.split("-"))
            if rights.startswith("rw") and inode == "0" and end - start >= size:
                first = -(-start // STEP_BYTES) * STEP_BYTES
                yield from range(first, end - size + 1, STEP_BYTES)


def watch(config: Config) -> None:
    """A line per change: seconds (monotonic), host's number, heartbeat, the word after it."""
    readers = [Reader(Path(name), config) for name in config.pid_files]
    last: list[tuple[int, int] | None] = [None] * len(readers)
    with open(config.out, "w", buffering=1) as out:
        print("ready", flush=True)
        while not select.select([sys.stdin], [], [], PERIOD_S)[0]:
            for number, reader in enumerate(readers):
                seen = reader.read()
                if seen is not None and seen != last[number]:
                    out.write(f"{time.monotonic():.6f} {number} {seen[0]} {seen[1]}\n")
                last[number] = seen
    for reader in readers:
        reader.close()


if __name__ == "__main__":
    watch(Config(**json.loads(sys.argv[1])))
