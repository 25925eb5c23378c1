"""How a chain of steps is put around every RPC, whatever its shape, with one wrapper instead of one per step and shape.

A step is an async context manager around the call: it may refuse before (raise `HostlerError`), and sees how the call ended after. The
wrapper is always a coroutine that writes its responses itself, even around an async generator: when gRPC cancels a stream whose client
does not read, a generator would be left suspended at its `yield` and closed later by another task, so that its `finally`, timeouts and
context variables would not be where they were; a coroutine is cancelled in place, and closes the inner generator on its way out.

Steps run in the RPC's own task, so context variables that they set are seen by the handler.
"""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]
    Context = grpc.aio.ServicerContext[Any, Any]
else:
    # Generic in their type stubs only.
    Handler, Context = grpc.RpcMethodHandler, grpc.aio.ServicerContext


@dataclass(frozen=True, slots=True)
class Call:
    """One RPC as the steps see it. `method` is the full name, `/package.Service/Method`."""

    method: str
    context: Context
    is_stream: bool


Step = Callable[[Call], AbstractAsyncContextManager[None]]


class StepInterceptor(grpc.aio.ServerInterceptor):
    """Puts `steps`, the first one outermost, around every method that the server has."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = tuple(steps)
        # One wrapped handler per method; only methods that exist get here, so it is as long as the API.
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        method = handler_call_details.method
        known = self._wrapped.get(method)
        if known is not None:
            return known
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        self._wrapped[method] = wrapped = _wrap(method, handler, self._steps)
        return wrapped


def _wrap(method: str, handler: Handler, steps: Sequence[Step]) -> Handler:
    is_stream = handler.request_streaming or handler.response_streaming
    inner: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    if not (inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner)):
        raise TypeError(f"{method} is not async; it would block the event loop")

    async def around_one(request: Any, context: Context) -> Any:  # noqa: ANN401 any message or iterator of them
        async with AsyncExitStack() as stack:
            for step in steps:
                await stack.enter_async_context(step(Call(method, context, is_stream)))
            return await inner(request, context)

    async def around_many(request: Any, context: Context) -> None:  # noqa: ANN401 any message or iterator of them
        async with AsyncExitStack() as stack:
            for step in steps:
                await stack.enter_async_context(step(Call(method, context, is_stream)))
            await _write_all(inner(request, context), context)

    make, wrapped = {
        (False, False): (grpc.unary_unary_rpc_method_handler, around_one),
        (True, False): (grpc.stream_unary_rpc_method_handler, around_one),
        (False, True): (grpc.unary_stream_rpc_method_handler, around_many),
        (True, True): (grpc.stream_stream_rpc_method_handler, around_many),
    }[handler.request_streaming, handler.response_streaming]
    made: Handler = make(wrapped, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer)
    return made


async def _write_all(responses: AsyncIterator[Any] | Awaitable[None], context: Context) -> None:
    if not inspect.isasyncgen(responses):
        assert isinstance(responses, Awaitable)
        await responses
        return
    async with aclosing(responses):
        async for response in responses:
            await context.write(response)
