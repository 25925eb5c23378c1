"""Whether a qcow2 image may be used, by its header alone, before any tool opens it. (Layout: QEMU's docs/interop/qcow2.txt.)

An image that names another file (a backing file, or an external data file) would make the host read that file for whoever brought the image; one with
features we do not know cannot be judged. So: no backing file, no data file, no unknown incompatible feature, a sane size.
"""

import struct
from dataclasses import dataclass

HEADER_BYTES = 104
"""Up to the end of the version 3 fields; version 2 ends at 72."""

MAGIC = 0x514649FB
DIRTY, EXTERNAL_DATA, COMPRESSION, EXTENDED_L2 = 1 << 0, 1 << 2, 1 << 3, 1 << 4
KNOWN_SAFE = DIRTY | COMPRESSION | EXTENDED_L2
MAX_VIRTUAL_BYTES = 1 << 46
"""64 TiB: larger than any volume offered, small enough that no tool allocates tables beyond reason."""

_FIXED = struct.Struct(">IIQIIQ")


@dataclass(frozen=True, slots=True)
class Usable:
    """The image may be used; `virtual_bytes` is the guest's view of its size."""

    virtual_bytes: int


@dataclass(frozen=True, slots=True)
class Unusable:
    """Why not: one clause, safe to show."""

    reason: str


def inspect(header: bytes) -> Usable | Unusable:
    """Judge the first HEADER_BYTES of a file."""
    if len(header) < 72:
        return Unusable("it is too short for a qcow2 image")
    magic, version, backing_offset, _, _, virtual_bytes = _FIXED.unpack_from(header)
    if magic != MAGIC:
        return Unusable("it is not a qcow2 image")
    if version not in (2, 3):
        return Unusable(f"its format is version {version}; only 2 and 3 are known")
    if backing_offset:
        return Unusable("it names a backing file")
    if version == 3 and len(header) < HEADER_BYTES:
        return Unusable("its header is cut off")
    features = struct.unpack_from(">Q", header, 72)[0] if version == 3 else 0
    if features & EXTERNAL_DATA:
        return Unusable("it keeps its data in another file")
    if features & ~KNOWN_SAFE:
        return Unusable("it is marked corrupt, or has features that are not known here")
    if not 0 < virtual_bytes <= MAX_VIRTUAL_BYTES:
        return Unusable("its size is not sane")
    return Usable(virtual_bytes)
