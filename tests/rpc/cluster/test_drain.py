"""DrainNode through the API: what is moved, what is told of what is not, and that it ends, whoever drives it."""

import asyncio
import json
from collections.abc import Callable

import grpc.aio
import pytest

from client import CALL_S, Client
from devcluster.cluster import DevCluster
from hostler.api.cluster.v1 import nodes_pb2, operations_pb2, vms_pb2, volumes_pb2
from hostler.api.type.v1 import node_pb2, operation_pb2, vm_pb2, volume_pb2
from nodeagent.adapters.sim_migration import MigrationFault
from scheduler.core import turns
from tests.rpc.cluster.test_cold_migration import off
from tests.rpc.cluster.test_migration import claims

Connect = Callable[[str], Client]
Operation = operation_pb2.Operation
Drain = Operation.DrainMetadata


async def drain(client: Client, node: str = "n1", parallel: int = 0, dry_run: bool = False) -> Operation:
    request = nodes_pb2.DrainNodeRequest(name=f"nodes/{node}", parallel=parallel, validate_only=dry_run)
    return await client.nodes.DrainNode(request, timeout=CALL_S)


async def cancel(client: Client, name: str) -> Operation:
    return await client.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=name), timeout=CALL_S)


async def get(client: Client, name: str) -> Operation:
    return await client.operations.GetOperation(operations_pb2.GetOperationRequest(name=name), timeout=CALL_S)


async def node(client: Client, name: str = "n1") -> node_pb2.Node:
    return await client.nodes.GetNode(nodes_pb2.GetNodeRequest(name=f"nodes/{name}"), timeout=CALL_S)


def states(operation: Operation) -> dict[str, str]:
    return {entry.vm.removeprefix("vms/"): Drain.State.Name(entry.state) for entry in operation.drain.entries}


def kinds(cluster: DevCluster) -> dict[str, list[str]]:
    """Of each VM, "kind node" of its claims, straight from the store."""
    found: dict[str, list[str]] = {}
    for item in cluster.store.keyspace().list("/hostler/state/claim/", 0):
        claim = json.loads(item.value)
        found.setdefault(claim["vm_id"], []).append(f"{claim['kind']} {claim['node_id']}")
    return {vm_id: sorted(one) for vm_id, one in sorted(found.items())}


def sums_agree(cluster: DevCluster) -> bool:
    """Every ledger's sum is that of its claims."""
    sums: dict[str, int] = {}
    for item in cluster.store.keyspace().list("/hostler/state/claim/", 0):
        claim = json.loads(item.value)
        sums[claim["node_id"]] = sums.get(claim["node_id"], 0) + claim["charged"]["memory_mib/0"]
    ledgers = cluster.store.keyspace().list("/hostler/state/ledger/", 0)
    recorded = {item.key.rpartition("/")[2]: json.loads(item.value)["claimed"].get("memory_mib/0", 0) for item in ledgers}
    return {node_id: mib for node_id, mib in recorded.items() if mib} == sums


async def local(client: Client, vm_id: str, cluster: DevCluster) -> None:
    """A VM whose disk is in a pool of n1, and that no other node's pool has room for."""
    for other in ("n2", "n3"):
        full = volume_pb2.Volume(pool="pools/local", node=f"nodes/{other}", size_mib=cluster.options.pool_mib - 32)
        fill = volumes_pb2.CreateVolumeRequest(volume_id=f"full-{other}", volume=full)
        await client.wait(await client.volumes.CreateVolume(fill, timeout=CALL_S))
    disk = vm_pb2.VM.Disk(new_volume=vm_pb2.VM.NewVolume(pool="pools/local", size_mib=64))
    request = vms_pb2.CreateVMRequest(vm_id=vm_id, vm=vm_pb2.VM(disks=[disk], vcpus=1, memory_mib=512), node="nodes/n1")
    done = await client.wait(await client.vms.CreateVM(request, timeout=CALL_S))
    assert done.state == Operation.SUCCEEDED, done.error.message


async def until(client: Client, operation: Operation, holds: Callable[[Operation], bool]) -> Operation:
    """Until it is so; it must not end before."""
    async for now in client.follow(operation):
        if holds(now):
            return now
        assert not now.done, now.error.message or states(now)
    raise AssertionError("the watch ended")


