"""How much of a resource would stay free on the node, in percent of what it offers: the least allocated node wins, so VMs spread.

Whole numbers, to the nearest: a percent decides, less is a tie and goes to the seed.
"""

import numpy as np

from scheduler.core.placement.fleet import Amounts, percent_per


def percent_free_after(offered: int, free: int, taken: int) -> int:
    """0..100; a node that offers nothing has nothing left."""
    return max(0, min(100, round((free - taken) * percent_per(offered))))


def percents_free_after(per: Amounts, free: Amounts, taken: int) -> Amounts:
    """The same of every node that can give so much: `per` is `percent_per` of what each offers."""
    percents = free - taken
    percents *= per
    return np.rint(percents, out=percents)
