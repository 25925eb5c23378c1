"""A source agent that dies at the worst moment of a handoff: what it missed it must find out, and what nobody can prove it must not assume."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from client import Client
from devcluster.cluster import DevCluster
from hostler.api.type.v1 import operation_pb2, vm_pb2
from nodeagent.adapters.sim_hypervisor import SimHypervisor
from nodeagent.adapters.sim_migration import MigrationFault
from nodeagent.engine import outgoing_evidence
from nodeagent.ports import EventKind

SUCCEEDED, FAILED = operation_pb2.Operation.SUCCEEDED, operation_pb2.Operation.FAILED
TIMEOUT_S = 20.0
LOOK_S = 0.01


async def migrate_until_arrival(
    client: Client, cluster: DevCluster, vm: vm_pb2.VM, then: Callable[[str], object]
) -> operation_pb2.Operation:
    """Migrates `vm`; `then(destination)` is called at the moment in which the copy is complete and paused, before any agent hears of it."""
    source = vm.node.removeprefix("nodes/")
    readers = {node_id: host.events.read() for node_id, host in cluster.world.hosts.items() if node_id != source}
    operation = await client.migrate(vm.name.removeprefix("vms/"))

    async def arrival(node_id: str) -> None:
        async for event in readers[node_id]:
            if event.kind is EventKind.ARRIVED and event.vm_uid == vm.uid:
                then(node_id)
                break

    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as group:
        waiting = [group.create_task(arrival(node_id), name=f"arrival on {node_id}") for node_id in readers]
        _, others = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in others:
            task.cancel()
    for reader in readers.values():
        await reader.aclose()
    return operation


@asynccontextmanager
async def source_agent_killed_at_the_arrival(client: Client, cluster: DevCluster, vm: vm_pb2.VM) -> AsyncIterator[operation_pb2.Operation]:
    """Migrates `vm`; inside the block its copy is complete and paused, and the source's agent is dead. It is back at the end of the block."""
    source = vm.node.removeprefix("nodes/")
    operation = await migrate_until_arrival(client, cluster, vm, lambda _: cluster.agents[source].task.cancel())
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


async def test_a_tunnel_that_cannot_be_opened_is_the_reason_and_not_the_end(client: Client, cluster: DevCluster) -> None:
    """An agent that dies of a full directory or a missing port, again at every start, instead of saying so."""
    vm = await client.made("web-1")
    source = vm.node.removeprefix("nodes/")
    for broken in (source, *(node_id for node_id in cluster.agents if node_id != source)):
        cluster.world.fabric.unopenable.add(broken)
    done = await client.wait(await client.migrate("web-1"))
    assert (done.state, (await client.vm("web-1")).state) == (FAILED, vm_pb2.VM.RUNNING)
    assert "tunnel" in done.error.message
    other = next(node_id for node_id in cluster.agents if node_id != source)  # named, so that nothing is held back after a failed copy
    cluster.world.fabric.unopenable = {source}
    done = await client.wait(await client.migrate("web-1", to=other))
    assert (done.state, (await client.vm("web-1")).state) == (FAILED, vm_pb2.VM.RUNNING)
    assert "tunnel" in done.error.message
    cluster.world.fabric.unopenable.clear()
    done = await client.wait(await client.migrate("web-1", to=other))
    assert done.state == SUCCEEDED, done.error.message


async def test_without_locks_a_copy_that_libvirt_left_switched_over_goes_on(
    client: Client, cluster: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Limbo: the daemon died in the last step, so its word that the source migrated away, which alone counts without locks, never comes."""
    monkeypatch.setattr(outgoing_evidence, "SETTLE_S", 0.5)
    next(iter(cluster.world.hosts.values())).pools["shared"].locks = False
    vm = await client.made("web-1")
    source = vm.node.removeprefix("nodes/")
    host, boot_id = cluster.world.hosts[source], cluster.world.guest(vm.uid).boot_id
    events = host.events.read()
    operation = await client.migrate("web-1")
    async for event in events:
        if event.kind is EventKind.SWITCHED:
            break
    await events.aclose()
    host.crash_daemon()
    async with asyncio.timeout(TIMEOUT_S):
        while vm.uid in host.jobs:  # noqa: ASYNC110 a job has no event
            await asyncio.sleep(LOOK_S)
    host.restart_daemon()
    done = await client.wait(operation)
    after, guest = await client.vm("web-1"), cluster.world.guest(vm.uid)
    assert (done.state, after.node, after.epoch, after.state) == (FAILED, vm.node, vm.epoch, vm_pb2.VM.RUNNING)
    assert (guest.boot_id, guest.executing) == (boot_id, (source,))


async def test_a_source_that_ends_unheard_before_it_is_frozen_keeps_its_agent_alive(
    client: Client, cluster: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that does nothing but try to freeze a process that is gone, so that it never hears why it went, nor anything else."""
    vm = await client.made("web-1")
    source = cluster.world.hosts[vm.node.removeprefix("nodes/")]
    met: list[str] = []

    def ends_unheard(destination: str) -> None:
        met.append(destination)
        source.hang()
        monkeypatch.setattr(SimHypervisor, "freeze", lambda *_: False)

    operation = await migrate_until_arrival(client, cluster, vm, ends_unheard)
    await until_copies_are_on(cluster, vm, set(met))
    source.unhang()
    done = await client.wait(operation)
    assert done.state == SUCCEEDED, done.error.message
    assert cluster.world.guest(vm.uid).executing == tuple(met)
