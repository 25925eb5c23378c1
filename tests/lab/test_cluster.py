"""Hostler whole, on real libvirt, QEMU and etcd: the guest, a client outside and an independent script are the witnesses.

One lab and one cluster for all cases; each case makes its own VM and leaves the cluster as the script finds it right.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing

import grpc
import grpc.aio
import pytest

import real
from client import CALL_S, Client
from hostler.api.cluster.v1 import nodes_pb2, operations_pb2, vms_pb2
from hostler.api.node.v1 import host_pb2, host_pb2_grpc
from hostler.api.type.v1 import node_pb2, operation_pb2, vm_pb2
from hostler.server import channels
from hostlerlab import faults
from hostlerlab.cluster import LabCluster
from hostlerlab.guest import probe
from hostlerlab.hosts import SHARED_POOL
from hostlerlab.shell import wait_for
from hostlerlab.supervisor import State

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

SUCCEEDED, FAILED = operation_pb2.Operation.SUCCEEDED, operation_pb2.Operation.FAILED
BACK_S = 60.0
LOOK_S = 0.02

emulated = pytest.mark.flaky(reruns=2)
"""QEMU's emulation by itself now and then loses a guest that is busy during a migration (docs/decisions/0007): such a case is played again."""


@pytest.fixture
async def client(stage: real.Real) -> AsyncIterator[Client]:
    """At the end of each case all VMs are deleted, and etcd, agents and libvirt must be equal."""
    first = stage.client("s1")
    yield first
    await stage.check()
    for vm in (await first.vms.ListVMs(vms_pb2.ListVMsRequest(), timeout=CALL_S)).vms:
        done = await first.wait(await first.delete(vm.name.removeprefix("vms/")))
        assert done.state == SUCCEEDED, done.error.message
    await stage.check()


async def address_of(cluster: LabCluster, vm: vm_pb2.VM) -> str:
    """Once the guest answers there."""
    address = await asyncio.to_thread(cluster.lab.wait_for_lease, vm.nics[0].mac_address, BACK_S)
    await probe.wait_answer(address)
    return address


async def made(client: Client, vm_id: str) -> vm_pb2.VM:
    done = await client.wait(await client.create(vm_id, memory_mib=128))
    assert done.state == SUCCEEDED, done.error.message
    return done.vm


async def wait_through(client: Client, operation: operation_pb2.Operation) -> operation_pb2.Operation:
    """As the SDK does: an etcd election makes a replica UNAVAILABLE for a moment, and the question is asked again."""
    async with asyncio.timeout(BACK_S):
        while True:
            try:
                return await client.wait(operation)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise


async def test_a_vm_boots_stops_on_the_power_button_starts_again_and_goes(client: Client, cluster: LabCluster) -> None:
    """A VM that is never reached, is killed instead of asked, or leaves its claim behind."""
    vm = await made(client, "life-1")
    first = await probe.ask(await address_of(cluster, vm))
    assert first.vcpus == 1
    stopped = await client.wait(await client.vms.StopVM(vms_pb2.StopVMRequest(name=vm.name, grace_s=30), timeout=CALL_S))
    assert stopped.state == SUCCEEDED, stopped.error.message
    assert (await client.vm("life-1")).state == vm_pb2.VM.STOPPED
    started = await client.wait(await client.vms.StartVM(vms_pb2.StartVMRequest(name=vm.name), timeout=CALL_S))
    assert started.vm.epoch == vm.epoch + 1
    second = await probe.ask(await address_of(cluster, vm))
    assert second.boot_id != first.boot_id
    assert second.disk_counter > first.disk_counter, "the disk was not the same one"
    assert second.disk_foreign == 0, "somebody else wrote to the disk"


async def test_a_guest_that_powers_itself_off_is_seen_as_stopped(client: Client, cluster: LabCluster) -> None:
    """A guest's own power-off that the cluster never notices."""
    vm = await made(client, "off-1")
    await address_of(cluster, vm)
    host = cluster.lab.hosts[vm.node.removeprefix("nodes/")]
    call = client.vms.WatchVMs(vms_pb2.WatchVMsRequest(), timeout=BACK_S)
    host.virsh("shutdown", vm.uid)
    async for event in call:
        if event.updated.uid == vm.uid and event.updated.state == vm_pb2.VM.STOPPED:
            break
    call.cancel()


