"""Blocking calls in threads: deadlines, lanes, a full house, loops that end."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from nodeagent.adapters.libvirt_calls import Calls
from nodeagent.ports import HypervisorUnavailable

SHORT_S = 0.05
LONG_S = 20.0


@pytest.fixture
def stuck() -> Iterator[threading.Event]:
    """Calls that wait for this hang until the test is over."""
    event = threading.Event()
    yield event
    event.set()


async def test_a_call_that_never_returns_is_given_up_at_its_deadline(stuck: threading.Event) -> None:
    """A hung libvirtd would hang the agent."""
    calls = Calls(4)
    with pytest.raises(HypervisorUnavailable):
        await calls.run("vm", SHORT_S, stuck.wait)
    assert calls.lane_taken("vm")
    stuck.set()
    assert await calls.run("vm", LONG_S, lambda: 7) == 7


async def test_a_stuck_lane_stops_itself_alone(stuck: threading.Event) -> None:
    """One stuck QEMU must not take the other VMs with it, nor pile up threads."""
    calls = Calls(4)
    with pytest.raises(HypervisorUnavailable):
        await calls.run("vm", SHORT_S, stuck.wait)
    with pytest.raises(HypervisorUnavailable):
        await calls.run("vm", SHORT_S, lambda: 1)
    assert calls.running == 1
    assert await calls.run("other", LONG_S, lambda: 2) == 2


async def test_a_full_house_is_an_answer_at_once(stuck: threading.Event) -> None:
    """An unbounded queue of threads eats the host."""
    calls = Calls(1)
    with pytest.raises(HypervisorUnavailable):
        await calls.run("vm", SHORT_S, stuck.wait)
    async with asyncio.timeout(LONG_S):
        with pytest.raises(HypervisorUnavailable):
            await calls.run("other", None, lambda: 1)


async def test_calls_in_a_lane_come_one_after_the_other() -> None:
    """Two actions on one domain at once race inside libvirt."""
    calls, inside, most = Calls(8), 0, 0
    guard = threading.Lock()
    both = threading.Event()

    def work() -> None:
        nonlocal inside, most
        with guard:
            inside += 1
            most = max(most, inside)
        both.wait(SHORT_S)
        with guard:
            inside -= 1

    async with asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(calls.run("vm", LONG_S, work), name=f"call {number}")
    assert most == 1


async def test_an_error_is_raised_as_it_is_and_frees_the_lane() -> None:
    """A timeout of the work itself must not be taken for the deadline."""
    calls = Calls(1)

    def fail() -> None:
        raise TimeoutError("the work's own")

    with pytest.raises(TimeoutError, match="own"):
        await calls.run("vm", LONG_S, fail)
    assert await calls.run("vm", LONG_S, lambda: 3) == 3


async def test_cancelling_the_caller_leaves_the_work_running(stuck: threading.Event) -> None:
    """A migration goes on when nobody waits for it any more."""
    calls, loop, begun = Calls(2), asyncio.get_running_loop(), asyncio.Event()

    def work() -> None:
        loop.call_soon_threadsafe(begun.set)
        stuck.wait()

    caller = asyncio.ensure_future(calls.run("vm", None, work))
    await begun.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert calls.running == 1


def test_a_call_left_by_one_loop_is_waited_for_by_the_next(stuck: threading.Event) -> None:
    """A lane bound to a dead loop would be taken for ever."""
    calls = Calls(2)

    async def first() -> None:
        with pytest.raises(HypervisorUnavailable):
            await calls.run("vm", SHORT_S, stuck.wait)

    async def second() -> int:
        asyncio.get_running_loop().call_later(SHORT_S, stuck.set)
        return await calls.run("vm", LONG_S, lambda: 5)

    asyncio.run(first())
    assert asyncio.run(second()) == 5


async def test_who_waits_is_told_at_once_when_there_is_no_answer_to_be_had(stuck: threading.Event) -> None:
    """A migration that has no deadline, and waits for ever for a libvirtd that is known to hang."""
    calls = Calls(4)
    async with asyncio.timeout(LONG_S), asyncio.TaskGroup() as group:
        waiting = [group.create_task(_refused(calls, lane, stuck), name=lane) for lane in ("vm", "vm", "other")]
        while calls.running < 2:  # noqa: ASYNC110 a thread has no event
            await asyncio.sleep(0)
        calls.give_up("it hangs")
    assert [task.result() for task in waiting] == ["it hangs"] * 3
    assert calls.lane_taken("vm")


async def _refused(calls: Calls, lane: str, stuck: threading.Event) -> str:
    with pytest.raises(HypervisorUnavailable) as refused:
        await calls.run(lane, None, stuck.wait)
    return refused.value.detail


async def test_what_comes_when_nobody_waits_any_more_is_put_away(stuck: threading.Event) -> None:
    """A connection that is opened after its caller has given up: it would tell every event a second time, for ever."""
    calls, put_away = Calls(4), Future[str]()
    with pytest.raises(HypervisorUnavailable):
        await calls.run("listen", SHORT_S, lambda: (stuck.wait(), "a connection")[1], late=put_away.set_result)
    stuck.set()
    assert await asyncio.wait_for(asyncio.wrap_future(put_away), LONG_S) == "a connection"
    assert await calls.run("listen", LONG_S, lambda: "another", late=lambda _: pytest.fail("somebody waits for it")) == "another"
