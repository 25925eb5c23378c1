"""The command line on one host without a scheduler: the same commands, and one line with the fix where a cluster is needed."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hostler.server.identity import PrincipalKind
from tests.rpc.nodeagent.host import MEMORY_MIB, NODE, LoneHost, lone_host
from tests.rpc.sdk.conftest import Cli, environment

CREATE = ("vm", "create", "web-1", "--vcpus", "1", "--memory", "256", "--image", "guest", "--pool", "local", "--network", "br0")


@pytest.fixture
async def lone(tmp_path: Path) -> AsyncIterator[LoneHost]:
    async with lone_host(tmp_path, {0: MEMORY_MIB}) as running:
        yield running


@pytest.fixture
def cli(lone: LoneHost, tmp_path: Path) -> Cli:
    tls = lone.certificate(PrincipalKind.USER, "alice")
    return Cli(
        environment(
            HOSTLER_NODE_ENDPOINT=f"{NODE}@127.0.0.1:{lone.port}",
            HOSTLER_CERT=str(tls / "tls.crt"),
            HOSTLER_KEY=str(tls / "tls.key"),
            HOSTLER_CA=str(tls / "ca.crt"),
            HOSTLER_CONFIG=str(tmp_path / "config.toml"),
        )
    )


async def test_the_life_of_a_vm(cli: Cli) -> None:
    """A command that works on a cluster alone."""
    assert (await cli("volume", "create", "data", "--pool", "local", "--size", "32")).status == 0
    created = await cli(*CREATE, "--volume", "data", "--class", "guaranteed", "--cpu-floor", "1000")
    assert (created.status, created.out) == (0, f"vm web-1 is RUNNING on {NODE}\n"), created.err
    assert (await cli("vm", "start", "web-1")).out == "vm web-1 was running already\n"
    (listed,) = (await cli("vms", "ls", "-o", "json")).json
    assert (listed["name"], listed["service_class"]) == ("vms/web-1", "SERVICE_CLASS_GUARANTEED")
    assert (await cli("node", "ls", "-o", "name")).out == f"nodes/{NODE}\n"
    assert (await cli("node", "get", NODE, "-o", "json")).json["vm_count"] == 1
    stale = await cli("vm", "delete", "web-1", "--force", "--etag", "older")
    assert (stale.status, "changed in between" in stale.err) == (4, True)
    assert (await cli("vm", "rm", "web-1", "--force", "--etag", listed["etag"])).status == 0
    assert [one["verb"] for one in (await cli("op", "ls", "--target", "vms/web-1", "-o", "json")).json] == [
        "DeleteVM",
        "StartVM",
        "CreateVM",
    ]
    assert NODE in (await cli("version", "--server")).out


async def test_what_needs_a_cluster_says_so(cli: Cli, lone: LoneHost) -> None:
    """A call that the host does not know, or an option that is left out in silence."""
    where = f"{NODE}@127.0.0.1:{lone.port}"
    for command in (("flavor", "list"), ("vm", "migrate", "web-1"), ("node", "cordon", NODE), ("node", "list", "-w")):
        ran = await cli(*command)
        first, fix = ran.err.splitlines()
        assert (ran.status, first) == (2, f"error: The endpoint is not set: {where} is a single host, and this needs a cluster.")
        assert fix.startswith("Name a cluster with --endpoint")
    for option in ("--flavor", "--node"):
        ran = await cli(*CREATE, option, "x")
        assert (ran.status, "one host has neither" in ran.err, option in ran.err) == (2, True, True)
    assert (await cli("node", "get", "h9")).status == 3


async def test_a_host_kept_by_name(cli: Cli, lone: LoneHost) -> None:
    """A context that leads to a host and forgets which one, or that is taken for a cluster's."""
    assert (await cli("context", "create", "attic")).out == "context attic kept and used\n"
    bare = Cli(environment(HOSTLER_CONFIG=cli.environment["HOSTLER_CONFIG"]))
    assert (await bare("node", "list", "-o", "name")).out == f"nodes/{NODE}\n"
    (kept,) = (await bare("context", "list", "-o", "json")).json
    assert (kept["node_endpoint"], kept["endpoint"]) == (f"{NODE}@127.0.0.1:{lone.port}", "")
    assert (await bare("flavor", "list")).status == 2
    assert (await bare("context", "ls")).out.splitlines()[1].split()[:3] == ["*", "attic", kept["node_endpoint"]]


async def test_pools_of_one_host(cli: Cli) -> None:
    """One host that claims to know whether its locks keep other hosts out."""
    listed = await cli("pool", "list")
    assert listed.status == 0, listed.err
    _, local, shared = listed.out.splitlines()
    assert "cold only" in local
    assert "UNKNOWN" in shared
    assert "probed between the hosts" in (await cli("pool", "get", "shared")).out
    assert (await cli("pool", "get", "none")).status == 3
