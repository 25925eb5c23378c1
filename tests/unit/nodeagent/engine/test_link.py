"""What a host tells the cluster and how often: its report when it changed, and again now and then."""

import asyncio
from typing import cast

from hostler.model.node import NodeReport
from hostler.server.manual_clock import ManualClock
from nodeagent.core.observed import HostTotals
from nodeagent.engine.inventory import Inventory
from nodeagent.engine.laying_down import LayingDown
from nodeagent.engine.link import REPEAT_S, Link
from nodeagent.engine.observer import Observer
from nodeagent.ports import Registration

INTERVAL_S = 0.001
REPORT = NodeReport("n1", {}, {}, {}, {}, (), (), "", "", "", "", 0, hypervisor_down=False, reason="")


class Unchanging:
    """An inventory and host facts that are always the same."""

    async def collect(self) -> NodeReport:
        return REPORT

    async def totals(self) -> HostTotals:
        return HostTotals("boot", 1, {}, ())


class NeverFenced:
    """A host that has nothing to lay down."""

    async def look_again(self) -> None:
        return None


class Beats:
    """The cluster's end: `beats` has the report of each beat; `beaten` waits for so many."""

    def __init__(self) -> None:
        self.beats: list[NodeReport | None] = []
        self._more = asyncio.Event()

    async def register(self, boot_id: str, endpoint: str, report: NodeReport, *, laid_down: bool = False) -> Registration:
        return Registration("boot:1", INTERVAL_S)

    async def beat(self, incarnation: str, counter: int, report: NodeReport | None) -> bool:
        self.beats.append(report)
        self._more.set()
        return True

    async def beaten(self, times: int) -> None:
        while len(self.beats) < times:
            self._more.clear()
            await self._more.wait()


async def test_an_unchanged_report_is_repeated_now_and_then() -> None:
    """A word about a VM that the cluster did not take, because an operation had it in hand, is never said again."""
    clock, beats, same = ManualClock(), Beats(), Unchanging()
    observer = Observer(cast("object", None))  # type: ignore[arg-type]
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        link = Link("n1:1", beats, cast("Inventory", same), same, observer, cast("LayingDown", NeverFenced()), lambda _: None, clock)
        running = group.create_task(link.run(), name="link")
        await beats.beaten(5)
        assert set(beats.beats) == {None}
        clock.advance(REPEAT_S)
        before = len(beats.beats)
        await beats.beaten(before + 3)
        assert [report for report in beats.beats if report is not None] == [REPORT]
        running.cancel()
