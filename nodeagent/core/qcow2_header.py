"""Whether a qcow2 image may be used, by its header alone, before any tool opens it. (Layout: QEMU's docs/interop/qcow2.txt.)

An image that names another file (a backing file, or an external data file) would make the host read that file for whoever brought the image;
one with features we do not know cannot be judged; one whose tables are larger than its disk needs is made to eat the host's memory. So: no
other file, no encryption (nobody here has the key), known features only, and tables of the size that the disk's size gives.
"""

import struct
from dataclasses import dataclass

HEADER_BYTES = 104
"""Up to the end of the version 3 fields; version 2 ends at 72."""
V2_HEADER_BYTES = 72

MAGIC = 0x514649FB
DIRTY, EXTERNAL_DATA, COMPRESSION, EXTENDED_L2 = 1 << 0, 1 << 2, 1 << 3, 1 << 4
KNOWN_SAFE = DIRTY | COMPRESSION | EXTENDED_L2
MAX_VIRTUAL_BYTES = 1 << 46
"""64 TiB: larger than any volume offered, small enough that no tool allocates tables beyond reason."""
CLUSTER_BITS = range(9, 22)
"""512 bytes to 2 MiB: the format's own limits."""
MAX_REFCOUNT_TABLE_BYTES = 8 << 20
"""QEMU's own limit."""

_FIXED = struct.Struct(">IIQIIQIIQQIIQ")
_FEATURES = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class Usable:
    """The image may be used; `virtual_bytes` is the guest's view of its size."""

    virtual_bytes: int


@dataclass(frozen=True, slots=True)
class Unusable:
    """Why not: one clause, safe to show."""

    reason: str


@dataclass(frozen=True, slots=True)
class _Header:
    """The fields that are judged."""

    version: int
    backing_offset: int
    cluster_bits: int
    virtual_bytes: int
    crypt_method: int
    l1_entries: int
    refcount_table_clusters: int
    features: int


def inspect(header: bytes) -> Usable | Unusable:
    """Judge the first HEADER_BYTES of a file."""
    if len(header) < V2_HEADER_BYTES or int.from_bytes(header[:4], "big") != MAGIC:
        return Unusable("it is not a qcow2 image")
    found = _read(header)
    if found.version not in (2, 3) or (found.version == 3 and len(header) < HEADER_BYTES):
        return Unusable("its header is cut off or of a version that is not known here")
    for refused, reason in _reasons(found):
        if refused:
            return Unusable(reason)
    return Usable(found.virtual_bytes)


def _read(header: bytes) -> _Header:
    _, version, backing, _, bits, size, crypt, l1, _, _, refcount_clusters, _, _ = _FIXED.unpack_from(header)
    features = _FEATURES.unpack_from(header, V2_HEADER_BYTES)[0] if version == 3 and len(header) >= HEADER_BYTES else 0
    return _Header(version, backing, bits, size, crypt, l1, refcount_clusters, features)


def _reasons(found: _Header) -> tuple[tuple[bool, str], ...]:
    """Everything an image can be refused for, and whether it applies. Later ones may rely on earlier ones only through `inspect`'s order."""
    sane_clusters = found.cluster_bits in CLUSTER_BITS
    l1_needed = _l1_entries(found) if sane_clusters else 0
    refcount_table_bytes = found.refcount_table_clusters << found.cluster_bits if sane_clusters else 0
    return (
        (found.backing_offset != 0, "it names a backing file"),
        (bool(found.features & EXTERNAL_DATA), "it keeps its data in another file"),
        (bool(found.features & ~KNOWN_SAFE), "it is marked corrupt, or has features that are not known here"),
        (found.crypt_method != 0, "it is encrypted"),
        (not 0 < found.virtual_bytes <= MAX_VIRTUAL_BYTES, "its size is not sane"),
        (not sane_clusters, "its cluster size is not sane"),
        (found.l1_entries > 2 * l1_needed, "its tables are larger than its size needs"),
        (refcount_table_bytes > MAX_REFCOUNT_TABLE_BYTES, "its tables are larger than its size needs"),
    )


def _l1_entries(found: _Header) -> int:
    """Entries of the first table that a disk of this size needs: each covers one table of 8-byte (16 with subclusters) entries, one per cluster."""
    entry_bits = 4 if found.features & EXTENDED_L2 else 3
    covered_bits = found.cluster_bits + found.cluster_bits - entry_bits
    return max(1, -(-found.virtual_bytes >> covered_bits))
