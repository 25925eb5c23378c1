"""What the lab's GlusterFS can promise, found out between real hosts, and what a live move costs with its locks and without.

Prints each downtime: docs/pools.md has the ranges.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import real
from client import CALL_S, Client
from hostler.api.cluster.v1 import pools_pb2, pools_pb2_grpc
from hostler.api.type.v1 import operation_pb2, volume_pb2
from hostlerlab.cluster import lab_cluster
from hostlerlab.guest import probe
from hostlerlab.hosts import SHARED_POOL, STATE_DIR
from hostlerlab.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]
MOVES = 3
BOOT_S = 60.0
BUILD = Path("build").resolve()
Pool = volume_pb2.Pool


@asynccontextmanager
async def cluster(lab: Lab, shared_locks: str) -> AsyncIterator[Client]:
    async with lab_cluster(lab, BUILD / f"lab-pools-{shared_locks}", shared_locks=shared_locks) as running:
        stage = real.Real(lab, running)
        try:
            client = stage.client("s1")
            await client.until_ready(3)
            yield client
            await stage.check()
        finally:
            await stage.close()


async def shared_pool(client: Client) -> volume_pb2.Pool:
    stub = pools_pb2_grpc.PoolServiceStub(client.channel)
    return await stub.GetPool(pools_pb2.GetPoolRequest(name="pools/shared"), timeout=CALL_S)


async def downtimes(client: Client, lab: Lab, vm_id: str, relied: tuple[str, ...]) -> list[int]:
    """Of MOVES moves of one guest that is up; its memory must be the same one at the end. `relied`: the pools whose locks they are to rely on."""
    done = await client.wait(await client.create(vm_id, memory_mib=128))
    assert done.state == operation_pb2.Operation.SUCCEEDED, done.error.message
    address = await asyncio.to_thread(lab.wait_for_lease, done.vm.nics[0].mac_address, BOOT_S)
    await probe.wait_answer(address)
    before = await probe.ask(address)
    found = []
    for _ in range(MOVES):
        moved = await client.wait(await client.migrate(vm_id))
        assert moved.state == operation_pb2.Operation.SUCCEEDED, moved.error.message
        found.append(moved.migration.downtime_ms)
    assert relied_on(lab) == {relied}
    await probe.wait_answer(address)
    assert (await probe.ask(address)).boot_id == before.boot_id
    gone = await client.wait(await client.delete(vm_id))
    assert gone.state == operation_pb2.Operation.SUCCEEDED, gone.error.message
    return found


def relied_on(lab: Lab) -> set[tuple[str, ...]]:
    """The pools whose locks the sources were told to rely on, from what the agents have on disk."""
    script = f"cat {STATE_DIR}/agent/outgoing/* 2>/dev/null || true"
    decoder = json.JSONDecoder()
    found: set[tuple[str, ...]] = set()
    for host in lab.hosts.values():
        text = host.run(["sh", "-c", script]).stdout.strip()
        while text:
            handoff, end = decoder.raw_decode(text)
            found.add(tuple(handoff["locked_pools"]))
            text = text[end:].lstrip()
    return found


@pytest.mark.flaky(reruns=2)
async def test_locks_are_proved_between_hosts_and_moves_rely_on_them(lab: Lab) -> None:
    """A GlusterFS whose locks are taken for none, so that every move waits; QEMU's emulation may lose a guest (docs/decisions/0007)."""
    async with cluster(lab, "probed") as client:
        seen = await shared_pool(client)
        assert (seen.lock_kind, seen.live_move, seen.filesystem) == (Pool.OFD, Pool.BY_LOCKS, "fuse.glusterfs"), seen.reason
        assert list(seen.nodes) == ["nodes/n1", "nodes/n2", "nodes/n3"]
        print("with locks, ms:", await downtimes(client, lab, "locks-1", ("shared",)))
        left = lab.hosts["n1"].run(["sh", "-c", f"ls -A {SHARED_POOL} | grep hostler-probe || true"]).stdout
        assert left == "", "probes left their files behind"


@pytest.mark.flaky(reruns=2)
async def test_a_pool_declared_without_locks_moves_on_the_hypervisors_word(lab: Lab) -> None:
    """`locks = "none"` that is not heeded: what happens without locks is never tried."""
    async with cluster(lab, "none") as client:
        seen = await shared_pool(client)
        assert (seen.lock_kind, seen.live_move) == (Pool.NONE, Pool.BY_WORD)
        print("without, ms:", await downtimes(client, lab, "word-1", ()))
