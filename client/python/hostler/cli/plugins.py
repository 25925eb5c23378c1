"""Commands that are made when they are asked for: making all of them would take longer than most commands do.

Those that other distributions bring are entry points in the group `hostler.commands`, each a typer.Typer. They are found by name and loaded when one
is used, so that `hostler --help` costs no daemon's imports. Those that belong to Hostler itself are listed even when their distribution is absent,
and then say what to install.
"""

# ruff: noqa: ANN401  typer's click is private: its contexts and commands have no public type

import inspect
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer
import typer.main
from typer.core import TyperCommand, TyperGroup

from hostler.cli.exit_codes import ExitCode

GROUP = "hostler.commands"


@dataclass(frozen=True, slots=True)
class Known:
    """A command of Hostler's own that comes with another distribution."""

    help: str
    distribution: str


KNOWN = {
    "dev": Known("Run a simulated cluster in one process.", "hostler-daemons"),
    "pki": Known("Make the certificate authority, and issue certificates.", "hostler-daemons"),
}


@cache
def installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def group(commands: typer.Typer, name: str, *, hidden: bool = False) -> None:
    """Make `commands` known under that name; as `add_typer`, but nothing is made of them yet."""
    _GROUPS[name] = _Unmade(commands, name, hidden)


@dataclass(frozen=True, slots=True)
class _Unmade:
    """A group that nobody has asked for."""

    commands: typer.Typer
    name: str
    hidden: bool

    def made(self) -> Any:
        around = typer.Typer(add_completion=False)
        unwrap_help(self.commands)
        around.add_typer(self.commands, name=self.name, hidden=self.hidden)
        return typer.main.get_group(around).commands[self.name]


_GROUPS: dict[str, _Unmade] = {}


def unwrap_help(commands: typer.Typer) -> None:
    """A paragraph of a docstring is one line of help: typer breaks it where the terminal ends, and would break it where our source does besides."""
    for command in commands.registered_commands:
        text = inspect.cleandoc(command.help or (command.callback.__doc__ if command.callback else "") or "")
        command.help = "\n\n".join(" ".join(paragraph.split("\n")) for paragraph in text.split("\n\n"))


class _Commands(dict[str, Any]):
    """By name; an unmade one is made when it is looked at."""

    def __getitem__(self, name: str) -> Any:
        found = super().__getitem__(name)
        if isinstance(found, _Unmade):
            found = self[name] = found.made()
        return found

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default  # noqa: SIM401 that is this method

    def values(self) -> Any:
        return [self[name] for name in self]

    def items(self) -> Any:
        return [(name, self[name]) for name in self]


class PluginGroup(TyperGroup):
    """The commands of this package, then plug-ins; a plug-in cannot take the place of one of ours."""

    def __init__(self, *, commands: Any = None, **more: Any) -> None:
        super().__init__(commands=commands, **more)
        self.commands = _Commands({**self.commands, **_GROUPS})

    def list_commands(self, ctx: Any) -> list[str]:
        own = super().list_commands(ctx)
        return [*own, *sorted({*installed(), *KNOWN} - set(own))]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        own = super().get_command(ctx, cmd_name)
        if own is not None or cmd_name not in {*installed(), *KNOWN}:
            return own
        return LazyCommand(cmd_name)


class LazyCommand(TyperCommand):
    """Stands in for a plug-in until it is used."""

    def __init__(self, name: str) -> None:
        known = KNOWN.get(name)
        told = known.help if known else "A plug-in."
        if name not in installed() and known:
            told += f" (Needs {known.distribution}.)"
        super().__init__(name, help=told, rich_markup_mode=None)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return load(self.name or "").make_context(info_name, args, parent, **extra)


def load(name: str) -> Any:
    """The plug-in's command; if it cannot be loaded, say what to install and exit."""
    point, known = installed().get(name), KNOWN.get(name)
    if point is None and known is not None:
        raise _missing(f"`hostler {name}` is not installed.", known.distribution)
    assert point is not None, name
    try:
        app = point.load()
    except ImportError as error:
        raise _missing(f"`hostler {name}` cannot be loaded: {error}.", point.dist.name if point.dist else name) from error
    unwrap_help(app)
    return typer.main.get_command(app)


def _missing(message: str, distribution: str) -> typer.Exit:
    typer.echo(f"error: {message}\nInstall it: pip install {distribution}", err=True)
    return typer.Exit(ExitCode.USAGE)
