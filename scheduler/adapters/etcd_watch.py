"""A watch that outlives connections: nothing is skipped, nothing comes twice, and no revision is handed over in parts.

`WatchCursor` decides, without I/O, what each response adds and where a new stream has to begin: after the last revision handed over. A
response's header revision never moves it, except in progress that is proved: etcd's own notifications are ordered with the events, but
answers to a progress *request* overtake events on servers before 3.5.8 (etcd issue 15220), so there an answer shows only that the stream
lives. `watch_events` opens streams, and opens another when one fails, falls silent or is cancelled; only a compacted start ends it.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

import structlog

from hostler.internal.etcd.v1 import wire_pb2 as wire
from hostler.server.clock import Clock
from scheduler.adapters.etcd_connection import EtcdConnection, Stream
from scheduler.adapters.etcd_members import Member
from scheduler.adapters.etcd_wire import WATCH, key_event, prefix_range
from scheduler.ports import RevisionCompacted, StoreUnavailable, WatchBatch

log = structlog.get_logger(__name__)

PROGRESS_ANSWER_ID = -1
"""The watch_id of an answer to WatchProgressRequest."""

PROGRESS_ANSWERS_ORDERED_SINCE = (3, 5, 8)

CREATE_TIMEOUT_S = 3.0
"""For the first response of a stream; a member that has a leader answers at once."""

SILENT_INTERVALS = 2
"""Progress requests that may go unanswered before the stream counts as dead, if its member's silence was not noticed before."""

RECONNECT_FIRST_S, RECONNECT_LIMIT_S = 0.05, 1.0
LOG_EVERY_FAILURES = 30
"""With the pause at its limit: one line in half a minute."""


class WatchCanceled(Exception):
    """The server ended the watch; its reason."""


class WatchCursor:
    """`next_revision`: the first one not handed over yet."""

    def __init__(self, next_revision: int) -> None:
        self.next_revision = next_revision
        self._held: list[wire.Event] = []

    def begin(self) -> None:
        """A new stream begins: what an old one left unfinished is sent again."""
        self._held.clear()

    def take(self, response: wire.WatchResponse, *, answers_ordered: bool) -> WatchBatch | None:
        """What this response completes; None: nothing yet. Raises RevisionCompacted, WatchCanceled."""
        if response.canceled:
            if response.compact_revision:
                raise RevisionCompacted(response.compact_revision)
            raise WatchCanceled(response.cancel_reason)
        if response.events:
            return self._take_events(response)
        if response.created or self._held:
            return None
        return self._progress(response, answers_ordered)

    def _take_events(self, response: wire.WatchResponse) -> WatchBatch | None:
        """In a fragment the last revision may go on in the next one, so it is held back. An event before the cursor is a repetition."""
        self._held += (event for event in response.events if event.kv.mod_revision >= self.next_revision)
        if not self._held:
            return None
        open_revision = self._held[-1].kv.mod_revision if response.fragment else 0
        whole = [event for event in self._held if event.kv.mod_revision != open_revision]
        self._held = [event for event in self._held if event.kv.mod_revision == open_revision]
        if not whole:
            return None
        revision = whole[-1].kv.mod_revision
        self.next_revision = revision + 1
        return WatchBatch(revision, tuple(key_event(event) for event in whole))

    def _progress(self, response: wire.WatchResponse, answers_ordered: bool) -> WatchBatch:
        if response.watch_id != PROGRESS_ANSWER_ID or answers_ordered:
            self.next_revision = max(self.next_revision, response.header.revision + 1)
        return WatchBatch(self.next_revision - 1, ())


def answers_are_ordered(version: str) -> bool:
    """Whether a member of that version ("3.5.9"; empty: not known) answers progress requests in order with the events."""
    numbers = version.partition("-")[0].split(".")
    return all(number.isdecimal() for number in numbers) and tuple(int(number) for number in numbers) >= PROGRESS_ANSWERS_ORDERED_SINCE


async def watch_events(
    connection: EtcdConnection,
    prefix: str,
    from_revision: int,
    *,
    clock: Clock,
    interval_s: float,
    version_of: Callable[[Member, int], Awaitable[str]],
) -> AsyncGenerator[WatchBatch, None]:
    """The events of a prefix. `version_of`: the version of that id behind a member ("": not learned). Raises as `Store.watch` does."""
    cursor = WatchCursor(from_revision)
    failures = 0
    while True:
        try:
            member = await connection.until_ready(clock.monotonic_s() + CREATE_TIMEOUT_S)
            with connection.stream(member, WATCH, _requests(prefix, cursor.next_revision, clock, interval_s)) as stream:
                cursor.begin()
                created = await _next(stream, CREATE_TIMEOUT_S)
                cursor.take(created, answers_ordered=False)
                ordered = answers_are_ordered(await version_of(member, created.header.member_id))
                while True:
                    response = await _next(stream, SILENT_INTERVALS * interval_s)
                    batch = cursor.take(response, answers_ordered=ordered)
                    failures = 0
                    if batch is not None:
                        yield batch
        except (StoreUnavailable, WatchCanceled) as error:
            connection.check_open()
            failures += 1
            if failures % LOG_EVERY_FAILURES == 1:
                log.warning(
                    "watch lost, opening another", prefix=prefix, next_revision=cursor.next_revision, failures=failures, reason=str(error)
                )
        await clock.sleep(min(RECONNECT_FIRST_S * 2.0 ** (failures - 1), RECONNECT_LIMIT_S))


async def _requests(prefix: str, from_revision: int, clock: Clock, interval_s: float) -> AsyncIterator[wire.WatchRequest]:
    """What one stream sends: the watch, then a question where it stands, for as long as it lives."""
    first, end = prefix_range(prefix)
    yield wire.WatchRequest(
        create_request=wire.WatchCreateRequest(key=first, range_end=end, start_revision=from_revision, progress_notify=True, fragment=True)
    )
    while True:
        await clock.sleep(interval_s)
        yield wire.WatchRequest(progress_request=wire.WatchProgressRequest())


async def _next(stream: Stream[wire.WatchResponse], timeout_s: float) -> wire.WatchResponse:
    """The next response. Raises StoreUnavailable when the stream ended, failed, was silent for too long, or the store was closed."""
    try:
        async with asyncio.timeout(timeout_s):
            return await stream.read()
    except TimeoutError as error:
        stream.doubt()
        raise StoreUnavailable(f"no response on a watch for {timeout_s} s") from error
