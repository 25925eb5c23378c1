"""Which member of etcd gets a call: one that has answered a linearizable read since it was last doubted.

A member that is stopped keeps its connection, so nothing but silence tells. Whoever waited for it too long doubts it; from then on it gets no
call but a probe, one at a time, until that is answered. A member is also not proved before the first probe, nor while it knows no leader or its
leader is the one that is stopped: then a call is not sent, which is better than sent and lost. Calls stay with one member while it is proved.
Nothing is asked for health's sake while calls are answered; a member that only serves streams is asked when it was quiet for a while.
"""

import asyncio
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import grpc
import structlog

from hostler.cancellation import cancellation_kept
from hostler.internal.etcd.v1 import wire_pb2 as wire
from hostler.server.clock import Clock
from scheduler.adapters.etcd_channels import EtcdConfig, open_channels
from scheduler.adapters.etcd_wire import RANGE, REQUIRE_LEADER, Method, Request, Response
from scheduler.ports import StoreUnavailable

CONNECT_DEADLINE_S = 1.5
"""For a proved member to be there, where none is known to be away; so that "unreachable" is said within 2 s."""

ANSWER_S = 0.25
"""A member that takes longer is doubted, and another is asked what may be asked twice. Healthy ones answer in milliseconds; a wrong doubt costs
one probe."""

SILENT_S = 0.5
"""A member doubted for so long, while another is proved, serves nobody: its writes and streams are not waited for."""

GRACE_S = 0.1
"""From one member's proof to that of the others, and from a proof to an answer that was on its way beside it."""

PROBE_DEADLINE_S = 2.0
"""Of one probe. Long, because each way in which it is held up ends with an answer: the member goes on, or it has a leader again."""

PROBE_PAUSE_S = 0.1
"""After a probe that was refused. A leader just elected needs the time to commit its first entry: etcd forgets a read that comes earlier, and answers
none until it asks its own leader again (after 0.5 s; old servers after seconds, etcd issue 9566)."""

QUIET_S = 2.0
"""A member with streams that answered nothing for so long is asked."""

SLACK_S = 0.01
"""A timer may be early by the clock's resolution."""

PROBE = wire.RangeRequest(key=b"hostler/probe", limit=1)

SILENCE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
"""What says that the member does not serve now; any other status is an answer."""

log = structlog.get_logger(__name__)


class StoreClosed(StoreUnavailable):
    """`close` was called, before the call or while it was under way."""


class Member:
    """One member and what is known of it. `term`: of Raft, the newest it has told; `*_s`: when that was, on the monotonic clock."""

    def __init__(self, endpoint: str, channel: grpc.aio.Channel) -> None:
        self.endpoint = endpoint
        self.channel = channel
        self.proved = False
        self.away = False
        self.proved_s = 0.0
        self.doubted_s = 0.0
        self.answered_s = 0.0
        self.term = 0
        self.term_s = 0.0
        self.streams: set[grpc.aio.StreamStreamCall[Any, Any]] = set()
        self.probe: asyncio.Task[None] | None = None
        self._stubs: dict[str, Any] = {}

    def unary(self, method: Method[Request, Response]) -> "grpc.aio.UnaryUnaryMultiCallable[Request, Response]":
        stub: grpc.aio.UnaryUnaryMultiCallable[Request, Response] | None = self._stubs.get(method.path)
        if stub is None:
            stub = self._stubs[method.path] = self.channel.unary_unary(
                method.path, request_serializer=method.request.SerializeToString, response_deserializer=method.response.FromString
            )
        return stub


