"""Which nodes answer, judged anew only when something may have turned."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hostler.server.manual_clock import ManualClock
from scheduler.adapters.memory_store import MemoryServer
from scheduler.core.view import Health
from scheduler.engine.liveness import SILENT_AFTER_S, Liveness

PATIENCE_S = 10.0


@asynccontextmanager
async def running(clock: ManualClock) -> AsyncIterator[Liveness]:
    liveness = Liveness("s1", MemoryServer(clock).connect(), clock)
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        loops = [group.create_task(liveness.write(), name="write"), group.create_task(liveness.watch(), name="watch")]
        await liveness.ready.wait()
        yield liveness
        for loop in loops:
            loop.cancel()


async def until(liveness: Liveness, **health: Health) -> None:
    while liveness.health() != health:  # noqa: ASYNC110 a judgement has no event
        await asyncio.sleep(0)


async def test_a_node_turns_silent_and_answers_again() -> None:
    """A judgement that is kept too long: a VM is placed on a node that is gone, or none on one that is back."""
    clock = ManualClock()
    async with running(clock) as liveness:
        await liveness.beat("n1", "boot:1", 1)
        await until(liveness, n1=Health.READY)
        clock.advance(SILENT_AFTER_S / 2)
        await liveness.beat("n2", "boot:1", 1)
        await until(liveness, n1=Health.READY, n2=Health.READY)
        clock.advance(SILENT_AFTER_S / 2)
        assert liveness.health() == {"n1": Health.SILENT, "n2": Health.READY}
        await liveness.beat("n1", "boot:1", 2)
        await until(liveness, n1=Health.READY, n2=Health.READY)
        clock.advance(SILENT_AFTER_S)
        assert liveness.health() == {"n1": Health.SILENT, "n2": Health.SILENT}


async def test_what_has_not_turned_is_the_same_mapping() -> None:
    """Every decision would compare the health of every node with what it was."""
    clock = ManualClock()
    async with running(clock) as liveness:
        await liveness.beat("n1", "boot:1", 1)
        await until(liveness, n1=Health.READY)
        before = liveness.health()
        clock.advance(SILENT_AFTER_S * 0.9)
        await liveness.beat("n1", "boot:1", 2)
        while liveness._heard["n1"].counter != ("boot:1", 2):  # noqa: ASYNC110 what is heard and turns nothing shows nowhere
            await asyncio.sleep(0)
        clock.advance(SILENT_AFTER_S * 0.9)
        assert liveness.health() is before
