"""The gates by which the sweep stops a daemon between two steps."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.sweep.pause import Control, Gated, Gates

SOON_S = 5.0


class Port:
    """A port with a call that is awaited and one that is not."""

    def __init__(self) -> None:
        self.called: list[str] = []

    async def migrate(self, vm_uid: str) -> str:
        self.called.append(vm_uid)
        return f"moved {vm_uid}"

    def freeze(self, vm_uid: str) -> bool:
        self.called.append(vm_uid)
        return True


@pytest.fixture
async def control(tmp_path: Path) -> AsyncIterator[Control]:
    control = Control(tmp_path)
    async with control.serving():
        yield control


async def test_an_armed_gate_holds_before_the_call_and_lets_go(control: Control, tmp_path: Path) -> None:
    """A blow that lands after the step it was meant for."""
    port = Port()
    gated = Gated(port, Gates("n1", tmp_path), ["migrate"])
    control.arm(["n1"], "before migrate")
    async with asyncio.timeout(SOON_S), asyncio.TaskGroup() as group:
        call = group.create_task(gated.migrate("a"), name="call")
        stand = await control.standing()
        assert (stand.unit, stand.point, port.called) == ("n1", "before migrate", [])
        stand.release()
        assert await call == "moved a"
    assert await gated.migrate("b") == "moved b", "a gate holds once"


async def test_a_gate_after_a_call_holds_its_answer_back(control: Control, tmp_path: Path) -> None:
    """`after` a step that stands before it."""
    port = Port()
    gated = Gated(port, Gates("n1", tmp_path), ["migrate"])
    control.arm(["n1", "n2"], "after migrate")
    async with asyncio.timeout(SOON_S), asyncio.TaskGroup() as group:
        call = group.create_task(gated.migrate("a"), name="call")
        await control.standing()
        assert port.called == ["a"]
        assert not call.done()
        control.disarm()
    assert os.listdir(tmp_path) == ["gate.sock"], "the gates of the others stay armed"


async def test_a_call_that_is_not_awaited_is_held_too(control: Control, tmp_path: Path) -> None:
    """A freeze, which may not wait for anything, that no gate can stand before."""
    port = Port()
    gated = Gated(port, Gates("n1", tmp_path), ["freeze"])
    control.arm(["n1"], "before freeze")
    answers: list[bool] = []
    caller = threading.Thread(target=lambda: answers.append(gated.freeze("a")))
    caller.start()
    async with asyncio.timeout(SOON_S):
        stand = await control.standing()
        assert (port.called, answers) == ([], [])
        stand.release()
        await asyncio.to_thread(caller.join)
    assert (port.called, answers) == (["a"], [True])


async def test_what_is_not_listed_is_the_ports_own(tmp_path: Path) -> None:
    """A wrapper that changes more than it says."""
    port = Port()
    gated = Gated(port, Gates("n1", tmp_path), ["freeze"])
    assert gated.migrate == port.migrate
