"""The calls and streams to an etcd cluster: how long each may take, when it may be made again, and when it is given up.

A write is sent at most once, and only to a member that serves (see `Members`); otherwise nothing was sent, which is StoreUnavailable. Then one
call, whose failure is OutcomeUnknown unless etcd's answer proves otherwise; only "no leader" (proved not applied) is tried on another member. It is
given up before its deadline where its answer cannot come any more: to read back and decide again is sooner done. A read may be repeated, so another
member is asked beside one that takes long. gRPC's own retries are limited to calls the server never saw.
Every stream is opened by `stream`, which cancels it in the end: grpc.aio frees no stream that is merely dropped.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import Message

from hostler.cancellation import cancellation_kept
from hostler.server.clock import Clock
from scheduler.adapters.etcd_channels import EtcdConfig
from scheduler.adapters.etcd_members import ANSWER_S, CONNECT_DEADLINE_S, SILENCE, Member, Members, StoreClosed
from scheduler.adapters.etcd_wire import REQUIRE_LEADER, Method, Request, Response, is_no_leader, read_failure, write_failure
from scheduler.ports import OutcomeUnknown, StoreUnavailable

READ_DEADLINE_S = 2.0
"""One read in all. A healthy member answers in milliseconds; an election at etcd's default timings takes about 1 s."""

WRITE_DEADLINE_S = 3.0
"""For the reply to a write: a disk that stalls for a moment fits in, so that fewer writes end with an unknown outcome."""

WRITE_ATTEMPTS = 3
"""Of a write that was refused for want of a leader: the usual number of members."""

LOOK_S = 0.05
"""How often it is looked whether a write that takes long is lost."""


T = TypeVar("T")


@dataclass(slots=True)
class _Asked:
    """One member that a read was sent to. `late`: it took longer than ANSWER_S."""

    member: Member
    since_s: float
    late: bool = False


Failure = grpc.aio.AioRpcError | StoreUnavailable
"""How one try of a read ended without an answer."""


