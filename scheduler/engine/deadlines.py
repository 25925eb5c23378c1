"""Asks operations whose deadline is past to stop. Done by the replica that leads; its wall clock is compared with the one that accepted them, so a
deadline is kept as well as the clocks agree. What stops, and how, is the flows' business, as for a cancel.
"""

import structlog

from hostler.errors import Conflict, Unavailable
from hostler.server.clock import Clock, wall_ms
from scheduler.core.decide_power import expire
from scheduler.engine.election import Term
from scheduler.engine.mirror import Mirror
from scheduler.engine.writer import Writer

LOOK_S = 1.0
"""How late a deadline is noticed at most."""

log = structlog.get_logger()


class Deadlines:
    def __init__(self, mirror: Mirror, writer: Writer, clock: Clock) -> None:
        self._mirror = mirror
        self._writer = writer
        self._clock = clock

    async def lead(self, term: Term) -> None:
        while True:
            if expire(self._mirror.state, wall_ms(self._clock)) is not None:
                try:
                    await self._writer.apply(lambda state: expire(state, wall_ms(self._clock)), (term.guard,))
                except (Conflict, Unavailable) as error:
                    log.info("deadlines are looked at again", why=str(error))
            await self._clock.sleep(LOOK_S)
