"""The steps of a VM's life on this host. Each measures, acts if needed, verifies, and may be repeated at any time.

The order in `start` is a safety argument: the domain is created paused, the owner is read after it exists, and only then is it resumed. However
long a call hangs, nothing executes on the strength of an owner record that was read before.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from hostler.errors import Conflict, FailedPrecondition, HostlerError, NotFound, Reason
from hostler.model.copy import Copy
from hostler.model.domain import DomainSpec, VolumeSpec
from hostler.model.node import VMPower, VMStatus
from hostler.model.owner import OwnerState, may_run
from hostler.server.clock import Clock
from nodeagent.core.definitions import Command, Definition, has_run
from nodeagent.core.ledger import Account, CapacityCap, account, misfit, no_room
from nodeagent.core.observed import CopyTag, DomainView, Power
from nodeagent.engine.heeding import heard, heed, not_buried
from nodeagent.engine.host_state import HostState
from nodeagent.engine.observer import Observer
from nodeagent.ports import EventKind, HostFacts, Hypervisor, OwnerAuthority, Volumes

LOOK_AGAIN_S = 2.0
"""While waiting for an event: look at the domain this often all the same, for an event can be lost with the connection."""

REBOOT_GRACE_S = 30.0
"""For a guest that was asked to reboot to do so; after it its machine is reset. A Linux server shuts down in 2-20 s."""

POWER_TAKEN = "Its power was taken past Hostler, with `virsh destroy` or the like."

POWERS = {
    Power.RUNNING: VMPower.ON,
    Power.SHUTTING_DOWN: VMPower.ON,
    Power.PAUSED: VMPower.PAUSED,
    Power.INCOMING: VMPower.PAUSED,
    Power.SWITCHED: VMPower.PAUSED,
    Power.CRASHED: VMPower.CRASHED,
}


@dataclass(slots=True)
class _Reboot:
    """A guest that was asked to reboot: by which operation, after how many reboots, and until when it has time."""

    operation_id: str
    reboots_before: int
    until_s: float
    done: bool = False


@dataclass(frozen=True, slots=True)
class Offer:
    """What of the host is on offer, from the settings."""

    cap: CapacityCap
    reserve_mib: int


class HostVMs:
    """VMs of one host, by uid."""

    def __init__(
        self,
        node_id: str,
        hypervisor: Hypervisor,
        volumes: Volumes,
        facts: HostFacts,
        authority: OwnerAuthority,
        state: HostState,
        observer: Observer,
        offer: Offer,
        clock: Clock,
    ) -> None:
        self._node_id = node_id
        self._hypervisor = hypervisor
        self._volumes = volumes
        self._facts = facts
        self._authority = authority
        self._state = state
        self._observer = observer
        self._offer = offer
        self._clock = clock
        self._reboots: dict[str, _Reboot] = {}
        self.drift: Mapping[str, tuple[str, ...]] = {}
        """What `drift.DriftWatch` found last, by VM uid; only VMs with findings are in it."""

    # ---- volumes

    async def ensure_volume(self, volume: VolumeSpec) -> int:
        """Make the volume's file if it is not there; its size in MiB."""
        return await self._volumes.ensure(volume)

    async def remove_volume(self, volume: VolumeSpec) -> None:
        """Remove the volume's file, unless a VM defined here uses it."""
        user = next((d for d in self._state.definitions.values() if any(k.volume_uid == volume.volume_uid for k in d.spec.disks)), None)
        if user is not None:
            raise FailedPrecondition(Reason.VOLUME_IN_USE, f"The volume is a disk of {user.spec.vm_id}.", "Delete that VM first.")
        await self._volumes.remove(volume)

    def disk_paths(self, spec: DomainSpec) -> Mapping[str, str]:
        """Where this host has the VM's disks, by volume uid."""
        return {disk.volume_uid: self._volumes.path(disk.pool_id, disk.volume_uid, disk.format) for disk in spec.disks}

    # ---- the ledger

    async def account(self) -> Account:
        """The host's account now."""
        domains = await self._hypervisor.domains()
        return account(
            await self._facts.totals(),
            await self._volumes.pools(),
            self._offer.cap,
            self._offer.reserve_mib,
            [domain for domain in domains if domain.tag is None],
            self._state.charges(),
        )

    async def admit(self, definition: Definition) -> None:
        """Take the definition into the ledger, on disk before it counts; raises NoCapacity. A VM that is there already is not charged again."""
        self._takes_in()
        async with self._state.ledger_lock:
            if definition.spec.vm_uid not in self._state.definitions:
                short = misfit(await self.account(), definition.spec)
                if short:
                    raise no_room(self._node_id, definition.spec.vm_id, short)
            await self._state.keep_definition(definition)

    # ---- the life of a VM

    async def define(self, command: Command, spec: DomainSpec) -> VMStatus:
        """Take the VM into the ledger and keep its definition."""
        async with self._state.vm_lock(spec.vm_uid):
            if command.vm_uid in self._state.definitions:
                await self._judge(command)
            else:
                not_buried(self._state, self._node_id, command)
            missing = sorted({nic.bridge for nic in spec.nics} - set((await self._facts.totals()).bridges))
            if missing:
                raise NotFound(
                    Reason.NETWORK_NOT_FOUND, f"{self._node_id} has no bridge {missing[0]}.", "Make the bridge, or name another."
                )
            known = self._state.definitions.get(command.vm_uid)
            ran_epoch = 0 if known is None else known.ran_epoch
            order = command.order_revision
            await self.admit(Definition(spec, command.epoch, command.operation_id, order_revision=order, ran_epoch=ran_epoch))
            return await self.status(spec.vm_uid)

    async def start(self, command: Command) -> VMStatus:
        """Let the VM run under the command's epoch, if the owner record says so when the domain exists. Once: a guest that has run under that epoch
        and ended is not started again."""
        async with self._state.vm_lock(command.vm_uid):
            self._takes_in()
            definition = await self._judge(command)
            domain = await self._hypervisor.domain(command.vm_uid)
            if domain is not None and not _is_copy_of(domain, command.epoch):
                await self._hypervisor.destroy(command.vm_uid)
                domain = None
            if domain is None and has_run(definition, command):
                return await self.status(command.vm_uid)
            if domain is None:
                self._observer.forget(command.vm_uid)
                tag = CopyTag(command.vm_uid, command.epoch, command.operation_id)
                domain = await self._hypervisor.create_paused(definition.spec, tag, self.disk_paths(definition.spec))
            if domain.power is not Power.RUNNING:
                await self._resume_if_owner(command)
            return await self.status(command.vm_uid)

    async def _resume_if_owner(self, command: Command) -> None:
        read = await self._authority.owner(command.vm_uid)
        if read is None or not may_run(read.owner, self._node_id, command.epoch):
            await self._hypervisor.destroy(command.vm_uid)
            raise Conflict(
                Reason.EPOCH_STALE, f"{self._node_id} may not run this VM under epoch {command.epoch}: another owner or epoch is recorded."
            )
        definition = self._state.definitions[command.vm_uid]
        if not has_run(definition, command):
            await self._state.keep_definition(replace(definition, ran_epoch=command.epoch))
        await self._hypervisor.resume(command.vm_uid)

    async def stop(self, command: Command, grace_s: int) -> VMStatus:
        """Power button, up to `grace_s` seconds for the guest, then its power is taken; returns when the domain is gone."""
        async with self._state.vm_lock(command.vm_uid):
            await self._judge_removal(command)
            domain = await self._hypervisor.domain(command.vm_uid)
            if domain is not None and grace_s > 0 and domain.power is Power.RUNNING:
                await self._hypervisor.press_power_button(command.vm_uid)
                await self._await_domain(command.vm_uid, lambda seen: seen is None, grace_s)
            await self._hypervisor.destroy(command.vm_uid)
            return await self.status(command.vm_uid)

    async def reboot(self, command: Command, force: bool) -> VMStatus:
        """Ask the guest to reboot and reset it after REBOOT_GRACE_S, or at once with `force`; returns when that has happened, or the VM ended.

        Again for the same operation: its grace period goes on, and a guest that has rebooted meanwhile is left alone.
        """
        async with self._state.vm_lock(command.vm_uid):
            if (await self._judge(command)).rebooted_by == command.operation_id:
                return await self.status(command.vm_uid)
            domain = await self._hypervisor.domain(command.vm_uid)
            if domain is None or domain.power is not Power.RUNNING:
                raise FailedPrecondition(Reason.VM_NOT_RUNNING, "The VM is not running.", "Start it.")
            if force:
                await self._hypervisor.reset(command.vm_uid)
            else:
                await self._reboot_in_time(command)
            await self._state.keep_definition(replace(self._state.definitions[command.vm_uid], rebooted_by=command.operation_id))
            return await self.status(command.vm_uid)

    async def _reboot_in_time(self, command: Command) -> None:
        seen, now_s = self._observer.seen(command.vm_uid), self._clock.monotonic_s()
        asked = self._reboots.get(command.vm_uid)
        if asked is None or asked.operation_id != command.operation_id:
            asked = self._reboots[command.vm_uid] = _Reboot(command.operation_id, seen.reboots, now_s + REBOOT_GRACE_S)
            try:
                await self._hypervisor.reboot(command.vm_uid)
            except HostlerError:
                del self._reboots[command.vm_uid]
                raise
        before, left_s = asked.reboots_before, max(0.0, asked.until_s - now_s)
        if asked.done or seen.reboots > before:
            return
        if not await self._await_domain(command.vm_uid, lambda domain: domain is None or seen.reboots > before, left_s):
            await self._hypervisor.reset(command.vm_uid)
        asked.done = True

    async def forget(self, command: Command) -> None:
        """Drop the definition of a VM that is off, and with it its charge."""
        async with self._state.vm_lock(command.vm_uid):
            if command.vm_uid not in self._state.definitions:
                await self._state.bury(command.vm_uid, command.rank)
                return
            await self._judge(command)
            domain = await self._hypervisor.domain(command.vm_uid)
            if domain is not None:
                raise FailedPrecondition(Reason.VM_RUNNING, "The VM still has a domain here.", "Stop it first.")
            await self._state.end_handoffs_of(command.vm_uid)
            await self._state.drop_definition(command.vm_uid)
            self._reboots.pop(command.vm_uid, None)

    async def end_copy(self, command: Command) -> VMStatus:
        """End whatever copy is here, and forget it if it is another node's. Raises Conflict if the owner record, read now, lets this host run it."""
        async with self._state.vm_lock(command.vm_uid):
            read = await self._authority.owner(command.vm_uid)
            if read is not None and read.owner.node_id == self._node_id and read.owner.state is not OwnerState.STOPPED:
                raise Conflict(Reason.EPOCH_STALE, f"The owner record lets {self._node_id} run this VM.", "Stop it: `hostler vm stop`.")
            await self._hypervisor.destroy(command.vm_uid)
            await self._state.end_handoffs_of(command.vm_uid)
            if read is None or read.owner.node_id != self._node_id:
                await self._state.drop_definition(command.vm_uid)
                await self._state.bury(command.vm_uid, command.rank)
            return await self.status(command.vm_uid)

    async def status(self, vm_uid: str) -> VMStatus:
        """What is true of the VM here, hypervisor asked now."""
        return self._status(vm_uid, await self._hypervisor.domain(vm_uid))

    async def statuses(self) -> tuple[VMStatus, ...]:
        """Of every VM defined here or running here with our tag, by uid; one look at the hypervisor."""
        domains = {domain.tag.vm_uid: domain for domain in await self._hypervisor.domains() if domain.tag is not None}
        return tuple(self._status(uid, domains.get(uid)) for uid in sorted({*self._state.definitions, *domains}))

    async def copy(self, vm_uid: str) -> Copy:
        """What there is of the VM here, for a handoff that this host knows nothing of."""
        domain = await self._hypervisor.domain(vm_uid)
        if domain is None:
            return Copy.ABSENT
        return Copy.RUNNING if domain.power is Power.RUNNING else Copy.PAUSED

    def _status(self, vm_uid: str, domain: DomainView | None) -> VMStatus:
        definition = self._state.definitions.get(vm_uid)
        epoch = definition.epoch if definition is not None else domain.tag.epoch if domain is not None and domain.tag is not None else 0
        defined = definition is not None and not definition.incoming
        drift = self.drift.get(vm_uid, ()) if defined else ()
        if domain is not None:
            return VMStatus(vm_uid, epoch, defined, POWERS[domain.power], drift=drift)
        match self._observer.seen(vm_uid).ending:
            case EventKind.CRASHED:
                return VMStatus(vm_uid, epoch, defined, VMPower.CRASHED, "The guest's hypervisor process ended by itself.", drift)
            case EventKind.DESTROYED:
                return VMStatus(vm_uid, epoch, defined, VMPower.OFF, POWER_TAKEN, drift)
            case _:
                return VMStatus(vm_uid, epoch, defined, VMPower.OFF, drift=drift)

    async def _judge(self, command: Command) -> Definition:
        return await heed(self._state, self._node_id, command)

    async def _judge_removal(self, command: Command) -> None:
        """As `_judge`; of a VM that is not here it is remembered that it is not to be, for its definition may still be on the way."""
        if command.vm_uid not in self._state.definitions:
            await self._state.bury(command.vm_uid, command.rank)
        await self._judge(command)

    def _takes_in(self) -> None:
        heard(self._state, self._node_id)
        if self._state.laying_down:
            raise FailedPrecondition(
                Reason.NODE_FENCED,
                f"Node {self._node_id} was fenced and is ending its guests.",
                f"It is back once that is done: `hostler node get {self._node_id}`.",
            )

    async def _await_domain(self, vm_uid: str, until: Callable[[DomainView | None], bool], timeout_s: float) -> bool:
        """Wait for the domain to be so; False after the timeout."""
        try:
            async with asyncio.timeout(timeout_s), self._observer.waking(vm_uid) as waker:
                while not until(await self._hypervisor.domain(vm_uid)):
                    waker.clear()
                    try:
                        async with asyncio.timeout(LOOK_AGAIN_S):
                            await waker.wait()
                    except TimeoutError:
                        continue
        except TimeoutError:
            return False
        return True


def _is_copy_of(domain: DomainView, epoch: int) -> bool:
    """Whether the domain runs, or would run, under this epoch; a leftover of an older one is not to be resumed."""
    return domain.tag is not None and domain.tag.epoch == epoch
