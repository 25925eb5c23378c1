"""Words that come late, twice or in doubt: each of these was found by the search in tests/explore, or is left out there and was thought of."""

import asyncio

import pytest

from client import CALL_S, Client
from devcluster.cluster import DevCluster
from hostler.api.cluster.v1 import operations_pb2, vms_pb2
from hostler.api.type.v1 import operation_pb2, vm_pb2
from hostler.errors import FailedPrecondition, Reason, Unavailable
from hostler.model.copy import Copy, HandoffReport, Stage
from hostler.model.domain import DomainSpec, VolumeSpec
from hostler.model.node import VMStatus
from hostler.model.owner import OwnerState
from nodeagent.adapters.sim_migration import MigrationFault
from nodeagent.core.definitions import Command, DiskTarget, Incoming, Outgoing
from nodeagent.engine.host_state import HostState
from nodeagent.engine.incoming import IncomingHandoffs
from nodeagent.engine.outgoing import OutgoingHandoffs
from nodeagent.engine.outgoing_evidence import SourceEvidence
from nodeagent.engine.outgoing_run import Run
from nodeagent.engine.vms import HostVMs
from nodeagent.ports import EventKind, HypervisorUnavailable, VolumeRemoved

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

    async def on_its_way(
        self: IncomingHandoffs, command: Command, spec: DomainSpec, source: str, copied: tuple[VolumeSpec, ...]
    ) -> tuple[str, tuple[DiskTarget, ...]]:
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


