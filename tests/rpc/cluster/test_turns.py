"""Live migrations that wait for their turn: through the API, on both replicas, until each has ended."""

import asyncio
from collections.abc import Callable

from client import CALL_S, Client
from devcluster.cluster import DevCluster
from hostler.api.cluster.v1 import operations_pb2, vms_pb2
from hostler.api.type.v1 import operation_pb2, vm_pb2
from nodeagent.adapters.sim_migration import MigrationFault
from tests.rpc.cluster.test_migration import claims

Connect = Callable[[str], Client]
Operation = operation_pb2.Operation


async def stalled(client: Client, cluster: DevCluster, number: int) -> list[Operation]:
    """So many VMs leave n1 for n2 and copy for ever."""
    operations = []
    for index in range(number):
        vm = await client.made(f"slow-{index}", node="nodes/n1")
        cluster.world.script_migration(vm.uid, MigrationFault.STALLS)
        operations.append(await client.until_phase(await client.migrate(f"slow-{index}", "n2"), "COPYING"))
    return operations


async def get(client: Client, operation: Operation) -> Operation:
    return await client.operations.GetOperation(operations_pb2.GetOperationRequest(name=operation.name), timeout=CALL_S)


async def cancel(client: Client, operation: Operation) -> Operation:
    await client.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=operation.name), timeout=CALL_S)
    return await client.wait(operation)


async def high(client: Client, vm_id: str) -> Operation:
    request = vms_pb2.MigrateVMRequest(name=f"vms/{vm_id}", destination_node="nodes/n3", priority=Operation.HIGH)
    return await client.vms.MigrateVM(request, timeout=CALL_S)


async def test_the_third_waits_says_why_on_every_replica_and_takes_the_turn_that_is_freed(
    client: Client, connect: Connect, cluster: DevCluster
) -> None:
    """A node that sends everything at once, a wait that only the driver can explain, or a queue that stands still."""
    first, second = await stalled(client, cluster, 2)
    for name in ("normal", "urgent", "cancelled"):
        await client.made(name, node="nodes/n1")
    normal, cancelled = await client.migrate("normal", "n3"), await client.migrate("cancelled", "n3")
    urgent = await high(client, "urgent")
    for replica in ("s1", "s2"):
        asked = connect(replica)
        now = await get(asked, normal)
        assert (now.phase, now.cancellable, now.migration.priority) == ("RESERVED", True, Operation.NORMAL)
        assert now.reason == "Waits for a turn: n1 sends 2 already, 1 before it.", replica
        assert (await get(asked, urgent)).reason == "Waits for a turn: n1 sends 2 already."
    done = await cancel(client, cancelled)
    vm = await client.vm("cancelled")
    assert (done.state, vm.node, vm.state) == (Operation.CANCELLED, "nodes/n1", vm_pb2.VM.RUNNING)
    await cancel(client, first)
    ended = await asyncio.gather(client.wait(urgent), client.wait(normal))
    assert [one.state for one in ended] == [Operation.SUCCEEDED] * 2, [one.error.message for one in ended]
    begun = [next(entry.enter_time.ToNanoseconds() for entry in one.phases if entry.phase == "COPYING") for one in ended]
    assert begun[0] < begun[1]
    await cancel(client, second)
    assert {"urgent", "normal"}.isdisjoint(claims(cluster)["n1"])


async def test_the_queue_outlives_its_driver(client: Client, connect: Connect, cluster: DevCluster) -> None:
    """Moves that are forgotten, or all begun at once, when another replica takes over."""
    first, _ = await stalled(client, cluster, 2)
    await client.made("web", node="nodes/n1")
    waiting = await client.migrate("web", "n3")
    victim = (await get(client, first)).phases[-1].driver.partition("@")[0]
    other = connect("s2" if victim == "s1" else "s1")
    await cluster.schedulers[victim].kill()
    assert (await get(other, waiting)).reason == "Waits for a turn: n1 sends 2 already."
    await cancel(other, first)
    done = await other.wait(waiting)
    assert done.state == Operation.SUCCEEDED, done.error.message


async def test_a_copy_that_failed_is_held_back_unless_a_person_knows_better(client: Client, cluster: DevCluster) -> None:
    """The same copy, tried and failed again at once, all day long."""
    vm = await client.made("web", node="nodes/n1")
    cluster.world.script_migration(vm.uid, MigrationFault.FAILS_MIDWAY)
    assert (await client.wait(await client.migrate("web"))).state == Operation.FAILED
    again = await get(client, await client.migrate("web"))
    assert again.phase == "RESERVED"
    assert "because its copy failed once" in again.reason
    assert (await cancel(client, again)).state == Operation.CANCELLED
    named = await client.wait(await client.migrate("web", "n2"))
    assert named.state == Operation.SUCCEEDED, named.error.message
