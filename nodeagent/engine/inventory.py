"""What this host says of itself: one look at hypervisor, storage and ledger, kept for readers that come while the hypervisor does not answer."""

from dataclasses import replace

from hostler.model.node import NodeReport, PoolFacts, VMPower, VMStatus
from nodeagent.core.ledger import account
from nodeagent.engine.host_state import HostState
from nodeagent.engine.vms import HostVMs, Offer
from nodeagent.ports import HostFacts, Hypervisor, HypervisorFacts, HypervisorUnavailable, Volumes


class Inventory:
    """`collect` never fails because the hypervisor is away: it answers the last known, marked `hypervisor_down`, with powers UNKNOWN."""

    def __init__(
        self,
        node_id: str,
        agent_version: str,
        hypervisor: Hypervisor,
        volumes: Volumes,
        facts: HostFacts,
        state: HostState,
        vms: HostVMs,
        offer: Offer,
    ) -> None:
        self._node_id = node_id
        self._agent_version = agent_version
        self._hypervisor = hypervisor
        self._volumes = volumes
        self._facts = facts
        self._state = state
        self._vms = vms
        self._offer = offer
        self._last: NodeReport | None = None
        self._hypervisor_facts: HypervisorFacts | None = None

    async def collect(self) -> NodeReport:
        """The report now, or the last one marked stale."""
        try:
            self._last = await self._look()
        except HypervisorUnavailable:
            self._last = await self._stale()
        return self._last

    async def _look(self) -> NodeReport:
        if self._hypervisor_facts is None:
            self._hypervisor_facts = await self._hypervisor.facts()
        known = self._hypervisor_facts
        now = await self._vms.account()
        domains = await self._hypervisor.domains()
        return NodeReport(
            node_id=self._node_id,
            total=now.total,
            reserved=now.reserved,
            unmanaged=now.unmanaged,
            claimed=now.claimed,
            pools=await self._pools(),
            networks=(await self._facts.totals()).bridges,
            acceleration=known.acceleration,
            hypervisor=known.description,
            agent_version=self._agent_version,
            confinement=known.confinement,
            unmanaged_count=sum(domain.tag is None for domain in domains),
            hypervisor_down=False,
            reason="",
            vms=await self._vms.statuses(),
        )

    async def _stale(self) -> NodeReport:
        reason = "The hypervisor on this host does not answer."
        statuses = tuple(
            VMStatus(uid, definition.epoch, not definition.incoming, VMPower.UNKNOWN, reason, self._vms.drift.get(uid, ()))
            for uid, definition in sorted(self._state.definitions.items())
        )
        if self._last is not None:
            return replace(self._last, hypervisor_down=True, reason=reason, vms=statuses)
        totals = await self._facts.totals()
        now = account(totals, await self._volumes.pools(), self._offer.cap, self._offer.reserve_mib, [], self._state.charges())
        return NodeReport(
            node_id=self._node_id,
            total=now.total,
            reserved=now.reserved,
            unmanaged=now.unmanaged,
            claimed=now.claimed,
            pools=await self._pools(),
            networks=totals.bridges,
            acceleration="",
            hypervisor="",
            agent_version=self._agent_version,
            confinement="",
            unmanaged_count=0,
            hypervisor_down=True,
            reason=reason,
            vms=statuses,
        )

    async def _pools(self) -> tuple[PoolFacts, ...]:
        return tuple(
            PoolFacts(p.pool_id, p.shared, p.fingerprint, p.total_mib, p.free_mib, p.ofd_locks, p.images, p.foreign_mib, p.filesystem)
            for p in await self._volumes.pools()
        )
