"""What a pool can promise, found out between the agents of a whole cluster, and heeded by its handoffs."""

import asyncio
from dataclasses import replace

import msgspec
import pytest

from client import CALL_S, Client
from devcluster.cluster import DevCluster, DevOptions
from hostler.api.cluster.v1 import pools_pb2, pools_pb2_grpc
from hostler.api.type.v1 import operation_pb2, volume_pb2
from hostler.errors import NotFound, Reason
from hostler.rpc_status import from_rpc_error
from nodeagent.adapters.sim_hypervisor import SimHypervisor
from nodeagent.adapters.sim_storage import SimFileSystem
from nodeagent.ports import EventKind, HypervisorUnavailable
from scheduler.engine import pool_probes
from tests.rpc.brisk import BRISK

Pool = volume_pb2.Pool
FOUND_S = 15.0
REAP_S = 1.5
"""Until a source that migrated away is gone: long enough for a handoff that waits for it to be told from one that does not, on a busy machine."""
UNREADABLE = 10
"""Looks at libvirt's record that fail: more than an agent that begins its handoffs anew after each would get over in that time."""


@pytest.fixture
def options() -> DevOptions:
    return replace(BRISK, times=replace(BRISK.times, reap_s=REAP_S))


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_probes, "LOOK_S", 0.1)
    monkeypatch.setattr(pool_probes, "RELEASE_S", 0.5)


def shared(cluster: DevCluster) -> SimFileSystem:
    return cluster.world.hosts["n1"].pools["shared"]


async def pool(client: Client, name: str = "shared") -> volume_pb2.Pool:
    stub = pools_pb2_grpc.PoolServiceStub(client.channel)
    return await stub.GetPool(pools_pb2.GetPoolRequest(name=f"pools/{name}"), timeout=CALL_S)


async def until(client: Client, kind: "volume_pb2.Pool.LockKind.ValueType") -> volume_pb2.Pool:
    """Nodes are watched, for what is found out is written with them."""
    async with asyncio.timeout(FOUND_S):
        while True:
            seen = await pool(client)
            if seen.lock_kind == kind:
                return seen
            await asyncio.sleep(0.05)


async def test_pools_are_listed_with_what_was_found_out(client: Client) -> None:
    """A pool whose locks nobody has tried between two nodes."""
    stub = pools_pb2_grpc.PoolServiceStub(client.channel)
    first = await stub.ListPools(pools_pb2.ListPoolsRequest(page_size=1), timeout=CALL_S)
    rest = await stub.ListPools(pools_pb2.ListPoolsRequest(page_token=first.next_page_token), timeout=CALL_S)
    local, seen = first.pools[0], rest.pools[0]
    assert (local.name, local.reach, local.live_move) == ("pools/local", Pool.LOCAL, Pool.BY_COPY)
    assert (seen.name, seen.reach, seen.lock_kind, seen.live_move) == ("pools/shared", Pool.SHARED, Pool.OFD, Pool.BY_LOCKS)
    assert list(seen.nodes) == ["nodes/n1", "nodes/n2", "nodes/n3"]
    assert 0 < seen.downtime_min_ms < seen.downtime_max_ms
    await client.made("web-1")
    assert (await pool(client)).claimed_mib == 64
    with pytest.raises(Exception, match="No node has a pool none") as caught:
        await pool(client, "none")
    assert isinstance(refusal := from_rpc_error(caught.value), NotFound)  # type: ignore[arg-type]
    assert refusal.reason is Reason.POOL_NOT_FOUND


@pytest.mark.slow
async def test_a_node_whose_locks_stay_on_it_is_found_and_its_handoffs_wait_for_the_word(client: Client, cluster: DevCluster) -> None:
    """An NFS mount with `nolock`: locks look free to the other node while the guest writes."""
    shared(cluster).own_locks.add("n2")
    await cluster.agents["n2"].kill()
    cluster.world.hosts["n2"].crash_host()
    cluster.world.hosts["n2"].boot_host()
    await cluster.start_agent("n2")
    seen = await until(client, Pool.NONE)
    assert "n2: A lock that" in seen.reason
    assert seen.live_move == Pool.BY_WORD
    for to in ("n1", "n2", "n3"):
        made = await client.made(f"to-{to}", node="nodes/n3" if to != "n3" else "nodes/n2")
        done = await client.wait(await client.migrate(f"to-{to}", to))
        assert done.state == operation_pb2.Operation.SUCCEEDED, done.error.message
        relied = cluster_handoff(cluster, made.node.removeprefix("nodes/"), made.uid)
        assert relied == (("shared",) if to == "n1" else ())
        assert done.migration.downtime_ms < REAP_S * 1000, "the guest stood still until the source's process had ended"


async def test_a_record_that_cannot_be_read_at_once_is_read_again(
    client: Client, cluster: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without locks: a slow disk under libvirt's log ends every handoff's task on that host, and the guests stand still until they begin anew."""
    shared(cluster).locks = False
    await client.made("web-1")
    asked, read = 0, SimHypervisor.recorded_ending

    async def slow(hypervisor: SimHypervisor, vm_uid: str, mark: str) -> EventKind | None:
        nonlocal asked
        asked += 1
        if asked <= UNREADABLE:
            raise HypervisorUnavailable("simulated: no answer")
        return await read(hypervisor, vm_uid, mark)

    monkeypatch.setattr(SimHypervisor, "recorded_ending", slow)
    done = await client.wait(await client.migrate("web-1"))
    assert done.state == operation_pb2.Operation.SUCCEEDED, done.error.message
    assert asked > UNREADABLE
    assert done.migration.downtime_ms < REAP_S * 1000


async def test_a_source_whose_process_has_ended_is_not_waited_for(
    client: Client, cluster: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU ends before it can be frozen, and libvirt takes seconds to say so: the guest stands still for all of them."""
    shared(cluster).locks = False
    await client.made("web-1")
    monkeypatch.setattr(SimHypervisor, "freeze", lambda hypervisor, vm_uid: False)
    done = await client.wait(await client.migrate("web-1"))
    assert done.state == operation_pb2.Operation.SUCCEEDED, done.error.message
    assert done.migration.downtime_ms < REAP_S * 1000


def cluster_handoff(cluster: DevCluster, node_id: str, vm_uid: str) -> tuple[str, ...]:
    """The pools whose locks the source was told to rely on, from what its agent has on disk."""
    files = (cluster.directory / "state" / node_id / "outgoing").iterdir()
    (handoff,) = [found for file in files if (found := msgspec.json.decode(file.read_bytes()))["vm_uid"] == vm_uid]
    return tuple(handoff["locked_pools"])


async def test_locks_that_outlive_their_process_are_no_locks(client: Client, cluster: DevCluster) -> None:
    """A server that keeps the locks of a dead client: after a crash nobody could start the VM, and a handoff would wait for ever."""
    shared(cluster).keeps_dead_locks = True
    for node_id in ("n1", "n2", "n3"):
        await cluster.agents[node_id].kill()
        cluster.world.hosts[node_id].crash_host()
        cluster.world.hosts[node_id].boot_host()
        await cluster.start_agent(node_id)
    seen = await until(client, Pool.NONE)
    assert "still keeps" in seen.reason


async def test_probing_leaves_nothing_behind(client: Client, cluster: DevCluster) -> None:
    """A file for every probe that was ever made."""
    assert (await pool(client)).lock_kind == Pool.OFD
    assert shared(cluster).probes == {}
