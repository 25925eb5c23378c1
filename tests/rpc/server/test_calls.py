"""What a call can end with: its answer, a refusal with all its parts, or an incident id; never the text of an exception."""

import asyncio
import json
import logging
from collections.abc import Iterator
from io import StringIO

import grpc
import pytest
import structlog

from hostler.errors import Conflict, DeadlineExceeded, Internal, NoCapacity, Reason, Unavailable
from hostler.server import logs
from hostler.server.interceptors import RpcLimits
from tests.rpc.server.conftest import NODE2, SECRET, World, refused


@pytest.fixture
def log_lines() -> Iterator[StringIO]:
    root = logging.getLogger()
    handlers, level, stream = root.handlers[:], root.level, StringIO()
    logs.configure(level="debug", stream=stream, as_json=True)
    yield stream
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


async def test_all_four_shapes_work_through_the_steps(world: World) -> None:
    async with world.serving() as run, world.channel(run.port) as channel:
        run.echo.gate.set()
        assert await channel.unary_unary("/t.Echo/Wait")(b"x") == b"x"
        assert [m async for m in channel.unary_stream("/t.Echo/Watch")(b"")] == [b"first", b"last"]
        assert await channel.stream_unary("/t.Echo/Count")(iter([b"a", b"b"])) == b"2"
        assert [m async for m in channel.stream_stream("/t.Echo/Each")(iter([b"a", b"b"]))] == [b"A", b"B"]


@pytest.mark.parametrize("method", ["Refuse", "RefuseInGroup"])
async def test_a_refusal_arrives_with_reason_fix_and_hint(world: World, method: str) -> None:
    async with world.serving() as run, world.channel(run.port) as channel:
        err = await refused(channel.unary_unary(f"/t.Echo/{method}")(b""))
    assert (type(err), err.reason, err.fix, err.retry_after_s) == (Conflict, Reason.ETAG_MISMATCH, "Read it again.", 1.5)


async def test_the_text_of_an_exception_stays_in_the_log(world: World, log_lines: StringIO) -> None:
    async with world.serving() as run, world.channel(run.port) as channel:
        unary = await refused(channel.unary_unary("/t.Echo/Break")(b""))
        stream = channel.unary_stream("/t.Echo/BreakStream")(b"")
        assert await stream.read() == b"first"
        streamed = await refused(stream.read())
    for err in (unary, streamed):
        assert isinstance(err, Internal)
        shown = repr(err.__cause__) + repr(err)
        assert SECRET not in shown
        assert "ValueError" not in shown
        story = [line for line in log_lines.getvalue().splitlines() if err.metadata["incident"] in line]
        assert SECRET in json.loads(story[0])["exception"]


async def test_each_call_leaves_one_line_that_says_who_what_and_how(world: World, log_lines: StringIO) -> None:
    async with world.serving() as run, world.channel(run.port) as channel:
        await refused(channel.unary_unary("/t.Echo/Refuse")(b"", metadata=(("x-request-id", "trace-7"),)))
        await refused(channel.unary_unary("/t.Echo/Refuse")(b"", metadata=(("x-request-id", "a forged id"),)))
    first, second = (line for line in map(json.loads, log_lines.getvalue().splitlines()) if line["event"] == "rpc")
    assert (first["principal"], first["method"], first["code"], first["reason"]) == (
        "user/alice",
        "/t.Echo/Refuse",
        "ABORTED",
        "ETAG_MISMATCH",
    )
    assert first["request_id"] == "trace-7"
    assert second["request_id"] == second["rpc_id"]


async def test_a_unary_call_without_a_deadline_gets_ours(world: World) -> None:
    limits = RpcLimits(default_deadline_s=0.05)
    async with world.serving(limits=limits) as run, world.channel(run.port) as channel:
        err = await refused(channel.unary_unary("/t.Echo/Wait")(b""))
        await run.echo.ended.wait()
    assert (type(err), run.echo.how) == (DeadlineExceeded, "cancelled")


async def test_a_clients_deadline_is_capped(world: World) -> None:
    limits = RpcLimits(max_deadline_s=0.05)
    async with world.serving(limits=limits) as run, world.channel(run.port) as channel:
        err = await refused(channel.unary_unary("/t.Echo/Wait")(b"", timeout=60))
    assert (type(err), err.reason) == (DeadlineExceeded, Reason.DEADLINE)


async def test_an_abandoned_call_or_stream_is_cancelled_on_the_server(world: World) -> None:
    async with world.serving() as run, world.channel(run.port) as channel:
        unary = channel.unary_unary("/t.Echo/Wait")(b"")
        await run.echo.entered.wait()
        unary.cancel()
        await run.echo.ended.wait()
        assert run.echo.how == "cancelled"
        run.echo.entered.clear()
        run.echo.ended.clear()
        stream = channel.unary_stream("/t.Echo/Watch")(b"")
        await stream.read()
        await run.echo.entered.wait()
        stream.cancel()
        await run.echo.ended.wait()
        assert run.echo.how == "cancelled"


async def test_a_stream_nobody_reads_is_closed_in_its_own_task(world: World) -> None:
    async with world.serving() as run, world.channel(run.port) as channel:
        stream = channel.unary_stream("/t.Echo/Large")(b"")
        await stream.read()
        stream.cancel()
        await run.echo.ended.wait()
    assert run.echo.how == "closed in place"


async def test_one_caller_cannot_take_the_server_from_the_others(world: World) -> None:
    limits = RpcLimits(unary_per_principal=1, unary=2, streams_per_principal=1)
    async with world.serving(limits=limits) as run, world.channel(run.port) as alice, world.channel(run.port, NODE2) as node:
        held = alice.unary_unary("/t.Echo/Wait")(b"")
        await run.echo.entered.wait()
        err = await refused(alice.unary_unary("/t.Echo/WhoAmI")(b""))
        assert (type(err), err.reason, err.retry_after_s) == (NoCapacity, Reason.TOO_MANY_REQUESTS, 1.0)
        assert await node.unary_unary("/t.Echo/WhoAmI")(b"") == b"spiffe://lab/node/n2"
        assert [m async for m in alice.stream_stream("/t.Echo/Each")(iter([b"a"]))] == [b"A"]
        run.echo.gate.set()
        await held
        assert await alice.unary_unary("/t.Echo/WhoAmI")(b"") == b"spiffe://lab/user/alice"


async def test_stopping_lets_calls_finish_and_streams_go(world: World) -> None:
    async with world.serving() as run, world.channel(run.port) as channel:
        stream = channel.unary_stream("/t.Echo/Watch")(b"")
        assert await stream.read() == b"first"
        await run.echo.entered.wait()
        run.echo.entered.clear()
        unary = channel.unary_unary("/t.Echo/Wait")(b"x")
        await run.echo.entered.wait()
        async with asyncio.TaskGroup() as group:
            group.create_task(run.server.stop(30), name="stop")
            err = await refused(stream.read())
            assert (type(err), err.reason) == (Unavailable, Reason.SHUTTING_DOWN)
            run.echo.gate.set()
            assert await unary == b"x"


async def test_a_request_over_one_mebibyte_is_refused(world: World) -> None:
    async with world.serving() as run, world.channel(run.port) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/t.Echo/WhoAmI")(bytes((1 << 20) + 1))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