NOTICED_S = 10.0


async def drifts(client: Client, vm: vm_pb2.VM, word: str) -> float:
    """Seconds until the VM's drift has the word; "": until it has none. Fails after NOTICED_S."""
    begin_s = asyncio.get_running_loop().time()
    call = client.vms.WatchVMs(vms_pb2.WatchVMsRequest(), timeout=NOTICED_S)
    async for event in call:
        found = list(event.updated.drift)
        if event.updated.uid == vm.uid and (any(word in one for one in found) if word else not found):
            break
    call.cancel()
    return asyncio.get_running_loop().time() - begin_s


async def test_a_hand_edit_is_shown_within_ten_seconds_and_clears_itself(client: Client, cluster: LabCluster) -> None:
    """Somebody changes a guest with virsh and nobody is told, or is told for ever."""
    vm = await made(client, "hand-1")
    await address_of(cluster, vm)
    host, mac = cluster.lab.hosts[vm.node.removeprefix("nodes/")], vm.nics[0].mac_address
    extra = str(SHARED_POOL / "extra.raw")
    host.run(["qemu-img", "create", "-q", "-f", "raw", extra, "1M"])
    for word, edit, undo in (
        ("suspended", ("suspend", vm.uid), ("resume", vm.uid)),
        ("96 MiB of memory", ("setmem", vm.uid, "96M", "--live"), ("setmem", vm.uid, "128M", "--live")),
        ("that Hostler did not give it", ("attach-disk", vm.uid, extra, "vdb", "--live"), ("detach-disk", vm.uid, "vdb", "--live")),
        ("link", ("domif-setlink", vm.uid, mac, "down"), ("domif-setlink", vm.uid, mac, "up")),
        ("virsh undefine", ("define", "/dev/stdin"), ("undefine", vm.uid)),
    ):
        xml = await asyncio.to_thread(host.virsh, "dumpxml", vm.uid)
        await asyncio.to_thread(host.virsh, *edit, stdin=xml)
        seen_s = await drifts(client, vm, word)
        await asyncio.to_thread(host.virsh, *undo)
        print(f"{edit[0]}: seen after {seen_s:.1f} s, gone {await drifts(client, vm, ''):.1f} s after {undo[0]}")
    await asyncio.to_thread(host.virsh, "detach-interface", vm.uid, "bridge", "--mac", mac, "--live")
    await drifts(client, vm, "was taken out")
    await asyncio.to_thread(host.virsh, "destroy", vm.uid)
    await drifts(client, vm, "power was taken")
    stopped = await client.vm("hand-1")
    assert (stopped.state, "past Hostler" in stopped.reason) == (vm_pb2.VM.STOPPED, True)
    started = await client.wait(await client.vms.StartVM(vms_pb2.StartVMRequest(name=vm.name), timeout=CALL_S))
    assert started.state == SUCCEEDED, started.error.message
    await drifts(client, vm, "")
    host.run(["rm", extra])


@emulated
async def test_migration_keeps_the_connection_and_the_guest(client: Client, stage: real.Real) -> None:
    """A migration that resets the guest, loses its connection, or lets two copies write."""
    vm = await made(client, "move-1")
    async with stage.watch(vm) as watched:
        await watched.settle()
        for _ in range(3):
            done = await client.wait(await client.migrate("move-1"))
            assert done.state == SUCCEEDED, done.error.message
        await watched.settle()
        seen = watched.seen()
    assert (seen.sequence_gaps, seen.reconnects, seen.boot_ids) == (0, 0, 1)
    moved = await client.vm("move-1")
    assert moved.epoch == vm.epoch + 3


@emulated
async def test_the_driving_replica_is_killed_in_the_copy(client: Client, stage: real.Real) -> None:
    """An operation that does not survive the replica that drove it."""
    vm = await made(client, "drive-1")
    async with stage.watch(vm) as watched:
        await watched.settle()
        operation = await client.migrate("drive-1")
        copying = await client.until_phase(operation, "COPYING")
        driver = copying.phases[-1].driver
        victim = driver.partition("@")[0]
        await stage.kill_replica(victim)
        other = stage.client("s2" if victim == "s1" else "s1")
        done = await other.wait(operation)
        await watched.settle()
        seen = watched.seen()
    assert done.state == SUCCEEDED, done.error.message
    assert {entry.phase: entry.driver for entry in done.phases}["COMMITTED"] != driver
    assert (seen.sequence_gaps, seen.boot_ids) == (0, 1)


