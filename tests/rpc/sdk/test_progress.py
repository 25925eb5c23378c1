"""A wait as a person sees it: on terminals of several widths, without colours, and where there is no terminal."""

import asyncio
import os
import sys

import pytest

from devcluster.cluster import DevCluster
from hostler.api.type.v1.operation_pb2 import Operation
from hostler.cli import progress
from hostler.cli.output import duration
from hostler.cli.progress import MARGIN, bar_line
from hostler.cluster import Cluster
from nodeagent.adapters.sim_migration import MigrationFault
from tests.rpc.sdk.conftest import CLI_S, Cli, made
from tests.rpc.sdk.terminal import Terminal, terminal

COPYING = Operation(
    verb="MigrateVM",
    target="vms/web-1",
    phase="COPYING",
    reason="Memory is copied.",
    progress=Operation.Progress(percent=42, bytes_done=1700 << 20, bytes_total=4 << 30, eta_s=4, rate_bytes_per_s=600 << 20),
)
STOPPING = Operation(verb="StopVM", target="vms/web-1", phase="STOPPING", reason="The guest is asked to power off.")
DONE = Operation(verb="MigrateVM", target="vms/web-1", phase="DONE", done=True, state=Operation.SUCCEEDED)


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (120, "MigrateVM web-1  COPYING  ━━━━━━━━━━━━──────────────────   42%  4 s left     1.7 GiB of 4 GiB  at 600 MiB/s"),
        (97, "MigrateVM web-1  COPYING  ━━━━━━━━━━━━──────────────────   42%  4 s left     1.7 GiB of 4 GiB"),
        (60, "MigrateVM web-1  COPYING  ━━━━━━─────────   42%  4 s left"),
        (50, "MigrateVM web-1  COPYING   42%  4 s left"),
        (30, "COPYING   42%  4 s left"),
        (10, "COPYING  …"),
    ],
)
def test_the_line_fits_the_terminal(width: int, line: str) -> None:
    """A narrow terminal that shows amounts and no percent, or a line that wraps."""
    assert bar_line(COPYING, 3, width) == line
    assert len(line) <= width


def test_what_stands_before_does_not_move() -> None:
    """A bar that changes its length with the digits behind it."""
    later = Operation()
    later.CopyFrom(COPYING)
    later.progress.percent, later.progress.eta_s, later.progress.bytes_done = 100, 0, 4 << 30
    assert bar_line(later, 9, 97) == "MigrateVM web-1  COPYING  ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━  100%               4 GiB of 4 GiB"


def test_without_progress_the_seconds_and_the_reason() -> None:
    """A wait of a minute that looks like a hang, or does not say what for."""
    assert bar_line(STOPPING, 12, 80) == "StopVM web-1  STOPPING  12 s  The guest is asked to power off."
    assert bar_line(STOPPING, 12, 40) == "StopVM web-1  STOPPING  12 s  The guest…"
    assert bar_line(STOPPING, 12, 40, fancy=False) == "StopVM web-1  STOPPING  12 s  The gue..."
    assert bar_line(COPYING, 3, 60, fancy=False) == "MigrateVM web-1  COPYING  ######---------   42%  4 s left"


def test_times_in_one_unit() -> None:
    """A unit that is off by sixty."""
    assert [duration(seconds) for seconds in (0, 99, 100, 3600, 7200)] == ["0 s", "99 s", "2 min", "60 min", "2 h"]


async def seen(shown: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The three states, drawn by this process on that terminal; the last one is awaited there."""
    with os.fdopen(os.dup(shown.program_end), "w", encoding="utf-8") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        with progress.shown() as update:
            update(STOPPING)
            update(COPYING)
            await shown.until("COPYING")
            drawn = shown.screen.lines
            update(DONE)
        stderr.write("end")
        stderr.flush()
        await shown.until("end")
    assert drawn == [bar_line(COPYING, 0, 60 - MARGIN)]
    assert shown.screen.lines == ["end"]


@pytest.mark.parametrize("no_color", ["", "1"])
async def test_on_a_terminal_one_line_is_drawn_in_place_and_erased(monkeypatch: pytest.MonkeyPatch, no_color: str) -> None:
    """Lines left behind, or colours for somebody who does not want them."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", no_color)
    async with asyncio.timeout(CLI_S), terminal(60) as shown:
        await seen(shown, monkeypatch)
        assert any(sequence.endswith("m") for sequence in shown.screen.sequences) == (not no_color)