async def test_a_drained_node_is_empty_and_no_guest_has_noticed(client: Client, cluster: DevCluster) -> None:
    """A guest that is restarted or lost, one that is off and is left behind or started, or a place that stays held."""
    made = [await client.made(f"web-{index}", node="nodes/n1") for index in range(3)]
    boots = {vm.uid: cluster.world.guest(vm.uid).boot_id for vm in made}
    await off(client, "off")
    done = await client.wait(await drain(client))
    assert done.state == Operation.SUCCEEDED, done.error.message
    assert states(done) == dict.fromkeys(["web-0", "web-1", "web-2", "off"], "MOVED")
    assert done.reason == "4 of 4 moved."
    assert {uid: cluster.world.guest(uid).boot_id for uid in boots} == boots
    assert (await client.vm("off")).state == vm_pb2.VM.STOPPED
    assert "n1" not in claims(cluster)
    assert all(len(one) == 1 and one[0].startswith("RUN ") for one in kinds(cluster).values()), kinds(cluster)
    assert sums_agree(cluster)
    after = await node(client)
    assert (after.state, after.vm_count) == (node_pb2.Node.CORDONED, 0)


async def test_a_dry_run_plans_and_changes_nothing(client: Client, cluster: DevCluster) -> None:
    """An operator who looks what would happen, and so makes it happen; or a plan that hides what cannot be moved."""
    await client.made("web", node="nodes/n1")
    await local(client, "pet", cluster)
    before = cluster.store.keyspace().list("/hostler/state/", 0)
    planned = await drain(client, dry_run=True)
    assert (planned.name, planned.reason) == ("", "1 of 2 VMs can be moved.")
    assert states(planned) == {"web": "PLANNED", "pet": "BLOCKED"}
    web, pet = sorted(planned.drain.entries, key=lambda entry: entry.vm, reverse=True)
    assert web.destination_node in ("nodes/n2", "nodes/n3")
    assert "pool local short by 32 MiB" in pet.reason
    after = cluster.store.keyspace().list("/hostler/state/", 0)
    assert [(item.key, item.value) for item in after] == [(item.key, item.value) for item in before]


async def test_what_cannot_be_moved_stays_running_and_the_drain_says_so(client: Client, cluster: DevCluster) -> None:
    """A VM that is stopped because an operator wants its host, or a drain that calls a node empty that is not."""
    await local(client, "pet", cluster)
    await client.made("web", node="nodes/n1")
    done = await client.wait(await drain(client))
    assert done.state == Operation.FAILED
    assert done.error.message.startswith("1 VM is still on n1, which stays cordoned. pet: ")
    assert states(done) == {"pet": "BLOCKED", "web": "MOVED"}
    pet = await client.vm("pet")
    assert (pet.state, pet.node) == (vm_pb2.VM.RUNNING, "nodes/n1")
    assert (await node(client)).state == node_pb2.Node.CORDONED
    assert sums_agree(cluster)


async def test_all_places_are_held_before_the_first_move_and_given_back_when_it_is_cancelled(client: Client, cluster: DevCluster) -> None:
    """A drain that stops in the middle because somebody took the place of the next; or a place that is held for ever."""
    for index in range(3):
        vm = await client.made(f"web-{index}", node="nodes/n1")
        cluster.world.script_migration(vm.uid, MigrationFault.STALLS)
    operation = await drain(client, parallel=1)
    moving = await until(client, operation, lambda now: any(entry.reason.startswith("COPYING") for entry in now.drain.entries))
    assert sorted(states(moving).values()) == ["MOVING", "PLANNED", "PLANNED"]
    held = sorted(claim.split()[0] for one in kinds(cluster).values() for claim in one if not claim.startswith("RUN"))
    assert held == ["HOLD", "HOLD", "MIGRATE_IN"]
    assert sums_agree(cluster)
    with pytest.raises(grpc.aio.AioRpcError, match="is being drained already"):
        await drain(client)
    assert moving.cancellable
    await cancel(client, operation.name)
    releasing = await until(client, operation, lambda now: now.phase == "RELEASING" and "PLANNED" not in states(now).values())
    assert sorted(states(releasing).values()) == ["MOVING", "SKIPPED", "SKIPPED"], "what has begun goes on to its end"
    await cancel(client, next(entry.operation for entry in releasing.drain.entries if entry.operation))
    done = await client.wait(operation)
    assert done.state == Operation.CANCELLED
    assert done.error.message.startswith("The drain was cancelled. 3 VMs are still on n1")
    assert kinds(cluster) == {f"web-{index}": ["RUN n1"] for index in range(3)}
    assert sums_agree(cluster)


