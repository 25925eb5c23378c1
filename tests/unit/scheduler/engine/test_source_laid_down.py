"""A committed migration whose source was fenced, and has laid down what it had before it was heard again, ends."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from hostler.model.copy import Copy, HandoffReport, Stage
from hostler.model.journal import COMMITTED, COPYING, DESTINATION_READY, RESERVED
from hostler.model.owner import OwnerState
from hostler.server.manual_clock import ManualClock
from scheduler.core.decide_migration import migrate_vm
from scheduler.core.placement.policy import SPREAD
from scheduler.core.steps import commit_handoff, enter_phase
from scheduler.engine.driving import Run
from scheduler.engine.election import Term
from scheduler.engine.fenced_nodes import FencedNodes
from scheduler.engine.flows import migration
from scheduler.ports import NodeUnreachable
from tests.unit.scheduler.core.kept import BY, Cluster, asked
from tests.unit.scheduler.engine.test_cancelled_migration import DirectWriter


class Ends:
    """Both ends of a handoff that was committed: what the destination and the source report."""

    def __init__(self, arrived: HandoffReport, left: HandoffReport) -> None:
        self._arrived, self._left = arrived, left
        self.forgotten: list[str] = []

    async def finish_incoming(self, node_id: str, order: Any) -> HandoffReport:  # noqa: ANN401 an Order
        return self._arrived

    async def inspect_handoff(self, node_id: str, order: Any) -> HandoffReport:  # noqa: ANN401 an Order
        return self._arrived

    async def finish_outgoing(self, node_id: str, order: Any) -> HandoffReport:  # noqa: ANN401 an Order
        return self._left

    async def forget(self, node_id: str, order: Any) -> None:  # noqa: ANN401 an Order
        self.forgotten.append(node_id)


async def stepped(ends: Ends) -> Cluster:
    """One step of a committed migration."""
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
    nodes, nobody = FencedNodes(cast(Any, ends), cast(Any, cluster)), cast(Any, SimpleNamespace())
    writer = cast(Any, DirectWriter(cluster))
    await migration.step(Run(operation_id, nodes, cast(Any, cluster), writer, ManualClock(), Term("s1", 1), nobody, SPREAD))
    return cluster


@pytest.mark.parametrize(
    ("arrived", "state"),
    [
        (HandoffReport("n2", "move", Copy.RUNNING, Stage.FINISHED), OwnerState.RUNNING),
        (HandoffReport("n2", "move", Copy.ABSENT, Stage.ABORTED), OwnerState.STOPPED),
    ],
)
async def test_a_source_that_has_laid_down_its_copy_ends_the_migration(arrived: HandoffReport, state: OwnerState) -> None:
    """An operation that asks for ever for the end of a handoff that its fenced source has ended in its own way; or a source that stays charged."""
    ends = Ends(arrived, HandoffReport("n1", "move", Copy.ABSENT, Stage.ABORTED))
    cluster = await stepped(ends)
    assert ends.forgotten == ["n1"]
    assert cluster.state.vms["web"].record.owner.state is state
    assert set(cluster.state.claims) == {("n2", "web")}


@pytest.mark.parametrize("copy", [Copy.RUNNING, Copy.SWITCHED, Copy.PAUSED, Copy.UNKNOWN])
async def test_a_source_that_still_has_a_copy_is_waited_for(copy: Copy) -> None:
    """A migration that ends while the old copy may run."""
    with pytest.raises(NodeUnreachable):
        await stepped(Ends(HandoffReport("n2", "move", Copy.RUNNING, Stage.FINISHED), HandoffReport("n1", "move", copy, Stage.ABORTED)))
