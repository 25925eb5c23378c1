"""Quantities: how much of each countable thing, as a mapping from key to a whole number; the arithmetic of the ledger.

Keys end in the unit: `cpu_milli`, `memory_mib/0` (NUMA cell 0), `pool_mib/local`. A missing key is zero. Plain mappings are used so that a
record in the store reads the same as it is computed with.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Quantities = Mapping[str, int]

CPU_MILLI = "cpu_milli"


def memory_key(cell: int) -> str:
    """Memory of one NUMA cell, in MiB."""
    return f"memory_mib/{cell}"


def is_memory(key: str) -> bool:
    """Whether the quantity is memory of some cell."""
    return key.startswith(memory_key(0).removesuffix("0"))


def pool_key(pool_id: str) -> str:
    """Space in one storage pool, in MiB."""
    return f"pool_mib/{pool_id}"


@dataclass(frozen=True, slots=True)
class Shortfall:
    """One quantity that does not fit: what was needed and what was free, in the key's unit."""

    key: str
    needed: int
    free: int

    @property
    def missing(self) -> int:
        return self.needed - self.free


def amount_short(short: Shortfall, cells: int = 1) -> str:
    """ "memory short by 1 MiB (needs 266, free 265)", "cpu short by 250 milli-CPU (...)", "pool local short by 10 MiB (...)".

    On a node of several NUMA cells it says that the memory was looked for in one.
    """
    what, unit = _words(short.key)
    where = f" in the emptiest of {cells} cells" if cells > 1 and is_memory(short.key) else ""
    return f"{what} short by {short.missing} {unit}{where} (needs {short.needed}, free {short.free})"


def _words(key: str) -> tuple[str, str]:
    if key == CPU_MILLI:
        return "cpu", "milli-CPU"
    if is_memory(key):
        return "memory", "MiB"
    return f"pool {key.partition('/')[2]}", "MiB"


def plus(a: Quantities, b: Quantities) -> dict[str, int]:
    """Sum, key by key; zeros are dropped."""
    return _combine(a, b, 1)


def minus(a: Quantities, b: Quantities) -> dict[str, int]:
    """Difference, key by key; may be negative, and zeros are dropped."""
    return _combine(a, b, -1)


def total(many: Iterable[Quantities]) -> dict[str, int]:
    """Sum of all."""
    result: dict[str, int] = {}
    for one in many:
        result = plus(result, one)
    return result


def at_least_zero(a: Quantities) -> dict[str, int]:
    """Negative amounts become zero: nobody can be promised less than nothing."""
    return {key: amount for key, amount in sorted(a.items()) if amount > 0}


def shortfalls(need: Quantities, free: Quantities) -> tuple[Shortfall, ...]:
    """What of `need` is more than `free`, by key; empty means that it fits."""
    return tuple(Shortfall(key, amount, free.get(key, 0)) for key, amount in sorted(need.items()) if amount > free.get(key, 0))


def _combine(a: Quantities, b: Quantities, sign: int) -> dict[str, int]:
    keys = sorted({*a, *b})
    sums = {key: a.get(key, 0) + sign * b.get(key, 0) for key in keys}
    return {key: amount for key, amount in sums.items() if amount}