async def test_killing_the_driving_replica(client: Client, connect: Connect, cluster: DevCluster) -> None:
    """A drain that dies with its driver, moves a VM twice, or forgets one."""
    for index in range(4):
        await client.made(f"web-{index}", node="nodes/n1", memory_mib=2048)
    operation = await drain(client, parallel=2)
    moving = await until(client, operation, lambda now: any(entry.reason.startswith("COPYING") for entry in now.drain.entries))
    victim = moving.phases[-1].driver.partition("@")[0]
    other = connect("s2" if victim == "s1" else "s1")
    await cluster.schedulers[victim].kill()
    done = await other.wait(operation)
    assert done.state == Operation.SUCCEEDED, done.error.message
    assert set(states(done).values()) == {"MOVED"}
    assert all(len(one) == 1 and one[0].startswith("RUN ") for one in kinds(cluster).values()), kinds(cluster)
    moves = await other.operations.ListOperations(operations_pb2.ListOperationsRequest(), timeout=CALL_S)
    assert sorted(one.target for one in moves.operations if one.verb == "MigrateVM") == [f"vms/web-{index}" for index in range(4)]


@pytest.mark.parametrize("fallback", [vm_pb2.VM.STAY, vm_pb2.VM.RESTART])
async def test_one_that_fails_twice_is_restarted_only_if_its_owner_permits_it(
    fallback: vm_pb2.VM.MoveFallback.ValueType, client: Client, cluster: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest that is stopped against its owner's will; or a node that is never empty although its owner does not mind."""
    monkeypatch.setattr(turns, "HOLD_BACK_FIRST_MS", 10)
    disk = vm_pb2.VM.Disk(new_volume=vm_pb2.VM.NewVolume(pool="pools/shared", image="guest"))
    wanted = vm_pb2.VM(disks=[disk], vcpus=1, memory_mib=512, move_fallback=fallback)
    made = await client.vms.CreateVM(vms_pb2.CreateVMRequest(vm_id="web", vm=wanted, node="nodes/n1"), timeout=CALL_S)
    vm = (await client.wait(made)).vm
    boot_id = cluster.world.guest(vm.uid).boot_id

    async def always_fails() -> None:
        """Each of its moves."""
        seen = ""
        while True:
            now = (await client.vm("web")).operation
            if now != seen:
                seen = now
                cluster.world.script_migration(vm.uid, MigrationFault.FAILS_MIDWAY)
            await asyncio.sleep(0.01)

    cluster.world.script_migration(vm.uid, MigrationFault.FAILS_MIDWAY)
    failing = asyncio.ensure_future(always_fails())
    try:
        done = await client.wait(await drain(client))
    finally:
        failing.cancel()
    after, guest = await client.vm("web"), cluster.world.guest(vm.uid)
    assert after.state == vm_pb2.VM.RUNNING
    assert f"nodes/{guest.executing[0]}" == after.node
    if fallback == vm_pb2.VM.RESTART:
        assert done.state == Operation.SUCCEEDED, done.error.message
        assert (after.node != "nodes/n1", guest.boot_id != boot_id) == (True, True)
    else:
        assert (done.state, states(done)) == (Operation.FAILED, {"web": "FAILED"})
        assert (after.node, guest.boot_id) == ("nodes/n1", boot_id)
    assert len(kinds(cluster)["web"]) == 1
    assert sums_agree(cluster)


async def test_an_uncordoned_node_is_not_drained_further(client: Client, cluster: DevCluster) -> None:
    """A drain that runs after new VMs for ever, because somebody wants the node back."""
    for index in range(2):
        vm = await client.made(f"web-{index}", node="nodes/n1")
        cluster.world.script_migration(vm.uid, MigrationFault.STALLS)
    operation = await drain(client, parallel=1)
    moving = await until(client, operation, lambda now: any(entry.reason.startswith("COPYING") for entry in now.drain.entries))
    await client.nodes.UncordonNode(nodes_pb2.UncordonNodeRequest(name="nodes/n1"), timeout=CALL_S)
    await until(client, operation, lambda now: now.phase == "RELEASING")
    await cancel(client, next(entry.operation for entry in moving.drain.entries if entry.operation))
    done = await client.wait(operation)
    assert done.state == Operation.FAILED
    assert "was uncordoned while it was drained" in done.error.message
    assert sorted(len(one) for one in kinds(cluster).values()) == [1, 1]


@pytest.mark.slow
async def test_a_silent_node_cannot_be_drained(client: Client, cluster: DevCluster) -> None:
    """An operator who waits for a drain that nobody can carry out, and is not told what would help."""
    await client.made("web", node="nodes/n1")
    await cluster.agents["n1"].kill()
    async with asyncio.timeout(30):
        while (await node(client)).health != node_pb2.Node.SILENT:  # noqa: ASYNC110 silence has no event
            await asyncio.sleep(0.2)
    with pytest.raises(grpc.aio.AioRpcError, match="n1 does not answer: nothing can be moved from it"):
        await drain(client)
