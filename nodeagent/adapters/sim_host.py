"""One simulated host: its hypervisor daemon, the domains the daemon knows, and the ways in which both fail.

A request that reaches a daemon which does not answer is not lost: it is carried out when the daemon comes to itself, whether or not anybody
still waits, because that is what libvirtd does with a request that it has read. A request in a daemon that dies is never carried out.
A process stopped by a signal blocks what needs its monitor, for that domain alone.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from hostler.model.domain import DomainSpec
from nodeagent.adapters.sim_events import EventHub
from nodeagent.adapters.sim_migration import MigrationJob
from nodeagent.adapters.sim_process import SimProcess
from nodeagent.adapters.sim_storage import SimFile, SimFileSystem, take_write_lock
from nodeagent.core.domain_xml import cpu_weight
from nodeagent.core.observed import CopyTag, DiskShape, DomainShape, DomainView, HostTotals, NicShape, Power
from nodeagent.ports import DomainEvent, EventKind, HypervisorRefused, HypervisorUnavailable, LiveMigration

if TYPE_CHECKING:
    from nodeagent.adapters.sim_world import SimWorld

T = TypeVar("T")

UNMANAGED_MEMORY_MIB = 512

MACHINE, CPU, DEVICES = "sim-1", "<cpu><model>sim</model></cpu>", ("disk/virtio", "interface/virtio")
"""What simulated guests are made of."""


@dataclass(frozen=True, slots=True)
class SimSoftware:
    """What the host's hypervisor can run, and of which versions."""

    machines: frozenset[str] = frozenset({MACHINE})
    cpus: frozenset[str] = frozenset({CPU})
    devices: frozenset[str] = frozenset(DEVICES)
    libvirt_version: int = 9_000_000
    qemu_version: int = 7_002_000


@dataclass(slots=True, eq=False)
class SimDomain:
    """What the daemon knows of one domain."""

    name: str
    uuid: str
    tag: CopyTag | None
    vcpus: int
    memory_mib: int
    power: Power
    process: SimProcess
    made: DomainShape
    """As it was made, with what was changed by hand since."""
    received_bytes: int = 0
    """If it arrived by a migration."""
    leaving: bool = False
    """The daemon has written down that it migrated away, and is ending it."""

    def shape(self) -> DomainShape:
        return replace(self.made, tag=self.tag, suspended=self.power is Power.PAUSED)

    def view(self) -> DomainView:
        return DomainView(self.name, self.uuid, self.power, self.tag, self.vcpus, self.memory_mib, self.process.pid)


