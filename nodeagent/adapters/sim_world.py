"""A world of simulated hosts in one process: their QEMU processes, storage and links, and a witness that sees what no real observer can.

What a host's hypervisor daemon does is in `sim_host`, a migration in `sim_migration`; here is what goes on whether or not any daemon or agent
is there to look. Processes belong to the world, so domains outlive the agents and the daemons. Guests cost nothing while nobody looks: a
guest's sequence counter is computed from the time that it executed.

Three promises are watched at every moment a copy begins to execute, not when a test happens to look: no other copy of the VM executes and no
other process writes its disks (one owner), no newer execution of that guest has been seen (no stale RAM), and its disks' files have everything
that was ever written to these volumes, on whichever host (no stale disk). `violations` keeps them all.
"""

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from hostler.server.clock import Clock, wall_ms
from nodeagent.adapters.sim_host import SimHost
from nodeagent.adapters.sim_migration import MigrationFault
from nodeagent.adapters.sim_process import SimProcess
from nodeagent.adapters.sim_storage import SimFile, SimFileSystem, drop_write_lock, take_write_lock
from nodeagent.core.observed import HostTotals
from nodeagent.ports import DomainEvent, EventKind

FIRST_PID = 1000


@dataclass(frozen=True, slots=True)
class SimTimes:
    """How long things take, seconds. The defaults are what libvirt 9.0 on QEMU 7.2 takes."""

    call_s: float = 0.0
    """Every call to a hypervisor daemon; 0: it answers at once."""
    prepare_s: float = 0.05
    quantum_s: float = 0.1
    """How often a migration's copy is looked at."""
    switch_s: float = 0.03
    drain_s: float = 0.15
    """From the guest's stop until the copies of its local disks are whole and its images are let go of."""
    reap_s: float = 1.5
    """From the arrival until the source's process is gone and the migration call returns."""
    reap_stopped_s: float = 12.0
    """The same for a process that is stopped by a signal."""
    destroy_s: float = 1.2
    shutdown_s: float = 2.0
    reply_timeout_s: float = 8.0
    """Keepalive: how long a daemon waits for another one that went silent."""


@dataclass(frozen=True, slots=True)
class GuestBehaviour:
    """What a guest does: how fast it dirties memory (and how much of it, over and over; 0: all), and whether it listens to the power button."""

    dirty_mib_s: int = 8
    working_set_mib: int = 0
    ignores_power_button: bool = False


@dataclass(frozen=True, slots=True)
class GuestWitness:
    """The VM's latest execution: its boot, its sequence counter, and the nodes where a copy executes or can write now."""

    boot_id: str
    ticks: int
    executing: tuple[str, ...]
    writers: tuple[str, ...]


@dataclass(slots=True)
class _Tunnel:
    """Destination listens for `source`; `dialled` are the ends that a source has open, as (source, destination)."""

    listening: tuple[str, str] | None = None
    dialled: tuple[str, str] | None = None


class SimFabric:
    """What lies between hosts: links that can be cut, and tunnels by operation id."""

    def __init__(self) -> None:
        self.cut: set[frozenset[str]] = set()
        self.unopenable: set[str] = set()
        """Nodes that can open no end of a tunnel: no directory, no port, no certificate."""
        self._tunnels: defaultdict[str, _Tunnel] = defaultdict(_Tunnel)

    def listen(self, operation_id: str, source: str, destination: str) -> None:
        self._tunnels[operation_id].listening = (source, destination)

    def stop_listening(self, operation_id: str, destination: str) -> None:
        listening = self._tunnels[operation_id].listening
        if listening is not None and listening[1] == destination:
            self._tunnels[operation_id].listening = None
        self._forget_closed(operation_id)

    def dial(self, operation_id: str, source: str, destination: str) -> None:
        self._tunnels[operation_id].dialled = (source, destination)

    def hang_up(self, operation_id: str, source: str) -> None:
        dialled = self._tunnels[operation_id].dialled
        if dialled is not None and dialled[0] == source:
            self._tunnels[operation_id].dialled = None
        self._forget_closed(operation_id)

    def close_all_of(self, node_id: str) -> None:
        """Its agent's process ended: the kernel closes what was open."""
        for operation_id in list(self._tunnels):
            self.stop_listening(operation_id, node_id)
            if operation_id in self._tunnels:
                self.hang_up(operation_id, node_id)

    def _forget_closed(self, operation_id: str) -> None:
        if self._tunnels[operation_id] == _Tunnel():
            del self._tunnels[operation_id]

    def leads_to(self, operation_id: str, source: str) -> str | None:
        """The destination that `source` reaches through this operation's tunnel now; None: one end is not open, or for another, or cut."""
        tunnel = self._tunnels.get(operation_id)
        if tunnel is None or tunnel.dialled is None or tunnel.dialled != tunnel.listening or tunnel.dialled[0] != source:
            return None
        destination = tunnel.dialled[1]
        return None if frozenset((source, destination)) in self.cut else destination


