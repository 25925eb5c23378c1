"""The cluster as one replica knows it: every record with the store revision of its last change, at one revision.

A decision reads this and nothing else. The revisions become the guards of the transaction that carries it out, so a decision made on an old state is
refused by the store, never carried out by mistake.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from hostler.model.records import Kept as Kept
from scheduler.core.placement.cluster import ClusterView
from scheduler.core.placement.fleet import Fleet
from scheduler.core.records import (
    ClaimRecord,
    FlavorRecord,
    LedgerRecord,
    NodeRecord,
    OperationRecord,
    OwedRemoval,
    VMRecord,
    VolumeRecord,
)
from scheduler.core.view import Health, NodeView, PoolView


@dataclass(slots=True)
class ClusterState:
    """All records by their ids; claims by (node, vm), owed removals by (node, volume uid). `health` is this replica's own judgement;
    `open_operations` are the ids of those that have not ended. Changed by the mirror alone."""

    revision: int = 0
    nodes: dict[str, Kept[NodeRecord]] = field(default_factory=dict)
    ledgers: dict[str, Kept[LedgerRecord]] = field(default_factory=dict)
    shared_pools: dict[str, Kept[LedgerRecord]] = field(default_factory=dict)
    claims: dict[tuple[str, str], Kept[ClaimRecord]] = field(default_factory=dict)
    vms: dict[str, Kept[VMRecord]] = field(default_factory=dict)
    volumes: dict[str, Kept[VolumeRecord]] = field(default_factory=dict)
    flavors: dict[str, Kept[FlavorRecord]] = field(default_factory=dict)
    operations: dict[str, Kept[OperationRecord]] = field(default_factory=dict)
    owed: dict[tuple[str, str], Kept[OwedRemoval]] = field(default_factory=dict)
    health: Mapping[str, Health] = field(default_factory=dict)
    vm_ids_by_uid: dict[str, str] = field(default_factory=dict)
    open_operations: dict[str, None] = field(default_factory=dict)
    _fleet: Fleet | None = field(default=None, init=False)
    _touched: set[str] = field(default_factory=set, init=False)
    _health_seen: Mapping[str, Health] = field(default_factory=dict, init=False)

    def touch(self, node_id: str) -> None:
        """The node's record or ledger has changed."""
        self._touched.add(node_id)

    def view(self) -> ClusterView:
        """What a placement sees, up to the next change; a node without a ledger is not there yet."""
        return ClusterView(
            self.revision,
            self._nodes_in_columns(),
            {pool_id: PoolView(pool_id, kept.record, kept.revision) for pool_id, kept in sorted(self.shared_pools.items())},
        )

    def _nodes_in_columns(self) -> Fleet:
        """Kept from one view to the next: what has changed in between is put in anew."""
        if self._fleet is None:
            self._fleet, changed = Fleet(), {*self.nodes, *self.ledgers}
        else:
            seen, now = self._health_seen, self.health
            turned = () if now is seen else (node_id for node_id in now.keys() | seen.keys() if now.get(node_id) is not seen.get(node_id))
            changed = self._touched.union(turned)
        for node_id in changed:
            node, ledger = self.nodes.get(node_id), self.ledgers.get(node_id)
            if node is None or ledger is None:
                self._fleet.drop(node_id)
            else:
                self._fleet.put(NodeView(node.record, ledger.record, ledger.revision, self.health_of(node_id)))
        self._touched, self._health_seen = set(), self.health
        return self._fleet

    def health_of(self, node_id: str) -> Health:
        """A node of which this replica has heard nothing yet counts as silent: nothing new is put there."""
        kept = self.nodes.get(node_id)
        heard = self.health.get(node_id, Health.SILENT)
        if heard is Health.READY and kept is not None and kept.record.hypervisor_down:
            return Health.HYPERVISOR_DOWN
        return heard

    def claims_of(self, vm_id: str) -> Iterator[Kept[ClaimRecord]]:
        """The VM's claims: one, or two while it moves."""
        return (kept for (_, owner), kept in sorted(self.claims.items()) if owner == vm_id)

    def vm_by_uid(self, vm_uid: str) -> Kept[VMRecord] | None:
        vm_id = self.vm_ids_by_uid.get(vm_uid)
        return self.vms.get(vm_id) if vm_id is not None else None
