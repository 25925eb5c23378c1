"""A simulated cluster that waits less than real ones: the same order of things, each a tenth as long, and no beat that waits for the next write.

What a copy of memory takes is left as it is: tests that break things in the middle of one need a middle.
"""

from devcluster.cluster import DevOptions
from nodeagent.adapters.sim_world import SimTimes

LEASE_TTL_S = 2
"""A replica that is kept from its CPU for so long loses its leadership, which a loaded machine must not bring about."""

BRISK = DevOptions(
    times=SimTimes(reap_s=0.15, reap_stopped_s=1.2, destroy_s=0.12, shutdown_s=0.2, reply_timeout_s=0.8),
    lease_ttl_s=LEASE_TTL_S,
    beat_write_pause_s=0.02,
)
