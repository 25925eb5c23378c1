"""In place of gRPC's transport: channels and servers of one process, with the daemons' own stubs, services and error mapping at both ends.

What is replaced lies between a generated stub and a generated handler; deadlines, identities and statuses are as on the wire. A message can be late,
lost on the way there (the handler never runs), lost on the way back (it has run), or arrive twice, the second time seconds later, when nobody
waits for it; links between any two can be cut, so that a call is refused at once or hangs until its deadline.
Left out of the server's chain: authentication by certificate (the caller's name is given), the access table, draining, admission limits.
"""

import asyncio
import contextvars
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio

from hostler import rpc_status
from hostler.errors import Internal, Reason
from hostler.server.identity import Principal, enter_principal
from hostler.server.interceptors import refusal_in
from tests.simulate.loop import VirtualLoop

DEFAULT_DEADLINE_S = 30.0
REFUSED_AFTER_S = 0.01
LATE_AT_MOST_S = 8.0
DUPLICATE_AFTER_S = 20.0
"""How much later a message that comes twice may come again."""

REMEMBERED = 400
"""Calls that a fault can let come once more; a busy minute has about as many."""

SILENCE_S = 20.0
"""How long a broken connection is not noticed by the end that only listens; gRPC's keepalive is 30 + 10 s."""


@dataclass(frozen=True, slots=True)
class Weather:
    """How likely each mishap of a call is."""

    late: float = 0.0
    request_lost: float = 0.0
    reply_lost: float = 0.0
    twice: float = 0.0


CALM = Weather(late=0.002)


@dataclass(slots=True)
class Network:
    """Who is where, and what may happen on the way. `cut`: pairs of daemons; True: calls hang until their deadline, False: they are refused."""

    loop: VirtualLoop
    random: Random
    hit: Counter[str]
    tell: Callable[[str], None]
    note: Callable[[str], None] | None = None
    servers: dict[str, "SimServer"] = field(default_factory=dict)
    cut: dict[frozenset[str], bool] = field(default_factory=dict)
    weather: Weather = CALM
    broke: Callable[[str, BaseException], None] = lambda _where, _error: None
    hold: Callable[[str], "asyncio.Event | None"] = lambda _name: None
    sent: "deque[SimCall]" = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    departs: "dict[Callable[[SimCall], None], None]" = field(default_factory=dict)

    def delay_s(self) -> float:
        random = self.random.random
        if random() < self.weather.late:
            self.hit["message late"] += 1
            return random() * LATE_AT_MOST_S
        return 0.0002 + random() * 0.001

    def is_cut(self, a: str, b: str) -> bool:
        return bool(self.cut) and frozenset((a, b)) in self.cut

    def cut_hangs(self, a: str, b: str) -> bool:
        return self.cut.get(frozenset((a, b)), False)


class SimTls:
    """What the composition roots ask of `ServerTls`: who this daemon is."""

    def __init__(self, principal: Principal) -> None:
        self.material = SimpleNamespace(principal=principal)


