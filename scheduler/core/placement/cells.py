"""A node's memory is counted per NUMA cell; this says which cell a VM gets: the one with the most free memory.

A VM lives in one cell. The emptiest cell spreads guests over the memory controllers, as the scores spread them over nodes; and if a VM does not
fit there, it fits in no cell, so one comparison decides.
"""

from hostler.model.quantities import Quantities, is_memory, memory_key
from scheduler.core.claims import left_of
from scheduler.core.view import NodeView

MEMORY_PREFIX = memory_key(0).removesuffix("0")


def cells_of(quantities: Quantities) -> tuple[int, ...]:
    """The cells that have an amount, in order."""
    return tuple(sorted(int(key.removeprefix(MEMORY_PREFIX)) for key in quantities if is_memory(key)))


def memory_mib(quantities: Quantities) -> int:
    """Memory of all cells together, in MiB."""
    return sum(amount for key, amount in quantities.items() if is_memory(key))


def emptiest_cell(view: NodeView) -> int:
    """The cell with the most free memory, the lowest number among equals; 0 on a node that offers none."""
    return max(cells_of(view.ledger.allocatable), key=lambda cell: (left_of(view.ledger, memory_key(cell)), -cell), default=0)
