"""A cluster's records that change by transactions alone, with the store's rule: one guard that is out of date, and nothing is written."""

from dataclasses import dataclass, field

from hostler.model.journal import Request
from hostler.model.node import NodeReport, PoolFacts
from hostler.model.owner import OwnerState
from hostler.model.quantities import CPU_MILLI, memory_key, pool_key
from hostler.model.records import Observed, StoredError
from hostler.model.wishes import NewDisk, WishedVM
from scheduler.core.accept import Accepted
from scheduler.core.decide_create import create_vm
from scheduler.core.decide_nodes import register
from scheduler.core.placement.policy import SPREAD
from scheduler.core.state import ClusterState
from scheduler.core.steps import DEFINED, STARTING, VOLUMES, By, enter_phase, finish_vm, let_run
from scheduler.core.transaction import Transaction
from scheduler.core.view import Health
from scheduler.engine.mirror import put_record

BY = By("s1@1", 7)
NAS = PoolFacts("nas", shared=True, fingerprint="fs-1", total_mib=10_000, free_mib=10_000, ofd_locks=True, images={"guest": 300})


def asked(name: str, body: str = "") -> Request:
    return Request("user/ann", name, body or name, 1)


def wish(vm_id: str, *, disk: NewDisk | None = None, leave_stopped: bool = False) -> WishedVM:
    disk = disk or NewDisk("nas", 100, "", f"uid-{vm_id}-disk0")
    return WishedVM(vm_id, f"uid-{vm_id}", "", 1, 512, 0, None, (disk,), (), leave_stopped=leave_stopped)


@dataclass(slots=True)
class Cluster:
    """`write` is the store."""

    state: ClusterState = field(default_factory=ClusterState)

    def write(self, transaction: Transaction | None) -> bool:
        """Whether it was written."""
        if transaction is None or any(self.revision_of(key) != revision for key, revision in transaction.guards.items()):
            return False
        self.state.revision += 1
        for key, record in transaction.puts.items():
            put_record(self.state, key, self.state.revision, record)
        for key in transaction.deletes:
            put_record(self.state, key, self.state.revision, None)
        return True

    def revision_of(self, key: str) -> int:
        kind, _, name = key.removeprefix("/hostler/state/").partition("/")
        tables = {
            "node": self.state.nodes,
            "ledger": self.state.ledgers,
            "pool": self.state.shared_pools,
            "vm": self.state.vms,
            "volume": self.state.volumes,
            "op": self.state.operations,
            "claim": {f"{node}/{vm}": kept for (node, vm), kept in self.state.claims.items()},
            "owed": {f"{node}/{uid}": kept for (node, uid), kept in self.state.owed.items()},
        }
        kept = tables[kind].get(name)  # type: ignore[attr-defined]
        return 0 if kept is None else int(kept.revision)

    def node(self, node_id: str, *pools: PoolFacts, memory_mib: int = 4096, cpu_milli: int = 4000) -> None:
        """Registered, and ready."""
        own = {pool_key(pool.pool_id): pool.total_mib for pool in pools if not pool.shared}
        size = {CPU_MILLI: cpu_milli, memory_key(0): memory_mib, **own}
        report = NodeReport(node_id, size, {}, {}, {}, pools or (NAS,), (), "TCG", "qemu", "1", "dac", 0, False, "")
        self.write(register(self.state, report, "boot-1", f"{node_id}:7500")[1])
        self.state.health = {**self.state.health, node_id: Health.READY}

    def accept(self, accepted: Accepted) -> str:
        """Write it; the operation's id."""
        assert self.write(accepted.transaction) or not accepted.transaction.puts
        return accepted.operation.operation_id

    def create(self, vm_id: str, **more: object) -> str:
        """A CreateVM that was accepted."""
        return self.accept(create_vm(self.state, asked(f"create {vm_id}"), wish(vm_id, **more), SPREAD))  # type: ignore[arg-type]

    def running(self, vm_id: str, **more: object) -> None:
        """A VM that was created and runs."""
        operation_id = self.create(vm_id, **more)
        for come_from, phase in (("ACCEPTED", VOLUMES), (VOLUMES, DEFINED)):
            assert self.write(enter_phase(self.state, operation_id, come_from, phase, "", BY))
        assert self.write(enter_phase(self.state, operation_id, DEFINED, STARTING, "", BY, lambda vm: let_run(vm, operation_id)))
        assert self.write(finish_vm(self.state, operation_id, STARTING, Observed.RUNNING, OwnerState.RUNNING, BY))

    def off(self, vm_id: str) -> None:
        """A VM that was created and never started."""
        operation_id = self.create(vm_id, leave_stopped=True)
        for come_from, phase in (("ACCEPTED", VOLUMES), (VOLUMES, DEFINED)):
            assert self.write(enter_phase(self.state, operation_id, come_from, phase, "", BY))
        assert self.write(finish_vm(self.state, operation_id, DEFINED, Observed.STOPPED, OwnerState.STOPPED, BY))


GONE_WRONG = StoredError("FailedPrecondition", "OPERATION_CANCELLED", "The operation was cancelled.")
