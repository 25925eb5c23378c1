"""The nodes' gateway for a cluster in which some nodes are fenced: they are asked nothing, and answer what the proof that they are off implies.

Nothing runs there, no copy is there, nothing can be begun there. So an operation that waited for such a node ends as if the node had said so itself.
Such an answer holds only as long as the node is fenced: `proofs` has the revision of each node's record that an answer rests on, and whoever writes
something on the strength of it compares that too.
"""

from hostler.errors import FailedPrecondition, Reason
from hostler.model.copy import Copy, HandoffReport, Stage
from hostler.model.domain import DomainSpec, VolumeSpec
from hostler.model.migration_facts import GuestFacts, MigrationFacts
from hostler.model.node import VMPower, VMStatus
from scheduler.core.decide_fence import is_fenced
from scheduler.engine.mirror import Mirror
from scheduler.ports import CopyEstimate, Departure, NodeGateway, Order, Prepared, ProbeAct, ProbeOutcome


class FencedNodes:
    """Implements NodeGateway over `nodes`. A volume's removal from a fenced node is refused: the flows owe it (`core.owed`)."""

    def __init__(self, nodes: NodeGateway, mirror: Mirror) -> None:
        self._nodes = nodes
        self._mirror = mirror
        self.proofs: dict[str, int] = {}

    def _fenced(self, node_id: str) -> bool:
        """Whether the proof answers instead of the node."""
        fenced = is_fenced(self._mirror.state, node_id)
        if fenced:
            self.proofs.setdefault(node_id, self._mirror.state.nodes[node_id].revision)
        return fenced

    def _must_be_up(self, node_id: str) -> None:
        if is_fenced(self._mirror.state, node_id):
            raise FailedPrecondition(
                Reason.NODE_FENCED,
                f"Node {node_id} is fenced: it is off.",
                f"See `hostler node get {node_id}`; start its agent to bring it back.",
            )

    async def ensure_volume(self, node_id: str, order: Order, volume: VolumeSpec) -> int:
        self._must_be_up(node_id)
        return await self._nodes.ensure_volume(node_id, order, volume)

    async def remove_volume(self, node_id: str, order: Order, volume: VolumeSpec) -> None:
        self._must_be_up(node_id)
        await self._nodes.remove_volume(node_id, order, volume)

    async def define(self, node_id: str, order: Order, domain: DomainSpec) -> VMStatus:
        self._must_be_up(node_id)
        return await self._nodes.define(node_id, order, domain)

    async def start(self, node_id: str, order: Order) -> VMStatus:
        self._must_be_up(node_id)
        return await self._nodes.start(node_id, order)

    async def stop(self, node_id: str, order: Order, grace_s: int) -> VMStatus:
        return _off(order.vm_uid, order.epoch) if self._fenced(node_id) else await self._nodes.stop(node_id, order, grace_s)

    async def reboot(self, node_id: str, order: Order, force: bool) -> VMStatus:
        self._must_be_up(node_id)
        return await self._nodes.reboot(node_id, order, force)

    async def forget(self, node_id: str, order: Order) -> None:
        if not self._fenced(node_id):
            await self._nodes.forget(node_id, order)

    async def end_copy(self, node_id: str, order: Order) -> VMStatus:
        return _off(order.vm_uid, order.epoch) if self._fenced(node_id) else await self._nodes.end_copy(node_id, order)

    async def inspect(self, node_id: str, vm_uid: str) -> VMStatus:
        return _off(vm_uid, 0) if self._fenced(node_id) else await self._nodes.inspect(node_id, vm_uid)

    async def probe_pool(self, node_id: str, pool_id: str, probe_id: str, act: ProbeAct) -> ProbeOutcome | None:
        self._must_be_up(node_id)
        return await self._nodes.probe_pool(node_id, pool_id, probe_id, act)

    async def migration_source(self, node_id: str, order: Order, domain: DomainSpec, estimate: CopyEstimate | None) -> MigrationFacts:
        self._must_be_up(node_id)
        return await self._nodes.migration_source(node_id, order, domain, estimate)

    async def migration_destination(self, node_id: str, order: Order, domain: DomainSpec, guest: GuestFacts) -> MigrationFacts:
        self._must_be_up(node_id)
        return await self._nodes.migration_destination(node_id, order, domain, guest)

    async def prepare_incoming(
        self, node_id: str, order: Order, domain: DomainSpec, source_node_id: str, copied: tuple[VolumeSpec, ...] = ()
    ) -> Prepared:
        self._must_be_up(node_id)
        return await self._nodes.prepare_incoming(node_id, order, domain, source_node_id, copied)

    async def start_outgoing(self, node_id: str, order: Order, departure: Departure) -> HandoffReport:
        self._must_be_up(node_id)
        return await self._nodes.start_outgoing(node_id, order, departure)

    async def tune_outgoing(self, node_id: str, order: Order, bandwidth_mib_s: int, max_downtime_ms: int) -> HandoffReport:
        self._must_be_up(node_id)
        return await self._nodes.tune_outgoing(node_id, order, bandwidth_mib_s, max_downtime_ms)

    async def inspect_handoff(self, node_id: str, order: Order) -> HandoffReport:
        return _gone(node_id, order, Stage.NONE) if self._fenced(node_id) else await self._nodes.inspect_handoff(node_id, order)

    async def finish_incoming(self, node_id: str, order: Order) -> HandoffReport:
        self._must_be_up(node_id)
        return await self._nodes.finish_incoming(node_id, order)

    async def finish_outgoing(self, node_id: str, order: Order) -> HandoffReport:
        return _gone(node_id, order, Stage.FINISHED) if self._fenced(node_id) else await self._nodes.finish_outgoing(node_id, order)

    async def abort_incoming(self, node_id: str, order: Order) -> HandoffReport:
        return _gone(node_id, order, Stage.ABORTED) if self._fenced(node_id) else await self._nodes.abort_incoming(node_id, order)

    async def abort_outgoing(self, node_id: str, order: Order) -> HandoffReport:
        return _gone(node_id, order, Stage.ABORTED) if self._fenced(node_id) else await self._nodes.abort_outgoing(node_id, order)


def _off(vm_uid: str, epoch: int) -> VMStatus:
    return VMStatus(vm_uid, epoch, False, VMPower.OFF, "Its node is fenced.")


def _gone(node_id: str, order: Order, stage: Stage) -> HandoffReport:
    return HandoffReport(node_id, order.operation_id, Copy.ABSENT, stage)
