"""A simulated live migration, as libvirt's peer-to-peer v3 protocol goes and fails; it runs in the daemons, whoever asked for it.

Prepare, copy the disks that are not shared, copy memory in iterations until what is left fits the downtime, switchover (source SWITCHED, the
copies of its disks made whole, its locks dropped), arrival (destination complete and paused), then the source's end. The ways it ends are those
that were seen on real libvirt, among them "error but moved": when the answer to the last step is lost the source's daemon believes in a failure
and lets the source run on by itself, with a complete copy left on the other side.
"""

import asyncio
from enum import StrEnum
from typing import TYPE_CHECKING

from nodeagent.adapters.sim_storage import SimFile
from nodeagent.core.observed import MigrationProgress, Power
from nodeagent.ports import EventKind, HypervisorRefused, HypervisorUnavailable, LiveMigration, Tune

if TYPE_CHECKING:
    from nodeagent.adapters.sim_host import SimDomain, SimHost

MIB = 1 << 20
SOCKET_PREFIX = "sim:"
UNLIMITED_MIB_S = 1024
"""What the fabric carries when the caller sets no limit."""
TRIGGER = 0.5
"""QEMU takes a step of its throttle when an iteration dirtied more than this share of what it sent,"""
TRIGGERS = 2
"""for the second time since the last step."""
MEASURED_S = 1.0
"""It measures over no less than this."""
FIRST_STEP_PERCENT, NEXT_STEP_PERCENT, MOST_PERCENT = 20, 10, 99


class MigrationFault(StrEnum):
    """One way in which a migration goes wrong."""

    FAILS_MIDWAY = "FAILS_MIDWAY"
    """An error halfway through the copy; the source runs on, the destination's process is gone."""
    STALLS = "STALLS"
    """The copy stops moving until `MigrationJob.end_stall`."""
    FINISH_REPLY_LOST = "FINISH_REPLY_LOST"
    """The copy arrived; the source's daemon never hears of it, calls it a failure and lets the source run on."""
    RESULT_LOST = "RESULT_LOST"
    """The copy arrived and the source ended; only the caller gets an error."""
    PAUSED_IGNORED = "PAUSED_IGNORED"
    """As FINISH_REPLY_LOST, with a destination that runs at once: what happens without libvirt's PAUSED flag."""


class Throttle:
    """QEMU's auto-converge: at the end of an iteration it looks at what was sent and dirtied since its last look, and takes a step if it must."""

    def __init__(self) -> None:
        self.percent = 0
        self.next_percent = 0
        """Where the next step is to lead, and no step goes above it; 0: nobody said, QEMU takes its own steps."""
        self.dirty_bytes_per_s = 0.0
        self._sent_bytes = self._dirtied_bytes = self._seconds = 0.0
        self._triggers = 0

    def note(self, sent_bytes: float, dirtied_bytes: float, seconds: float) -> None:
        self._sent_bytes, self._dirtied_bytes, self._seconds = (
            self._sent_bytes + sent_bytes,
            self._dirtied_bytes + dirtied_bytes,
            self._seconds + seconds,
        )

    def judge(self) -> None:
        if self._seconds < MEASURED_S:
            return
        self.dirty_bytes_per_s = self._dirtied_bytes / self._seconds
        if self._dirtied_bytes > TRIGGER * self._sent_bytes:
            self._triggers += 1
        if self._triggers == TRIGGERS:
            self._triggers = 0
            own = self.percent + NEXT_STEP_PERCENT if self.percent else FIRST_STEP_PERCENT
            self.percent = min(MOST_PERCENT, self.next_percent if self.next_percent > 0 else own)
        self._sent_bytes = self._dirtied_bytes = self._seconds = 0.0


