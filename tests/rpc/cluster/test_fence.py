"""A node that does not come back: what waits for it ends on a person's proof alone, and it does no harm when it does come back."""

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

import grpc.aio
import pytest

from client import CALL_S, Client
from devcluster.cluster import DevCluster
from hostler.api.cluster.v1 import nodes_pb2, vms_pb2
from hostler.api.type.v1 import node_pb2, operation_pb2, vm_pb2
from hostler.errors import Reason, Unavailable
from hostler.model.domain import DomainSpec, VolumeSpec
from hostler.model.node import NodeReport, VMStatus
from nodeagent.adapters.grpc_scheduler import GrpcScheduler
from nodeagent.adapters.sim_hypervisor import SimHypervisor
from nodeagent.adapters.sim_migration import MigrationFault
from nodeagent.core.definitions import Command
from nodeagent.core.observed import CopyTag, DomainView
from nodeagent.engine.host_state import HostState
from nodeagent.engine.link import Link
from nodeagent.engine.vms import HostVMs
from nodeagent.ports import AuthorityUnavailable, HypervisorUnavailable, Registration
from scheduler.adapters.grpc_nodes import GrpcNodes
from scheduler.engine import liveness
from scheduler.ports import Order

SUCCEEDED, FAILED = operation_pb2.Operation.SUCCEEDED, operation_pb2.Operation.FAILED
TIMEOUT_S = 30.0
LOOK_S = 0.05


@pytest.fixture(autouse=True)
def soon_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence after a second and a half; beats come every two, or at once when something happens."""
    monkeypatch.setattr(liveness, "SILENT_AFTER_S", 3.5)


async def node(client: Client, node_id: str) -> node_pb2.Node:
    return await client.nodes.GetNode(nodes_pb2.GetNodeRequest(name=f"nodes/{node_id}"), timeout=CALL_S)


async def until(client: Client, node_id: str, *, health: int = 0, state: int = 0) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not ((now := await node(client, node_id)).health == health or now.state == state):  # noqa: ASYNC110 asked, not watched
            await asyncio.sleep(LOOK_S)


async def fence(client: Client, node_id: str, *, confirmed: bool = True) -> operation_pb2.Operation:
    request = nodes_pb2.FenceNodeRequest(name=f"nodes/{node_id}", confirm_powered_off=confirmed)
    return await client.nodes.FenceNode(request, timeout=CALL_S)


async def power_off(client: Client, cluster: DevCluster, node_id: str) -> int:
    """The host loses its power, its agent with it; returns once the cluster hears nothing more. The agent's port."""
    port = cluster.agents[node_id].port
    cluster.world.hosts[node_id].crash_host()
    await cluster.agents[node_id].kill()
    await until(client, node_id, health=node_pb2.Node.SILENT)
    return port


async def start(client: Client, vm_id: str) -> operation_pb2.Operation:
    return await client.wait(await client.vms.StartVM(vms_pb2.StartVMRequest(name=f"vms/{vm_id}"), timeout=CALL_S))


async def test_only_a_silent_node_is_fenced_and_only_on_a_persons_word(client: Client, cluster: DevCluster) -> None:
    """Guests that are started a second time because somebody fenced the wrong node, or by mistake."""
    with pytest.raises(grpc.aio.AioRpcError) as unconfirmed:
        await fence(client, "n1", confirmed=False)
    assert unconfirmed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.aio.AioRpcError) as answers:
        await fence(client, "n1")
    assert answers.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert (await node(client, "n1")).state == node_pb2.Node.ACTIVE