async def test_an_abort_frees_what_a_preparation_that_was_cut_short_has_charged(
    client: Client, cluster: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A destination that is charged for ever: its agent died between the charge and the journal of the handoff, and knows of none to abort."""
    vm = await client.made("web-1")
    cut_short: list[str] = []
    keep = HostState.keep_incoming

    async def cut(self: HostState, handoff: Incoming) -> None:
        if handoff.stage is Stage.PREPARED:
            cut_short.append(handoff.vm_uid)
            raise HypervisorUnavailable("The agent ends here.")
        await keep(self, handoff)

    monkeypatch.setattr(HostState, "keep_incoming", cut)
    operation = await client.migrate("web-1")
    async with asyncio.timeout(TIMEOUT_S):
        while not cut_short:  # noqa: ASYNC110 the message has no event
            await asyncio.sleep(LOOK_S)
    assert (await cancelled(client, operation)).state == CANCELLED
    having = {file.parent.parent.name for file in (cluster.directory / "state").glob("*/vms/*") if vm.uid in file.name}
    assert having == {vm.node.removeprefix("nodes/")}


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
    look = SourceEvidence.copy

    async def slow_look(self: SourceEvidence, handoff: Outgoing, run: Run | None) -> Copy:
        seen = await look(self, handoff, run)
        if run is None or handoff.stage is not Stage.COPYING or looks:
            return seen
        looks.append(seen)
        async with asyncio.timeout(TIMEOUT_S):
            while run.owner is None or run.owner.owner.state is not OwnerState.RUNNING:  # noqa: ASYNC110 a record has no event
                await asyncio.sleep(LOOK_S)
        return seen

    monkeypatch.setattr(SourceEvidence, "copy", slow_look)
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


async def stopped(client: Client, vm_id: str) -> operation_pb2.Operation:
    return await client.wait(await client.vms.StopVM(vms_pb2.StopVMRequest(name=f"vms/{vm_id}", force=True), timeout=CALL_S))


async def test_a_start_that_comes_again_after_its_guest_has_ended_starts_nothing(
    client: Client, cluster: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest that runs though the cluster comes to say that it is stopped: it ended by itself, and its StartVM came once more while the record,
    which the agent reads, did not say so yet. Nor is the repeat, whose first answer was lost, an operation that failed."""
    starts: list[Command] = []
    start = HostVMs.start

    async def start_noted(self: HostVMs, command: Command) -> VMStatus:
        starts.append(command)
        status = await start(self, command)
        if len(starts) == 1:
            cluster.world.hosts[self._node_id].crash_domain(command.vm_uid)
            raise HypervisorUnavailable("The answer is lost.")
        return status

    monkeypatch.setattr(HostVMs, "start", start_noted)
    made = await client.wait(await client.create("web-1"))
    assert (made.state, made.vm.state) == (operation_pb2.Operation.SUCCEEDED, vm_pb2.VM.CRASHED), made.error.message
    assert len(starts) > 1
    assert cluster.world.guest(made.vm.uid).executing == ()
    again = await client.wait(await client.vms.StartVM(vms_pb2.StartVMRequest(name="vms/web-1"), timeout=CALL_S))
    assert (again.vm.state, again.vm.epoch) == (vm_pb2.VM.RUNNING, made.vm.epoch + 1)
    assert len(cluster.world.guest(made.vm.uid).executing) == 1


async def test_a_start_that_comes_again_while_its_guest_is_stopped_starts_nothing(
    client: Client, cluster: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest that runs though the cluster says that it is stopped: its StartVM came twice, the second time between its end and the record of it."""
    starts: list[tuple[HostVMs, Command]] = []
    start, stop = HostVMs.start, HostVMs.stop

    async def start_noted(self: HostVMs, command: Command) -> VMStatus:
        starts.append((self, command))
        return await start(self, command)

    async def start_again(self: HostVMs, command: Command, grace_s: int) -> VMStatus:
        off = await stop(self, command, grace_s)
        with pytest.raises(Unavailable) as late:
            await start(*starts[0])
        assert late.value.reason is Reason.COMMAND_LATE
        starts.clear()
        return off

    monkeypatch.setattr(HostVMs, "start", start_noted)
    vm = await client.made("web-1")
    monkeypatch.setattr(HostVMs, "stop", start_again)
    assert (await stopped(client, "web-1")).state == operation_pb2.Operation.SUCCEEDED
    assert not starts
    assert cluster.world.guest(vm.uid).executing == ()


async def test_what_makes_a_vm_and_comes_again_after_its_removal_makes_nothing(
    client: Client, cluster: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host charged for ever for a VM that is gone, and a file in a shared pool that is nobody's."""
    defines: list[tuple[HostVMs, Command, DomainSpec]] = []
    files: list[tuple[HostVMs, VolumeSpec]] = []
    define, ensure = HostVMs.define, HostVMs.ensure_volume

    async def define_noted(self: HostVMs, command: Command, spec: DomainSpec) -> VMStatus:
        defines.append((self, command, spec))
        return await define(self, command, spec)

    async def ensure_noted(self: HostVMs, volume: VolumeSpec) -> int:
        files.append((self, volume))
        return await ensure(self, volume)

    monkeypatch.setattr(HostVMs, "define", define_noted)
    monkeypatch.setattr(HostVMs, "ensure_volume", ensure_noted)
    await client.made("web-1")
    await client.wait(await client.delete("web-1"))
    host, command, _ = defines[0]
    with pytest.raises(Unavailable):
        await define(*defines[0])
    assert command.vm_uid not in host._state.definitions
    for vms in {id(vms): vms for vms, _ in files}.values():
        with pytest.raises(VolumeRemoved):
            await ensure(vms, files[0][1])


async def test_a_definition_that_comes_after_its_creation_was_turned_back_charges_nobody(
    client: Client, cluster: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host has never heard of the VM when it is told to end it, and hears of it afterwards."""
    late: list[tuple[HostVMs, Command, DomainSpec]] = []
    define = HostVMs.define

    async def on_its_way(self: HostVMs, command: Command, spec: DomainSpec) -> VMStatus:
        late.append((self, command, spec))
        raise HypervisorUnavailable("The message is still on its way.")

    monkeypatch.setattr(HostVMs, "define", on_its_way)
    operation = await client.create("web-1")
    async with asyncio.timeout(TIMEOUT_S):
        while not late:  # noqa: ASYNC110 the message has no event
            await asyncio.sleep(LOOK_S)
    assert (await cancelled(client, operation)).state == CANCELLED
    host, command, _ = late[0]
    with pytest.raises(Unavailable):
        await define(*late[0])
    assert command.vm_uid not in host._state.definitions
