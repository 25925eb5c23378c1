"""A command that is given up before its answer came: nobody knows whether it was accepted, and nobody has to."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest

from hostler.api.cluster.v1 import vms_pb2, vms_pb2_grpc
from hostler.api.type.v1.operation_pb2 import Operation
from tests.rpc.sdk.conftest import CLI_S, Cli, environment

CREATE = ("vm", "create", "web-1", "--vcpus", "1", "--memory", "64")


class Slow(vms_pb2_grpc.VMServiceServicer):
    """Takes requests, and answers none."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[vms_pb2.CreateVMRequest] = asyncio.Queue()

    async def CreateVM(self, request: vms_pb2.CreateVMRequest, context: object) -> Operation:
        await self.asked.put(request)
        await asyncio.Event().wait()
        return Operation()


@pytest.fixture
async def slow() -> AsyncIterator[tuple[Slow, Cli]]:
    server, servicer = grpc.aio.server(), Slow()  # type: ignore[abstract]
    vms_pb2_grpc.add_VMServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield servicer, Cli(environment(HOSTLER_ENDPOINT=f"127.0.0.1:{port}", HOSTLER_INSECURE="1", HOSTLER_CALL_TIMEOUT="1"))
    await server.stop(0)


def told(request_id: str) -> str:
    return f"It may have been accepted. Repeat it with --request-id {request_id}: it happens once."


async def test_ctrl_c_before_the_answer_says_how_to_repeat_it(slow: tuple[Slow, Cli]) -> None:
    """A VM that its owner does not know of, and "exists already" for whoever tries again."""
    servicer, cli = slow
    async with asyncio.timeout(CLI_S):
        process = await replace(cli, cold=True).start(*CREATE)
        request = await servicer.asked.get()
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
    assert (process.returncode, err.decode()) == (130, told(request.request_id) + "\n")
    assert request.request_id


async def test_a_deadline_says_it_too(slow: tuple[Slow, Cli]) -> None:
    """ "Repeat it with the same request_id" to somebody who never saw one."""
    servicer, cli = slow
    ran = await cli(*CREATE, "--request-id", "mine")
    assert (ran.status, (await servicer.asked.get()).request_id) == (6, "mine")
    assert ran.err.splitlines()[-1] == told("mine")


async def test_ctrl_c_while_it_is_being_loaded_shows_nothing(tmp_path: Path) -> None:
    """A traceback out of a library, for whoever has mistyped and knows it."""
    loading = tmp_path / "loading"
    os.mkfifo(loading)
    (tmp_path / "typer.py").write_text(f"import signal\nopen({str(loading)!r}, 'w').close()\nsignal.pause()\n")
    paths = environment()["PYTHONPATH"]
    async with asyncio.timeout(CLI_S):
        process = await Cli(environment(PYTHONPATH=f"{tmp_path}{os.pathsep}{paths}"), cold=True).start("vm", "list")
        await asyncio.to_thread(loading.read_bytes)
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
    assert (process.returncode, err.decode()) == (-signal.SIGINT, "")
