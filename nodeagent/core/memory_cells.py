"""How much memory each NUMA cell of a host has, from what the kernel says in three places.

A cell's own MemTotal counts the pages that the kernel has handed to its allocator so far; where memory is handed over lazily, or comes and goes, that
can be much less than what the host has (seen: 9,178 MiB of 24,105). The host's MemTotal is the figure that programs can allocate from; a cell's
`present` pages bound what it can have. So what the cells lack is given to those that have it present, and what they have too much is taken.
"""

from collections.abc import Mapping


def cells_mib(host_kib: int, managed_kib: Mapping[int, int], present_kib: Mapping[int, int]) -> dict[int, int]:
    """MiB by cell, rounded down: their sum is never above the host's, and equals it but for the rounding where `present_kib` allows it.

    A cell that `present_kib` does not know may have as much as it says itself; the only cell of a host has what the host has.
    """
    if len(managed_kib) <= 1:
        return {next(iter(managed_kib), 0): host_kib // 1024}
    lacking = host_kib - sum(managed_kib.values())
    if lacking >= 0:
        room = {cell: max(0, present_kib.get(cell, 0) - kib) for cell, kib in managed_kib.items()}
        shares = _shares(min(lacking, sum(room.values())), room)
    else:
        shares = {cell: -kib for cell, kib in _shares(-lacking, managed_kib).items()}
    return {cell: max(0, kib + shares[cell]) // 1024 for cell, kib in managed_kib.items()}


def _shares(amount: int, weights: Mapping[int, int]) -> dict[int, int]:
    """`amount`, which is at most the sum of the weights, by weight; what the rounding leaves goes to the first that can take it."""
    whole = sum(weights.values())
    shares = {key: amount * weight // whole if whole else 0 for key, weight in weights.items()}
    for key, weight in weights.items():
        shares[key] += min(amount - sum(shares.values()), weight - shares[key])
    return shares