class SimHost:
    """A host of the world. Methods without `async` are what its daemon does at once; `request` is how an agent asks for it."""

    def __init__(self, world: "SimWorld", node_id: str, totals: HostTotals, pools: dict[str, SimFileSystem]) -> None:
        self.world = world
        self.node_id = node_id
        self.totals = totals
        self.pools = pools
        self.domains: dict[str, SimDomain] = {}
        self.jobs: dict[str, MigrationJob] = {}
        self.events = EventHub()
        self.up = True
        self.software = SimSoftware()
        self.records: defaultdict[str, list[EventKind]] = defaultdict(list)
        """What the daemon wrote down of each VM's starts and ends: a file, which outlives it."""
        self.refuse_create = ""
        """Not empty: every creation is refused with this sentence."""
        self._hung = False
        self._hung_domains: set[str] = set()
        self._generation = 0
        self._wake = asyncio.Event()
        self._held_events: list[DomainEvent] = []

    # ---- asking the daemon

    async def request(self, vm_uid: str, work: Callable[[], T], deadline_s: float, *, monitor: bool = False) -> T:
        """What `work` answers, carried out when the daemon can. Raises HypervisorUnavailable after the deadline or if the daemon dies."""
        if not self.up:
            raise HypervisorUnavailable("The simulated hypervisor daemon is down.")
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(_look_at)
        if self._blocked(vm_uid, monitor=monitor) or self.world.times.call_s > 0:
            self.world.spawn(self._serve(vm_uid, work, answer, monitor=monitor), f"{self.node_id} request {vm_uid}")
            await self._within(answer, deadline_s)
        else:
            _carry_out(work, answer)
        return answer.result()

    async def _within(self, answer: "asyncio.Future[T]", deadline_s: float) -> None:
        async with asyncio.TaskGroup() as group:
            timer = group.create_task(self.world.clock.sleep(deadline_s), name="deadline")
            waiting: set[asyncio.Future[Any]] = {answer, timer}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            timer.cancel()
        if not answer.done():
            raise HypervisorUnavailable(f"The simulated hypervisor did not answer within {deadline_s:g} s.")

    async def _serve(self, vm_uid: str, work: Callable[[], T], answer: "asyncio.Future[T]", *, monitor: bool) -> None:
        generation = self._generation
        await self.until_free(vm_uid, monitor=monitor)
        await self.world.clock.sleep(self.world.times.call_s)
        if generation != self._generation or not self.up:
            answer.set_exception(HypervisorUnavailable("The connection to the simulated hypervisor was lost."))
        else:
            _carry_out(work, answer)

    async def until_free(self, vm_uid: str, *, monitor: bool) -> None:
        """Wait until the daemon can deal with that domain; with `monitor`, until its process answers as well."""
        while self._blocked(vm_uid, monitor=monitor):
            await self._wake.wait()

    def _blocked(self, vm_uid: str, *, monitor: bool) -> bool:
        domain = self.domains.get(vm_uid)
        stopped = monitor and domain is not None and domain.process.stopped
        return self.up and (self._hung or vm_uid in self._hung_domains or stopped)

    def _changed(self) -> None:
        wake, self._wake = self._wake, asyncio.Event()
        wake.set()

    # ---- faults

    def hang(self, vm_uid: str = "") -> None:
        """The daemon, or what it does for one domain, gets stuck."""
        if vm_uid:
            self._hung_domains.add(vm_uid)
        else:
            self._hung = True

    def unhang(self, vm_uid: str = "") -> None:
        """It comes to itself, with everything that was asked of it meanwhile."""
        if vm_uid:
            self._hung_domains.discard(vm_uid)
        else:
            self._hung = False
            held, self._held_events = self._held_events, []
            for event in held:
                self.events.publish(event)
        self._changed()

    def unhang_all(self) -> None:
        """Nothing is stuck any more; what it did for a domain may be, though that has gone since."""
        self._hung_domains.clear()
        self.unhang()

    def crash_daemon(self) -> None:
        """The daemon dies; the domains go on."""
        self.up, self._hung = False, False
        self._generation += 1
        self._hung_domains.clear()
        self._held_events.clear()
        self.events.publish(self.world.event(EventKind.CONNECTION_LOST, ""))
        self._changed()

    def restart_daemon(self) -> None:
        """A new daemon finds the domains that are still there, and ends those that its predecessor was ending."""
        for process in [domain.process for domain in self.domains.values() if domain.leaving]:
            self.world.end_process(process)
        self.domains = {uid: domain for uid, domain in self.domains.items() if not domain.process.dead}
        self.up = True
        self.events.publish(self.world.event(EventKind.CONNECTION_BACK, ""))

    def crash_host(self) -> None:
        """Power loss: every process dies at once. `boot_host` is the way back."""
        for process in [process for process in self.world.processes.values() if process.node_id == self.node_id]:
            self.world.end_process(process)
        self.domains.clear()
        self.crash_daemon()

    def boot_host(self) -> None:
        """The host is back, under a new boot id, with nothing running."""
        totals = self.totals
        boot_id = self.world.fresh_id("hostboot")
        self.totals = HostTotals(boot_id, totals.cpu_milli, totals.memory_mib_by_cell, totals.bridges)
        self.restart_daemon()

    def crash_domain(self, vm_uid: str) -> None:
        """Its process ends by itself."""
        self.lose_process(self.domains[vm_uid].process, EventKind.CRASHED)

    def add_unmanaged(self, name: str, vcpus: int = 1, memory_mib: int = UNMANAGED_MEMORY_MIB) -> str:
        """A running domain that somebody else made; its uuid."""
        uuid = self.world.fresh_id("foreign")
        process = self._new_process(uuid, memory_mib, ())
        made = DomainShape(uuid, name, None, vcpus, memory_mib, 0)
        self.domains[uuid] = SimDomain(name, uuid, None, vcpus, memory_mib, Power.RUNNING, process, made)
        self.world.begin_executing(process)
        return uuid

    # ---- by hand, past the agent

    def change_by_hand(self, vm_uid: str, change: Callable[[DomainShape], DomainShape]) -> None:
        """What `virsh setmem`, `attach-disk`, `define` and the like do to what the domain is made of."""
        domain = self.domains[vm_uid]
        domain.made = change(domain.made)
        domain.tag = domain.made.tag

    def suspend_by_hand(self, vm_uid: str) -> None:
        """`virsh suspend`; `resume` undoes it."""
        domain = self.domains[vm_uid]
        self.world.pause(domain.process)
        domain.power = Power.PAUSED
        self.publish(EventKind.SUSPENDED, vm_uid)

    def destroy_by_hand(self, vm_uid: str) -> None:
        """`virsh destroy`."""
        self.lose_process(self.domains[vm_uid].process, EventKind.DESTROYED)

    # ---- what the daemon does

    def shapes(self) -> dict[str, DomainShape | None]:
        """None: the daemon is stuck with that domain."""
        return {uuid: None if uuid in self._hung_domains else domain.shape() for uuid, domain in self.domains.items()}

    def publish(self, kind: EventKind, vm_uid: str) -> None:
        event = self.world.event(kind, vm_uid)
        if self._hung:
            self._held_events.append(event)
        elif self.up:
            self.events.publish(event)

    def get(self, vm_uid: str) -> SimDomain:
        domain = self.domains.get(vm_uid)
        if domain is None:
            raise HypervisorRefused("There is no domain of this VM on this host.")
        return domain

    def create(self, spec: DomainSpec, tag: CopyTag, disk_paths: Mapping[str, str]) -> SimDomain:
        """A new, paused process, which opens its images for writing at once like QEMU does."""
        if self.refuse_create:
            raise HypervisorRefused(self.refuse_create)
        process = self._new_process(spec.vm_uid, spec.memory_mib, self._open(spec.vm_uid, [disk_paths[d.volume_uid] for d in spec.disks]))
        if not self.world.take_locks(process):
            self.world.end_process(process)
            raise HypervisorRefused("Failed to get the write lock of a disk: another process has it open.")
        made = _shape_of(spec, tag, disk_paths)
        domain = SimDomain(spec.vm_uid, spec.vm_uid, tag, spec.vcpus, spec.memory_mib, Power.PAUSED, process, made)
        self.domains[spec.vm_uid] = domain
        self.records[spec.vm_uid].append(EventKind.STARTED)
        self.publish(EventKind.STARTED, spec.vm_uid)
        self.publish(EventKind.SUSPENDED, spec.vm_uid)
        return domain

    def accept(self, source: SimDomain, tag: CopyTag, disk_paths: Mapping[str, str], pairs: Sequence[tuple[SimFile, SimFile]]) -> SimDomain:
        """Destination of a migration: a process that waits for the copy. Of its images only those are open for writing that are copied too:
        `pairs` are the source's file and this host's of each."""
        if not self.up or self._hung:
            raise HypervisorUnavailable("The destination's hypervisor does not answer.")
        disks = self._open(source.uuid, list(disk_paths.values()))
        fed = {id(theirs): mine for mine, theirs in pairs}
        if {id(fed.get(id(file), file)) for file in disks} != {id(file) for file in source.process.disks}:
            raise HypervisorRefused("Unsafe migration: the disks on the destination are not the same files.")
        if any(mine.size_mib != theirs.size_mib for mine, theirs in pairs):
            raise HypervisorRefused("Source and target image have different sizes.")
        process = self._new_process(source.uuid, source.memory_mib, disks)
        if not take_write_lock(tuple(theirs for _, theirs in pairs), process.pid):
            self.world.end_process(process)
            raise HypervisorRefused("Failed to get the write lock of a disk: another process has it open.")
        disks_there = tuple(replace(disk, source=disk_paths.get(disk.volume_uid, disk.source)) for disk in source.made.disks)
        made = replace(source.made, disks=disks_there, persistent=False, autostart=False)
        domain = SimDomain(source.name, source.uuid, tag, source.vcpus, source.memory_mib, Power.INCOMING, process, made)
        self.domains[source.uuid] = domain
        self.records[source.uuid].append(EventKind.STARTED)
        self.publish(EventKind.STARTED, source.uuid)
        return domain

    def resume(self, vm_uid: str) -> None:
        domain = self.get(vm_uid)
        if domain.power is Power.RUNNING:
            return
        if domain.power is Power.INCOMING or vm_uid in self.jobs:
            raise HypervisorRefused("The domain is being migrated.")
        if not self.world.begin_executing(domain.process):
            raise HypervisorRefused("Failed to get the write lock of a disk: another process has it open.")
        domain.power = Power.RUNNING
        self.publish(EventKind.RESUMED, vm_uid)

    def press_power_button(self, vm_uid: str) -> None:
        domain = self.get(vm_uid)
        if domain.power is not Power.RUNNING:
            raise HypervisorRefused("The domain is not running.")
        if not self.world.behaviour(vm_uid).ignores_power_button:
            self.world.spawn(self._shut_down(domain), f"{self.node_id} shutdown {vm_uid}")

    async def _shut_down(self, domain: SimDomain) -> None:
        await self.world.clock.sleep(self.world.times.shutdown_s)
        await self.until_free(domain.uuid, monitor=True)
        if domain.process.executing:
            self.lose_process(domain.process, EventKind.STOPPED)

    def reset(self, vm_uid: str) -> None:
        domain = self.get(vm_uid)
        if domain.power is not Power.RUNNING:
            raise HypervisorRefused("The domain is not running.")
        self._reboot(domain)

    def ask_to_reboot(self, vm_uid: str) -> None:
        """As the power button, for a guest that comes up again."""
        domain = self.get(vm_uid)
        if domain.power is not Power.RUNNING:
            raise HypervisorRefused("The domain is not running.")
        if not self.world.behaviour(vm_uid).ignores_power_button:
            self.world.spawn(self._reboot_in_time(domain), f"{self.node_id} reboot {vm_uid}")

    async def _reboot_in_time(self, domain: SimDomain) -> None:
        await self.world.clock.sleep(self.world.times.shutdown_s)
        await self.until_free(domain.uuid, monitor=True)
        if domain.process.executing:
            self._reboot(domain)

    def _reboot(self, domain: SimDomain) -> None:
        self.world.new_boot(domain.process)
        self.publish(EventKind.REBOOTED, domain.uuid)

    def begin_destroy(self, vm_uid: str) -> "asyncio.Task[None] | None":
        """The task that ends it; None: there is nothing to end."""
        domain = self.domains.get(vm_uid)
        if domain is None:
            return None
        return self.world.spawn(self._destroy(domain.process), f"{self.node_id} destroy {vm_uid}")

    async def _destroy(self, process: SimProcess) -> None:
        times = self.world.times
        await self.world.clock.sleep(times.reap_stopped_s if process.stopped else times.destroy_s)
        self.lose_process(process, EventKind.STOPPED)

    def begin_migration(self, migration: LiveMigration) -> MigrationJob:
        vm_uid = migration.tag.vm_uid
        domain = self.get(vm_uid)
        if vm_uid in self.jobs:
            raise HypervisorRefused("The domain is being migrated already.")
        if domain.power is not Power.RUNNING:
            raise HypervisorRefused("The domain is not running.")
        job = self.jobs[vm_uid] = MigrationJob(self, domain, migration)
        self.world.spawn(job.run(), f"{self.node_id} migrate {vm_uid}")
        return job

    def begin_leaving(self, domain: SimDomain) -> None:
        """The last step of its migration is confirmed: written down, and not to be taken back."""
        domain.leaving = True
        self.records[domain.uuid].append(EventKind.STOPPED_MIGRATED)

    def lose_process(self, process: SimProcess, kind: EventKind) -> None:
        """The process is gone, and its domain with it, for the reason that the event names."""
        if process.dead:
            return
        self.world.end_process(process)
        domain = self.domains.get(process.vm_uid)
        if domain is not None and domain.process is process:
            del self.domains[process.vm_uid]
            kind = EventKind.STOPPED_MIGRATED if domain.leaving else kind
            if self.up and not domain.leaving:
                self.records[process.vm_uid].append(EventKind.STOPPED if kind is EventKind.DESTROYED else kind)
            self.publish(kind, process.vm_uid)
        self._changed()

    # ---- signals, past the daemon

    def process_of(self, vm_uid: str) -> SimProcess | None:
        return next((process for process in self.world.copies(vm_uid) if process.node_id == self.node_id), None)

    def signal_stop(self, process: SimProcess) -> None:
        self.world.stop_by_signal(process)

    def signal_continue(self, process: SimProcess) -> None:
        self.world.continue_by_signal(process)
        self._changed()

    def _new_process(self, vm_uid: str, memory_mib: int, disks: tuple[SimFile, ...]) -> SimProcess:
        world = self.world
        process = SimProcess(world.new_pid(), self.node_id, vm_uid, memory_mib, disks, world.fresh_id("boot"))
        world.start_process(process)
        return process

    def _open(self, vm_uid: str, paths: list[str]) -> tuple[SimFile, ...]:
        if vm_uid in self.domains:
            raise HypervisorRefused("A domain of this VM exists on this host already.")
        found = [self.world.file(self.node_id, path) for path in paths]
        files = tuple(file for file in found if file is not None)
        if len(files) != len(found):
            raise HypervisorRefused("A disk of this VM is not there on this host.")
        return files


def _shape_of(spec: DomainSpec, tag: CopyTag, disk_paths: Mapping[str, str]) -> DomainShape:
    targets = (f"vd{chr(ord('a') + index)}" for index in range(len(spec.disks)))
    return DomainShape(
        spec.vm_uid,
        spec.vm_uid,
        tag,
        spec.vcpus,
        spec.memory_mib,
        cpu_weight(spec.cpu_floor_milli),
        tuple(DiskShape(disk.volume_uid, disk_paths[disk.volume_uid], target) for disk, target in zip(spec.disks, targets, strict=True)),
        tuple(NicShape(nic.mac_address, nic.bridge) for nic in spec.nics),
    )


def _carry_out(work: Callable[[], T], answer: "asyncio.Future[T]") -> None:
    try:
        answer.set_result(work())
    except (HypervisorRefused, HypervisorUnavailable) as error:
        answer.set_exception(error)


def _look_at(answer: "asyncio.Future[T]") -> None:
    """An answer that nobody waits for any more may be an exception; having looked at it keeps asyncio from complaining."""
    if not answer.cancelled():
        answer.exception()
