"""The queue of live migrations as this replica sees it: the decision is `scheduler.core.turns`'; here it is made once per state, for all who ask."""

from collections.abc import Callable, Mapping

from hostler.server.clock import Clock, wall_ms
from scheduler.core.decide_fence import is_fenced
from scheduler.core.records import OperationRecord
from scheduler.core.state import ClusterState
from scheduler.core.steps import RESERVED
from scheduler.core.turns import Limits, queue
from scheduler.core.view import Health

LOOK_AGAIN_S = 1.0
"""How often one that waits looks again when nothing has been written: to be held back ends by time alone."""


class Turns:
    """`why_not(state, operation)`: a sentence, or empty when it may go."""

    def __init__(self, limits: Limits, clock: Clock, health: Callable[[], Mapping[str, Health]]) -> None:
        self._limits = limits
        self._clock = clock
        self._health = health
        self._known: tuple[tuple[int, int], Mapping[str, str]] = ((-1, -1), {})

    def why_not(self, state: ClusterState, operation: OperationRecord) -> str:
        if operation.done or operation.phase != RESERVED or operation.migration is None or operation.migration.cold:
            return ""
        now_ms = wall_ms(self._clock)
        moment = (state.revision, int(now_ms / (1000 * LOOK_AGAIN_S)))
        if self._known[0] != moment:
            self._known = (moment, queue(state, self._limits, now_ms, self.silent(state)))
        return self._known[1].get(operation.operation_id, "")

    def judge(self, state: ClusterState) -> None:
        """The state with this replica's judgement of every node, as of now."""
        state.health = self._health()

    def silent(self, state: ClusterState) -> frozenset[str]:
        """Nodes that do not answer, or whose hypervisor does not; for one that is fenced nobody waits: its part ends at once."""
        self.judge(state)
        return frozenset(
            node_id for node_id in state.nodes if state.health_of(node_id) is not Health.READY and not is_fenced(state, node_id)
        )
