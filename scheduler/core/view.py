"""What a decision sees of one node or one shared pool: its record, its sums and its health, as values."""

from dataclasses import dataclass
from enum import StrEnum

from scheduler.core.records import LedgerRecord, NodeRecord


class Health(StrEnum):
    """Whether a node answers, by its heartbeats. SILENT is no proof that its guests are gone."""

    READY = "READY"
    HYPERVISOR_DOWN = "HYPERVISOR_DOWN"
    SILENT = "SILENT"


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node as a decision sees it. `ledger_revision` is the ledger's mod revision: the guard of any claim made on this view."""

    node: NodeRecord
    ledger: LedgerRecord
    ledger_revision: int
    health: Health


@dataclass(frozen=True, slots=True)
class PoolView:
    """A shared pool's sums."""

    pool_id: str
    ledger: LedgerRecord
    ledger_revision: int