class EtcdConnection:
    """Make it inside a running event loop."""

    def __init__(self, config: EtcdConfig, clock: Clock) -> None:
        self._clock = clock
        self.members = Members(config, clock)

    # ---- reads

    async def read(self, method: Method[Request, Response], request: Request) -> Response:
        """One call that changes nothing, answered by whichever member does so first. Raises StoreUnavailable, RevisionCompacted."""
        async with asyncio.TaskGroup() as group:
            answer = await self._race(group, method, request)
        if isinstance(answer, grpc.aio.AioRpcError):
            raise read_failure(answer) from answer
        if isinstance(answer, StoreUnavailable):
            raise answer
        return answer

    async def _race(self, group: asyncio.TaskGroup, method: Method[Request, Response], request: Request) -> Response | Failure:
        """Ask one member, and another where the first takes long or falls out, until one answers. Leaves no task behind in the group."""
        give_up_s = self._clock.monotonic_s() + READ_DEADLINE_S
        asked: dict[asyncio.Task[Response | Failure], _Asked] = {}
        failure: Response | Failure = StoreUnavailable("no etcd member answered the read")
        try:
            while (now_s := self._clock.monotonic_s()) < give_up_s:
                late = all(one.late for one in asked.values())
                member = self.members.best(but_not=[one.member for one in asked.values()]) if late else None
                if member is None and not asked:
                    member = await self.members.pick(give_up_s)
                if member is not None:
                    call = self._try(member, method, request, give_up_s - now_s)
                    asked[group.create_task(call, name=f"{method.path} at {member.endpoint}")] = _Asked(member, now_s)
                for task in await self._ended(asked, give_up_s):
                    one, failure = asked.pop(task), task.result()
                    if not isinstance(failure, grpc.aio.AioRpcError):
                        return failure
                    self.members.failed(one.member, failure)
                    if failure.code() not in SILENCE:
                        return failure
        except StoreUnavailable as error:
            return error
        finally:
            for task in asked:
                task.cancel()
        return failure

    async def _try(self, member: Member, method: Method[Request, Response], request: Request, timeout_s: float) -> Response | Failure:
        try:
            return await self._call(member, method, request, timeout_s)
        except (grpc.aio.AioRpcError, StoreClosed) as error:
            return error

    async def _ended(self, asked: "dict[asyncio.Task[T], _Asked]", give_up_s: float) -> "list[asyncio.Task[T]]":
        """Those that have ended; none: one takes long, or there is news of the members, or it is time to give up."""
        prompt_s = (one.since_s + ANSWER_S for one in asked.values() if not one.late)
        timeout_s = max(min(*prompt_s, give_up_s, give_up_s) - self._clock.monotonic_s(), 0.0)
        news: asyncio.Future[Any] = self.members.news
        await asyncio.wait([*asked, news], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        now_s = self._clock.monotonic_s()
        for task, one in asked.items():
            if not one.late and not task.done() and now_s - one.since_s >= ANSWER_S:
                one.late = True
                self.members.doubt(one.member)
        return [task for task in asked if task.done()]

    async def read_of(self, member: Member, method: Method[Request, Response], request: Request) -> Response:
        """The same of one member. Raises StoreUnavailable, RevisionCompacted."""
        try:
            return await self._call(member, method, request, READ_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            self.members.failed(member, error)
            raise read_failure(error) from error

    # ---- writes

    async def write(self, method: Method[Request, Response], request: Request) -> Response:
        """One call that changes something, sent once. Raises StoreUnavailable, OutcomeUnknown, LeaseLost."""
        give_up_s = self._clock.monotonic_s() + CONNECT_DEADLINE_S
        for attempt in range(1, WRITE_ATTEMPTS + 1):
            member = await self.members.pick(give_up_s)
            try:
                return await self._send(member, method, request)
            except grpc.aio.AioRpcError as error:
                self.members.failed(member, error)
                if not is_no_leader(error) or attempt == WRITE_ATTEMPTS:
                    raise write_failure(error) from error
            except StoreClosed as error:
                raise OutcomeUnknown("the store was closed before the reply") from error
        raise AssertionError("the last attempt returns or raises")

    async def _send(self, member: Member, method: Method[Request, Response], request: Request) -> Response:
        call = member.unary(method)(request, timeout=WRITE_DEADLINE_S, metadata=REQUIRE_LEADER)
        vigil = _Vigil(self.members, member, call)
        try:
            with cancellation_kept():
                response: Response = await call
        except asyncio.CancelledError as error:
            self._raise_if_closed_under_us()
            if vigil.gave_up and not _cancelled():
                raise OutcomeUnknown("the member fell silent, or its leader changed, before the reply") from error
            raise
        finally:
            vigil.end()
        self.members.heard(member, _term(response))
        return response

    async def _call(self, member: Member, method: Method[Request, Response], request: Request, timeout_s: float) -> Response:
        try:
            with cancellation_kept():
                response: Response = await member.unary(method)(request, timeout=max(timeout_s, 0.0), metadata=REQUIRE_LEADER)
        except asyncio.CancelledError:
            self._raise_if_closed_under_us()
            raise
        self.members.heard(member, _term(response))
        return response

    # ---- streams

    async def until_ready(self, give_up_s: float) -> Member:
        """A member that serves. Raises StoreUnavailable."""
        return await self.members.pick(give_up_s)

    @contextmanager
    def stream(
        self, member: Member, method: Method[Request, Response], requests: AsyncIterator[Request], timeout_s: float | None = None
    ) -> Iterator["Stream[Response]"]:
        """A stream in both directions, cancelled at the end whatever happens. `requests` is drained by the stream's own task."""
        self.check_open()
        stub: Any = member.channel.stream_stream(
            method.path, request_serializer=method.request.SerializeToString, response_deserializer=method.response.FromString
        )
        call = stub(requests, timeout=timeout_s, metadata=REQUIRE_LEADER)
        self.members.opened(member, call)
        try:
            yield Stream(self, member, call, method.response)
        finally:
            call.cancel()
            member.streams.discard(call)

    def check_open(self) -> None:
        """Raises StoreUnavailable after `close`."""
        self.members.check_open()

    def _raise_if_closed_under_us(self) -> None:
        """Closing cancels calls, which their callers see as CancelledError although nobody cancelled their task: tell the two apart."""
        if self.members.closed and not _cancelled():
            raise StoreClosed("the store was closed")

    async def close(self) -> None:
        """Cancel what is under way and close the channels. Again is no error."""
        await self.members.close()


class Stream(Generic[Response]):
    """One stream of a member."""

    def __init__(
        self, connection: EtcdConnection, member: Member, call: "grpc.aio.StreamStreamCall[Any, Response]", kind: type[Response]
    ) -> None:
        self._connection = connection
        self._kind = kind
        self._call = call
        self.member = member

    async def read(self) -> Response:
        """The next response. Raises StoreUnavailable when the stream has ended or failed, its member fell silent, or the store was closed."""
        try:
            with cancellation_kept():
                response = await self._call.read()
        except grpc.aio.AioRpcError as error:
            self._connection.members.failed(self.member, error)
            raise StoreUnavailable(f"{error.code().name}: {error.details()}") from error
        except asyncio.CancelledError as error:
            if _cancelled():
                raise
            self._connection.check_open()
            raise StoreUnavailable("the stream's member fell silent") from error
        if not isinstance(response, self._kind):
            raise StoreUnavailable("the server ended the stream")
        self._connection.members.heard(self.member, _term(response))
        return response

    def doubt(self) -> None:
        """It was silent for too long."""
        self._connection.members.doubt(self.member)


class _Vigil:
    """Looks after a write under way: its member is doubted when it takes long, and it is ended (`gave_up`) when its answer will not come."""

    def __init__(self, members: Members, member: Member, call: "grpc.aio.UnaryUnaryCall[Any, Any]") -> None:
        self._members = members
        self._member = member
        self._call = call
        self._term = member.term
        self.gave_up = False
        self._timer = asyncio.get_running_loop().call_later(ANSWER_S, self._begin)

    def _begin(self) -> None:
        self._members.doubt(self._member)
        self._look()

    def _look(self) -> None:
        if self._members.lost(self._member, self._term):
            self.gave_up = True
            self._call.cancel()
            return
        self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def end(self) -> None:
        self._timer.cancel()


def _cancelled() -> bool:
    """Whether somebody cancelled the task, rather than the call that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _term(response: Message) -> int:
    """What every response of etcd has in its header."""
    term: int = response.header.raft_term  # type: ignore[attr-defined]
    return term
