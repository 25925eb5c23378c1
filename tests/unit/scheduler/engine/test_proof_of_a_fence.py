"""What rests on a node's being fenced is written only while it is."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hostler.model.journal import ABORTING, COPYING, DESTINATION_READY, RESERVED
from hostler.model.owner import OwnerState
from hostler.server.manual_clock import ManualClock
from scheduler.core.decide_migration import migrate_vm
from scheduler.core.placement.policy import SPREAD
from scheduler.core.records import NodeState, node_key
from scheduler.core.state import ClusterState
from scheduler.core.steps import abort_handoff, enter_phase
from scheduler.core.transaction import Transaction
from scheduler.engine.driving import Run
from scheduler.engine.election import Term
from scheduler.engine.fenced_nodes import FencedNodes
from scheduler.engine.flows import migration
from tests.unit.scheduler.core.kept import BY, GONE_WRONG, Cluster, asked


def set_node(cluster: Cluster, node_id: str, state: NodeState) -> None:
    kept, key = cluster.state.nodes[node_id], node_key(node_id)
    assert cluster.write(Transaction({key: kept.revision}, {key: replace(kept.record, state=state)}))


@dataclass(slots=True)
class SlowWriter:
    """`meanwhile` happens before what is decided is written, once before the decision and once after it."""

    cluster: Cluster
    meanwhile: Callable[[], None]
    early: bool

    async def apply(self, decide: Callable[[ClusterState], Transaction | None], extra: object = ()) -> bool:
        if self.early:
            self.meanwhile()
        decided = decide(self.cluster.state)
        if not self.early:
            self.meanwhile()
        return self.cluster.write(decided)


def aborting(cluster: Cluster) -> str:
    """A migration from n1 to n2 that is being taken back."""
    cluster.node("n1")
    cluster.running("web")
    cluster.node("n2")
    operation_id = cluster.accept(migrate_vm(cluster.state, asked("move"), "web", "", "n2", 0, SPREAD))
    for come_from, phase in ((RESERVED, DESTINATION_READY), (DESTINATION_READY, COPYING)):
        assert cluster.write(enter_phase(cluster.state, operation_id, come_from, phase, "", BY))
    assert cluster.write(abort_handoff(cluster.state, operation_id, COPYING, GONE_WRONG, BY))
    return operation_id


def run_of(cluster: Cluster, operation_id: str, writer: SlowWriter) -> Run:
    """The driver of the operation, to whom no node answers."""
    nobody = cast(Any, SimpleNamespace())
    nodes = FencedNodes(nobody, cast(Any, cluster))
    return Run(operation_id, nodes, cast(Any, cluster), cast(Any, writer), ManualClock(), Term("s1", 1), nobody, SPREAD)


@pytest.mark.parametrize("early", [True, False], ids=["before the decision", "before the write"])
async def test_a_node_that_is_back_meanwhile_speaks_for_itself(early: bool) -> None:
    """STOPPED in the record of a VM that runs: a replica that stood still took its node for off, by a proof that was void when it went on."""
    cluster = Cluster()
    operation_id = aborting(cluster)
    for node_id in ("n1", "n2"):
        set_node(cluster, node_id, NodeState.FENCED)
    back = SlowWriter(cluster, lambda: set_node(cluster, "n1", NodeState.CORDONED), early)
    run = run_of(cluster, operation_id, back)
    await migration.step(run)
    assert cluster.state.operations[operation_id].record.phase == ABORTING
    assert not cluster.state.operations[operation_id].record.done
    assert cluster.state.vms["web"].record.owner.state is OwnerState.RUNNING
    assert not run.nodes.proofs, "the next step asks anew"


async def test_while_both_are_fenced_the_step_is_taken() -> None:
    """A proof that ends nothing: limbo."""
    cluster = Cluster()
    operation_id = aborting(cluster)
    for node_id in ("n1", "n2"):
        set_node(cluster, node_id, NodeState.FENCED)
    run = run_of(cluster, operation_id, SlowWriter(cluster, lambda: None, True))
    await migration.step(run)
    assert cluster.state.operations[operation_id].record.done
    assert cluster.state.vms["web"].record.owner.state is OwnerState.STOPPED
