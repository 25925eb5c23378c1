"""Removes the files that nodes owe, once they can be asked. Done by the replica that leads."""

import structlog

from hostler.errors import HostlerError
from hostler.server.clock import Clock
from scheduler.core.owed import due, paid
from scheduler.engine.election import Term
from scheduler.engine.mirror import Mirror
from scheduler.engine.writer import Writer
from scheduler.ports import NodeGateway, NodeUnreachable, Order

LOOK_S = 5.0
"""How often it is looked, and tried again: a returned node's space is free within seconds."""

log = structlog.get_logger()


class OwedRemovals:
    def __init__(self, mirror: Mirror, writer: Writer, nodes: NodeGateway, clock: Clock) -> None:
        self._mirror = mirror
        self._writer = writer
        self._nodes = nodes
        self._clock = clock

    async def lead(self, term: Term) -> None:
        while True:
            for removal in due(self._mirror.state):
                try:
                    await self._nodes.remove_volume(removal.node_id, Order(""), removal.volume)
                    await self._writer.apply(lambda state, removal=removal: paid(state, removal), (term.guard,))  # type: ignore[misc]
                    log.info("owed volume removed", node=removal.node_id, volume_uid=removal.volume.volume_uid)
                except (NodeUnreachable, HostlerError) as error:
                    log.info("owed volume not removed yet", node=removal.node_id, volume_uid=removal.volume.volume_uid, why=str(error))
            await self._clock.sleep(LOOK_S)
