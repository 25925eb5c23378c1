"""The copying of a guest from here: the tunnel, the hypervisor's call, what is heard of the arrival, and how the copy is steered meanwhile.

libvirt's call and its errors are evidence (`Run.copying`), never a verdict: what follows from them is `core.outgoing`'s decision.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace

import structlog

from hostler.model.copy import Stage
from hostler.server.clock import Clock, wall_ms
from nodeagent.core.observed import CopyTag, MigrationProgress
from nodeagent.core.outgoing import Copying
from nodeagent.core.precopy import Course, GiveUp, GoOn, Tune, next_move
from nodeagent.engine.host_state import HostState
from nodeagent.engine.observer import Observer
from nodeagent.engine.outgoing_evidence import SourceEvidence
from nodeagent.engine.outgoing_run import TICK_S, Run
from nodeagent.ports import (
    Hypervisor,
    HypervisorRefused,
    HypervisorUnavailable,
    LiveMigration,
    MigrationSockets,
    Peer,
    PeerUnavailable,
    Tunnel,
    TunnelFailed,
)

Spawn = Callable[[Coroutine[object, object, None], str], "asyncio.Task[None]"]
"""Makes a named task of the handoff's group."""

log = structlog.get_logger()


class SourceCopy:
    """Of every handoff from this host."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        tunnel: Tunnel,
        peer: Peer,
        evidence: SourceEvidence,
        state: HostState,
        observer: Observer,
        clock: Clock,
    ) -> None:
        self._hypervisor = hypervisor
        self._tunnel = tunnel
        self._peer = peer
        self._evidence = evidence
        self._state = state
        self._observer = observer
        self._clock = clock
        self.seen_bytes_per_s = 0
        """The fastest that a copy without a limit went from here since the agent began; 0: none was seen."""

    async def begin(self, run: Run, spawn: Spawn) -> None:
        """Journal that it is copied, then begin."""
        handoff = run.handoff
        try:
            sockets = await self._tunnel.open_outgoing(handoff.operation_id, handoff.tunnel_endpoint, handoff.destination_node_id)
        except TunnelFailed as error:
            log.warning("tunnel failed", operation=handoff.operation_id, reason=error.detail)
            self.failed(run, str(error))
            return
        mark = await self._hypervisor.record_mark(handoff.vm_uid)
        await run.keep(self._state, stage=Stage.COPYING, begin_ms=wall_ms(self._clock), record_mark=mark)
        run.copying, run.course = Copying.RUNNING, Course(handoff.limits)
        run.copy_task = spawn(self._call(run, _migration(run, sockets)), f"copy {handoff.operation_id}")
        run.arrival_task = spawn(self._hear_of_arrival(run), f"arrival {handoff.operation_id}")

    def failed(self, run: Run, error: str) -> None:
        """The call is over, or gone with an earlier process, and did not say that the copy is there."""
        run.copying, run.failed_s = Copying.FAILED, self._clock.monotonic_s()
        if not run.given_up:
            run.handoff = replace(run.handoff, error=error)

    async def look(self, run: Run) -> None:
        """Note how far it is, and steer it."""
        try:
            progress = await self._hypervisor.migration_progress(run.handoff.vm_uid)
            if progress is None:
                return
            run.seen = progress
            if not run.handoff.bandwidth_mib_s:
                self.seen_bytes_per_s = max(self.seen_bytes_per_s, progress.rate_bytes_per_s)
            run.note(
                self._state,
                bytes_done=progress.bytes_done,
                bytes_total=progress.bytes_total,
                hypervisor_downtime_ms=progress.downtime_ms,
                iterations=max(run.handoff.iterations, progress.iteration),
                throttle_percent=max(run.handoff.throttle_percent, progress.throttle_percent),
            )
            await self._steer(run, progress)
        except (HypervisorUnavailable, HypervisorRefused) as error:
            log.info("the copy cannot be looked at or steered now", operation=run.handoff.operation_id, reason=error.detail)

    async def _call(self, run: Run, migration: LiveMigration) -> None:
        try:
            await self._hypervisor.migrate(migration)
            run.copying = Copying.RETURNED
        except (HypervisorUnavailable, HypervisorRefused) as error:
            self.failed(run, f"The copy did not complete: {error}")
        run.wake.set()

    async def _hear_of_arrival(self, run: Run) -> None:
        handoff = run.handoff
        while not run.ended:
            try:
                if await self._peer.await_arrival(handoff.operation_id, handoff.destination_node_id, handoff.destination_endpoint):
                    run.arrived = True
                    run.wake.set()
                    break
                await asyncio.sleep(TICK_S)
            except PeerUnavailable:
                await asyncio.sleep(TICK_S)
        if run.lockless:
            await self._evidence.hear_of_leaving(run)

    async def _steer(self, run: Run, progress: MigrationProgress) -> None:
        """Change what the copy may take, or give it up: then libvirt's call fails, and what follows is what follows any failure. What was asked
        of the hypervisor in vain is asked again at the next look."""
        if run.course is None or self._observer.seen(run.handoff.vm_uid).switched:
            return
        if run.given_up:
            await self._hypervisor.abort_migration(run.handoff.vm_uid)
            return
        course, move = next_move(run.course, run.handoff.limits, progress, self._clock.monotonic_s())
        match move:
            case GoOn():
                pass
            case Tune():
                log.info("tuning the copy", operation=run.handoff.operation_id, change=repr(move), seen=repr(progress))
                await self._hypervisor.tune_migration(run.handoff.vm_uid, move)
            case GiveUp():
                log.warning("giving the copy up", operation=run.handoff.operation_id, reason=move.reason, seen=repr(progress))
                run.given_up = True
                run.handoff = replace(run.handoff, error=move.reason)
                await self._hypervisor.abort_migration(run.handoff.vm_uid)
        run.course = course


def _migration(run: Run, sockets: MigrationSockets) -> LiveMigration:
    handoff = run.handoff
    tag = CopyTag(handoff.vm_uid, handoff.epoch + 1, handoff.operation_id)
    paths = {disk.volume_uid: disk.path for disk in handoff.disks}
    return LiveMigration(tag, paths, sockets, handoff.limits, handoff.copied)
