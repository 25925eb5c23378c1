"""A cancellation that meets the end of a gRPC call is not lost."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from hostler.cancellation import cancellation_kept

STOP_S = 10.0


@pytest.fixture
async def leaving() -> AsyncIterator[grpc.aio.Channel]:
    """A server that ends every stream and call as one does that is shut down: without an answer."""

    async def refuse(_request: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "leaving")

    server = grpc.aio.server()
    handlers: dict[str, Any] = {
        "Stream": grpc.stream_stream_rpc_method_handler(refuse),
        "Call": grpc.unary_unary_rpc_method_handler(refuse),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.Leaving", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(0)


def _call(channel: grpc.aio.Channel) -> Any:  # noqa: ANN401
    method: Any = channel.unary_unary("/t.Leaving/Call")
    return method(b"")


async def test_a_loop_that_reads_a_stream_can_be_cancelled_as_the_stream_ends(leaving: grpc.aio.Channel) -> None:
    """An agent that is told to stop while its scheduler goes away, and asks for a scheduler for ever instead."""

    def cancel(_: object) -> None:
        task.cancel()

    async def retrying() -> None:
        while True:
            call: Any = leaving.stream_stream("/t.Leaving/Stream")()
            call.add_done_callback(cancel)
            try:
                with cancellation_kept():
                    await call.read()
            except grpc.aio.AioRpcError:
                continue
            finally:
                call.cancel()

    async with asyncio.timeout(STOP_S), asyncio.TaskGroup() as group:
        task = group.create_task(retrying(), name="retrying")
    assert task.cancelled()


async def test_a_loop_that_calls_can_be_cancelled_as_the_call_ends(leaving: grpc.aio.Channel) -> None:
    """The same of calls with one answer."""

    def cancel(_: object) -> None:
        task.cancel()

    async def retrying() -> None:
        while True:
            call = _call(leaving)
            call.add_done_callback(cancel)
            try:
                with cancellation_kept():
                    await call
            except grpc.aio.AioRpcError:
                continue

    async with asyncio.timeout(STOP_S), asyncio.TaskGroup() as group:
        task = group.create_task(retrying(), name="retrying")
    assert task.cancelled()


async def test_a_call_in_the_cleanup_of_a_cancelled_task_is_left_alone(leaving: grpc.aio.Channel) -> None:
    """A cleanup that cannot tell a refusal from a second cancellation."""
    seen: list[grpc.StatusCode] = []
    begun = asyncio.Event()

    async def cleaning_up() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            with pytest.raises(grpc.aio.AioRpcError) as refusal, cancellation_kept():
                await _call(leaving)
            seen.append(refusal.value.code())

    async with asyncio.timeout(STOP_S), asyncio.TaskGroup() as group:
        task = group.create_task(cleaning_up(), name="cleaning up")
        await begun.wait()
        task.cancel()
    assert task.cancelled()
    assert seen == [grpc.StatusCode.UNAVAILABLE]
