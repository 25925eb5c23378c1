"""Probes the locks of shared pools between two nodes, one probe at a time, by the replica that leads: when a node joins, and rarely afterwards.

A node is told to lock a byte of a file from a process of its own, another to try; the process is killed, the other tries again; then the other way
round. Nothing waits for a probe: until one has told, locks are not relied on. A node that does not answer is asked again after a while.
"""

import asyncio
from functools import partial

import structlog

from hostler.errors import HostlerError
from hostler.server.clock import Clock, IdSource
from scheduler.core.pool_locks import Probe, next_probe, probed
from scheduler.core.records import LocksAcross
from scheduler.engine.election import Term
from scheduler.engine.liveness import Liveness
from scheduler.engine.mirror import Mirror
from scheduler.engine.writer import Writer
from scheduler.ports import NodeGateway, NodeUnreachable, ProbeAct, ProbeOutcome

REPEAT_S = 6 * 3600.0
"""What is proved is proved again so often: a mount can be changed under a running host."""
AGAIN_S = 30.0
"""After a node did not answer."""
LOOK_S = 2.0
"""Health is no change of the store that would wake this."""
RELEASE_S = 10.0
"""For the lock of a killed process to be given up: the node's own kernel sees to that, a server that is to be told needs a round trip."""
SEEN_S = 5.0
"""For a file that one node has made to be seen on another: attribute caches of network file systems hold for about 3 s."""
PAUSE_S = 0.1

log = structlog.get_logger()


class PoolProbes:
    """`lead(term)` probes for as long as this replica leads."""

    def __init__(self, mirror: Mirror, writer: Writer, nodes: NodeGateway, liveness: Liveness, clock: Clock, ids: IdSource) -> None:
        self._mirror = mirror
        self._writer = writer
        self._nodes = nodes
        self._liveness = liveness
        self._clock = clock
        self._ids = ids
        self._known_s: dict[tuple[str, str], float] = {}
        self._not_before_s: dict[tuple[str, str], float] = {}

    async def lead(self, term: Term) -> None:
        while True:
            revision, probe = self._mirror.state.revision, self._next()
            if probe is None:
                await self._mirror.await_change(revision, LOOK_S)
                continue
            try:
                why_not = await self._find_out(probe)
                await self._writer.apply(partial(probed, probe=probe, why_not=why_not), (term.guard,))
                self._known_s[probe.pool_id, probe.node_id] = self._clock.monotonic_s()
                log.info("locks of a pool were probed", pool=probe.pool_id, nodes=(probe.node_id, probe.partner_id), why_not=why_not)
            except (NodeUnreachable, HostlerError) as error:
                log.info("locks of a pool could not be probed", pool=probe.pool_id, node=probe.node_id, why=str(error))
                self._not_before_s[probe.pool_id, probe.node_id] = self._clock.monotonic_s() + AGAIN_S

    def _next(self) -> Probe | None:
        """What to probe now. What was proved under an earlier leader counts as of now."""
        now_s, state = self._clock.monotonic_s(), self._mirror.state
        state.health = self._liveness.health()
        known = {
            (pool.pool_id, node_id)
            for node_id, kept in state.nodes.items()
            for pool in kept.record.pools
            if pool.across is not LocksAcross.UNKNOWN
        }
        self._known_s = {pair: self._known_s.get(pair, now_s) for pair in known}
        self._not_before_s = {pair: at_s for pair, at_s in self._not_before_s.items() if at_s > now_s}
        due = {pair for pair, at_s in self._known_s.items() if now_s - at_s >= REPEAT_S}
        return next_probe(state, due, self._not_before_s.keys())

    async def _find_out(self, probe: Probe) -> str:
        """ "": locks exclude both ways and end with their process; else one sentence. Raises NodeUnreachable, HostlerError: not known."""
        for holder, asker in ((probe.node_id, probe.partner_id), (probe.partner_id, probe.node_id)):
            why_not = await self._one_way(probe.pool_id, holder, asker)
            if why_not:
                return why_not
        return ""

    async def _one_way(self, pool_id: str, holder: str, asker: str) -> str:
        probe_id = self._ids.uuid()

        async def act(node_id: str, what: ProbeAct) -> ProbeOutcome | None:
            return await self._nodes.probe_pool(node_id, pool_id, probe_id, what)

        async def tried(not_yet: ProbeOutcome, timeout_s: float) -> ProbeOutcome | None:
            """What the asker finds, asked again for a while as long as it is `not_yet`."""
            until_s = self._clock.monotonic_s() + timeout_s
            while (found := await act(asker, ProbeAct.TRY)) is not_yet and self._clock.monotonic_s() < until_s:
                await self._clock.sleep(PAUSE_S)
            return found

        try:
            if await act(holder, ProbeAct.HOLD) is not ProbeOutcome.HELD:
                return f"{holder} cannot lock a file of the pool."
            match await tried(ProbeOutcome.MISSING, SEEN_S):
                case ProbeOutcome.REFUSED:
                    pass
                case ProbeOutcome.MISSING:
                    return f"{asker} does not see a file that {holder} has made."
                case _:
                    return f"A lock that {holder} holds does not keep {asker} out."
            await act(holder, ProbeAct.KILL)
            if await tried(ProbeOutcome.REFUSED, RELEASE_S) is not ProbeOutcome.TAKEN:
                return f"The lock of a process that was killed on {holder} still keeps {asker} out."
            return ""
        finally:
            await asyncio.shield(self._clear(holder, pool_id, probe_id))

    async def _clear(self, node_id: str, pool_id: str, probe_id: str) -> None:
        """A file that stays is swept when the node opens its pool the next time."""
        try:
            await self._nodes.probe_pool(node_id, pool_id, probe_id, ProbeAct.CLEAR)
        except (NodeUnreachable, HostlerError) as error:
            log.info("a lock probe was not cleared", node=node_id, why=str(error))
