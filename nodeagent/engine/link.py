"""Keeps the cluster informed: registers, then beats for ever. A beat carries the inventory when it changed, at once when an event says so.

Silence of the scheduler changes nothing for the guests: there is no deadline here after which anything is stopped. Its word that this host was fenced
does: every guest is ended first.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import structlog

from hostler.model.node import NodeReport
from hostler.server.clock import Clock
from nodeagent.engine.inventory import Inventory
from nodeagent.engine.laying_down import LayingDown
from nodeagent.engine.observer import Observer
from nodeagent.ports import AuthorityUnavailable, HostFacts, HypervisorUnavailable, SchedulerLink

RETRY_S = 1.0
"""Between two tries to register: a replica that comes back is found within about a second, and a thousand nodes make a thousand small calls."""

REPEAT_S = 30.0
"""An unchanged report is sent again so often: the cluster takes no word about a VM that an operation has in hand, and has missed it then."""

SETTLE_S = 0.1
"""After an event, wait this long for more of them before the beat: one start makes several events."""

log = structlog.get_logger()


class Link:
    """The loop."""

    def __init__(
        self,
        endpoint: str,
        link: SchedulerLink,
        inventory: Inventory,
        facts: HostFacts,
        observer: Observer,
        laying_down: LayingDown,
        on_registered: Callable[[str], None],
        clock: Clock,
    ) -> None:
        self._endpoint = endpoint
        self._link = link
        self._inventory = inventory
        self._facts = facts
        self._observer = observer
        self._laying_down = laying_down
        self._on_registered = on_registered
        self._clock = clock

    async def run(self) -> None:
        while True:
            try:
                await self._session()
            except (AuthorityUnavailable, HypervisorUnavailable) as error:
                log.info("not in the cluster now", error=str(error))
                await self._clock.sleep(RETRY_S)

    async def _session(self) -> None:
        """Until the replica is lost or forgets us."""
        sent = await self._inventory.collect()
        boot_id = (await self._facts.totals()).boot_id
        registration = await self._link.register(boot_id, self._endpoint, sent)
        if registration.fenced:
            log.warning("this host was fenced: its guests are ended before it is heard again")
            await self._laying_down.lay_down()
            sent = await self._inventory.collect()
            registration = await self._link.register(boot_id, self._endpoint, sent, laid_down=True)
        self._on_registered(registration.incarnation)
        await self._laying_down.look_again()
        log.info("registered", incarnation=registration.incarnation)
        counter, sent_s = 0, self._clock.monotonic_s()
        while True:
            counter += 1
            self._observer.changed.clear()
            report = await self._inventory.collect()
            now_s = self._clock.monotonic_s()
            changed = report if _lasting(report) != _lasting(sent) or now_s - sent_s >= REPEAT_S else None
            sent_s = now_s if changed is not None else sent_s
            if not await self._link.beat(registration.incarnation, counter, changed):
                return
            sent = report
            await self._pause(registration.heartbeat_interval_s)

    async def _pause(self, interval_s: float) -> None:
        try:
            async with asyncio.timeout(interval_s):
                await self._observer.changed.wait()
                await self._clock.sleep(SETTLE_S)
        except TimeoutError:
            return


def _lasting(report: NodeReport) -> NodeReport:
    """The report without what changes by itself all the time."""
    return replace(report, pools=tuple(replace(pool, free_mib=0) for pool in report.pools))
