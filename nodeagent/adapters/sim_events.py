"""Readers of a simulated host's domain events: each has a bounded queue of its own, and one that falls behind is told to look again.

A reader hears everything from the moment `read` is called, not from its first `anext`: what happens between the two is what a caller that
subscribes and then looks relies on. Everything queued is dropped at an overflow, because CONNECTION_BACK already says "look at everything".
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from types import TracebackType

from nodeagent.ports import DomainEvent, EventKind

QUEUE_EVENTS = 1024
"""Per reader: far above a burst of one host's domains, small enough that a reader that stopped reading costs nothing."""


class EventHub:
    """The events of one host. They happen in the event loop, so nothing here needs a lock."""

    def __init__(self) -> None:
        self._readers: dict[EventReader, None] = {}

    def publish(self, event: DomainEvent) -> None:
        for reader in self._readers:
            reader.offer(event)

    def read(self, queue_events: int = QUEUE_EVENTS) -> "EventReader":
        reader = EventReader(self, queue_events)
        self._readers[reader] = None
        return reader

    def forget(self, reader: "EventReader") -> None:
        self._readers.pop(reader, None)


class EventReader(AsyncGenerator[DomainEvent, None]):
    """One reader's queue; ends at `aclose`."""

    def __init__(self, hub: EventHub, queue_events: int) -> None:
        self._hub = hub
        self._limit = queue_events
        self._queue: deque[DomainEvent] = deque()
        self._filled = asyncio.Event()
        self._closed = False

    def offer(self, event: DomainEvent) -> None:
        if len(self._queue) >= self._limit:
            self._queue.clear()
            event = DomainEvent(EventKind.CONNECTION_BACK, "", event.at_ms)
        self._queue.append(event)
        self._filled.set()

    async def asend(self, value: None) -> DomainEvent:
        while not self._queue:
            if self._closed:
                raise StopAsyncIteration
            self._filled.clear()
            await self._filled.wait()
        return self._queue.popleft()

    async def athrow(
        self,
        typ: type[BaseException] | BaseException,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
        /,
    ) -> DomainEvent:
        await self.aclose()
        raise typ if isinstance(typ, BaseException) else typ()

    async def aclose(self) -> None:
        self._closed = True
        self._queue.clear()
        self._filled.set()
        self._hub.forget(self)
