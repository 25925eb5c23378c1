"""How a daemon ends: exit codes, one line for what a person can mend, signals, and a bound on shutting down. Each runs as a real process."""

import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SDK = Path(__file__).parents[4] / "client" / "python"
PREAMBLE = """
import asyncio, sys
from hostler.server import logs
from hostler.server.settings import SettingsError
from hostler.server.startup import Shutdown, StartupError, run
logs.configure(as_json=True)
"""


@contextmanager
def daemon(body: str, arguments: str = "") -> Iterator[subprocess.Popen[str]]:
    source = PREAMBLE + "async def main(shutdown: Shutdown) -> None:\n" + textwrap.indent(textwrap.dedent(body), "    ")
    source += f"\nsys.exit(run(main{arguments}))\n"
    command = [sys.executable, "-c", source]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={"PYTHONPATH": str(SDK)}) as process:
        try:
            yield process
        finally:
            process.kill()


def outcome(body: str) -> tuple[int, str, str]:
    with daemon(body) as process:
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err


def test_a_main_that_ends_is_success() -> None:
    assert outcome("pass") == (0, "", "")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("raise StartupError('cannot listen:\\n the port is taken')", 1),
        ("raise SettingsError('cannot listen: the port is taken')", 2),
        (
            """
            async def listen() -> None:
                raise StartupError('cannot listen: the port is taken')
            async with asyncio.TaskGroup() as group:
                group.create_task(listen())
                group.create_task(shutdown.requested.wait())
            """,
            1,
        ),
    ],
)
def test_what_a_person_can_mend_is_one_line(body: str, code: int) -> None:
    assert outcome(body) == (code, "", "error: cannot listen: the port is taken\n")


def test_a_bug_leaves_its_traceback_in_the_log() -> None:
    code, out, err = outcome("raise KeyError('oops')")
    assert (code, err) == (70, "")
    assert "KeyError" in out
    assert "crashed" in out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_main_to_end(number: signal.Signals) -> None:
    with daemon("print('up', flush=True)\nawait shutdown.requested.wait()\nprint('put away')") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (0, "")
        assert out.endswith("put away\n")


HANGS = """
print('up', flush=True)
await shutdown.requested.wait()
print('asked', flush=True)
try:
    await asyncio.get_running_loop().create_future()
finally:
    print('cleaned')
"""


def until(process: subprocess.Popen[str], wanted: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line == wanted:
            return
    pytest.fail(f"the daemon ended without printing {wanted!r}")


def test_a_second_signal_does_not_wait_for_a_hanging_shutdown() -> None:
    with daemon(HANGS) as process:
        until(process, "up\n")
        process.send_signal(signal.SIGTERM)
        until(process, "asked\n")
        process.send_signal(signal.SIGTERM)
        until(process, "cleaned\n")
        assert process.wait(timeout=30) == 1


def test_a_hanging_shutdown_is_cut_off_at_its_limit() -> None:
    with daemon(HANGS, ", limit_s=0.1") as process:
        until(process, "up\n")
        process.send_signal(signal.SIGTERM)
        until(process, "cleaned\n")
        assert process.wait(timeout=30) == 1