async def test_a_vm_of_a_node_that_lost_its_power_starts_on_another(client: Client, cluster: DevCluster) -> None:
    """Limbo: a VM that stays with a node that never comes back; or one that runs twice when it does."""
    vm = await client.made("web-1")
    home = vm.node.removeprefix("nodes/")
    port = await power_off(client, cluster, home)
    done = await client.wait(await fence(client, home))
    assert done.state == SUCCEEDED, done.error.message
    stopped = await client.vm("web-1")
    assert (stopped.state, stopped.stale, "fenced" in stopped.reason) == (vm_pb2.VM.CRASHED, False, True)
    done = await start(client, "web-1")
    assert done.state == SUCCEEDED, done.error.message
    after = await client.vm("web-1")
    assert (after.node != vm.node, after.state, after.epoch > vm.epoch) == (True, vm_pb2.VM.RUNNING, True)
    cluster.world.hosts[home].boot_host()
    await cluster.start_agent(home, port)
    await until(client, home, state=node_pb2.Node.CORDONED)
    assert cluster.world.guest(vm.uid).executing == (after.node.removeprefix("nodes/"),)
    assert not list((cluster.directory / "state" / home / "vms").glob("*"))
    await client.nodes.UncordonNode(nodes_pb2.UncordonNodeRequest(name=f"nodes/{home}"), timeout=CALL_S)
    await until(client, home, health=node_pb2.Node.READY)
    done = await client.wait(await client.migrate("web-1", to=home))
    assert done.state == SUCCEEDED, done.error.message


async def test_what_waits_for_a_silent_node_names_the_proof_that_ends_it(client: Client, cluster: DevCluster) -> None:
    """Somebody who watches an operation stand still, and is not told what would end it."""
    vm = await client.made("web-1")
    home = vm.node.removeprefix("nodes/")
    await power_off(client, cluster, home)
    operation = await client.vms.StopVM(vms_pb2.StopVMRequest(name=vm.name), timeout=CALL_S)
    async with asyncio.timeout(TIMEOUT_S), aclosing(client.follow(operation)) as followed:
        async for now in followed:
            if f"hostler node fence {home} --confirm-powered-off" in now.reason:
                break
    await fence(client, home)
    assert (await client.wait(operation)).state == SUCCEEDED
    assert (await client.vm("web-1")).state == vm_pb2.VM.STOPPED


async def test_a_fenced_node_that_was_not_off_ends_its_guests_before_it_is_heard(client: Client, cluster: DevCluster) -> None:
    """Two running copies for as long as anybody likes: the person was wrong, and the guests of the node run on."""
    vm = await client.made("web-1")
    home = vm.node.removeprefix("nodes/")
    port = cluster.agents[home].port
    await cluster.agents[home].kill()
    await until(client, home, health=node_pb2.Node.SILENT)
    assert (await client.wait(await fence(client, home))).state == SUCCEEDED
    assert cluster.world.guest(vm.uid).executing == (home,)
    await cluster.start_agent(home, port)
    await until(client, home, state=node_pb2.Node.CORDONED)
    assert cluster.world.guest(vm.uid).executing == ()
    done = await start(client, "web-1")
    assert done.state == SUCCEEDED, done.error.message


@pytest.mark.parametrize("end", ["source", "destination"])
async def test_a_migration_to_or_from_a_node_that_is_fenced_ends(end: str, client: Client, cluster: DevCluster) -> None:
    """An operation that waits for ever for a node whose power is gone, with the destination charged meanwhile."""
    vm = await client.made("web-1", memory_mib=4096)
    cluster.world.script_migration(vm.uid, MigrationFault.STALLS)
    operation = await client.migrate("web-1")
    copying = await client.until_phase(operation, "COPYING")
    lost = getattr(copying.migration, f"{end}_node").removeprefix("nodes/")
    await power_off(client, cluster, lost)
    fencing = await fence(client, lost)
    done = await client.wait(operation)
    assert done.state == FAILED
    assert (await client.wait(fencing)).state == SUCCEEDED
    after = await client.vm("web-1")
    assert after.node == vm.node
    assert after.state == (vm_pb2.VM.CRASHED if end == "source" else vm_pb2.VM.RUNNING)
    charged = {item.key for item in cluster.store.keyspace().list("/hostler/state/claim/", 0)}
    assert charged == {f"/hostler/state/claim/{vm.node.removeprefix('nodes/')}/web-1"}
    if end == "source":
        assert (await start(client, "web-1")).state == SUCCEEDED


