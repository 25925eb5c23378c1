"""How much of a resource would stay free on the node, in percent of what it offers: the least allocated node wins, so VMs spread.

Whole numbers, rounded down: a percent decides, less is a tie and goes to the seed.
"""


def percent_free_after(offered: int, free: int, taken: int) -> int:
    """0..100; a node that offers nothing has nothing left."""
    return max(0, min(100, 100 * (free - taken) // offered)) if offered > 0 else 0
