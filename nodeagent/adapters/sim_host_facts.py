"""The `HostFacts` port of a simulated host."""

from nodeagent.adapters.sim_world import SimWorld
from nodeagent.core.observed import HostTotals


class SimHostFacts:
    """What `world.hosts[node_id]` was made with; the boot id changes when the host boots again."""

    def __init__(self, world: SimWorld, node_id: str) -> None:
        self._world = world
        self._node_id = node_id

    async def totals(self) -> HostTotals:
        return self._world.hosts[self._node_id].totals