@emulated
@pytest.mark.parametrize("end", ["source", "destination"])
async def test_an_agent_is_killed_in_the_copy(end: str, client: Client, stage: real.Real, cluster: LabCluster) -> None:
    """A guest that is lost, or an operation in limbo, because an agent died."""
    vm = await made(client, f"agent-{end}")
    vm_id = vm.name.removeprefix("vms/")
    async with stage.watch(vm) as watched:
        await watched.settle()
        operation = await client.migrate(vm_id)
        copying = await client.until_phase(operation, "COPYING")
        node = copying.migration.source_node if end == "source" else copying.migration.destination_node
        cluster.supervisor.send_signal(node.removeprefix("nodes/"), signal.SIGKILL)
        done = await client.wait(operation)
        await watched.settle()
        seen = watched.seen()
    after = await client.vm(vm_id)
    assert after.state == vm_pb2.VM.RUNNING
    assert after.node == (copying.migration.destination_node if done.state == SUCCEEDED else copying.migration.source_node)
    assert (seen.sequence_gaps, seen.boot_ids) == (0, 1)


@emulated
async def test_the_sources_libvirtd_is_killed_in_the_copy(client: Client, stage: real.Real, cluster: LabCluster) -> None:
    """A libvirtd that dies takes the guest with it, or its agent does not find it again."""
    vm = await made(client, "libvirtd-1")
    async with stage.watch(vm) as watched:
        await watched.settle()
        operation = await client.migrate("libvirtd-1")
        copying = await client.until_phase(operation, "COPYING")
        host = cluster.lab.hosts[copying.migration.source_node.removeprefix("nodes/")]
        faults.kill(host.daemon_process("libvirtd"))
        await asyncio.to_thread(host.start_libvirt)
        done = await client.wait(operation)
        await watched.settle()
        seen = watched.seen()
    after = await client.vm("libvirtd-1")
    assert after.state == vm_pb2.VM.RUNNING
    assert after.node == (copying.migration.destination_node if done.state == SUCCEEDED else copying.migration.source_node)
    assert (seen.sequence_gaps, seen.boot_ids) == (0, 1)
    await client.until_ready(3)


async def test_a_hung_libvirtd_never_hangs_its_agent(client: Client, stage: real.Real, cluster: LabCluster) -> None:
    """An agent that stops answering because its hypervisor does, or that ends because it is back."""
    await client.until_ready(3)
    host, agent = cluster.lab.hosts["n2"], cluster.supervisor.pid("n2")
    channel = channels.to_node(stage.material, "n2", f"{host.address}:7500")
    stub = host_pb2_grpc.HostServiceStub(channel)
    with faults.frozen(host.daemon_process("libvirtd")):
        async with asyncio.timeout(20):
            while not (answer := await stub.GetHost(host_pb2.GetHostRequest(), timeout=CALL_S)).stale:
                pass
        assert answer.reason
    async with asyncio.timeout(BACK_S):
        while (await stub.GetHost(host_pb2.GetHostRequest(), timeout=CALL_S)).stale:
            pass
    await channel.close()
    await client.until_ready(3)
    assert cluster.supervisor.pid("n2") == agent


async def test_what_was_acknowledged_outlives_kill_9(client: Client, stage: real.Real, cluster: LabCluster) -> None:
    """An accepted create that is lost with the replica, the etcd member or the agent that knew of it."""
    operation = await client.create("ack-1", memory_mib=128)
    cluster.supervisor.send_signal("s1", signal.SIGKILL)
    cluster.etcd.kill_member(cluster.etcd.members[0].name)
    cluster.supervisor.send_signal("n1", signal.SIGKILL)
    done = await wait_through(stage.client("s2"), operation)
    assert done.state == SUCCEEDED, done.error.message
    cluster.etcd.start_member(cluster.etcd.members[0].name)
    await asyncio.to_thread(cluster.etcd.wait_healthy, cluster.etcd.members[0].name)
    for unit in ("s1", "n1"):
        await cluster.supervisor.wait_for_state(unit, State.ACTIVE, BACK_S, starts=2)
    await client.until_ready(3)


