"""`hostler node drain` as a person and as a script sees it."""

import asyncio
import json
import os
import sys

import pytest

from devcluster.cluster import DevCluster, DevOptions
from hostler.api.type.v1.operation_pb2 import Operation
from hostler.cli import drain, progress
from hostler.cluster import Cluster
from hostler.errors import InvalidRequest
from nodeagent.adapters.sim_migration import MigrationFault
from tests.rpc.sdk.conftest import CLI_S, Cli, made
from tests.rpc.sdk.terminal import terminal
from tests.rpc.sdk.test_progress import on_terminal

Metadata = Operation.DrainMetadata
ENTRIES = [
    Metadata.Entry(vm="vms/web-1", state=Metadata.MOVED, destination_node="nodes/n2"),
    Metadata.Entry(
        vm="vms/web-10", state=Metadata.MOVING, destination_node="nodes/n3", reason="COPYING", progress=Operation.Progress(percent=50)
    ),
    Metadata.Entry(vm="vms/db", state=Metadata.PLANNED, destination_node="nodes/n2"),
    Metadata.Entry(vm="vms/pet", state=Metadata.BLOCKED, reason="Its disk is local.", fix="Delete it."),
]


def draining(*entries: Metadata.Entry) -> Operation:
    told = Operation(verb="DrainNode", target="nodes/n1", phase="MOVING", reason="1 of 4 moved, 1 moving, 1 blocked.")
    told.drain.entries.extend(entries)
    return told


def test_one_row_for_each_vm() -> None:
    """A drain of which one sees only that it is not done yet."""
    assert drain.rows(draining(*ENTRIES), 60, 10) == [
        "  web-1   MOVED    → n2",
        "  web-10  MOVING   → n3  ━━━━━━──────  50%",
        "  db      PLANNED  → n2",
        "  pet     BLOCKED        Its disk is local.",
    ]
    assert max(len(row) for row in drain.rows(draining(*ENTRIES), 30, 10)) <= 30


def test_what_happens_is_shown_when_there_is_no_room_for_all() -> None:
    """A terminal full of what is done already, with what moves and what is stuck below its edge."""
    assert drain.rows(draining(*ENTRIES), 60, 3, fancy=False) == [
        "  web-10  MOVING   -> n3  ######------  50%",
        "  pet     BLOCKED         Its disk is local.",
        "  and 2 more",
    ]
    assert drain.rows(draining(*ENTRIES), 60, 0) == []


def test_a_log_has_each_change_once() -> None:
    """A build's log with a line per second and VM."""
    before: dict[str, str] = {}
    assert len(drain.changes(before, draining(*ENTRIES))) == 4
    assert drain.changes(before, draining(*ENTRIES)) == []
    ended = Metadata.Entry(vm="vms/web-10", state=Metadata.FAILED, destination_node="nodes/n3", reason="The link broke.")
    assert drain.changes(before, draining(ended)) == ["vms/web-10: FAILED (The link broke.)"]


