"""How things are printed, without a cluster."""

import asyncio
import json
import sys
from importlib.metadata import EntryPoint

import pytest
import typer

from hostler import errors
from hostler.api.type.v1.operation_pb2 import Operation
from hostler.api.type.v1.resources_pb2 import Quantity
from hostler.api.type.v1.vm_pb2 import VM, Flavor
from hostler.cli import plugins
from hostler.cli.exit_codes import ExitCode, exit_code
from hostler.cli.output import FLAVORS, VMS, Format, document, drift, dry_move, mib, migration, refusal, show, size, table
from hostler.cli.progress import plain
from hostler.errors import HostlerError, NoCapacity, NotFound, Reason, Violation
from hostler.operations import OperationFailed
from tests.rpc.sdk.conftest import environment

WEB = VM(name="vms/web-1", vcpus=2, memory_mib=1536, node="nodes/n1", state=VM.RUNNING, charged=[Quantity(key="cpu_milli", amount=200)])


def test_tables_are_aligned_and_have_no_trailing_blanks() -> None:
    """Columns that cannot be cut."""
    assert table(("NAME", "X"), [("a", "1"), ("longer", "")]) == "NAME     X\na        1\nlonger"


def test_a_vm_in_every_format() -> None:
    """A column, a field or a unit that goes missing."""
    header, row = show([WEB], VMS, Format.TABLE).splitlines()
    assert header.split() == ["NAME", "STATE", "NODE", "VCPUS", "MEMORY", "FLAVOR", "REASON"]
    assert row.split() == ["web-1", "RUNNING", "n1", "2", "1.5", "GiB", "-", "-"]
    assert "EPOCH" in show([WEB], VMS, Format.WIDE)
    assert show([WEB, WEB], VMS, Format.NAME) == "vms/web-1\nvms/web-1"
    assert json.loads(show([WEB], VMS, Format.JSON, one=True))["memory_mib"] == 1536
    assert json.loads(show([], VMS, Format.JSON)) == []
    assert "memory_mib: 1536" in show([WEB], VMS, Format.YAML)


def test_a_vm_that_was_changed_past_hostler_is_marked_and_the_finding_is_told() -> None:
    """A mark that nobody sees, or one of which nobody can tell what it means."""
    edited = VM(name="vms/web-1", state=VM.RUNNING, stale=True, drift=["It has 1 vCPUs."])
    assert "RUNNING (stale, drift)" in show([edited], VMS, Format.TABLE)
    assert "(" not in show([WEB], VMS, Format.TABLE)
    assert drift(edited).splitlines() == ["", "Changed past Hostler:", "- It has 1 vCPUs."]
    assert drift(WEB) == ""


def test_documents_have_numbers_and_every_field() -> None:
    """`jq '.memory_mib > 512'` that compares a number with a string, and `.reason` that is sometimes absent."""
    found = document(WEB)
    assert found["memory_mib"] == 1536
    assert found["charged"] == [{"key": "cpu_milli", "amount": 200}]
    assert found["reason"] == ""
    done = document(Operation(vm=WEB, migration=Operation.MigrationMetadata(total_ms=5)))
    assert (done["vm"]["memory_mib"], done["migration"]["total_ms"]) == (1536, 5)


def test_a_flavor_without_a_floor_says_who_decides() -> None:
    """ "0" where the class decides."""
    assert show([Flavor(name="flavors/small", vcpus=1, memory_mib=512)], FLAVORS, Format.TABLE).splitlines()[1].split()[4:6] == [
        "by",
        "class",
    ]


@pytest.mark.parametrize(("amount", "text"), [(700, "700 MiB"), (1024, "1 GiB"), (1536, "1.5 GiB"), (1 << 20, "1 TiB")])
def test_mib(amount: int, text: str) -> None:
    """A unit that is off by a thousand."""
    assert mib(amount) == text


def test_bytes() -> None:
    """A unit that is off by a thousand."""
    assert [size(amount) for amount in (17, 2048, 3 << 20, 5 << 30)] == ["17 B", "2 KiB", "3 MiB", "5 GiB"]


def test_a_migration_ends_with_its_figures() -> None:
    """A figure under the wrong name."""
    facts = Operation.MigrationMetadata(
        source_node="nodes/n1",
        destination_node="nodes/n2",
        bytes_transferred=1 << 20,
        total_ms=1250,
        downtime_ms=44,
        max_downtime_ms=300,
        iterations=5,
        throttle_percent=60,
    )
    assert migration(Operation(migration=facts)).splitlines() == [
        "from       n1", "to         n2", "total      1.25 s", "bytes      1 MiB (1048576)", "downtime   44 ms, within the 300 ms allowed",
        "passes     5 over memory, guest slowed by 60 %",
    ]  # fmt: skip
    facts.iterations = 0
    assert "passes" not in migration(Operation(migration=facts)), "it was over before anybody looked, and not with no pass at all"


