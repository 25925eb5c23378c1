"""The command line as its users start it: a process of its own against a running cluster."""

import asyncio
import signal
from pathlib import Path

from devcluster.cluster import DevCluster
from hostler.cluster import Cluster
from nodeagent.adapters.sim_migration import MigrationFault
from tests.rpc.sdk.conftest import CLI_S, Cli, environment, made

CREATE = ("vm", "create", "web-1", "--flavor", "small", "--image", "guest", "--pool", "shared", "--network", "br0")


async def test_create_migrate_and_delete(cli: Cli) -> None:
    """The first thing that everybody types."""
    flavor = await cli("flavor", "create", "small", "--vcpus", "1", "--memory", "512")
    assert (flavor.status, flavor.out.splitlines()[1].split()[:3]) == (0, ["small", "1", "512"]), flavor.err
    dry = await cli(*CREATE, "--dry-run")
    assert dry.out.startswith("would be accepted: CreateVM vms/web-1")
    created = await cli(*CREATE, "--label", "tier=web", "--node", "n1")
    assert (created.status, created.out) == (0, "vm web-1 is RUNNING on n1\n"), created.err
    assert "CreateVM vms/web-1: STARTING" in created.err
    (listed,) = (await cli("vm", "ls", "-o", "json")).json
    assert (listed["name"], listed["node"], listed["memory_mib"], listed["labels"]) == ("vms/web-1", "nodes/n1", 512, {"tier": "web"})
    migrated = await cli("vm", "migrate", "web-1", "--to", "n2")
    assert migrated.status == 0, migrated.err
    shown = dict(line.split(maxsplit=1) for line in migrated.out.splitlines()[1:])
    assert (shown["from"], shown["to"]) == ("n1", "n2")
    assert shown.keys() - {"passes"} == {"from", "to", "total", "bytes", "downtime"}
    assert (await cli("vm", "get", "web-1", "-o", "name")).out == "vms/web-1\n"
    deleted = await cli("vm", "rm", "web-1", "--force")
    assert (deleted.status, deleted.out) == (0, "vm web-1 deleted\n"), deleted.err
    verbs = [operation["verb"] for operation in (await cli("op", "list", "-o", "json")).json]
    assert verbs == ["DeleteVM", "MigrateVM", "CreateVM"]


async def test_exit_status_says_what_kind_of_no_it_is(cli: Cli, sdk: Cluster, cluster: DevCluster) -> None:
    """A script that cannot tell "not there" from "no room", and a refusal that says neither why nor what to do."""
    await made(sdk, "web-1")
    moving = await made(sdk, "web-3")
    cluster.world.script_migration(moving.uid, MigrationFault.FAILS_MIDWAY)
    big = ("vm", "create", "big", "--vcpus", "1", "--memory", "99999", "--image", "guest", "--pool", "shared")
    gone, full, bad, usage, taken, nobody, failed = await asyncio.gather(
        cli("vm", "get", "web-9"),
        cli(*big),
        cli("vm", "create", "Web_1", "--vcpus", "1", "--memory", "64"),
        cli("vm", "create", "web-2", "--label", "nonsense"),
        cli("vm", "delete", "web-1"),
        Cli({**cli.environment, "HOSTLER_CALL_TIMEOUT": "1"})("--endpoint", "127.0.0.1:1", "vm", "list"),
        cli("vm", "migrate", "web-3"),
    )
    assert (gone.status, gone.out) == (3, "")
    assert "There is no VM web-9." in gone.err
    assert (full.status, full.out) == (5, "")
    lines = full.err.splitlines()
    assert lines[0].startswith("error: 0 of 3 nodes can take big")
    assert [line.split()[0] for line in lines[2:6]] == ["NODE", "n1", "n2", "n3"]
    assert "it would fit on" in lines[-1]
    assert (bad.status, usage.status, taken.status, nobody.status) == (2, 2, 4, 6)
    assert "KEY=VALUE" in usage.err
    assert (failed.status, "operation: operations/" in failed.err) == (8, True), failed.err
    assert all("Traceback" not in ran.err for ran in (gone, full, bad, usage, taken, nobody, failed))


