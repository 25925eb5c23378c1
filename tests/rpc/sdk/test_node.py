"""The SDK on one host without a scheduler: a real standalone agent, over TLS, on a simulated hypervisor."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import hostler
from devcluster.cluster import DevOptions, dev_cluster
from hostler.node import Host, connect_node
from hostler.server.identity import PrincipalKind
from tests.rpc.nodeagent.host import MEMORY_MIB, NODE, LoneHost, lone_host
from tests.rpc.sdk.conftest import CLI_S
from tests.rpc.sdk.lossy_proxy import lossy_proxy

SMALL: dict[str, Any] = {"vcpus": 1, "memory_mib": 256, "image": "guest", "pool": "local", "size_mib": 64, "networks": ["br0"]}


@pytest.fixture
async def lone(tmp_path: Path) -> AsyncIterator[LoneHost]:
    async with lone_host(tmp_path, {0: MEMORY_MIB}) as running:
        yield running


def at(lone: LoneHost, endpoint: str = "", call_s: float = 5.0) -> Host:
    tls = lone.certificate(PrincipalKind.USER, "alice")
    where = endpoint or f"{NODE}@127.0.0.1:{lone.port}"
    return connect_node(where, cert=tls / "tls.crt", key=tls / "tls.key", ca=tls / "ca.crt", call_s=call_s)


async def made(host: Host, name: str) -> hostler.VM:
    return (await (await host.create_vm(name, **SMALL)).wait(CLI_S)).vm


async def test_the_life_of_a_vm_and_a_volume(lone: LoneHost) -> None:
    """A method that sends another request than its name says, or that is in the cluster's SDK alone."""
    async with at(lone) as host:
        await (await host.create_volume("data", pool="local", size_mib=32)).wait(CLI_S)
        would = await host.create_vm("web-1", **SMALL, validate_only=True)
        assert (would.name, [vm async for vm in host.list_vms()]) == ("", [])
        heard: list[hostler.Operation] = []
        done = await (await host.create_vm("web-1", **SMALL, volumes=["data"], labels={"tier": "web"})).wait(CLI_S, heard.append)
        assert (done.vm.state, done.vm.node, dict(done.vm.labels)) == (hostler.VM.RUNNING, f"nodes/{NODE}", {"tier": "web"})
        assert heard[-1].done
        assert (await host.get_volume("data")).vm == "vms/web-1"
        await made(host, "web-2")
        assert [vm.name async for vm in host.list_vms(page_size=1)] == ["vms/web-1", "vms/web-2"]
        assert (await host.get_host()).vm_count == 2
        assert (await (await host.reboot_vm("web-1", force=True)).wait(CLI_S)).vm.state == hostler.VM.RUNNING
        stopped = await (await host.stop_vm("web-1", etag=(await host.get_vm("web-1")).etag)).wait(CLI_S)
        assert (stopped.vm.state, hostler.left_alone(stopped)) == (hostler.VM.STOPPED, False)
        assert hostler.left_alone(await (await host.stop_vm("web-1")).wait(CLI_S))
        started = await (await host.start_vm("web-1")).wait(CLI_S)
        assert (started.vm.state, hostler.left_alone(started)) == (hostler.VM.RUNNING, False)
        assert hostler.left_alone(await (await host.start_vm("web-1")).wait(CLI_S))
        await (await host.delete_vm("web-1", force=True)).wait(CLI_S)
        await (await host.delete_volume("data")).wait(CLI_S)
        assert [volume.name async for volume in host.list_volumes()] == ["volumes/web-2-disk0"]
        verbs = [operation.verb async for operation in host.list_operations(target="vms/web-1", page_size=2)]
        assert verbs == ["DeleteVM", "StartVM", "StartVM", "StopVM", "StopVM", "RebootVM", "CreateVM"]


