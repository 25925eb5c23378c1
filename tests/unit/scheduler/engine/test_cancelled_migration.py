"""A migration that was cancelled turns back in each phase that can be cancelled, whatever its next step would have been."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hostler.model.journal import ABORTING, COPYING, DESTINATION_READY, RESERVED
from hostler.server.manual_clock import ManualClock
from scheduler.core.decide_migration import migrate_vm
from scheduler.core.decide_power import cancel
from scheduler.core.placement.policy import SPREAD
from scheduler.core.state import ClusterState
from scheduler.core.steps import enter_phase
from scheduler.core.transaction import Transaction
from scheduler.engine.driving import Run
from scheduler.engine.election import Term
from scheduler.engine.fenced_nodes import FencedNodes
from scheduler.engine.flows import migration
from tests.unit.scheduler.core.kept import BY, Cluster, asked


@dataclass(slots=True)
class DirectWriter:
    """Writes into the cluster's records at once."""

    cluster: Cluster

    async def apply(self, decide: Callable[[ClusterState], Transaction | None], extra: object = ()) -> bool:
        return self.cluster.write(decide(self.cluster.state))


@pytest.mark.parametrize("reached", [RESERVED, DESTINATION_READY, COPYING])
async def test_it_turns_back(reached: str) -> None:
    """An operation that is asked to stop between two phases, refuses to go on, does not turn back, and so never ends."""
    cluster = Cluster()
    cluster.node("n1")
    cluster.running("web")
    cluster.node("n2")
    operation_id = cluster.accept(migrate_vm(cluster.state, asked("move"), "web", "", "n2", 0, SPREAD))
    phases = [RESERVED, DESTINATION_READY, COPYING]
    for come_from, phase in pairwise(phases[: phases.index(reached) + 1]):
        assert cluster.write(enter_phase(cluster.state, operation_id, come_from, phase, "", BY))
    assert cluster.write(cancel(cluster.state, operation_id))
    nobody: Any = SimpleNamespace()
    nodes = FencedNodes(nobody, cast(Any, cluster))
    run = Run(operation_id, nodes, cast(Any, cluster), cast(Any, DirectWriter(cluster)), ManualClock(), Term("s1", 1), nobody, SPREAD)
    await migration.step(run)
    assert cluster.state.operations[operation_id].record.phase == ABORTING
