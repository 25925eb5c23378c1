"""Words that come late, or in doubt, when a handoff is aborted: each of these was found by the search in tests/explore."""

import asyncio

import pytest

from client import CALL_S, Client
from devcluster.cluster import DevCluster
from hostler.api.cluster.v1 import operations_pb2
from hostler.api.type.v1 import operation_pb2, vm_pb2
from hostler.errors import FailedPrecondition
from hostler.model.copy import Copy, HandoffReport, Stage
from hostler.model.domain import DomainSpec
from hostler.model.owner import OwnerState
from nodeagent.adapters.sim_migration import MigrationFault
from nodeagent.core.definitions import Command, DiskTarget, Outgoing
from nodeagent.engine.incoming import IncomingHandoffs
from nodeagent.engine.outgoing import OutgoingHandoffs
from nodeagent.ports import EventKind, HypervisorUnavailable

CANCELLED = operation_pb2.Operation.CANCELLED
TIMEOUT_S = 20.0
LOOK_S = 0.01


async def cancelled(client: Client, operation: operation_pb2.Operation) -> operation_pb2.Operation:
    await client.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=operation.name), timeout=CALL_S)
    return await client.wait(operation)


async def test_a_preparation_that_comes_after_its_abort_charges_nobody(
    client: Client, cluster: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A destination that is charged for ever, by a PrepareIncoming that was on its way when the migration was aborted there."""
    vm = await client.made("web-1")
    late: list[tuple[IncomingHandoffs, Command, DomainSpec, str]] = []
    prepare = IncomingHandoffs.prepare

    async def on_its_way(self: IncomingHandoffs, command: Command, spec: DomainSpec, source: str) -> tuple[str, tuple[DiskTarget, ...]]:
        late.append((self, command, spec, source))
        raise HypervisorUnavailable("The message is still on its way.")

    monkeypatch.setattr(IncomingHandoffs, "prepare", on_its_way)
    operation = await client.migrate("web-1")
    async with asyncio.timeout(TIMEOUT_S):
        while not late:  # noqa: ASYNC110 the message has no event
            await asyncio.sleep(LOOK_S)
    assert (await cancelled(client, operation)).state == CANCELLED
    with pytest.raises(FailedPrecondition):
        await prepare(*late[0])
    for handoffs, command, _, _ in late:
        assert command.vm_uid not in handoffs._state.definitions
    monkeypatch.undo()
    again = await client.wait(await client.migrate("web-1"))
    assert again.state == operation_pb2.Operation.SUCCEEDED, again.error.message
    assert (await client.vm("web-1")).node != vm.node


async def test_a_hypervisor_that_does_not_answer_after_the_abort_makes_no_running_guest_a_dead_one(
    client: Client, cluster: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """STOPPED in the owner record, and so free to be started elsewhere, while the guest runs: its host could not say how it was."""
    vm = await client.made("web-1", memory_mib=4096)
    cluster.world.script_migration(vm.uid, MigrationFault.STALLS)
    report, doubts = OutgoingHandoffs.report, list[str]()

    async def in_doubt_once(self: OutgoingHandoffs, operation_id: str) -> HandoffReport:
        made = await report(self, operation_id)
        if made.stage is not Stage.ABORTED or doubts:
            return made
        doubts.append(operation_id)
        return HandoffReport(made.node_id, operation_id, Copy.UNKNOWN, made.stage)

    monkeypatch.setattr(OutgoingHandoffs, "report", in_doubt_once)
    operation = await client.migrate("web-1")
    await client.until_phase(operation, "COPYING")
    assert (await cancelled(client, operation)).state == CANCELLED
    after = await client.vm("web-1")
    assert doubts
    assert (after.node, after.epoch, after.state) == (vm.node, vm.epoch, vm_pb2.VM.RUNNING)


async def test_a_copy_that_was_looked_at_before_its_call_ended_is_looked_at_again(
    client: Client, cluster: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest left paused for ever: the source called the handoff aborted because its copy ran, which it did when it was last looked at."""
    vm = await client.made("web-1")
    source = cluster.world.hosts[vm.node.removeprefix("nodes/")]
    looks: list[Copy] = []
    look = OutgoingHandoffs._copy

    async def slow_look(self: OutgoingHandoffs, handoff: Outgoing) -> Copy:
        seen = await look(self, handoff)
        run = self._runs.get(handoff.operation_id)
        if run is None or handoff.stage is not Stage.COPYING or looks:
            return seen
        looks.append(seen)
        async with asyncio.timeout(TIMEOUT_S):
            while run.owner is None or run.owner.owner.state is not OwnerState.RUNNING:  # noqa: ASYNC110 a record has no event
                await asyncio.sleep(LOOK_S)
        return seen

    monkeypatch.setattr(OutgoingHandoffs, "_copy", slow_look)
    events = source.events.read()
    operation = await client.migrate("web-1")
    async for event in events:
        if event.kind is EventKind.SWITCHED:
            break
    await events.aclose()
    source.crash_daemon()
    async with asyncio.timeout(TIMEOUT_S):
        while vm.uid in source.jobs:  # noqa: ASYNC110 a job has no event
            await asyncio.sleep(LOOK_S)
    source.restart_daemon()
    assert (await cancelled(client, operation)).state == CANCELLED
    after = await client.vm("web-1")
    assert looks == [Copy.RUNNING]
    assert (after.node, after.epoch, after.state) == (vm.node, vm.epoch, vm_pb2.VM.RUNNING)
    assert cluster.world.guest(vm.uid).executing == (source.node_id,)