def test_a_dry_run_of_a_migration_says_what_forbids_it_and_what_it_takes() -> None:
    """A rule that fails and is not seen among those that hold; a guess that reads like a measurement."""
    Check, Told = Operation.MigrationCheck, Operation.MigrationForecast
    facts = Operation.MigrationMetadata(
        source_node="nodes/n1",
        destination_node="nodes/n2",
        checks=[Check(name="cpu", ok=True, message="n2 has it."), Check(name="networks", message="n2 has no bridge br9.", fix="Make it.")],
        forecast=Told(
            convergence=Told.CONVERGES_THROTTLED,
            dirty_bytes_per_s=200 << 20,
            dirty_measured=True,
            bandwidth_bytes_per_s=112 << 20,
            seconds=14,
            downtime_ms=400,
            throttle_percent=78,
        ),
    )
    assert dry_move(Operation(target="vms/web-1", migration=facts)).splitlines() == [
        "would be refused: vm web-1 from n1 to n2",
        "ok    cpu             n2 has it.",
        "NO    networks        n2 has no bridge br9.",
        "                      Make it.",
        "",
        "dirties    200 MiB/s, measured now",
        "link       112 MiB/s, a guess: 1 Gbit/s",
        "ends       yes, with the guest slowed by 78 %",
        "time       at most 14 s",
        "downtime   at most 400 ms",
    ]


def test_progress_as_a_line() -> None:
    """Bytes without their unit, or a phase that is not said."""
    progress = Operation.Progress(percent=40, bytes_done=1 << 20, bytes_total=2 << 20, eta_s=3, rate_bytes_per_s=1 << 20)
    operation = Operation(verb="MigrateVM", target="vms/web-1", phase="COPYING", progress=progress)
    assert plain(operation) == "MigrateVM vms/web-1: COPYING 40% 1 MiB of 2 MiB at 1 MiB/s, 3 s left"
    progress.dirty_bytes_per_s, progress.iteration, progress.throttle_percent = 2 << 20, 3, 49
    operation.progress.CopyFrom(progress)
    assert plain(operation).endswith("1 MiB of 2 MiB at 1 MiB/s 2 MiB/s dirtied pass 3 slowed 49%, 3 s left")


def test_a_refusal_shows_message_table_and_fix_in_that_order() -> None:
    """A reason per node that nobody sees."""
    violations = (Violation("nodes/n1", "n1 cannot take big: no room."), Violation("nodes/n2", "n2 cannot take big: cordoned."))
    assert refusal(NoCapacity(Reason.NO_FEASIBLE_NODE, "It does not fit.", "Take less.", violations)).splitlines() == [
        "error: It does not fit.", "", "NODE   REASON", "n1     no room.", "n2     cordoned.", "", "Take less.",
    ]  # fmt: skip
    assert refusal(NotFound(Reason.VM_NOT_FOUND, "There is no VM x.")) == "error: There is no VM x."


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.InvalidRequest, 2), (errors.NotFound, 3), (errors.AlreadyExists, 4), (errors.Conflict, 4), (errors.FailedPrecondition, 4),
        (errors.NoCapacity, 5), (errors.Unavailable, 6), (errors.DeadlineExceeded, 6), (errors.PermissionDenied, 7),
        (errors.Unauthenticated, 7), (OperationFailed, 8), (errors.Internal, 1), (errors.OutOfRange, 1),
    ],
)  # fmt: skip
def test_each_class_has_its_status(kind: type[HostlerError], code: int) -> None:
    """A number that scripts rely on and that changes."""
    assert exit_code(kind(Reason.INTERNAL, "No.")) == code
    assert exit_code(kind(Reason.TOO_MANY_REQUESTS, "No.")) == ExitCode.UNAVAILABLE


async def test_help_loads_neither_grpc_nor_a_plug_in() -> None:
    """Help that takes seconds because it imports a daemon."""
    code = "import sys; from hostler.cli.app import app\ntry: app(['--help'])\nfinally: print('LOADED', {'grpc', 'devcluster'} & {*sys.modules})"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, env=environment(), stdout=asyncio.subprocess.PIPE)
    out = (await process.communicate())[0].decode()
    assert "Run a simulated cluster" in out
    assert "Exit status" in out
    assert out.rstrip().endswith("LOADED set()")


def test_an_absent_plug_in_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`hostler dev` that is an unknown command for whoever has the SDK alone."""
    monkeypatch.setattr(plugins, "installed", dict)
    with pytest.raises(typer.Exit) as refused:
        plugins.load("dev")
    assert refused.value.exit_code == 2
    assert "pip install hostler-daemons" in capsys.readouterr().err


def test_a_plug_in_that_cannot_be_imported_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A traceback because one requirement of a plug-in is missing."""
    monkeypatch.setattr(plugins, "installed", lambda: {"dev": EntryPoint("dev", "no_such_module:app", plugins.GROUP)})
    with pytest.raises(typer.Exit):
        plugins.load("dev")
    assert "cannot be loaded: No module named 'no_such_module'" in capsys.readouterr().err
