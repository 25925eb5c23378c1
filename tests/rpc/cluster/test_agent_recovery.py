"""A source agent that dies at the worst moment of a handoff: what it missed it must find out, and what nobody can prove it must not assume."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from client import Client
from devcluster.cluster import DevCluster
from hostler.api.type.v1 import operation_pb2, vm_pb2
from nodeagent.adapters.sim_migration import MigrationFault
from nodeagent.ports import EventKind

SUCCEEDED, FAILED = operation_pb2.Operation.SUCCEEDED, operation_pb2.Operation.FAILED
TIMEOUT_S = 20.0
LOOK_S = 0.01


@asynccontextmanager
async def source_agent_killed_at_the_arrival(client: Client, cluster: DevCluster, vm: vm_pb2.VM) -> AsyncIterator[operation_pb2.Operation]:
    """Migrates `vm`; inside the block its copy is complete and paused, and the source's agent is dead. It is back at the end of the block."""
    source = vm.node.removeprefix("nodes/")
    readers = {node_id: host.events.read() for node_id, host in cluster.world.hosts.items() if node_id != source}
    operation = await client.migrate(vm.name.removeprefix("vms/"))

    async def arrival(node_id: str) -> None:
        async for event in readers[node_id]:
            if event.kind is EventKind.ARRIVED and event.vm_uid == vm.uid:
                cluster.agents[source].task.cancel()
                break

    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as group:
        waiting = [group.create_task(arrival(node_id), name=f"arrival on {node_id}") for node_id in readers]
        _, others = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in others:
            task.cancel()
    for reader in readers.values():
        await reader.aclose()
    port = cluster.agents[source].port
    await cluster.agents[source].kill()
    yield operation
    await cluster.start_agent(source, port)


async def until_copies_are_on(cluster: DevCluster, vm: vm_pb2.VM, node_ids: set[str]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while {copy.node_id for copy in cluster.world.copies(vm.uid)} != node_ids:  # noqa: ASYNC110 a process has no event
            await asyncio.sleep(LOOK_S)


async def test_a_source_that_ended_while_its_agent_was_away_goes_forward(client: Client, cluster: DevCluster) -> None:
    """A guest that is called crashed although its whole copy waits at the destination."""
    vm = await client.made("web-1")
    boot_id = cluster.world.guest(vm.uid).boot_id
    async with source_agent_killed_at_the_arrival(client, cluster, vm) as operation:
        (destination,) = {copy.node_id for copy in cluster.world.copies(vm.uid)} - {vm.node.removeprefix("nodes/")}
        await until_copies_are_on(cluster, vm, {destination})
    done = await client.wait(operation)
    assert done.state == SUCCEEDED, done.error.message
    after, guest = await client.vm("web-1"), cluster.world.guest(vm.uid)
    assert (after.node, after.epoch, after.state) == (f"nodes/{destination}", vm.epoch + 1, vm_pb2.VM.RUNNING)
    assert (guest.boot_id, guest.executing, guest.writers) == (boot_id, (destination,), (destination,))


async def test_a_source_that_ran_on_before_it_ended_never_goes_forward(client: Client, cluster: DevCluster) -> None:
    """Stale memory: the copy is complete and the source is gone, but in between the source had run on, and its disk is newer than the copy."""
    vm = await client.made("web-1")
    source = vm.node.removeprefix("nodes/")
    cluster.world.script_migration(vm.uid, MigrationFault.FINISH_REPLY_LOST)
    async with source_agent_killed_at_the_arrival(client, cluster, vm) as operation:
        async with asyncio.timeout(TIMEOUT_S):
            while cluster.world.guest(vm.uid).executing != (source,):  # noqa: ASYNC110 a guest has no event
                await asyncio.sleep(LOOK_S)
        cluster.world.hosts[source].crash_domain(vm.uid)
    done = await client.wait(operation)
    assert done.state == FAILED
    after = await client.vm("web-1")
    assert (after.node, after.epoch) == (vm.node, vm.epoch)
    assert after.state != vm_pb2.VM.RUNNING
    assert cluster.world.copies(vm.uid) == []
    cluster.world.assert_one_writer()
