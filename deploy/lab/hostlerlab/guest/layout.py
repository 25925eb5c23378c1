"""What is where on the guests' disks, and on which ports the Linux guest answers.

The one place for these facts: `build.py` gives the numbers to the C program and lays the image out by them, `probe.py`
reads by them. Everything on disk is little endian.

Linux guest (`guest.qcow2`, virtual size 64 MiB): boot sector at 0; the counter ring at `AREA_OFFSET`, `SLOTS` slots of
`SLOT_BYTES`; record number `counter` is in slot `counter % SLOTS`, so the ring shows the last 12.8 seconds of writes; the
kernel's setup code at `SETUP_OFFSET`, then kernel and initramfs, read only by the boot loader.
Boot sector guest (`bootsector.qcow2`, 1 MiB): boot sector at 0, its record at LBA 8.
"""

import itertools
import struct
import zlib
from dataclasses import dataclass

STREAM_PORT = 7
ASK_PORT = 8

SECTOR_BYTES = 512
DISK_BYTES = 64 << 20
AREA_OFFSET = 1 << 20
SLOT_BYTES = 4096
SLOTS = 256
AREA_BYTES = SLOTS * SLOT_BYTES
SETUP_OFFSET = 2 << 20

BOOTSECTOR_DISK_BYTES = 1 << 20
BOOTSECTOR_RECORD_OFFSET = 8 * SECTOR_BYTES

# magic, version, slots, counter, monotonic_ns, foreign, reserved, boot_id, reserved; then the CRC-32 of these 88 bytes
_RECORD = struct.Struct("<8sIIQQQQ36s4x")
_CRC = struct.Struct("<I")
_MAGIC = b"HOSTLERC"
# magic, counter, foreign, ticks
_BOOTSECTOR_RECORD = struct.Struct("<8sIII")
_BOOTSECTOR_MAGIC = b"HOSTLERB"


@dataclass(frozen=True, slots=True)
class DiskRecord:
    """One write of the Linux guest: `monotonic_ns` is the guest's uptime, `foreign` how many records this boot found in
    its ring that it had not written itself (more than 0 means that somebody else writes, or that the disk went back)."""

    counter: int
    boot_id: str
    monotonic_ns: int
    foreign: int


@dataclass(frozen=True, slots=True)
class BootsectorRecord:
    """The boot sector guest's only record; `ticks` are BIOS timer ticks (18.2 per second) since midnight."""

    counter: int
    foreign: int
    ticks: int


def parse_ring(area: bytes) -> tuple[DiskRecord, ...]:
    """The valid records of a ring of `AREA_BYTES`, oldest first. A torn or never written slot is left out."""
    slots = (area[start : start + SLOT_BYTES] for start in range(0, len(area), SLOT_BYTES))
    records = (record for slot in slots if (record := _parse_slot(slot)) is not None)
    return tuple(sorted(records, key=lambda record: record.counter))


def _parse_slot(slot: bytes) -> DiskRecord | None:
    if len(slot) < _RECORD.size + _CRC.size or slot[: len(_MAGIC)] != _MAGIC:
        return None
    if _CRC.unpack_from(slot, _RECORD.size)[0] != zlib.crc32(slot[: _RECORD.size]):
        return None
    _, _, _, counter, monotonic_ns, foreign, _, boot_id = _RECORD.unpack_from(slot)
    return DiskRecord(counter, boot_id.decode("ascii", "replace"), monotonic_ns, foreign)


def parse_bootsector_record(sector: bytes) -> BootsectorRecord | None:
    """The record at LBA 8, or None while the guest has not written it yet."""
    magic, counter, foreign, ticks = _BOOTSECTOR_RECORD.unpack_from(sector)
    return BootsectorRecord(counter, foreign, ticks) if magic == _BOOTSECTOR_MAGIC else None


def ring_faults(records: tuple[DiskRecord, ...]) -> tuple[str, ...]:
    """What one undisturbed writer could not have left behind, in words; empty when all is well.

    One writer leaves consecutive counters and, within one boot, times that only grow. The counter may skip nothing: a
    hole means that a record was overwritten or that the disk was exchanged.
    """
    faults = []
    for before, after in itertools.pairwise(records):
        if after.counter != before.counter + 1:
            faults.append(f"counter jumps from {before.counter} to {after.counter}")
        if after.boot_id == before.boot_id and after.monotonic_ns <= before.monotonic_ns:
            faults.append(f"time of record {after.counter} is not after that of {before.counter}")
    if records and records[-1].foreign:
        faults.append(f"the guest itself found {records[-1].foreign} foreign records")
    return tuple(faults)
