"""A committed migration whose destination has nothing to resume ends, with the VM stopped for certain."""

from types import SimpleNamespace
from typing import Any, cast

from hostler.model.copy import Copy, HandoffReport, Stage
from hostler.model.journal import COMMITTED, COPYING, DESTINATION_READY, RESERVED
from hostler.model.owner import OwnerState
from hostler.model.records import OperationState
from hostler.server.manual_clock import ManualClock
from scheduler.core.decide_migration import migrate_vm
from scheduler.core.placement.policy import SPREAD
from scheduler.core.steps import commit_handoff, enter_phase
from scheduler.engine.driving import Run
from scheduler.engine.election import Term
from scheduler.engine.fenced_nodes import FencedNodes
from scheduler.engine.flows import migration
from tests.unit.scheduler.core.kept import BY, Cluster, asked
from tests.unit.scheduler.engine.test_cancelled_migration import DirectWriter


class LaidDown:
    """The destination was fenced and has ended everything before it was heard again; the source is through."""

    async def finish_incoming(self, node_id: str, order: Any) -> HandoffReport:  # noqa: ANN401 an Order
        return HandoffReport(node_id, order.operation_id, Copy.ABSENT, Stage.ABORTED)

    async def inspect_handoff(self, node_id: str, order: Any) -> HandoffReport:  # noqa: ANN401 an Order
        return HandoffReport(node_id, order.operation_id, Copy.ABSENT, Stage.ABORTED)

    async def finish_outgoing(self, node_id: str, order: Any) -> HandoffReport:  # noqa: ANN401 an Order
        return HandoffReport(node_id, order.operation_id, Copy.GONE_MIGRATED, Stage.FINISHED)


async def test_a_destination_that_has_laid_down_its_copy_ends_the_migration() -> None:
    """A migration that waits for ever for a copy that its fenced destination has ended."""
    cluster = Cluster()
    cluster.node("n1")
    cluster.running("web")
    cluster.node("n2")
    operation_id = cluster.accept(migrate_vm(cluster.state, asked("move"), "web", "", "n2", 0, SPREAD))
    for come_from, phase in ((RESERVED, DESTINATION_READY), (DESTINATION_READY, COPYING)):
        assert cluster.write(enter_phase(cluster.state, operation_id, come_from, phase, "", BY))
    vm = cluster.state.vms["web"]
    assert cluster.write(commit_handoff(cluster.state, vm.record.uid, operation_id, vm.revision))
    assert cluster.write(enter_phase(cluster.state, operation_id, COPYING, COMMITTED, "", BY))
    nodes, nobody = FencedNodes(cast(Any, LaidDown()), cast(Any, cluster)), cast(Any, SimpleNamespace())
    writer = cast(Any, DirectWriter(cluster))
    await migration.step(Run(operation_id, nodes, cast(Any, cluster), writer, ManualClock(), Term("s1", 1), nobody, SPREAD))
    assert cluster.state.operations[operation_id].record.state is OperationState.FAILED
    assert cluster.state.vms["web"].record.owner.state is OwnerState.STOPPED
    assert set(cluster.state.claims) == {("n2", "web")}
