"""What the command line understands and says of itself, without a cluster: help, other people's words, completion."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from hostler.cli.app import app
from hostler.cli.plugins import LazyCommand
from tests.rpc.sdk.conftest import CLI_S, Cli, environment


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:  # noqa: ANN401 typer's click is private
    """Each command of ours with its words, groups too; plug-ins are others' business."""
    if isinstance(command, LazyCommand):
        return
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


ALL = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_help_has_an_example(path: tuple[str, ...]) -> None:
    """Help that lists options and leaves the reader to guess how they go together."""
    command = ALL[path]
    assert "Example" in f"{command.help} {command.epilog}"


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_is_wrapped_by_the_terminal_alone(path: tuple[str, ...]) -> None:
    """Sentences that end in the middle of a line, as the source's lines do."""
    assert not [paragraph for paragraph in (ALL[path].help or "").split("\n\n") if "\n" in paragraph]


def test_other_people_s_words_mean_the_same_and_are_not_shown() -> None:
    """`hostler vms ls` that is an error, or help that lists each command four times."""
    same = {
        ("vms", "ls"): ("vm", "list"), ("vm", "rm"): ("vm", "delete"), ("vm", "show"): ("vm", "get"), ("vm", "restart"): ("vm", "reboot"),
        ("vm", "move"): ("vm", "migrate"), ("nodes", "ls"): ("node", "list"), ("vol", "rm"): ("volume", "delete"),
        ("volumes", "info"): ("volume", "get"), ("flavors", "describe"): ("flavor", "get"), ("pools", "ls"): ("pool", "list"),
        ("ops", "ls"): ("op", "list"),
        ("operations", "show"): ("op", "get"), ("contexts", "rm"): ("context", "delete"),
    }  # fmt: skip
    for word, ours in same.items():
        assert ALL[word].callback.__wrapped__ is ALL[ours].callback.__wrapped__, word
    shown = {path for path, command in ALL.items() if not command.hidden and not any(ALL[path[:n]].hidden for n in range(1, len(path)))}
    assert not shown & set(same)
    assert {path[0] for path in shown if path} == {"vm", "node", "volume", "pool", "flavor", "op", "context", "version"}


SPARING = """
import sys
from hostler.cli import plugins
from hostler.cli.app import app

made = []
plugins._Unmade.made = lambda self, before=plugins._Unmade.made: (made.append(self.name), before(self))[1]
app(["context", "list"], standalone_mode=False)
print(made, sorted({"grpc", "rich", "markdown_it", "hostler.cluster"} & set(sys.modules)))
"""


async def test_a_command_costs_nothing_that_it_does_not_need() -> None:
    """Half a second before each answer: gRPC, Markdown, or every other command made on the way."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", SPARING, env=environment(), stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(CLI_S):
        out, _ = await process.communicate()
    assert out.decode().splitlines()[-1] == "['context'] []"


async def completed(words: str, **more: str) -> list[str]:
    """What a shell offers after these words."""
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("hostler")),
        env=environment(_HOSTLER_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(len(words.split(" ")) - 1), **more),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(CLI_S):
        out, err = await process.communicate()
    assert err == b""
    return out.decode().split()


async def test_a_shell_completes_commands_options_and_plug_ins() -> None:
    """Completion that offers nothing, offers the hidden words, or ends where a plug-in begins."""
    groups, vm, option, plugin = await asyncio.gather(
        completed("hostler "), completed("hostler vm "), completed("hostler vm create --fl"), completed("hostler pki ")
    )
    assert {"vm", "node", "dev", "pki"} <= set(groups)
    assert "vms" not in groups
    assert {"create", "list", "migrate"} <= set(vm)
    assert "rm" not in vm
    assert option == ["--flavor"]
    assert plugin == ["init", "issue", "show"]


def files_below(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_completion_can_be_shown_and_installed(shell: str, tmp_path: Path) -> None:
    """A script that a shell cannot load, or that calls another program."""
    cli = Cli(environment(HOME=str(tmp_path), _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"))
    shown = await cli("--show-completion", shell)
    assert (shown.status, "complete" in shown.out) == (0, True), shown.err
    assert (await cli("--install-completion", shell)).status == 0
    assert files_below(tmp_path)


async def test_two_places_at_once_are_refused() -> None:
    """A guess at whether the cluster or the host was meant."""
    cli = Cli(environment())
    both = await cli("--endpoint", "127.0.0.1:1", "--node-endpoint", "h1@127.0.0.1:2", "vm", "list")
    assert (both.status, "cannot be combined" in both.err) == (2, True)
    both = await Cli(environment(HOSTLER_ENDPOINT="127.0.0.1:1", HOSTLER_NODE_ENDPOINT="h1@127.0.0.1:2"))("vm", "list")
    assert (both.status, "both set" in both.err) == (2, True)
    assert "hostler vm" in (await cli("vm", "create", "--help")).out
