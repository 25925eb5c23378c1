"""Which nodes answer: counters that move, timed on this replica's own clock. Silence is a fact about messages, never about guests.

Every replica collects the beats of the nodes connected to it and writes them as one packed value per interval, under its own key outside the watched
state; a node is answered after that commit. All replicas watch all those keys. A beat counts when the revision of its shard is newer than the one it
was last seen in (a late duplicate cannot set a counter back into life).
"""

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass

import msgspec
import structlog

from hostler.errors import Reason, Unavailable
from hostler.server.clock import Clock
from scheduler.core.records import HEARTBEATS
from scheduler.core.view import Health
from scheduler.ports import KeyPut, KeyValue, OutcomeUnknown, Put, RevisionCompacted, Store, StoreUnavailable

INTERVAL_S = 2.0
"""How often each node beats."""

WRITE_PAUSE_S = INTERVAL_S / 2
"""Between two packed writes: at most one per second and replica, whatever the number of nodes."""

SILENT_AFTER_S = 3 * INTERVAL_S + 4.0
"""Three lost beats and an election."""

log = structlog.get_logger()


@dataclass(slots=True)
class _Heard:
    counter: tuple[str, int]
    revision: int
    at_s: float


class Liveness:
    """`health` is this replica's judgement of every node it has heard of. Until `ready` it has read nobody's beats, and judges none."""

    def __init__(self, replica_id: str, store: Store, clock: Clock, write_pause_s: float = WRITE_PAUSE_S) -> None:
        self._key = HEARTBEATS + replica_id
        self._store = store
        self._clock = clock
        self._write_pause_s = write_pause_s
        self._pending: dict[str, tuple[str, int]] = {}
        self._connected: dict[str, tuple[str, int]] = {}
        self._written = asyncio.Event()
        self._wanted = asyncio.Event()
        self._heard: dict[str, _Heard] = {}
        self._judged: Mapping[str, Health] = {}
        self._judge_again_s = 0.0
        self.ready = asyncio.Event()

    def health(self) -> Mapping[str, Health]:
        """By node id, now; the same mapping as long as nothing has turned, so that whoever keeps what follows from it need not compare.

        Raises Unavailable until `ready`: whoever is not in it counts as silent, and that would be everybody.
        """
        if not self.ready.is_set():
            raise Unavailable(
                Reason.STORE_UNAVAILABLE,
                "This replica is starting and has not read yet which nodes answer.",
                "Try again.",
                retry_after_s=1.0,
            )
        now_s = self._clock.monotonic_s()
        if now_s < self._judge_again_s:
            return self._judged
        until = {node_id: heard.at_s + SILENT_AFTER_S for node_id, heard in self._heard.items()}
        judged = {node_id: Health.READY if now_s < silent_s else Health.SILENT for node_id, silent_s in until.items()}
        if judged != self._judged:
            self._judged = judged
        self._judge_again_s = min((silent_s for silent_s in until.values() if silent_s > now_s), default=now_s)
        return self._judged

    async def beat(self, node_id: str, incarnation: str, counter: int) -> None:
        """Returns once the beat is durable. Raises StoreUnavailable."""
        self._pending[node_id] = (incarnation, counter)
        written = self._written
        self._wanted.set()
        await written.wait()
        if self._connected.get(node_id, ("", 0))[1] < counter:
            raise StoreUnavailable("the beat was not written")

    def left(self, node_id: str) -> None:
        """The node's stream to this replica ended; it will beat elsewhere."""
        self._pending.pop(node_id, None)
        self._connected.pop(node_id, None)

    async def write(self) -> None:
        """The writing loop: everything that came in, at once after a pause, at most once per `write_pause_s`."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            written, self._written = self._written, asyncio.Event()
            shard = self._connected | self._pending
            self._pending = {}
            try:
                await self._store.txn([], [Put(self._key, msgspec.json.encode(shard))])
                self._connected = shard
            except (StoreUnavailable, OutcomeUnknown) as error:
                log.warning("heartbeats could not be written", error=str(error))
            finally:
                written.set()
            await self._clock.sleep(self._write_pause_s)

    async def watch(self) -> None:
        """The watching loop: every replica's shard."""
        while True:
            try:
                listing = await self._store.list(HEARTBEATS)
                for item in listing.items:
                    self._take(item)
                self.ready.set()
                async with aclosing(self._store.watch(HEARTBEATS, listing.revision + 1)) as batches:
                    async for batch in batches:
                        for event in batch.events:
                            if isinstance(event, KeyPut):
                                self._take(event.item)
            except (StoreUnavailable, RevisionCompacted) as error:
                log.info("heartbeat watch interrupted", error=str(error))
                await self._clock.sleep(INTERVAL_S)

    def _take(self, item: KeyValue) -> None:
        shard = msgspec.json.decode(item.value, type=dict[str, tuple[str, int]])
        for node_id, counter in shard.items():
            heard = self._heard.get(node_id)
            if heard is None or (item.mod_revision > heard.revision and counter != heard.counter):
                self._heard[node_id] = _Heard(counter, item.mod_revision, self._clock.monotonic_s())
                if self._judged.get(node_id) is not Health.READY:
                    self._judge_again_s = 0.0