class SimServer:
    """In place of RpcServer and of the grpc server in it."""

    def __init__(self, network: Network) -> None:
        self.grpc_server = self
        self.name = ""
        self.address = ""
        self.handlers: dict[str, Any] = {}
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.streams: dict[SimStream, None] = {}
        self._network = network

    # as the generated code uses a server

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """The registered ones are the same."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        for method, handler in handlers.items():
            self.handlers[f"/{service}/{method}"] = handler

    # as the composition roots use one

    def listen(self, address: str, tls: SimTls) -> int:
        host, _, port = address.rpartition(":")
        self.name, self.address = host, address
        return int(port)

    async def start(self) -> None:
        self._network.servers[self.address] = self

    async def set_serving(self, serving: bool) -> None:
        """Nobody asks for health here."""

    async def stop(self, grace_s: float) -> None:
        self.close()

    def close(self) -> None:
        if self._network.servers.get(self.address) is self:
            del self._network.servers[self.address]
        for task in list(self.tasks):
            task.cancel()
        for stream in list(self.streams):
            stream.broken()

    def run(self, work: Any, principal: Principal, name: str) -> "asyncio.Task[Any]":  # noqa: ANN401 any coroutine
        context = contextvars.Context()
        context.run(enter_principal, principal)
        task = self._network.loop.create_task(work, name=name, context=context)
        self.tasks[task] = None
        task.add_done_callback(lambda done: self.tasks.pop(done, None))
        return task


def status_error(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)


def _short(request: Any) -> str:  # noqa: ANN401 any message
    names = ("name", "vm_uid", "operation_id", "node_id", "vm_id")
    return " ".join(str(getattr(request, name, "")) for name in names if getattr(request, name, ""))


class SimChannel:
    """In place of grpc.aio.Channel, from `caller` to an address."""

    def __init__(self, network: Network, caller: Principal, address: str) -> None:
        self.network, self.caller, self.address = network, caller, address

    def unary_unary(self, method: str, **_serializers: object) -> Callable[..., Awaitable[Any]]:
        def call(request: Any, timeout: float | None = None) -> Awaitable[Any]:  # noqa: ANN401 gRPC's own signature
            return SimCall(self, method, request, timeout or DEFAULT_DEADLINE_S).result()

        return call

    def unary_stream(self, method: str, **_serializers: object) -> None:
        return None

    def stream_stream(self, method: str, **_serializers: object) -> "Callable[[], SimStream]":
        return lambda: SimStream(self, method)

    async def close(self) -> None:
        """Nothing is held open."""

    async def __aenter__(self) -> "SimChannel":
        return self

    async def __aexit__(self, *_error: object) -> None:
        return None


class SimCall:
    """One unary call on its way."""

    def __init__(self, channel: SimChannel, method: str, request: Any, timeout_s: float) -> None:  # noqa: ANN401 any message
        self._net = channel.network
        self._caller, self._address, self.method, self.request = channel.caller, channel.address, method, request
        self.sent_s = self._net.loop.now_s
        self.reply_late_s = 0.0
        self._timeout_s = timeout_s
        self._peer = channel.address.rpartition(":")[0]
        self._reply: asyncio.Future[Any] = self._net.loop.create_future()
        self._task: asyncio.Task[Any] | None = None

    @property
    def caller_id(self) -> str:
        return self._caller.id

    def vm_uid(self) -> str:
        """The VM that a command to an agent, or a commit, is about; empty: it is neither."""
        command = getattr(self.request, "command", self.request)
        return str(getattr(command, "vm_uid", ""))

    def operation_id(self) -> str:
        return str(getattr(getattr(self.request, "command", self.request), "operation_id", ""))

    def again(self) -> None:
        """It comes once more, and nobody waits for the answer."""
        self._net.tell(f"once more: {self._caller.id} -> {self._peer} {self.method} {self.operation_id()[:6]}")
        self._arrive(False)

    async def result(self) -> Any:  # noqa: ANN401 any message
        net, loop = self._net, self._net.loop
        expiry = loop.call_later(self._timeout_s, self._fail, grpc.StatusCode.DEADLINE_EXCEEDED, "deadline")
        self._depart()
        try:
            return await self._reply
        finally:
            expiry.cancel()
            if self._task is not None and not self._task.done() and not net.is_cut(self._caller.id, self._peer):
                self._task.cancel()  # whoever waited has gone, and the other end is told

    def _depart(self) -> None:
        net, weather = self._net, self._net.weather
        net.sent.append(self)
        for listener in tuple(net.departs):
            listener(self)
        if net.is_cut(self._caller.id, self._peer):
            if not net.cut_hangs(self._caller.id, self._peer):
                net.loop.call_later(REFUSED_AFTER_S, self._fail, grpc.StatusCode.UNAVAILABLE, "cut off")
            return
        if weather.request_lost and net.random.random() < weather.request_lost:
            net.hit["request lost"] += 1
            net.tell(f"request lost: {self._caller.id} -> {self._peer} {self.method}")
            net.loop.call_later(REFUSED_AFTER_S, self._fail, grpc.StatusCode.UNAVAILABLE, "request lost")
            return
        net.loop.call_later(net.delay_s(), self._arrive, True)
        if weather.twice and net.random.random() < weather.twice:
            net.hit["request twice"] += 1
            net.tell(f"request twice: {self._caller.id} -> {self._peer} {self.method}")
            net.loop.call_later(net.random.random() * DUPLICATE_AFTER_S, self._arrive, False)

    def _arrive(self, awaited: bool) -> None:
        net = self._net
        server = net.servers.get(self._address)
        if net.is_cut(self._caller.id, self._peer):
            return
        if server is None:
            self._fail(grpc.StatusCode.UNAVAILABLE, "nobody listens")
            return
        handler = server.handlers.get(self.method)
        if handler is None:
            self._fail(grpc.StatusCode.UNIMPLEMENTED, self.method)
            return
        if awaited and self._reply.done():
            return
        task = server.run(self._serve(handler), self._caller, self.method)
        deadline = net.loop.call_later(self._timeout_s, task.cancel)
        task.add_done_callback(lambda _task: deadline.cancel())
        if awaited:
            self._task = task
            task.add_done_callback(self._answered)

    async def _serve(self, handler: Any) -> Any:  # noqa: ANN401 any handler and message
        held = self._net.hold(self._peer)
        if held is not None:
            await held.wait()
        if self._net.note is not None:
            self._net.note(f"    {self._caller.id} -> {self._peer} {self.method.rpartition('/')[2]} {_short(self.request)}")
        try:
            return await handler.unary_unary(self.request, None)
        except Exception as error:
            return self._status(error)

    def _status(self, error: Exception) -> grpc.aio.AioRpcError:
        refusal = refusal_in(error)
        if refusal is None:
            self._net.broke(f"{self._peer} {self.method}", error)
            refusal = Internal(Reason.INTERNAL, "Something broke inside the server.")
        status = rpc_status.to_status(refusal)
        metadata = grpc.aio.Metadata((rpc_status.DETAILS_KEY, status.SerializeToString()))
        return grpc.aio.AioRpcError(rpc_status.code_of(refusal), grpc.aio.Metadata(), metadata, details=status.message)

    def _answered(self, task: "asyncio.Task[Any]") -> None:
        net = self._net
        if self._reply.done():
            return
        if task.cancelled():
            self._fail(grpc.StatusCode.UNAVAILABLE, "the server has gone, or its deadline has come")
            return
        if net.weather.reply_lost and net.random.random() < net.weather.reply_lost:
            net.hit["reply lost"] += 1
            net.tell(f"reply lost: {self._peer} -> {self._caller.id} {self.method}")
            net.loop.call_later(REFUSED_AFTER_S, self._fail, grpc.StatusCode.UNAVAILABLE, "reply lost")
            return
        net.loop.call_later(net.delay_s() + self.reply_late_s, self._deliver, task.result())

    def _deliver(self, answer: Any) -> None:  # noqa: ANN401 any message
        if self._reply.done() or self._net.is_cut(self._caller.id, self._peer):
            return
        if isinstance(answer, grpc.aio.AioRpcError):
            self._reply.set_exception(answer)
        else:
            self._reply.set_result(answer)

    def _fail(self, code: grpc.StatusCode, details: str) -> None:
        if not self._reply.done():
            self._reply.set_exception(status_error(code, details))


class SimStream:
    """One stream of messages each way, in order, while the link holds; then it is broken, which each end learns in its own time."""

    def __init__(self, channel: SimChannel, method: str) -> None:
        self._net = channel.network
        self._caller, self._address, self._method = channel.caller, channel.address, method
        self._peer = channel.address.rpartition(":")[0]
        self._there: asyncio.Queue[Any] = asyncio.Queue()
        self._back: asyncio.Queue[Any] = asyncio.Queue()
        self._task: asyncio.Task[Any] | None = None
        self._ended = False
        self._last_s = 0.0
        self._net.loop.call_later(self._net.delay_s(), self._open)

    async def write(self, message: Any) -> None:  # noqa: ANN401 any message
        if self._ended:
            raise asyncio.InvalidStateError("the stream has ended")
        self._in_order(self._there, message)

    async def read(self) -> Any:  # noqa: ANN401 any message
        answer = await self._back.get()
        if isinstance(answer, grpc.aio.AioRpcError):
            raise answer
        return answer

    def cancel(self) -> None:
        self._ended = True
        if self._task is not None:
            self._net.loop.call_later(SILENCE_S if self._net.is_cut(self._caller.id, self._peer) else 0.001, self._task.cancel)

    def broken(self) -> None:
        """The server has gone."""
        self._ended = True
        self._back.put_nowait(status_error(grpc.StatusCode.UNAVAILABLE, "the server has gone"))

    def _open(self) -> None:
        server = self._net.servers.get(self._address)
        if self._net.is_cut(self._caller.id, self._peer):
            return
        if server is None:
            self.broken()
            return
        server.streams[self] = None
        self._task = server.run(self._serve(server.handlers[self._method]), self._caller, f"{self._peer} {self._method}")
        self._task.add_done_callback(lambda _task: server.streams.pop(self, None))

    async def _serve(self, handler: Any) -> None:  # noqa: ANN401 any handler
        try:
            async for answer in handler.stream_stream(self._requests(), None):
                self._in_order(self._back, answer)
            self._in_order(self._back, grpc.aio.EOF)
        except asyncio.CancelledError:
            self.broken()
            raise
        except Exception as error:
            refusal = refusal_in(error)
            if refusal is None:
                self._net.broke(f"{self._peer} {self._method}", error)
            self._in_order(self._back, status_error(grpc.StatusCode.UNAVAILABLE, "refused"))

    async def _requests(self) -> AsyncIterator[Any]:
        while True:
            yield await self._there.get()

    def _in_order(self, queue: "asyncio.Queue[Any]", message: Any) -> None:  # noqa: ANN401 any message
        """Never before the one before; nothing more once one was lost."""
        if self._net.is_cut(self._caller.id, self._peer):
            return
        self._last_s = max(self._last_s, self._net.loop.now_s + self._net.delay_s())
        self._net.loop.call_at(self._last_s, self._put, queue, message)

    def _put(self, queue: "asyncio.Queue[Any]", message: Any) -> None:  # noqa: ANN401 any message
        if not self._net.is_cut(self._caller.id, self._peer):
            queue.put_nowait(message)