async def test_the_rows_are_drawn_in_place_and_erased(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are left behind, or that climb over what stood there before."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    async with asyncio.timeout(CLI_S), terminal(80) as shown:
        with os.fdopen(os.dup(shown.program_end), "w", encoding="utf-8") as stderr:
            monkeypatch.setattr(sys, "stderr", stderr)
            stderr.write("before\n")
            with progress.shown() as update:
                update(draining(*ENTRIES))
                update(draining(*ENTRIES[:2]))
                last = Metadata.Entry(vm="vms/db", state=Metadata.SKIPPED, reason="It was deleted.")
                update(draining(*ENTRIES[:2], last))
                await shown.until("It was deleted.")
                drawn = shown.screen.lines
            stderr.write("end")
            stderr.flush()
            await shown.until("end")
    assert [line.split()[0] for line in drawn] == ["before", "DrainNode", "web-1", "web-10", "db"]
    assert shown.screen.lines == ["before", "end"]


async def test_dry_run_then_drain_then_what_is_left(cli: Cli, sdk: Cluster, cluster: DevCluster) -> None:
    """A plan that cannot be read by a script, a drain that prints nothing, or one that ends well with a VM left behind."""
    for name in ("web-1", "web-2"):
        await (await sdk.create_vm(name, vcpus=1, memory_mib=512, image="guest", pool="shared", node="n1", move_fallback="restart")).wait()
    plan = await cli("node", "drain", "n1", "--dry-run")
    assert plan.status == 0, plan.err
    assert plan.out.splitlines()[:2] == ["would be accepted: DrainNode nodes/n1", "  2 of 2 VMs can be moved."]
    assert [line.split()[:2] for line in plan.out.splitlines()[3:]] == [["web-1", "PLANNED"], ["web-2", "PLANNED"]]
    assert (await sdk.get_node("n1")).state == (await sdk.get_node("n2")).state
    entries = json.loads((await cli("node", "drain", "n1", "--dry-run", "-o", "json")).out)["drain"]["entries"]
    assert {entry["state"] for entry in entries} == {"PLANNED"}
    done = await cli("node", "drain", "n1")
    assert done.status == 0, done.err
    assert done.out.splitlines()[0] == "node n1 is drained and stays cordoned"
    assert "vms/web-1: MOVED to n" in done.err
    await (await sdk.create_volume("own", pool="local", node="n2", size_mib=64)).wait()
    for other in ("n1", "n3"):
        await (await sdk.create_volume(f"full-{other}", pool="local", node=other, size_mib=DevOptions().pool_mib - 32)).wait()
    await (await sdk.create_vm("pet", vcpus=1, memory_mib=512, volumes=["own"])).wait()
    failed = await cli("node", "drain", "n2")
    assert failed.status != 0
    assert "1 VM is still on n2, which stays cordoned. pet: " in failed.err
    assert "pool local short by 32 MiB" in failed.err


async def test_what_was_moved_away_comes_back(cli: Cli, sdk: Cluster) -> None:
    """A host that stands empty after its service, or one that gets VMs it never had."""
    for name in ("web-1", "web-2"):
        await (await sdk.create_vm(name, vcpus=1, memory_mib=512, image="guest", pool="shared", node="n1")).wait()
    handle = await sdk.drain_node("n1")
    ended = await handle.wait()
    went = {entry.vm: entry.destination_node for entry in ended.drain.entries}
    other = next(node for node in ("nodes/n2", "nodes/n3") if node != went["vms/web-2"])
    await (await sdk.migrate_vm("web-2", other)).wait()
    wrong = await cli("node", "uncordon", "n2", "--move-back", ended.name)
    assert wrong.status == 2, wrong.err
    back = await cli("node", "uncordon", "n1", "--move-back", ended.name)
    assert back.status == 0, back.err
    (row,) = [line.split() for line in back.err.splitlines() if line.startswith("web-")]
    await sdk.operation(row[1]).wait(CLI_S)
    assert {(await sdk.get_vm(name)).node for name in ("web-1", "web-2")} == {"nodes/n1", other}


async def test_a_drain_on_a_terminal(cli: Cli, sdk: Cluster, cluster: DevCluster) -> None:
    """A table that does not show what each VM does, or is left on the screen at the end."""
    slow = await made(sdk, "slow", memory_mib=2048)
    cluster.world.script_migration(slow.uid, MigrationFault.STALLS)
    async with asyncio.timeout(CLI_S), terminal(100) as shown:
        process = await on_terminal(shown, cli, "node", "drain", slow.node.removeprefix("nodes/"))
        await shown.until("slow  MOVING")
        assert shown.screen.lines[0].startswith("DrainNode")
        shown.type("\x03")
        assert await process.wait() == 130
        await shown.until("goes on without you")
        await shown.until("cancel:")
    assert shown.screen.lines[0].endswith("goes on without you.")


async def test_a_word_that_is_not_known_is_refused(sdk: Cluster) -> None:
    """A VM whose owner believes that it may be restarted, and it may not; or a move whose priority was misspelt."""
    with pytest.raises(InvalidRequest):
        await sdk.create_vm("web-1", vcpus=1, memory_mib=512, move_fallback="reboot")
    with pytest.raises(InvalidRequest):
        await sdk.migrate_vm("web-1", priority="urgent")