async def test_a_terminal_that_can_do_nothing_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control characters in an editor's shell, or in the log of a build."""
    monkeypatch.setenv("TERM", "dumb")
    async with asyncio.timeout(CLI_S), terminal(80) as shown:
        with os.fdopen(os.dup(shown.program_end), "w", encoding="utf-8") as stderr:
            monkeypatch.setattr(sys, "stderr", stderr)
            with progress.shown() as update:
                for state in (STOPPING, COPYING, DONE):
                    update(state)
            stderr.flush()
            await shown.until("MigrateVM")
        assert shown.screen.lines == [
            "StopVM vms/web-1: STOPPING (The guest is asked to power off.)",
            "MigrateVM vms/web-1: COPYING 42% 1.7 GiB of 4 GiB at 600 MiB/s, 4 s left",
        ]
        assert shown.screen.sequences == []


async def on_terminal(shown: Terminal, cli: Cli, *arguments: str) -> asyncio.subprocess.Process:
    """`hostler`, started from that terminal: Ctrl-C there is a signal to it."""
    return await asyncio.create_subprocess_exec(
        "setsid",  # by a program: Python between fork and exec meets the locks of gRPC's threads
        "--ctty",
        "--wait",
        sys.executable,
        "-m",
        "hostler.cli",
        *arguments,
        env=cli.environment | {"TERM": "xterm", "PYTHONUTF8": "1", "NO_COLOR": ""},
        stdin=shown.program_end,
        stdout=shown.program_end,
        stderr=shown.program_end,
    )


@pytest.mark.parametrize("columns", [100, 60])
async def test_ctrl_c_leaves_a_clean_screen_and_says_how_to_go_on(cli: Cli, sdk: Cluster, cluster: DevCluster, columns: int) -> None:
    """Half a bar under the prompt, a wrong status, or an operation that nobody can find again."""
    vm = await made(sdk, "web-1")
    cluster.world.script_migration(vm.uid, MigrationFault.STALLS)
    async with asyncio.timeout(CLI_S), terminal(columns) as shown:
        process = await on_terminal(shown, cli, "vm", "migrate", "web-1")
        await shown.until("COPYING")
        assert len(shown.screen.lines) == 1
        shown.type("\x03")
        assert await process.wait() == 130
        (newest, _) = [operation async for operation in sdk.list_operations()]
        name = newest.name.removeprefix("operations/")
        await shown.until(f"op cancel {name}")
    assert not newest.done
    assert shown.screen.lines == [
        f"operations/{name} goes on without you.",
        f"  watch:  hostler op watch {name}",
        f"  cancel: hostler op cancel {name}",
    ]
    await sdk.cancel_operation(name)


async def test_the_end_of_a_migration_on_a_terminal(cli: Cli, sdk: Cluster) -> None:
    """A result that is mixed with what is left of the bar."""
    vm = await made(sdk, "web-1", memory_mib=2048)
    async with asyncio.timeout(CLI_S), terminal(100) as shown:
        process = await on_terminal(shown, cli, "vm", "migrate", "web-1")
        await shown.until("COPYING")
        assert await process.wait() == 0
        await shown.until("passes")
    assert shown.screen.lines[0] == "vm web-1 moved"
    assert [line.split()[0] for line in shown.screen.lines[1:]] == ["from", "to", "total", "bytes", "downtime", "passes"]
    assert vm.node.removeprefix("nodes/") in shown.screen.lines[1]
