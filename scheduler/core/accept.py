"""What makes a mutation accepted in the cluster: a repeat is found in the state, a new operation is written together with what it changes."""

from dataclasses import dataclass

from hostler.model.journal import Request as Request
from hostler.model.journal import begin as begin
from hostler.model.journal import enter as enter
from hostler.model.journal import fail as fail
from hostler.model.journal import same_request
from hostler.model.journal import succeed as succeed
from scheduler.core.claims import Adding, DoesNotFit, LedgerRead, claim_transaction
from scheduler.core.records import OperationRecord, ledger_key, operation_key, shared_pool_key
from scheduler.core.state import ClusterState
from scheduler.core.transaction import Transaction


@dataclass(frozen=True, slots=True)
class Accepted:
    """A mutation that may be: its operation, and the transaction that makes it durable. A repeat has an empty transaction."""

    operation: OperationRecord
    transaction: Transaction


def repeat_of(state: ClusterState, request: Request) -> OperationRecord | None:
    """The operation that this very request has already made; raises FailedPrecondition if its body was another."""
    kept = state.operations.get(request.operation_id)
    return None if kept is None else same_request(kept.record, request)


def journal(operation: OperationRecord) -> Transaction:
    """Write a new operation, which must not exist."""
    key = operation_key(operation.operation_id)
    return Transaction({key: 0}, {key: operation})


def charge(state: ClusterState, adding: Adding) -> Transaction:
    """The claim's part of the transaction. A placement was made on this very state, so that it does not fit is a defect."""
    ledger = state.ledgers[adding.claim.node_id]
    reads = {ledger_key(adding.claim.node_id): LedgerRead(ledger.record, ledger.revision)}
    for pool_id in adding.shared:
        pool = state.shared_pools[pool_id]
        reads[shared_pool_key(pool_id)] = LedgerRead(pool.record, pool.revision)
    answer = claim_transaction(reads, adding=(adding,))
    if isinstance(answer, DoesNotFit):
        raise RuntimeError(f"a placement does not fit: {answer.key} {answer.shortfalls}")
    return answer
