"""The `Hypervisor` port over one simulated host: what an agent sees of it.

An instance is one agent's connection and holds nothing that matters: after a restart of the agent a new instance finds domains, migrations
and events as they are. Signals go past the daemon, so they work while it hangs, exactly like pidfds.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import TypeVar

from hostler.model.domain import DomainSpec
from nodeagent.adapters.sim_events import QUEUE_EVENTS
from nodeagent.adapters.sim_host import CPU, DEVICES, MACHINE, SimHost
from nodeagent.adapters.sim_world import SimWorld
from nodeagent.core.observed import CopyTag, DomainShape, DomainView, Locks, MigrationProgress
from nodeagent.ports import (
    DomainEvent,
    EventKind,
    GuestFacts,
    HypervisorFacts,
    HypervisorRefused,
    LiveMigration,
    Reception,
    Tune,
)

T = TypeVar("T")

DEADLINE_S = 5.0
"""For any call but migrate: the same patience as with a real libvirtd, which answers in milliseconds or is in trouble."""

DIRTY_RATE_S = 1.0
"""What it measures over, like the real one."""

DESTROY_PATIENCE_S = 2.0
"""Until a process that does not go by itself is killed: a little above what libvirt takes."""


class SimHypervisor:
    """One agent's view of `world.hosts[node_id]`."""

    def __init__(self, world: SimWorld, node_id: str, *, deadline_s: float = DEADLINE_S, queue_events: int = QUEUE_EVENTS) -> None:
        self._world = world
        self._node_id = node_id
        self._deadline_s = deadline_s
        self._queue_events = queue_events

    @property
    def _host(self) -> SimHost:
        return self._world.hosts[self._node_id]

    async def facts(self) -> HypervisorFacts:
        return await self._ask("", self._facts)

    def _facts(self) -> HypervisorFacts:
        software = self._host.software
        return HypervisorFacts("Simulated hypervisor", "SIMULATION", "NONE", software.libvirt_version, software.qemu_version)

    async def domains(self) -> tuple[DomainView, ...]:
        return await self._ask("", lambda: tuple(domain.view() for domain in self._host.domains.values()))

    async def domain(self, vm_uid: str) -> DomainView | None:
        def look() -> DomainView | None:
            domain = self._host.domains.get(vm_uid)
            return domain.view() if domain is not None else None

        return await self._ask(vm_uid, look)

    async def shapes(self) -> Mapping[str, DomainShape | None]:
        return await self._ask("", self._host.shapes)

    async def create_paused(self, spec: DomainSpec, tag: CopyTag, disk_paths: Mapping[str, str]) -> DomainView:
        return await self._ask(spec.vm_uid, lambda: self._host.create(spec, tag, disk_paths).view())

    async def resume(self, vm_uid: str) -> None:
        await self._ask(vm_uid, lambda: self._host.resume(vm_uid), monitor=True)

    async def press_power_button(self, vm_uid: str) -> None:
        await self._ask(vm_uid, lambda: self._host.press_power_button(vm_uid), monitor=True)

    async def reboot(self, vm_uid: str) -> None:
        await self._ask(vm_uid, lambda: self._host.ask_to_reboot(vm_uid), monitor=True)

    async def reset(self, vm_uid: str) -> None:
        await self._ask(vm_uid, lambda: self._host.reset(vm_uid), monitor=True)

    async def destroy(self, vm_uid: str) -> None:
        ending = await self._ask(vm_uid, lambda: self._host.begin_destroy(vm_uid))
        if ending is not None and not await self._ends_within(ending, DESTROY_PATIENCE_S):
            await self.kill(vm_uid)

    def freeze(self, vm_uid: str) -> bool:
        process = self._host.process_of(vm_uid)
        if process is not None:
            self._host.signal_stop(process)
        return process is not None

    def thaw(self, vm_uid: str) -> bool:
        process = self._host.process_of(vm_uid)
        if process is not None:
            self._host.signal_continue(process)
        return process is not None

    def is_frozen(self, vm_uid: str) -> bool:
        process = self._host.process_of(vm_uid)
        return process is not None and process.stopped

    async def kill(self, vm_uid: str) -> None:
        process = self._host.process_of(vm_uid)
        if process is not None:
            self._host.lose_process(process, EventKind.CRASHED)

    async def locks(self, disk_paths: tuple[str, ...]) -> Locks:
        files = [self._world.file(self._node_id, path) for path in disk_paths]
        found = [file for file in files if file is not None]
        if not found or len(found) != len(files) or not all(file.lockable for file in found):
            return Locks.UNPROVABLE
        return Locks.HELD if any(file.holder_pid for file in found) else Locks.FREE

    async def migrate(self, migration: LiveMigration) -> None:
        job = await self._ask(migration.tag.vm_uid, lambda: self._host.begin_migration(migration), monitor=True)
        await asyncio.shield(job.outcome)

    async def abort_migration(self, vm_uid: str) -> None:
        def abort() -> None:
            job = self._host.jobs.get(vm_uid)
            if job is not None:
                job.abort()

        await self._ask(vm_uid, abort, monitor=True)

    async def tune_migration(self, vm_uid: str, change: Tune) -> None:
        def tune() -> None:
            job = self._host.jobs.get(vm_uid)
            if job is None:
                raise HypervisorRefused("The VM is not being migrated.")
            job.tune(change)

        await self._ask(vm_uid, tune, monitor=True)

    async def migration_progress(self, vm_uid: str) -> MigrationProgress | None:
        def look() -> MigrationProgress | None:
            job = self._host.jobs.get(vm_uid)
            return job.progress() if job is not None else None

        return await self._ask(vm_uid, look)

    async def received_bytes(self, vm_uid: str) -> int:
        return await self._ask(vm_uid, lambda: self._host.domains[vm_uid].received_bytes if vm_uid in self._host.domains else 0)

    async def guest_facts(self, vm_uid: str) -> GuestFacts | None:
        return await self._ask(vm_uid, lambda: GuestFacts(MACHINE, CPU, DEVICES) if vm_uid in self._host.domains else None)

    async def reception(self, guest: GuestFacts) -> Reception:
        def judge() -> Reception:
            software = self._host.software
            if guest.machine not in software.machines:
                return Reception(machine_refused=f"it does not know the machine type {guest.machine}.")
            refused = "" if guest.cpu_xml in software.cpus else "it cannot give the guest's CPU."
            return Reception("", refused, tuple(one for one in guest.devices if one not in software.devices))

        return await self._ask("", judge)

    async def dirty_rate(self, vm_uid: str) -> int | None:
        def look() -> bool:
            domain = self._host.domains.get(vm_uid)
            if domain is None:
                raise HypervisorRefused("The VM has no domain on this host.")
            return domain.process.executing

        executing = await self._ask(vm_uid, look, monitor=True)
        await self._world.clock.sleep(DIRTY_RATE_S)
        return self._world.behaviour(vm_uid).dirty_mib_s << 20 if executing else 0

    async def record_mark(self, vm_uid: str) -> str:
        return str(len(self._host.records[vm_uid]))

    async def recorded_ending(self, vm_uid: str, mark: str) -> EventKind | None:
        written = self._host.records[vm_uid][int(mark) :] if mark else []
        started = max((place for place, kind in enumerate(written) if kind is EventKind.STARTED), default=-1)
        since = written[started + 1 :]
        if EventKind.STOPPED_MIGRATED in since:
            return EventKind.STOPPED_MIGRATED
        return since[-1] if since else None

    def libvirt_socket(self) -> str:
        return f"sim:{self._node_id}"

    def events(self) -> AsyncGenerator[DomainEvent, None]:
        return self._host.events.read(self._queue_events)

    async def _ask(self, vm_uid: str, work: Callable[[], T], *, monitor: bool = False) -> T:
        return await self._host.request(vm_uid, work, self._deadline_s, monitor=monitor)

    async def _ends_within(self, ending: "asyncio.Task[None]", timeout_s: float) -> bool:
        async with asyncio.TaskGroup() as group:
            timer = group.create_task(self._world.clock.sleep(timeout_s), name="patience")
            await asyncio.wait({ending, timer}, return_when=asyncio.FIRST_COMPLETED)
            timer.cancel()
        return ending.done()
