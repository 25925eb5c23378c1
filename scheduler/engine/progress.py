"""How far a running migration is: asked of its source when somebody looks, never stored. Any replica can answer."""

from hostler.api.type.v1 import operation_pb2
from hostler.errors import HostlerError
from hostler.model.copy import HandoffReport
from hostler.server.clock import Clock
from scheduler.core.records import OperationRecord
from scheduler.core.steps import COPYING
from scheduler.engine.mirror import Mirror
from scheduler.ports import NodeGateway, NodeUnreachable, Order

FRESH_S = 0.4
"""An answer this young is good enough: many watchers of one operation cost the source a few small calls per second."""


class ProgressReader:
    """`of(operation)`: the copy's progress, or None when there is nothing to tell."""

    def __init__(self, nodes: NodeGateway, mirror: Mirror, clock: Clock) -> None:
        self._nodes = nodes
        self._mirror = mirror
        self._clock = clock
        self._known: dict[str, tuple[float, operation_pb2.Operation.Progress | None]] = {}

    async def of(self, operation: OperationRecord) -> operation_pb2.Operation.Progress | None:
        if operation.migration is None or operation.phase != COPYING:
            self._known.pop(operation.operation_id, None)
            return None
        known = self._known.get(operation.operation_id)
        now_s = self._clock.monotonic_s()
        if known is not None and now_s - known[0] < FRESH_S:
            return known[1]
        progress = await self._ask(operation, operation.migration.source_node_id)
        if progress is not None and known is not None and known[1] is not None:  # each pass adds to the whole: what was said stays said
            progress.percent = max(progress.percent, known[1].percent)
        self._known[operation.operation_id] = (now_s, progress)
        return progress

    async def _ask(self, operation: OperationRecord, source_node_id: str) -> operation_pb2.Operation.Progress | None:
        kept = self._mirror.state.vms.get(operation.target_id)
        if kept is None:
            return None
        try:
            report = await self._nodes.inspect_handoff(source_node_id, Order(operation.operation_id, kept.record.uid))
        except (NodeUnreachable, HostlerError):
            return None
        done, whole, rate = report.bytes_done, report.bytes_total, report.rate_bytes_per_s
        return operation_pb2.Operation.Progress(
            percent=min(99, 100 * done // whole) if whole else 0,
            bytes_done=done,
            bytes_total=whole,
            rate_bytes_per_s=rate,
            eta_s=_eta_s(report),
            dirty_bytes_per_s=report.dirty_bytes_per_s,
            throttle_percent=report.throttle_percent,
            iteration=report.iterations,
            remaining_bytes=report.remaining_bytes,
        )


def _eta_s(report: HandoffReport) -> int:
    """What is left at the speed at which it gets less; 0: it does not, as things are, or nobody knows."""
    gained = report.rate_bytes_per_s - report.dirty_bytes_per_s
    left = report.bytes_total - report.bytes_done
    return -(-left // gained) if gained > 0 and left > 0 else 0