@pytest.mark.slow
async def test_a_vm_on_a_fenced_node_can_be_deleted_and_its_disk_goes_when_the_node_is_back(client: Client, cluster: DevCluster) -> None:
    """A deletion that waits for a node that is gone, or a file that nobody ever removes."""
    vm = await client.made("db", pool="local")
    home = vm.node.removeprefix("nodes/")
    files = cluster.world.hosts[home].pools["local"].files
    assert any(path.startswith("volumes/") for path in files)
    port = await power_off(client, cluster, home)
    await client.wait(await fence(client, home))
    done = await client.wait(await client.delete("db"))
    assert done.state == SUCCEEDED, done.error.message
    cluster.world.hosts[home].boot_host()
    await cluster.start_agent(home, port)
    async with asyncio.timeout(TIMEOUT_S):
        while any(path.startswith("volumes/") for path in files):  # noqa: ASYNC110 a file has no event
            await asyncio.sleep(LOOK_S)
    async with asyncio.timeout(TIMEOUT_S):
        while cluster.store.keyspace().list("/hostler/state/owed/", 0):  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)


async def test_a_start_in_the_hands_of_a_fenced_agent_runs_nothing_once_it_is_heard(
    client: Client, cluster: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest that runs on, and perhaps twice, on a node that has said that it runs nothing: the start was in its agent's hands all the while."""
    vm = await client.made("web-1")
    await client.wait(await client.vms.StopVM(vms_pb2.StopVMRequest(name=vm.name, force=True), timeout=CALL_S))
    home = vm.node.removeprefix("nodes/")
    create, session, beat, lock = SimHypervisor.create_paused, Link._session, GrpcScheduler.beat, HostState.vm_lock
    creating, may_create, may_register, waits_for_the_start = (asyncio.Event() for _ in range(4))

    async def slow(self: SimHypervisor, spec: DomainSpec, tag: CopyTag, paths: Mapping[str, str]) -> DomainView:
        creating.set()
        await may_create.wait()
        return await create(self, spec, tag, paths)

    async def later(self: Link) -> None:
        await may_register.wait()
        await session(self)

    async def unheard(self: GrpcScheduler, incarnation: str, counter: int, report: NodeReport | None) -> bool:
        if self._node_id == home and not may_register.is_set():
            raise AuthorityUnavailable("cut off")
        return await beat(self, incarnation, counter, report)

    def asked_for(self: HostState, vm_uid: str) -> asyncio.Lock:
        if may_register.is_set():
            waits_for_the_start.set()
        return lock(self, vm_uid)

    monkeypatch.setattr(SimHypervisor, "create_paused", slow)
    monkeypatch.setattr(Link, "_session", later)
    starting = await client.vms.StartVM(vms_pb2.StartVMRequest(name=vm.name), timeout=CALL_S)
    await asyncio.wait_for(creating.wait(), TIMEOUT_S)
    monkeypatch.setattr(GrpcScheduler, "beat", unheard)
    await until(client, home, health=node_pb2.Node.SILENT)
    fencing = await fence(client, home)
    monkeypatch.setattr(HostState, "vm_lock", asked_for)
    may_register.set()
    await asyncio.wait_for(waits_for_the_start.wait(), TIMEOUT_S)
    may_create.set()
    await until(client, home, state=node_pb2.Node.CORDONED)
    await client.wait(fencing)
    await client.wait(starting)
    assert cluster.world.guest(vm.uid).executing == ()
    assert (await client.vm("web-1")).state in (vm_pb2.VM.STOPPED, vm_pb2.VM.CRASHED)


async def test_a_vm_that_is_started_elsewhere_just_before_its_node_is_heard_is_forgotten_there(
    client: Client, cluster: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that is charged for ever for a VM of another: it looked whose it was before it was heard, and not after."""
    vm = await client.made("web-1")
    home = vm.node.removeprefix("nodes/")
    port = await power_off(client, cluster, home)
    assert (await client.wait(await fence(client, home))).state == SUCCEEDED
    laid, may_register, register = asyncio.Event(), asyncio.Event(), GrpcScheduler.register

    async def later(self: GrpcScheduler, boot_id: str, endpoint: str, report: NodeReport, *, laid_down: bool = False) -> Registration:
        if laid_down:
            laid.set()
            await may_register.wait()
        return await register(self, boot_id, endpoint, report, laid_down=laid_down)

    monkeypatch.setattr(GrpcScheduler, "register", later)
    cluster.world.hosts[home].boot_host()
    await cluster.start_agent(home, port)
    await asyncio.wait_for(laid.wait(), TIMEOUT_S)
    assert (await start(client, "web-1")).state == SUCCEEDED
    may_register.set()
    await until(client, home, state=node_pb2.Node.CORDONED)
    async with asyncio.timeout(TIMEOUT_S):
        while list((cluster.directory / "state" / home / "vms").glob("*")):  # noqa: ASYNC110 a file has no event
            await asyncio.sleep(LOOK_S)


async def test_a_vm_that_was_deleted_while_its_node_was_fenced_is_forgotten_there(
    client: Client, cluster: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that is charged for ever for a VM that is no more: it was back before the record was gone, and took the VM for its own."""
    vm = await client.made("web-1")
    home = vm.node.removeprefix("nodes/")
    port = await power_off(client, cluster, home)
    assert (await client.wait(await fence(client, home))).state == SUCCEEDED
    removing, may_remove, remove = asyncio.Event(), asyncio.Event(), GrpcNodes.remove_volume

    async def later(self: GrpcNodes, node_id: str, order: Order, volume: VolumeSpec) -> None:
        removing.set()
        await may_remove.wait()
        await remove(self, node_id, order, volume)

    monkeypatch.setattr(GrpcNodes, "remove_volume", later)
    deleting = await client.delete("web-1")
    await asyncio.wait_for(removing.wait(), TIMEOUT_S)
    cluster.world.hosts[home].boot_host()
    await cluster.start_agent(home, port)
    await until(client, home, state=node_pb2.Node.CORDONED)
    may_remove.set()
    done = await client.wait(deleting)
    assert done.state == SUCCEEDED, done.error.message
    assert not list((cluster.directory / "state" / home / "vms").glob("*"))


@pytest.mark.parametrize("end", ["the answer is lost", "the agent is killed"])
async def test_what_was_started_elsewhere_is_forgotten_though_the_registration_is_interrupted(
    end: str, client: Client, cluster: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that is charged for ever for a VM of another: its agent is heard, and does not come to look again whose its VMs are."""
    vm = await client.made("web-1")
    home = vm.node.removeprefix("nodes/")
    port = await power_off(client, cluster, home)
    assert (await client.wait(await fence(client, home))).state == SUCCEEDED
    laid, may_register, heard, register = asyncio.Event(), asyncio.Event(), asyncio.Event(), GrpcScheduler.register
    stays = asyncio.Event()

    async def interrupted(self: GrpcScheduler, boot_id: str, endpoint: str, report: NodeReport, *, laid_down: bool = False) -> Registration:
        if not laid_down:
            return await register(self, boot_id, endpoint, report)
        laid.set()
        await may_register.wait()
        await register(self, boot_id, endpoint, report, laid_down=laid_down)
        heard.set()
        if end == "the agent is killed":
            await stays.wait()
        raise AuthorityUnavailable("the answer is lost")

    monkeypatch.setattr(GrpcScheduler, "register", interrupted)
    cluster.world.hosts[home].boot_host()
    await cluster.start_agent(home, port)
    await asyncio.wait_for(laid.wait(), TIMEOUT_S)
    assert (await start(client, "web-1")).state == SUCCEEDED
    may_register.set()
    await asyncio.wait_for(heard.wait(), TIMEOUT_S)
    assert list((cluster.directory / "state" / home / "vms").glob("*")), "it was forgotten too early for this case to show anything"
    if end == "the agent is killed":
        await cluster.agents[home].kill()
        await cluster.start_agent(home, port)
    async with asyncio.timeout(TIMEOUT_S):
        while list((cluster.directory / "state" / home / "vms").glob("*")):  # noqa: ASYNC110 a file has no event
            await asyncio.sleep(LOOK_S)
    await client.nodes.UncordonNode(nodes_pb2.UncordonNodeRequest(name=f"nodes/{home}"), timeout=CALL_S)
    await until(client, home, health=node_pb2.Node.READY)
    done = await client.wait(await client.migrate("web-1", to=home))
    assert done.state == SUCCEEDED, done.error.message


async def test_an_agent_that_no_scheduler_has_heard_yet_takes_nothing_in(
    client: Client, cluster: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two running copies: a command from before the fence reaches the agent of a host that has its power again, and has not learned of the fence."""
    vm = await client.made("web-1")
    home = vm.node.removeprefix("nodes/")
    port = await power_off(client, cluster, home)
    assert (await client.wait(await fence(client, home))).state == SUCCEEDED
    cluster.world.hosts[home].boot_host()
    agents: list[HostVMs] = []
    refused: list[Reason] = []
    make, register = HostVMs.__init__, GrpcScheduler.register

    def noted(self: HostVMs, *parts: Any) -> None:  # noqa: ANN401 whatever it is made of
        make(self, *parts)
        agents.append(self)

    async def after_a_command(self: GrpcScheduler, boot_id: str, endpoint: str, report: NodeReport, **how: bool) -> Registration:
        if not refused:
            with pytest.raises(Unavailable) as early:
                await agents[0].start(Command("op-late", vm.uid, vm.epoch, 1, 1))
            refused.append(early.value.reason)
        return await register(self, boot_id, endpoint, report, **how)

    monkeypatch.setattr(HostVMs, "__init__", noted)
    monkeypatch.setattr(GrpcScheduler, "register", after_a_command)
    await cluster.start_agent(home, port)
    await until(client, home, state=node_pb2.Node.CORDONED)
    assert refused == [Reason.NODE_UNREACHABLE]
    assert cluster.world.guest(vm.uid).executing == ()


async def test_a_command_from_before_the_fence_makes_nothing_on_the_node_that_is_back(
    client: Client, cluster: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that is charged for ever: a replica that was stopped with a DefineVM in its hands sends it when the node has been fenced and is back."""
    agents: list[HostVMs] = []
    late: list[tuple[Command, DomainSpec]] = []
    make, define = HostVMs.__init__, HostVMs.define

    def noted(self: HostVMs, *parts: Any) -> None:  # noqa: ANN401 whatever it is made of
        make(self, *parts)
        agents.append(self)

    async def on_its_way(self: HostVMs, command: Command, spec: DomainSpec) -> VMStatus:
        late.append((command, spec))
        raise HypervisorUnavailable("The message is still on its way.")

    monkeypatch.setattr(HostVMs, "__init__", noted)
    monkeypatch.setattr(HostVMs, "define", on_its_way)
    creating = await client.create("web-1")
    async with asyncio.timeout(TIMEOUT_S):
        while not late:  # noqa: ASYNC110 the message has no event
            await asyncio.sleep(LOOK_S)
    listed = await client.nodes.ListNodes(nodes_pb2.ListNodesRequest(), timeout=CALL_S)
    (home,) = [one.name.removeprefix("nodes/") for one in listed.nodes if one.vm_count]
    port = await power_off(client, cluster, home)
    assert (await client.wait(await fence(client, home))).state == SUCCEEDED
    assert (await client.wait(creating)).state == FAILED
    cluster.world.hosts[home].boot_host()
    await cluster.start_agent(home, port)
    await until(client, home, state=node_pb2.Node.CORDONED)
    with pytest.raises(Unavailable) as refused:
        await define(agents[-1], *late[0])
    assert refused.value.reason is Reason.COMMAND_LATE
    assert not list((cluster.directory / "state" / home / "vms").glob("*"))