class Members:
    """Make it inside a running event loop. `news`: done when a member was proved, or all are known to be away; then there is another one."""

    def __init__(self, config: EtcdConfig, clock: Clock) -> None:
        channels = open_channels(config)
        self._members = [Member(endpoint, channel) for endpoint, channel in zip(config.endpoints, channels, strict=True)]
        self._preferred = self._members[0]
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._timers: set[asyncio.TimerHandle] = set()
        self._quiet_timer: asyncio.TimerHandle | None = None
        self.news: asyncio.Future[None] = self._loop.create_future()
        self.closed = False

    # ---- choosing

    async def pick(self, give_up_s: float) -> Member:
        """A member that serves, at once if one is known. Raises StoreUnavailable when all are known to be away, or none is proved in time."""
        give_up_s = min(give_up_s, self._clock.monotonic_s() + CONNECT_DEADLINE_S)
        while True:
            self.check_open()
            if (member := self.best()) is not None:
                return member
            if all(member.away for member in self._members):
                raise StoreUnavailable("no etcd member can be reached")
            left_s = give_up_s - self._clock.monotonic_s()
            if left_s <= 0:
                raise StoreUnavailable("no etcd member answers")
            await asyncio.wait({self.news}, timeout=left_s)

    def best(self, but_not: Collection[Member] = ()) -> Member | None:
        """The member that served last, of those that are proved and connected now. Those that are not are asked, for the next time."""
        if self.closed:
            return None
        if self._serves(self._preferred) and self._preferred not in but_not:
            return self._preferred
        serving = [member for member in self._members if self._serves(member) and member not in but_not]
        for member in self._members:
            if not self._serves(member):
                self.doubt(member)
        if not serving:
            return None
        self._preferred = max(serving, key=lambda member: member.answered_s)
        return self._preferred

    @staticmethod
    def _serves(member: Member) -> bool:
        return member.proved and member.channel.get_state() is grpc.ChannelConnectivity.READY

    # ---- evidence

    def heard(self, member: Member, term: int) -> None:
        """It answered."""
        member.answered_s = self._clock.monotonic_s()
        if term > member.term:
            member.term, member.term_s = term, member.answered_s

    def failed(self, member: Member, error: grpc.aio.AioRpcError) -> None:
        """A call of it ended so."""
        if error.code() in SILENCE:
            self.doubt(member)
        else:
            member.answered_s = self._clock.monotonic_s()

    def doubt(self, member: Member) -> None:
        """It gets no call until it has answered a probe."""
        if member.proved:
            member.proved = False
            member.doubted_s = self._clock.monotonic_s()
            self._after(SILENT_S + SLACK_S, self._cut_streams)
        self._ask(member)

    def lost(self, member: Member, term: int) -> bool:
        """Whether a write sent to it under that term, and unanswered for a while, will not be answered any more.

        Either the member serves again and has another leader than the one to which it passed the write on; an answer would have come before that
        of the probe, which waits for what is committed. Or it is silent, and others serve.
        """
        now_s = self._clock.monotonic_s()
        if member.proved:
            return member.term > term and now_s - max(member.term_s, member.proved_s) >= GRACE_S
        return self._silent(member, now_s)

    def _silent(self, member: Member, now_s: float) -> bool:
        served = any(other.proved and now_s - other.proved_s >= GRACE_S for other in self._members)
        return served and not member.proved and now_s - member.doubted_s >= SILENT_S

    # ---- probes

    def _ask(self, member: Member) -> None:
        if member.probe is None and not self.closed:
            member.probe = self._loop.create_task(self._prove(member), name=f"probe of etcd at {member.endpoint}")

    async def _prove(self, member: Member) -> None:
        """Until it has answered."""
        try:
            while True:
                await self._until_connected(member)
                if await self._answers(member):
                    break
                self.doubt(member)
                await self._clock.sleep(PROBE_PAUSE_S)
            if member is self._members[0] and member.proved_s == 0.0:
                self._preferred = member  # whoever was sooner: which one is turned to is the configuration's choice
            if not member.proved:
                member.proved, member.proved_s = True, self._clock.monotonic_s()
                self._after(GRACE_S + SLACK_S, self._cut_streams)
                self._tell()
        finally:
            member.probe = None

    async def _answers(self, member: Member) -> bool:
        """One linearizable read. A refusal, of a permission for instance, is an answer as well."""
        try:
            with cancellation_kept():
                response = await member.unary(RANGE)(PROBE, timeout=PROBE_DEADLINE_S, metadata=REQUIRE_LEADER)
        except grpc.aio.AioRpcError as error:
            return error.code() not in SILENCE
        self.heard(member, response.header.raft_term)
        return True

    async def _until_connected(self, member: Member) -> None:
        while (state := member.channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
            if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE and not member.away:
                member.away = True
                self._tell()
            await member.channel.wait_for_state_change(state)
        member.away = False

    def _tell(self) -> None:
        news, self.news = self.news, self._loop.create_future()
        news.set_result(None)

    # ---- streams

    def opened(self, member: Member, call: "grpc.aio.StreamStreamCall[Any, Any]") -> None:
        member.streams.add(call)
        if self._quiet_timer is None and not self.closed:
            self._quiet_timer = self._loop.call_later(QUIET_S, self._ask_the_quiet)

    def _ask_the_quiet(self) -> None:
        """Members that serve streams and have said nothing for a while: a watch of one that is stopped would learn of it last."""
        self._quiet_timer = None
        serving = [member for member in self._members if member.streams]
        now_s = self._clock.monotonic_s()
        for member in serving:
            if member.proved and now_s - member.answered_s >= QUIET_S:
                self._ask(member)
                self._after(ANSWER_S, partial(self._doubt_if_unanswered, member, now_s))
        if serving:
            self._quiet_timer = self._loop.call_later(QUIET_S, self._ask_the_quiet)

    def _doubt_if_unanswered(self, member: Member, asked_s: float) -> None:
        if member.answered_s < asked_s:
            self.doubt(member)

    def _cut_streams(self) -> None:
        """End the streams of members that are silent, so that they begin again elsewhere."""
        now_s = self._clock.monotonic_s()
        for member in self._members:
            if member.streams and self._silent(member, now_s):
                log.warning("an etcd member is silent, its streams move to another", endpoint=member.endpoint, streams=len(member.streams))
                for call in tuple(member.streams):
                    call.cancel()

    def _after(self, delay_s: float, act: Callable[[], None]) -> None:
        """Call it then, unless closed meanwhile."""

        def due() -> None:
            self._timers.discard(handle)
            act()

        if not self.closed:
            handle = self._loop.call_later(delay_s, due)
            self._timers.add(handle)

    # ---- the end

    def check_open(self) -> None:
        """Raises StoreUnavailable after `close`."""
        if self.closed:
            raise StoreClosed("the store is closed")

    async def close(self) -> None:
        """Cancel what is under way and close the channels. Again is no error."""
        self.closed = True
        for timer in (*self._timers, *([self._quiet_timer] if self._quiet_timer else [])):
            timer.cancel()
        probes = [member.probe for member in self._members if member.probe is not None]
        for probe in probes:
            probe.cancel()
        if probes:
            await asyncio.wait(probes)
        for member in self._members:
            for call in tuple(member.streams):
                call.cancel()
            await member.channel.close()
        self._tell()