async def test_a_wait_and_a_watch_survive_a_restart_of_the_agent(lone: LoneHost) -> None:
    """A wait that fails because the host's agent was updated meanwhile, or a watcher that never hears again."""
    async with at(lone) as host:
        events = host.watch_vms()
        assert isinstance(await anext(events), hostler.Bookmark)
        lone.gates.shut("created paused")
        handle = await host.create_vm("web-1", **SMALL)
        async with asyncio.timeout(CLI_S), asyncio.TaskGroup() as group:
            waiting = group.create_task(handle.wait(CLI_S), name="wait")
            await lone.gates.reached("created paused")
            await lone.kill()
            lone.gates.open("created paused")
            await lone.start()
            async for event in events:
                if isinstance(event, hostler.Updated) and event.resource.state == hostler.VM.RUNNING:
                    break
        await events.aclose()
        assert waiting.result().vm.state == hostler.VM.RUNNING
        assert len(lone.sim.domains) == 1


async def test_a_watch_goes_on_without_a_gap(lone: LoneHost) -> None:
    """A change during a broken connection that is never told, or everything told again as if it were news."""
    async with lossy_proxy(lone.port) as proxy, at(lone) as direct, at(lone, f"{NODE}@{proxy.endpoint}") as host:
        await made(direct, "web-1")
        events = host.watch_vms()
        async for event in events:
            if isinstance(event, hostler.Bookmark):
                break
        proxy.swallow_answers = True
        await (await direct.delete_vm("web-1", force=True)).wait(CLI_S)
        proxy.swallow_answers = False
        proxy.break_off()
        told = []
        async with asyncio.timeout(CLI_S):
            async for event in events:
                told.append(event)
                if isinstance(event, hostler.Deleted):
                    break
        await events.aclose()
    assert [event for event in told if isinstance(event, hostler.Resync)] == []
    assert [event.name for event in told if isinstance(event, hostler.Deleted)] == ["vms/web-1"]


async def test_an_answer_that_is_lost_makes_one_vm(lone: LoneHost) -> None:
    """A repeat under another request_id: a refusal because of a VM that the caller made itself."""
    async with lossy_proxy(lone.port) as proxy, at(lone) as direct, at(lone, f"{NODE}@{proxy.endpoint}") as host:
        assert [vm async for vm in host.list_vms()] == []
        proxy.swallow_answers = True
        async with asyncio.timeout(CLI_S), asyncio.TaskGroup() as group:
            creating = group.create_task(host.create_vm("web-1", **SMALL), name="create")
            while not [vm async for vm in direct.list_vms()]:
                assert not creating.done()
            proxy.swallow_answers = False
            proxy.break_off()
        await creating.result().wait(CLI_S)
        assert [operation.verb async for operation in direct.list_operations()] == ["CreateVM"]


async def test_every_no_has_its_class(lone: LoneHost) -> None:
    """A refusal that arrives as a bare RPC error."""
    async with at(lone) as host:
        with pytest.raises(hostler.NotFound):
            await host.get_vm("web-9")
        with pytest.raises(hostler.NoCapacity) as full:
            await host.create_vm("big", **{**SMALL, "memory_mib": MEMORY_MIB})
        assert full.value.reason is hostler.Reason.NODE_CAPACITY_EXCEEDED
        await lone.kill()
        with pytest.raises(hostler.Unavailable, match="Nothing listens at 127") as nobody:
            await host.get_host()
        assert nobody.value.reason is hostler.Reason.NODE_UNREACHABLE


async def test_a_host_of_a_cluster_shows_and_sends_changes_to_the_scheduler(tmp_path: Path) -> None:
    """A refusal that does not say where to go."""
    async with dev_cluster(tmp_path, DevOptions(nodes=1, replicas=1)) as cluster:
        tls = cluster.user_certificate()
        where = f"n1@127.0.0.1:{cluster.agents['n1'].port}"
        async with connect_node(where, cert=tls / "tls.crt", key=tls / "tls.key", ca=tls / "ca.crt") as host:
            assert (await host.get_host()).name == "nodes/n1"
            with pytest.raises(hostler.FailedPrecondition) as refused:
                await host.create_vm("web-1", **SMALL)
        assert refused.value.reason is hostler.Reason.MODE_CLUSTER
        assert cluster.endpoints[0] in refused.value.fix
