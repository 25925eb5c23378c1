"""The `Tunnel` port in a simulated world: a route through the fabric that exists while both ends have it open, for one source, one operation.

Like the real one it connects late: opening the source's end asks nobody, and whoever uses it learns whether anything is at the other end.
"""

from nodeagent.adapters.sim_migration import SOCKET_PREFIX
from nodeagent.adapters.sim_world import SimWorld
from nodeagent.ports import MigrationSockets, TunnelFailed


class SimTunnel:
    """The tunnels of one host."""

    def __init__(self, world: SimWorld, node_id: str) -> None:
        self._world = world
        self._node_id = node_id

    async def open_incoming(self, operation_id: str, source_node_id: str) -> str:
        self._check()
        self._world.fabric.listen(operation_id, source_node_id, self._node_id)
        return f"{self._node_id}.sim:{operation_id}"

    def _check(self) -> None:
        if self._node_id in self._world.fabric.unopenable:
            raise TunnelFailed(f"simulated: {self._node_id} can open no tunnel")

    async def close_incoming(self, operation_id: str) -> None:
        self._world.fabric.stop_listening(operation_id, self._node_id)

    async def open_outgoing(self, operation_id: str, endpoint: str, destination_node_id: str) -> MigrationSockets:
        self._check()
        self._world.fabric.dial(operation_id, self._node_id, destination_node_id)
        return MigrationSockets(*(f"{SOCKET_PREFIX}{operation_id}/{stream}" for stream in ("libvirt", "qemu", "disks")))

    async def close_outgoing(self, operation_id: str) -> None:
        self._world.fabric.hang_up(operation_id, self._node_id)