async def test_a_source_that_ended_while_its_agent_was_dead_goes_forward(client: Client, stage: real.Real, cluster: LabCluster) -> None:
    """A guest that is called crashed although it is whole at the destination: nobody heard its source's libvirt say "migrated"."""
    vm = await made(client, "away-1")
    before = await probe.ask(await address_of(cluster, vm))
    source = vm.node.removeprefix("nodes/")
    qemu = cluster.lab.hosts[source].qemu_process(vm.uid)
    operation = await client.migrate("away-1")
    operation_id = operation.name.removeprefix("operations/")
    await until_logged(cluster, source, operation_id, "BEGIN_COPY")
    # From here the commit cannot get through, so the agent is killed between the arrival and the commit however fast it is.
    schedulers = faults.PacketLoss(cluster.lab.hosts[source].space, faults.Drop("out", peer=cluster.endpoints[0].rpartition(":")[0]))
    with schedulers:
        await until_logged(cluster, source, operation_id, "COMMIT")
        record = cluster.lab.hosts[source].outside(f"/var/log/libvirt/qemu/{vm.uid}.log")
        await asyncio.to_thread(wait_for, "libvirt to end the source", lambda: "reason=migrated" in record.read_text(), BACK_S)
        cluster.supervisor.send_signal(source, signal.SIGKILL)
        await cluster.supervisor.stop(source)
        assert await asyncio.to_thread(qemu.wait, BACK_S), "libvirt has not ended the QEMU of the source"
    await cluster.supervisor.start(cluster.units[source])
    done = await client.wait(operation)
    assert done.state == SUCCEEDED, done.error.message
    after = await client.vm("away-1")
    assert (after.state, after.epoch, after.node) == (vm_pb2.VM.RUNNING, vm.epoch + 1, done.migration.destination_node)
    assert (await probe.ask(await address_of(cluster, after))).boot_id == before.boot_id
    await client.until_ready(3)


async def test_a_host_that_was_fenced_and_not_off_neither_shares_a_disk_nor_keeps_a_guest(
    client: Client, stage: real.Real, cluster: LabCluster
) -> None:
    """Two writers on one disk because a person was wrong; or a host that comes back with guests that are others' by now."""
    vm = await made(client, "fenced-1")
    before = await probe.ask(await address_of(cluster, vm))
    home = vm.node.removeprefix("nodes/")
    qemu = cluster.lab.hosts[home].qemu_process(vm.uid)
    await cluster.supervisor.stop(home)
    await until_node(client, home, lambda node: node.health == node_pb2.Node.SILENT)
    request = nodes_pb2.FenceNodeRequest(name=vm.node, confirm_powered_off=True)
    fenced = await client.wait(await client.nodes.FenceNode(request, timeout=CALL_S))
    assert fenced.state == SUCCEEDED, fenced.error.message
    start = vms_pb2.StartVMRequest(name=vm.name)
    refused = await client.wait(await client.vms.StartVM(start, timeout=CALL_S))
    assert refused.state == FAILED, "a second QEMU opened the disk of one that runs"
    assert qemu.alive()
    assert [name for name, host in cluster.lab.hosts.items() if (host.folder / f"run/libvirt/qemu/{vm.uid}.pid").exists()] == [home]
    await cluster.supervisor.start(cluster.units[home])
    await until_node(client, home, lambda node: node.state == node_pb2.Node.CORDONED)
    assert not qemu.alive()
    started = await client.wait(await client.vms.StartVM(start, timeout=CALL_S))
    assert started.state == SUCCEEDED, started.error.message
    assert started.vm.node != vm.node
    after = await probe.ask(await address_of(cluster, started.vm))
    assert after.disk_counter > before.disk_counter, "the disk was not the same one"
    assert after.disk_foreign == 0, "somebody else wrote to the disk"
    await client.nodes.UncordonNode(nodes_pb2.UncordonNodeRequest(name=vm.node), timeout=CALL_S)
    await client.until_ready(3)