class SimWorld:
    """Hosts, storage, links, time. Use as an async context manager: what goes on by itself (copies, shutdowns) ends with the block."""

    def __init__(self, clock: Clock, times: SimTimes = SimTimes()) -> None:
        self.clock = clock
        self.times = times
        self.fabric = SimFabric()
        self.hosts: dict[str, SimHost] = {}
        self.processes: dict[int, SimProcess] = {}
        self.violations: list[str] = []
        self._behaviours: dict[str, GuestBehaviour] = {}
        self._faults: dict[str, MigrationFault] = {}
        self._latest: dict[str, tuple[str, float]] = {}
        self._written: dict[str, int] = {}
        self._writes = itertools.count(1)
        self._ids = itertools.count(FIRST_PID)
        self._group: asyncio.TaskGroup | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._group = await asyncio.TaskGroup().__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        group, self._group = self._group, None
        for task in self._tasks:
            task.cancel()
        if group is not None:
            await group.__aexit__(kind, error, trace)

    def spawn(self, work: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
        """Something that goes on by itself, whoever asked for it."""
        if self._group is None:
            work.close()
            raise RuntimeError("the world is not running: use `async with`")
        task = self._group.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ---- building

    def add_host(
        self,
        node_id: str,
        *,
        cpu_milli: int = 8000,
        memory_mib_by_cell: Mapping[int, int] | None = None,
        bridges: tuple[str, ...] = ("br0",),
        pools: Mapping[str, SimFileSystem] | None = None,
    ) -> SimHost:
        """A host that is up, with its pools by id."""
        totals = HostTotals(self.fresh_id("hostboot"), cpu_milli, dict(memory_mib_by_cell or {0: 32768}), bridges)
        host = self.hosts[node_id] = SimHost(self, node_id, totals, dict(pools or {}))
        return host

    def fresh_id(self, prefix: str) -> str:
        return f"{prefix}-{next(self._ids)}"

    def behave(self, vm_uid: str, behaviour: GuestBehaviour) -> None:
        """What that VM's guest does from now on, on every host."""
        self._behaviours[vm_uid] = behaviour

    def behaviour(self, vm_uid: str) -> GuestBehaviour:
        return self._behaviours.get(vm_uid, GuestBehaviour())

    # ---- witness

    def guest(self, vm_uid: str) -> GuestWitness:
        """Raises KeyError if no copy of it ever executed."""
        copies = self.copies(vm_uid)
        for copy in copies:
            self._settle(copy)
        boot_id, ran_s = self._latest[vm_uid]
        executing = tuple(sorted(copy.node_id for copy in copies if copy.executing))
        writers = tuple(sorted(copy.node_id for copy in copies if copy.executing or copy.holds_locks))
        return GuestWitness(boot_id, SimProcess.ticks_after(ran_s), executing, writers)

    def copies(self, vm_uid: str) -> list[SimProcess]:
        return [process for process in self.processes.values() if process.vm_uid == vm_uid]

    def assert_one_writer(self) -> None:
        """Raises AssertionError with everything that ever went wrong in this world."""
        if self.violations:
            raise AssertionError("; ".join(self.violations))

    # ---- processes

    def start_process(self, process: SimProcess) -> None:
        self.processes[process.pid] = process

    def new_pid(self) -> int:
        return next(self._ids)

    def begin_executing(self, process: SimProcess) -> bool:
        """Take the write locks and execute; False: a lock is held elsewhere, nothing changed."""
        if not take_write_lock(process.disks, process.pid):
            return False
        process.paused = False
        self._note_execution(process)
        return True

    def pause(self, process: SimProcess) -> None:
        """The guest's CPUs stop; its images stay open for writing."""
        self._settle(process)
        process.paused = True

    def inactivate(self, process: SimProcess) -> None:
        """What QEMU does at a switchover: CPUs stop, images are flushed and let go of."""
        self.pause(process)
        drop_write_lock(process.disks, process.pid)

    def take_locks(self, process: SimProcess) -> bool:
        return take_write_lock(process.disks, process.pid)

    def new_boot(self, process: SimProcess) -> None:
        """The guest's memory is lost, its disks stay: a reset."""
        self._settle(process)
        process.boot_id, process.ran_s = self.fresh_id("boot"), 0.0
        process.booted = process.executing
        if process.executing:
            self._latest[process.vm_uid] = (process.boot_id, 0.0)

    def stop_by_signal(self, process: SimProcess) -> None:
        self._settle(process)
        process.stopped = True

    def continue_by_signal(self, process: SimProcess) -> None:
        if process.stopped:
            process.stopped = False
            if process.executing:
                self._note_execution(process)

    def end_process(self, process: SimProcess) -> None:
        """It is dead, whatever it was doing: locks are the kernel's and go with it."""
        self._settle(process)
        drop_write_lock(process.disks, process.pid)
        self.processes.pop(process.pid, None)
        process.dead = True

    def _settle(self, process: SimProcess) -> None:
        """Account for the time that the guest executed until now."""
        now_s = self.clock.monotonic_s()
        if process.executing:
            process.ran_s += now_s - process.since_s
            self._latest[process.vm_uid] = (process.boot_id, process.ran_s)
            for file in process.disks:
                file.written = self._written[file.name] = next(self._writes)
        process.since_s = now_s

    def _note_execution(self, process: SimProcess) -> None:
        """It executes from now on: is anything of the promises broken by that?"""
        process.since_s = self.clock.monotonic_s()
        for other in self.processes.values():
            if other is not process and other.executing:
                self._settle(other)
                self._judge_pair(process, other)
        boot_id, ran_s = self._latest.get(process.vm_uid, (process.boot_id, 0.0))
        seen_newer = ran_s > process.ran_s if boot_id == process.boot_id else process.booted
        process.booted = True
        for file in process.disks:
            if file.written != self._written.get(file.name, 0):
                self.violations.append(f"stale disk: {process.vm_uid} on {process.node_id} lacks what was written to {file.name}")
        if seen_newer:
            self.violations.append(f"stale RAM: {process.vm_uid} on {process.node_id} goes on from before {boot_id} at {ran_s:.3f} s")
        self._latest[process.vm_uid] = (process.boot_id, process.ran_s)

    def _judge_pair(self, process: SimProcess, other: SimProcess) -> None:
        where = f"{process.node_id} and {other.node_id} at {self.clock.monotonic_s():.3f} s"
        if other.vm_uid == process.vm_uid:
            self.violations.append(f"two copies of {process.vm_uid} execute on {where}")
        if any(mine is theirs for mine in process.disks for theirs in other.disks):
            self.violations.append(f"two writers of one disk, {process.vm_uid} and {other.vm_uid} on {where}")

    # ---- faults

    def script_migration(self, vm_uid: str, fault: MigrationFault) -> None:
        """The next migration of that VM goes wrong in this way."""
        self._faults[vm_uid] = fault

    def take_migration_fault(self, vm_uid: str) -> MigrationFault | None:
        return self._faults.pop(vm_uid, None)

    def cut_link(self, a: str, b: str) -> None:
        self.fabric.cut.add(frozenset((a, b)))

    def mend_link(self, a: str, b: str) -> None:
        self.fabric.cut.discard(frozenset((a, b)))

    # ---- for hosts

    def file(self, node_id: str, path: str) -> SimFile | None:
        """What that path is on that host."""
        for pool_id, file_system in self.hosts[node_id].pools.items():
            root = pool_root(node_id, pool_id) + "/"
            if path.startswith(root):
                return file_system.files.get(path.removeprefix(root))
        return None

    def event(self, kind: EventKind, vm_uid: str) -> DomainEvent:
        return DomainEvent(kind, vm_uid, wall_ms(self.clock))


def pool_root(node_id: str, pool_id: str) -> str:
    """Where a simulated host has a pool: another path on every host, so that nobody gets by with the source's path."""
    return f"/sim/{node_id}/{pool_id}"
