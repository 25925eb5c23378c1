"""What this host knows of a migration that is only thought of: facts for the scheduler, which compares both ends. Nothing is changed.

A hypervisor that does not answer is a fact, not an error: what only it knows stays empty, and the rest is told.
"""

import contextlib
from collections.abc import Callable, Mapping

from hostler.errors import NotFound, Reason
from hostler.model.copy import Stage
from hostler.model.domain import DiskSpec, DomainSpec
from hostler.model.migration_facts import Forecast, GuestFacts, MigrationFacts, Reception
from nodeagent.core.forecast import forecast
from nodeagent.core.precopy import Limits
from nodeagent.engine.host_state import HostState
from nodeagent.engine.outgoing import OutgoingHandoffs
from nodeagent.ports import (
    HostFacts,
    Hypervisor,
    HypervisorFacts,
    HypervisorRefused,
    HypervisorUnavailable,
    PoolMissing,
    Volumes,
    VolumeSize,
)

GIVES_ALL = Reception()
NO_SIZES: Mapping[str, int] = {}


class MigrationChecks:
    """`certificate_left_s()`: how long the certificate that tunnels are opened with is still valid."""

    def __init__(
        self,
        node_id: str,
        hypervisor: Hypervisor,
        volumes: Volumes,
        facts: HostFacts,
        state: HostState,
        outgoing: OutgoingHandoffs,
        certificate_left_s: Callable[[], int],
    ) -> None:
        self._node_id = node_id
        self._hypervisor = hypervisor
        self._volumes = volumes
        self._facts = facts
        self._state = state
        self._outgoing = outgoing
        self._certificate_left_s = certificate_left_s

    async def as_source(self, spec: DomainSpec, limits: Limits | None) -> MigrationFacts:
        """`limits`: estimate the copy under these; None: do not. Raises NotFound: the VM is not this host's."""
        if spec.vm_uid not in self._state.definitions:
            raise NotFound(Reason.VM_NOT_FOUND, f"{self._node_id} has no definition of this VM.")
        known = holds = guest = expected = None
        try:
            known = await self._hypervisor.facts()
            holds = await self._hypervisor.domain(spec.vm_uid) is not None
            guest = await self._hypervisor.guest_facts(spec.vm_uid)
            expected = await self._forecast(spec, limits) if guest is not None and limits is not None else None
        except HypervisorUnavailable:
            known = None
        sizes = {uid: size.size_bytes for uid, size in (await self._local_sizes(spec)).items()}
        return await self._told(spec, known, bool(holds), guest=guest, expected=expected, size_bytes=sizes)

    async def as_destination(self, spec: DomainSpec, guest: GuestFacts) -> MigrationFacts:
        """Whether this guest could come."""
        known, holds, reception = None, False, Reception()
        try:
            known = await self._hypervisor.facts()
            holds = await self._hypervisor.domain(spec.vm_uid) is not None
            reception = await self._hypervisor.reception(guest)
        except HypervisorUnavailable:
            known = None
        bridges = set((await self._facts.totals()).bridges)
        missing = tuple(sorted({nic.bridge for nic in spec.nics} - bridges))
        return await self._told(spec, known, holds, reception=reception, bridges_missing=missing)

    async def _told(
        self,
        spec: DomainSpec,
        known: HypervisorFacts | None,
        holds: bool,
        *,
        guest: GuestFacts | None = None,
        expected: Forecast | None = None,
        reception: Reception = GIVES_ALL,
        bridges_missing: tuple[str, ...] = (),
        size_bytes: Mapping[str, int] = NO_SIZES,
    ) -> MigrationFacts:
        return MigrationFacts(
            node_id=self._node_id,
            hypervisor_answers=known is not None,
            libvirt_version=known.libvirt_version if known else 0,
            qemu_version=known.qemu_version if known else 0,
            acceleration=known.acceleration if known else "",
            certificate_left_s=self._certificate_left_s(),
            disks={disk.volume_uid: await self._identity(spec, disk) for disk in spec.disks},
            holds_copy=holds,
            guest=guest,
            forecast=expected,
            reception=reception,
            bridges_missing=bridges_missing,
            size_bytes=size_bytes,
        )

    async def _identity(self, spec: DomainSpec, disk: DiskSpec) -> str:
        """ "": there is none. Nor is one that was made for a copy which is on its way: it is nobody's disk yet. (A VM that is here has arrived, or
        was started here after its copy was lost: what its handoff says then is of before.)"""
        definition = self._state.definitions.get(spec.vm_uid)
        arriving = definition is not None and definition.incoming
        coming = (h for h in self._state.incoming.values() if h.vm_uid == spec.vm_uid and h.stage is Stage.PREPARED)
        if arriving and any(volume.volume_uid == disk.volume_uid for handoff in coming for volume in handoff.copied):
            return ""
        try:
            return await self._volumes.identity(disk.pool_id, disk.volume_uid, disk.format)
        except PoolMissing:
            return ""

    async def _local_sizes(self, spec: DomainSpec) -> dict[str, VolumeSize]:
        """Of the disks in local pools, which are copied along; one whose file is not there is left out."""
        local, sizes = {pool.pool_id for pool in await self._volumes.pools() if not pool.shared}, {}
        for disk in spec.disks:
            if disk.pool_id in local:
                with contextlib.suppress(PoolMissing):
                    sizes[disk.volume_uid] = await self._volumes.size(disk.pool_id, disk.volume_uid, disk.format)
        return sizes

    async def _forecast(self, spec: DomainSpec, limits: Limits) -> Forecast:
        try:
            measured = await self._hypervisor.dirty_rate(spec.vm_uid)
        except HypervisorRefused:
            measured = None
        disk_bytes = sum(size.allocated_bytes for size in (await self._local_sizes(spec)).values())
        return forecast(spec.memory_mib, measured, self._outgoing.seen_bytes_per_s, limits, disk_bytes)
