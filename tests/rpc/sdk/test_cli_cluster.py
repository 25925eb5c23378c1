"""Options of the command line that need a running cluster to be seen at work."""

import asyncio
import signal
from contextlib import aclosing

from devcluster.cluster import DevCluster
from hostler.api.type.v1.volume_pb2 import Pool
from hostler.cluster import Cluster
from hostler.model.domain import DomainSpec, ServiceClass
from nodeagent.adapters.sim_hypervisor import SimHypervisor
from nodeagent.core.observed import CopyTag
from tests.rpc.sdk.conftest import CLI_S, Cli, made
from tests.rpc.sdk.test_cli_words import completed


async def test_an_etag_that_is_old_changes_nothing(cli: Cli, sdk: Cluster) -> None:
    """A change on the strength of what somebody read before somebody else changed it."""
    vm = await made(sdk, "web-1")
    await (await sdk.create_volume("data", pool="shared", size_mib=16)).wait(CLI_S)
    for command in (
        ("vm", "stop", "web-1"), ("vm", "reboot", "web-1"), ("vm", "migrate", "web-1"), ("vm", "delete", "web-1", "--force"),
        ("volume", "delete", "data"), ("node", "cordon", "n1"),
    ):  # fmt: skip
        ran = await cli(*command, "--etag", "1")
        assert (ran.status, ran.out) == (4, ""), (command, ran)
    assert (await sdk.get_vm("web-1")).etag == vm.etag
    assert (await cli("vm", "stop", "web-1", "--force", "--etag", vm.etag)).status == 0


async def test_what_is_so_already_is_said(cli: Cli, sdk: Cluster) -> None:
    """ "vm web-1 is RUNNING" to somebody who wonders why nothing happened."""
    await made(sdk, "web-1")
    again = await cli("vm", "start", "web-1")
    assert (again.status, again.out) == (0, "vm web-1 was running already\n"), again.err
    stopped = await cli("vm", "stop", "web-1", "--force")
    assert (stopped.status, stopped.out.startswith("vm web-1 is STOPPED")) == (0, True), stopped.err
    assert (await cli("vm", "stop", "web-1")).out == "vm web-1 was stopped already\n"
    assert (await cli("vm", "start", "web-1")).out.startswith("vm web-1 is RUNNING")


async def test_a_vm_is_reconciled_and_a_guest_ended_only_by_yes(cli: Cli, sdk: Cluster, cluster: DevCluster) -> None:
    """A guest that a script ends because it did not read what would be done."""
    vm = await made(sdk, "web-1")
    fine = await cli("vm", "reconcile", "web-1")
    assert (fine.status, fine.out.splitlines()[-1]) == (0, "Record and nodes agree.")
    away = next(node_id for node_id in cluster.agents if f"nodes/{node_id}" != vm.node)
    by_hand = SimHypervisor(cluster.world, away)
    await by_hand.create_paused(DomainSpec(vm.uid, "web-1", 1, 0, 64, ServiceClass.BURSTABLE), CopyTag(vm.uid, vm.epoch, "by-hand"), {})
    await (await sdk.stop_vm("web-1", force=True)).wait(CLI_S)
    asked = await cli("vm", "reconcile", "web-1", "--apply")
    assert (asked.status, "END_COPY" in asked.out, "WITHHELD" in asked.out) == (1, True, True)
    assert vm.uid in cluster.world.hosts[away].domains
    done = await cli("vm", "reconcile", "web-1", "--apply", "--yes")
    assert (done.status, "DONE" in done.out) == (0, True)
    assert vm.uid not in cluster.world.hosts[away].domains


async def test_following_the_vms_of_one_node(cli: Cli, sdk: Cluster) -> None:
    """VMs of other nodes in the list, or one that moved away and is shown for ever."""
    await made(sdk, "web-1", node="n1")
    await made(sdk, "web-2", node="n2")
    process = await cli.start("vm", "list", "-w", "--node", "n1", "-o", "json")
    assert process.stdout is not None
    told: list[bytes] = []
    async with asyncio.timeout(CLI_S):
        told.append(await process.stdout.readline())
        await (await sdk.migrate_vm("web-1", "n3")).wait(CLI_S)
        while b"LEFT" not in told[-1]:
            told.append(await process.stdout.readline())
        await (await sdk.delete_vm("web-1", force=True)).wait(CLI_S)
        await made(sdk, "web-3", node="n1", start=False)
        while b"web-3" not in told[-1]:
            told.append(await process.stdout.readline())
        process.send_signal(signal.SIGINT)
        await process.communicate()
    assert not any(b"web-2" in line or b"DELETED" in line for line in told)
    assert b'"node":"nodes/n3"' in next(line for line in told if b"LEFT" in line)


async def test_the_versions_of_the_agents(cli: Cli, cluster: DevCluster) -> None:
    """A cluster of several versions that looks like one."""
    client, header, *agents = (await cli("version", "--server")).out.splitlines()
    assert header.split() == ["NODE", "AGENT", "HYPERVISOR"]
    assert [line.split()[:2] for line in agents] == [[name, client] for name in sorted(cluster.agents)]


async def test_a_shell_completes_names(cli: Cli, sdk: Cluster) -> None:
    """Names that have to be copied from a list; or a Tab that prints errors, or waits, where nobody answers."""
    await made(sdk, "web-1", start=False)
    await made(sdk, "db-1", start=False)
    await sdk.create_flavor("small", vcpus=1, memory_mib=64)
    offered = {  # one after the other: each has a second and a half in all
        "hostler vm get w": ["web-1"],
        "hostler vm migrate web-1 --to ": ["n1", "n2", "n3"],
        "hostler vm create web-2 --flavor ": ["small"],
        "hostler --endpoint 127.0.0.1:1 vm get ": [],
    }
    for words, names in offered.items():
        assert await completed(words, **cli.environment) == names, words


async def test_pools_with_their_locks_and_what_a_live_move_costs(cli: Cli, sdk: Cluster) -> None:
    """Somebody who wants to know which storage moves a running VM fast, and is not told."""
    async with asyncio.timeout(CLI_S), aclosing(sdk.watch_nodes()) as changes:
        async for _ in changes:
            if (await sdk.get_pool("shared")).lock_kind == Pool.OFD:
                break
    listed = await cli("pool", "list")
    assert listed.status == 0, listed.err
    header, local, shared = listed.out.splitlines()
    assert header.split()[:4] == ["NAME", "REACH", "LOCKS", "LIVE"]
    assert "by copy, " in local
    for cell in ("SHARED", "OFD", "by locks, ", "n1,n2,n3"):
        assert cell in shared, shared
    got = await cli("pool", "get", "shared")
    assert got.out.splitlines()[-1] == "Proved between n1, n2, n3."
    assert "simulated" in (await cli("pools", "ls", "-o", "wide")).out
    assert '"claimed_mib": 0' in (await cli("pool", "get", "shared", "-o", "json")).out
    missing = await cli("pool", "get", "none")
    assert (missing.status, "No node has a pool none" in missing.err) == (3, True)