class MigrationJob:
    """One migration. `outcome` is libvirt's answer, which is not a verdict."""

    def __init__(self, source: "SimHost", domain: "SimDomain", migration: LiveMigration) -> None:
        self._source = source
        self._world = source.world
        self._domain = domain
        self._tag = migration.tag
        self._disk_paths = migration.disk_paths
        self._sockets = migration.sockets
        self._rate = float((migration.limits.bandwidth_mib_s or UNLIMITED_MIB_S) * MIB)
        self._downtime_s = migration.limits.downtime_ms / 1000
        self._throttle = Throttle()
        self._iteration = 1
        self._dirty_bytes = 0.0
        self._fault = self._world.take_migration_fault(domain.uuid)
        self._copied = migration.copied
        self._pairs: list[tuple[SimFile, SimFile]] = []
        self._disk_bytes = self._disk_left_bytes = 0.0
        self._stalled = False
        self._aborted = False
        self._done_bytes = 0.0
        self._left_bytes = float(domain.memory_mib * MIB)
        self._downtime_ms = 0
        self.outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def progress(self) -> MigrationProgress:
        """Of the disks alone while these are copied, as libvirt tells it."""
        at_disks = self._disk_left_bytes > 0
        left_bytes = self._disk_left_bytes if at_disks else self._left_bytes
        done_bytes = self._done_bytes + self._disk_bytes - self._disk_left_bytes
        rate = 0 if self._stalled or left_bytes == 0 else int(self._rate)
        return MigrationProgress(
            int(done_bytes),
            int(done_bytes + left_bytes),
            rate,
            self._downtime_ms,
            remaining_bytes=0 if at_disks else int(self._left_bytes),
            dirty_bytes_per_s=int(self._throttle.dirty_bytes_per_s),
            iteration=0 if at_disks else self._iteration,
            throttle_percent=self._throttle.percent,
        )

    def tune(self, change: Tune) -> None:
        """Heeded from the next moment on; the throttle at its next step."""
        if change.bandwidth_mib_s is not None:
            self._rate = float((change.bandwidth_mib_s or UNLIMITED_MIB_S) * MIB)
        if change.max_downtime_ms is not None:
            self._downtime_s = change.max_downtime_ms / 1000
        if change.throttle_percent is not None:
            self._throttle.next_percent = change.throttle_percent

    def abort(self) -> None:
        """Heeded while it copies; later it is too late."""
        self._aborted = True

    def end_stall(self) -> None:
        self._stalled = False

    async def run(self) -> None:
        self.outcome.add_done_callback(lambda outcome: None if outcome.cancelled() else outcome.exception())
        try:
            await self._steps()
            self.outcome.set_result(None)
        except (HypervisorRefused, HypervisorUnavailable) as error:
            self.outcome.set_exception(error)
        finally:
            self._source.jobs.pop(self._domain.uuid, None)
            self.outcome.cancel()

    async def _steps(self) -> None:
        times = self._world.times
        destination = self._destination()
        await self._world.clock.sleep(times.prepare_s)
        self._pairs = self._files(destination)
        arriving = destination.accept(self._domain, self._tag, self._disk_paths, self._pairs)
        try:
            await self._copy_disks(destination, arriving)
            await self._copy(destination, arriving)
        except (HypervisorRefused, HypervisorUnavailable):
            destination.lose_process(arriving.process, EventKind.STOPPED)
            raise
        await self._switch(destination, arriving)
        await self._world.clock.sleep(self._switch_s())
        await self._arrive(destination, arriving)
        await self._finish(arriving)

    def _destination(self) -> "SimHost":
        """Where the sockets lead now."""
        operation_id = self._sockets.libvirt.removeprefix(SOCKET_PREFIX).partition("/")[0]
        node_id = self._world.fabric.leads_to(operation_id, self._source.node_id)
        host = self._world.hosts.get(node_id) if node_id is not None else None
        if host is None or not host.up:
            raise HypervisorRefused("Cannot connect to the destination's hypervisor.")
        return host

    def _files(self, destination: "SimHost") -> list[tuple[SimFile, SimFile]]:
        """Of each disk that is copied along: the source's, the destination's."""
        pairs = []
        for disk in self._domain.made.disks:
            if disk.volume_uid in self._copied:
                mine = self._world.file(self._source.node_id, disk.source)
                theirs = self._world.file(destination.node_id, self._disk_paths[disk.volume_uid])
                if mine is None or theirs is None or mine is theirs:
                    raise HypervisorRefused("A disk that is to be copied is not there on both hosts.")
                pairs.append((mine, theirs))
        return pairs

    # ---- copy

    async def _copy_disks(self, destination: "SimHost", arriving: "SimDomain") -> None:
        """Once over; what the guest writes from then on goes to both."""
        self._stalled = self._fault is MigrationFault.STALLS
        self._disk_bytes = self._disk_left_bytes = float(sum(mine.size_mib for mine, _ in self._pairs) * MIB)
        while self._disk_left_bytes > 0:
            await self._still_possible(destination, arriving)
            await self._world.clock.sleep(self._world.times.quantum_s)
            if not self._stalled and not self._domain.process.stopped:
                self._disk_left_bytes = max(0.0, self._disk_left_bytes - self._rate * self._world.times.quantum_s)

    async def _copy(self, destination: "SimHost", arriving: "SimDomain") -> None:
        """Iteration after iteration until what is left fits the downtime; memory that the guest dirties is copied again in the next one."""
        self._stalled = self._fault is MigrationFault.STALLS
        half_bytes = self._left_bytes / 2
        while self._left_bytes + self._dirty_bytes > self._rate * self._downtime_s or self._stalled or self._done_bytes == 0:
            await self._still_possible(destination, arriving)
            await self._world.clock.sleep(self._world.times.quantum_s)
            if not self._stalled and not self._domain.process.stopped:
                self._transfer()
            if self._fault is MigrationFault.FAILS_MIDWAY and self._done_bytes >= half_bytes:
                raise HypervisorRefused("The migration failed: the simulated copy broke.")
        await self._still_possible(destination, arriving)

    def _transfer(self) -> None:
        quantum_s = self._world.times.quantum_s
        sent = min(self._left_bytes, self._rate * quantum_s)
        behaviour = self._world.behaviour(self._domain.uuid)
        speed = (100 - self._throttle.percent) / 100 if self._domain.process.executing else 0.0
        set_mib = min(behaviour.working_set_mib or self._domain.memory_mib, self._domain.memory_mib)
        dirtied = min(self._dirty_bytes + behaviour.dirty_mib_s * MIB * quantum_s * speed, float(set_mib * MIB)) - self._dirty_bytes
        self._done_bytes += sent
        self._left_bytes -= sent
        self._dirty_bytes += dirtied
        self._throttle.note(sent, dirtied, quantum_s)
        if self._left_bytes == 0:
            self._left_bytes, self._dirty_bytes = self._dirty_bytes, 0.0
            self._iteration += 1
            self._throttle.judge()

    def _switch_s(self) -> float:
        """What is left crosses while nobody executes."""
        return self._world.times.switch_s + (self._left_bytes + self._dirty_bytes) / self._rate

    async def _still_possible(self, destination: "SimHost", arriving: "SimDomain") -> None:
        """Raises what libvirt's call would raise now."""
        if self._aborted:
            raise HypervisorRefused("The migration was cancelled.")
        if self._domain.process.dead:
            raise HypervisorRefused("The source's process ended during the migration.")
        if arriving.process.dead or not destination.up:
            raise HypervisorRefused("The destination's process ended during the migration.")
        if not self._source.up:
            raise HypervisorUnavailable("The connection to the simulated hypervisor was lost.")
        if not self._connected():
            await self._world.clock.sleep(self._world.times.reply_timeout_s)
            if not self._connected():
                raise HypervisorRefused("The connection to the destination was lost.")

    def _connected(self) -> bool:
        operation_id = self._sockets.libvirt.removeprefix(SOCKET_PREFIX).partition("/")[0]
        return self._world.fabric.leads_to(operation_id, self._source.node_id) is not None

    # ---- switchover and after

    async def _switch(self, destination: "SimHost", arriving: "SimDomain") -> None:
        """The guest stops; its images are let go of once the copies of those that are copied have everything that it wrote."""
        self._world.pause(self._domain.process)
        self._domain.power = Power.SWITCHED
        self._source.publish(EventKind.SWITCHED, self._domain.uuid)
        if self._pairs:
            await self._world.clock.sleep(self._world.times.drain_s)
            await self._source.until_free(self._domain.uuid, monitor=True)
            try:
                await self._still_possible(destination, arriving)
            except (HypervisorRefused, HypervisorUnavailable):
                destination.lose_process(arriving.process, EventKind.STOPPED)
                await self._let_source_go_on()
                raise
            for mine, theirs in self._pairs:
                theirs.written = mine.written
        self._world.inactivate(self._domain.process)

    async def _arrive(self, destination: "SimHost", arriving: "SimDomain") -> None:
        lost = arriving.process.dead or not destination.up or not self._connected()
        if lost or self._domain.process.dead:
            destination.lose_process(arriving.process, EventKind.STOPPED)
            await self._let_source_go_on()
            raise HypervisorRefused("The migration failed at its last step.")
        self._downtime_ms = round(self._switch_s() * 1000)
        self._done_bytes, self._left_bytes, self._dirty_bytes = self._done_bytes + self._left_bytes + self._dirty_bytes, 0.0, 0.0
        arriving.process.take_memory_of(self._domain.process)
        arriving.power, arriving.received_bytes = Power.PAUSED, int(self._done_bytes)
        destination.publish(EventKind.ARRIVED, arriving.uuid)
        if self._fault is MigrationFault.PAUSED_IGNORED and self._world.begin_executing(arriving.process):
            arriving.power = Power.RUNNING
            destination.publish(EventKind.RESUMED, arriving.uuid)

    async def _finish(self, arriving: "SimDomain") -> None:
        if self._fault in (MigrationFault.FINISH_REPLY_LOST, MigrationFault.PAUSED_IGNORED) or not self._connected():
            await self._world.clock.sleep(self._world.times.reply_timeout_s)
            await self._let_source_go_on()
            raise HypervisorRefused("The connection to the destination was lost.")
        await self._reap()
        if self._fault is MigrationFault.RESULT_LOST or not self._source.up:
            raise HypervisorUnavailable("The connection to the simulated hypervisor was lost.")

    async def _reap(self) -> None:
        """The daemon writes down why it ends the source, then ends it; it does so after its own restart too."""
        times, process = self._world.times, self._domain.process
        if self._source.up:
            self._source.begin_leaving(self._domain)
        await self._world.clock.sleep(times.reap_s)
        if process.stopped and not process.dead:
            await self._world.clock.sleep(max(0.0, times.reap_stopped_s - times.reap_s))
        if self._source.up:
            self._source.lose_process(process, EventKind.STOPPED_MIGRATED)

    async def _let_source_go_on(self) -> None:
        """The daemon's own undoing of what it takes for a failure: it waits for a process that is stopped, and gives up at a lock held."""
        await self._source.until_free(self._domain.uuid, monitor=True)
        if self._domain.process.dead or not self._source.up:
            return
        if self._world.begin_executing(self._domain.process):
            self._domain.power = Power.RUNNING
            self._source.publish(EventKind.RESUMED, self._domain.uuid)
        else:
            self._domain.power = Power.PAUSED