async def test_without_settings_it_says_which() -> None:
    """A newcomer who is told nothing but "failed"."""
    ran = await Cli(environment(), cold=True)("vm", "list")
    assert ran.status == 2
    assert "HOSTLER_ENDPOINT" in ran.err


async def test_interrupting_a_wait_says_how_to_go_on(cli: Cli, sdk: Cluster, cluster: DevCluster) -> None:
    """Ctrl-C that leaves the user without the operation's name, or that cancels the operation."""
    vm = await made(sdk, "web-1")
    cluster.world.script_migration(vm.uid, MigrationFault.STALLS)
    process = await cli.start("vm", "migrate", "web-1")
    assert process.stderr is not None
    async with asyncio.timeout(CLI_S):
        while b"COPYING" not in (line := await process.stderr.readline()):
            assert line
        process.send_signal(signal.SIGINT)
        told = (await process.stderr.read()).decode()
        status = await process.wait()
    assert status == 130
    newest = await anext(aiter(sdk.list_operations()))
    assert not newest.done
    name = newest.name.removeprefix("operations/")
    assert f"hostler op watch {name}" in told
    cancelled = await cli("op", "cancel", name, "--async")
    assert (cancelled.status, cancelled.out.startswith("accepted")) == (0, True), cancelled.err


async def test_watching_prints_changes_as_they_come(cli: Cli, sdk: Cluster) -> None:
    """A watch that prints nothing before it ends."""
    process = await cli.start("vm", "list", "-w")
    assert process.stdout is not None
    async with asyncio.timeout(CLI_S):
        assert (await process.stdout.readline()).split()[:2] == [b"EVENT", b"NAME"]
        await made(sdk, "web-1", start=False)
        while b"STOPPED" not in (line := await process.stdout.readline()):
            assert line
        process.send_signal(signal.SIGINT)
        await process.communicate()
    assert process.returncode == 130


async def test_async_returns_before_the_end(cli: Cli, sdk: Cluster, cluster: DevCluster) -> None:
    """`--async` that waits, and `-o name` that is no use to the next command."""
    vm = await made(sdk, "web-1")
    cluster.world.script_migration(vm.uid, MigrationFault.STALLS)
    accepted = await cli("vm", "migrate", "web-1", "--async", "-o", "name")
    assert accepted.status == 0, accepted.err
    assert not (await sdk.get_operation(accepted.out.strip())).done
    late = await cli("op", "watch", accepted.out.strip(), "--timeout", "0.2")
    assert late.status == 6
    assert not (await sdk.get_operation(accepted.out.strip())).done


async def test_a_connection_kept_by_name(cli: Cli, tmp_path: Path) -> None:
    """A context that is kept and does not lead where it did, or a cluster reached that nobody named."""
    kept = {"HOSTLER_CONFIG": str(tmp_path / "config.toml")}
    ran = await Cli(cli.environment | kept)("context", "create", "lab")
    assert (ran.status, ran.out) == (0, "context lab kept and used\n")
    bare = Cli(environment(**kept))
    assert (await bare("node", "list", "-o", "name")).out == "nodes/n1\nnodes/n2\nnodes/n3\n"
    assert (await bare("--endpoint", "127.0.0.1:1", "--insecure", "context", "create", "far")).status == 0
    assert (await bare("context", "ls", "-o", "name")).out == "far\nlab\n"
    assert [one["current"] for one in (await bare("context", "list", "-o", "json")).json] == [False, True]
    assert (await bare("context", "list")).out.splitlines()[1].split() == ["far", "127.0.0.1:1", "-"]
    assert (await bare("context", "use", "far")).out == "context far used\n"
    assert (await bare("--context", "lab", "vm", "list", "-o", "name")).status == 0
    assert (await bare("context", "delete", "far")).status == 0
    gone = await bare("--context", "far", "vm", "list")
    assert (gone.status, gone.err.splitlines()[0]) == (3, "error: There is no context far.")
    assert (await bare("vm", "list")).status == 2
