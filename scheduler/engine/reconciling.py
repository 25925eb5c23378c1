"""Asks every node what it has of a VM, and carries out what `core.reconcile` proposes, as far as it is allowed."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from hostler.errors import HostlerError
from hostler.model.node import VMStatus
from scheduler.core.decide_nodes import take_status
from scheduler.core.reconcile import Action, Deed, Verdict, reconcile
from scheduler.core.records import VMRecord
from scheduler.core.state import ClusterState, Kept
from scheduler.core.transaction import Transaction
from scheduler.engine.writer import Writer
from scheduler.ports import NodeGateway, NodeUnreachable, Order

AT_ONCE = 32
"""Nodes asked side by side: a thousand nodes are asked in some seconds, and no replica opens a thousand calls."""


class Outcome(StrEnum):
    PROPOSED = "PROPOSED"
    DONE = "DONE"
    WITHHELD = "WITHHELD"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Result:
    """One action and what became of it; `why` of a failure replaces the action's."""

    action: Action
    outcome: Outcome
    why: str


async def probe(nodes: NodeGateway, node_ids: list[str], vm_uid: str) -> dict[str, VMStatus | None]:
    """What each node has of it now; None: it does not answer."""
    free = asyncio.Semaphore(AT_ONCE)
    seen: dict[str, VMStatus | None] = {}

    async def ask(node_id: str) -> None:
        async with free:
            try:
                seen[node_id] = await nodes.inspect(node_id, vm_uid)
            except (NodeUnreachable, HostlerError):
                seen[node_id] = None

    async with asyncio.TaskGroup() as group:
        for node_id in node_ids:
            group.create_task(ask(node_id), name=f"probe {node_id}")
    return seen


async def judged(nodes: NodeGateway, state: ClusterState, vm: VMRecord) -> tuple[Mapping[str, VMStatus | None], Verdict]:
    seen = await probe(nodes, sorted(state.nodes), vm.uid)
    return seen, reconcile(vm, seen)


async def carry_out(
    nodes: NodeGateway, writer: Writer, kept: Kept[VMRecord], verdict: Verdict, seen: Mapping[str, VMStatus | None], allow_destructive: bool
) -> list[Result]:
    """Each action once, in order; one that fails does not keep the others from being tried."""
    results = []
    for action in verdict.actions:
        if action.destructive and not allow_destructive:
            results.append(Result(action, Outcome.WITHHELD, action.why))
            continue
        try:
            await _do(nodes, writer, kept, action, seen[action.node_id])
            results.append(Result(action, Outcome.DONE, action.why))
        except (NodeUnreachable, HostlerError) as error:
            results.append(Result(action, Outcome.FAILED, str(error)))
    return results


async def _do(nodes: NodeGateway, writer: Writer, kept: Kept[VMRecord], action: Action, status: VMStatus | None) -> None:
    vm = kept.record
    order = Order("", vm.uid, vm.owner.epoch, kept.revision, kept.revision)
    match action.deed:
        case Deed.NOTE_STOPPED if status is not None:
            await writer.apply(partial(_noted, kept=kept, status=status))
        case Deed.END_COPY:
            await nodes.end_copy(action.node_id, order)
        case Deed.FORGET:
            await nodes.forget(action.node_id, order)
        case Deed.DEFINE:
            await nodes.define(action.node_id, order, vm.domain)
        case Deed.RESUME:
            await nodes.start(action.node_id, order)


def _noted(state: ClusterState, kept: Kept[VMRecord], status: VMStatus) -> Transaction | None:
    now = state.vm_by_uid(status.vm_uid)
    if now is None or now.revision != kept.revision:
        return None
    return take_status(state, kept.record.owner.node_id, status)
