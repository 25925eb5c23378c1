"""Real migrations, whole or with something killed, recorded from etcd's own history; the search's transition relation must know each of them.

What is recorded lies in build/recorded/ afterwards; tests/explore/recorded/ has a set of them for the fast ring.
"""

import asyncio
import signal
from pathlib import Path

import pytest

import real
from client import CALL_S, Client
from hostler.api.cluster.v1 import operations_pb2
from hostler.api.type.v1 import operation_pb2, vm_pb2
from hostlerlab.cluster import LabCluster
from hostlerlab.guest import probe
from tests.explore.acceptance import MET, judge
from tests.explore.recorder import record

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(300)]

BACK_S = 60.0
FOLDER = Path("build/recorded")


@pytest.fixture
async def client(stage: real.Real) -> Client:
    client = stage.client("s1")
    await client.until_ready(3)
    return client


async def booted(client: Client, cluster: LabCluster, vm_id: str) -> vm_pb2.VM:
    done = await client.wait(await client.create(vm_id, memory_mib=128))
    assert done.state == operation_pb2.Operation.SUCCEEDED, done.error.message
    address = await asyncio.to_thread(cluster.lab.wait_for_lease, done.vm.nics[0].mac_address, BACK_S)
    await probe.wait_answer(address)
    return done.vm


async def kept(cluster: LabCluster, vm_id: str, what: str, *operations: operation_pb2.Operation) -> None:
    """Recorded, saved, and known to the search."""
    names = [operation.name.removeprefix("operations/") for operation in operations]
    recording = await asyncio.to_thread(record, cluster.etcd.client_urls, vm_id, names, what)
    await asyncio.to_thread(FOLDER.mkdir, parents=True, exist_ok=True)
    await asyncio.to_thread(recording.save, FOLDER / f"{vm_id}.json")
    verdict = await asyncio.to_thread(judge, recording, MET[vm_id])
    assert verdict.accepted, f"{verdict.told} of {verdict.records} records are known; up to there: {verdict.story}"


async def test_a_plain_migration(client: Client, cluster: LabCluster) -> None:
    await booted(client, cluster, "plain")
    operation = await client.migrate("plain")
    done = await client.wait(operation)
    assert done.state == operation_pb2.Operation.SUCCEEDED, done.error.message
    await kept(cluster, "plain", "a live migration, nothing goes wrong", operation)


async def test_a_cancelled_migration_and_the_one_after_it(client: Client, cluster: LabCluster) -> None:
    await booted(client, cluster, "cancelled")
    first = await client.migrate("cancelled", bandwidth_mib_s=2)
    await client.until_phase(first, "COPYING")
    await client.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=first.name), timeout=CALL_S)
    ended = await client.wait(first)
    assert ended.state != operation_pb2.Operation.SUCCEEDED
    second = await client.migrate("cancelled", to=ended.migration.destination_node.removeprefix("nodes/"))
    await client.wait(second)
    await kept(cluster, "cancelled", "cancelled while it copied; then migrated again to the same node", first, second)


async def test_the_driving_replica_is_killed(client: Client, stage: real.Real, cluster: LabCluster) -> None:
    await booted(client, cluster, "driver-killed")
    operation = await client.migrate("driver-killed")
    copying = await client.until_phase(operation, "COPYING")
    victim = copying.phases[-1].driver.partition("@")[0]
    await stage.kill_replica(victim)
    await stage.client("s2" if victim == "s1" else "s1").wait(operation)
    await kept(cluster, "driver-killed", "kill -9 of the replica that drives, while it copies", operation)


@pytest.mark.parametrize("end", ["source", "destination"])
async def test_an_agent_is_killed(end: str, client: Client, cluster: LabCluster) -> None:
    vm_id = f"{end}-agent-killed"
    await booted(client, cluster, vm_id)
    operation = await client.migrate(vm_id)
    copying = await client.until_phase(operation, "COPYING")
    node = copying.migration.source_node if end == "source" else copying.migration.destination_node
    cluster.supervisor.send_signal(node.removeprefix("nodes/"), signal.SIGKILL)
    await client.wait(operation)
    await kept(cluster, vm_id, f"kill -9 of the {end}'s agent, while it copies", operation)
