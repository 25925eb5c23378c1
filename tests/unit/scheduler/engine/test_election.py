"""Who leads, when the store was not there to be told that somebody does not any more."""

import asyncio

from hostler.server.manual_clock import ManualClock
from scheduler.adapters.memory_store import Fault, MemoryServer
from scheduler.engine import election
from scheduler.engine.election import Election, Term
from scheduler.ports import StoreUnavailable

LIMIT_S = 5.0


async def test_a_lease_that_could_not_be_revoked_is_revoked_once_the_store_answers() -> None:
    """Nobody drives for as long as a lease lasts that its own holder has given up; here the clock stands, so that would be for ever."""
    cut = False

    def faults(_call: str) -> Fault | None:
        return Fault.UNREACHABLE if cut else None

    store = MemoryServer(ManualClock()).connect(faults=faults)
    terms: list[int] = []
    leads_again = asyncio.Event()

    async def lead(term: Term) -> None:
        nonlocal cut
        terms.append(term.create_revision)
        if len(terms) > 1:
            leads_again.set()
            await asyncio.Event().wait()
        cut = True
        asyncio.get_running_loop().call_later(election.PAUSE_S / 2, heal)
        raise StoreUnavailable("cut off")

    def heal() -> None:
        nonlocal cut
        cut = False

    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
        running = group.create_task(Election("s1", store).run(lead), name="election")
        await leads_again.wait()
        running.cancel()
    assert len(terms) == 2
    assert terms[1] > terms[0]