async def test_a_migration_is_foretold_and_its_limits_are_changed_while_it_copies(client: Client, cluster: LabCluster) -> None:
    """A look that forbids what works on real hosts; a limit that never reaches QEMU; a downtime that nobody measures."""
    vm = await made(client, "tuned-1")
    before = await probe.ask(await address_of(cluster, vm))
    would = await client.vms.MigrateVM(vms_pb2.MigrateVMRequest(name=vm.name, bandwidth_mib_s=2, validate_only=True), timeout=CALL_S)
    assert [(check.name, check.message) for check in would.migration.checks if not check.ok] == []
    assert len(would.migration.checks) == 10
    assert would.migration.forecast.dirty_measured
    operation = await client.vms.MigrateVM(vms_pb2.MigrateVMRequest(name=vm.name, bandwidth_mib_s=2, max_downtime_ms=200), timeout=CALL_S)
    await client.until_phase(operation, "COPYING")
    tune = operations_pb2.TuneMigrationRequest(name=operation.name, bandwidth_mib_s=0, max_downtime_ms=800)
    await client.operations.TuneMigration(tune, timeout=CALL_S)
    done = await client.wait(operation)
    assert done.state == SUCCEEDED, done.error.message
    assert done.migration.total_ms < 15_000, "at 2 MiB/s it takes more than half a minute"
    assert done.migration.max_downtime_ms == 800
    assert done.migration.iterations >= 1
    after = await probe.ask(await address_of(cluster, await client.vm("tuned-1")))
    assert after.boot_id == before.boot_id


@pytest.mark.slow
@emulated
async def test_a_node_is_drained_live_and_cold_in_its_turn(client: Client, stage: real.Real, cluster: LabCluster) -> None:
    """A drain that restarts a guest, moves more than two at once, starts a VM that is off, or leaves a domain behind on the host that was emptied."""
    off = (await client.wait(await client.create("drain-off", memory_mib=128, node="nodes/n1", start=False))).vm
    async with AsyncExitStack() as stack:
        watched = []
        for number in range(3):  # one after the other: emulated guests that boot at once keep each other from it
            vm = await client.made(f"drain-{number}", memory_mib=128, node="nodes/n1")
            watched.append(await stack.enter_async_context(stage.watch(vm)))
            await watched[-1].settle()
        drain = await client.nodes.DrainNode(nodes_pb2.DrainNodeRequest(name="nodes/n1"), timeout=CALL_S)
        most_at_once, waited = 0, set[str]()
        async with aclosing(client.follow(drain)) as followed:
            async for _ in followed:
                listed = await client.operations.ListOperations(operations_pb2.ListOperationsRequest(), timeout=CALL_S)
                moves = [one for one in listed.operations if one.verb == "MigrateVM" and not one.done and not one.migration.cold]
                most_at_once = max(most_at_once, sum(one.phase in ("DESTINATION_READY", "COPYING") for one in moves))
                waited |= {one.reason for one in moves if "turn" in one.reason}
        done = await client.wait(drain)
        assert done.state == SUCCEEDED, done.error.message
        assert done.reason == "4 of 4 moved."
        for one in watched:
            await one.settle()
        seen = [one.seen() for one in watched]
    assert [(one.sequence_gaps, one.reconnects, one.boot_ids) for one in seen] == [(0, 0, 1)] * 3
    assert most_at_once <= 2
    assert all(reason.startswith("Waits for a turn: ") for reason in waited), waited
    after = await client.vm("drain-off")
    assert (after.state, after.epoch, after.node != off.node) == (vm_pb2.VM.STOPPED, off.epoch + 1, True)
    assert not cluster.lab.hosts["n1"].virsh("list", "--all", "--name").split()
    await client.nodes.UncordonNode(nodes_pb2.UncordonNodeRequest(name="nodes/n1"), timeout=CALL_S)
    started = await client.wait(await client.vms.StartVM(vms_pb2.StartVMRequest(name=off.name), timeout=CALL_S))
    assert started.state == SUCCEEDED, started.error.message
    assert (await probe.ask(await address_of(cluster, started.vm))).disk_foreign == 0


async def until_node(client: Client, node_id: str, wanted: Callable[[node_pb2.Node], bool]) -> None:
    async with asyncio.timeout(BACK_S):
        while not wanted(await client.nodes.GetNode(nodes_pb2.GetNodeRequest(name=f"nodes/{node_id}"), timeout=CALL_S)):  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)


async def until_logged(cluster: LabCluster, unit: str, operation_id: str, act: str) -> None:
    """The agent has said that it does this for the operation."""
    async with asyncio.timeout(BACK_S):
        while not any(operation_id in line and act in line for line in cluster.log_text(unit).splitlines()):  # noqa: ASYNC110 a file has no event
            await asyncio.sleep(LOOK_S)
