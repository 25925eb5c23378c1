"""`hostler context`: the connections that are kept by name; see `hostler.context`."""

import os
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hostler.cli import completion
from hostler.cli.output import NONE, Format, dumped, say, table
from hostler.cli.session import refusals_shown, target_of

if TYPE_CHECKING:
    from hostler.context import Contexts

app = typer.Typer(
    help="Keep connections to clusters, and to single hosts, by name.",
    no_args_is_help=True,
    epilog="Example: hostler --endpoint 10.0.0.1:7400 --cert me.crt --key me.key --ca ca.crt context create prod && hostler vm list",
)

Name = Annotated[str, typer.Argument(help="The context's name.", autocompletion=completion.contexts)]


class ListFormat(StrEnum):
    """-o of `list`"""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


@app.command("list")
@app.command("ls", hidden=True)
def list_(output: Annotated[ListFormat, typer.Option("-o", "--output", help="How to print it.")] = ListFormat.TABLE) -> None:
    """List contexts; the current one has a star. Example: hostler context list"""
    with refusals_shown():
        contexts = _loaded()
    listed = sorted(contexts.by_name.items())
    match output:
        case ListFormat.NAME:
            say("\n".join(name for name, _ in listed))
        case ListFormat.JSON | ListFormat.YAML:
            rows = [
                {"name": name, "current": name == contexts.current, "endpoint": one.endpoint, "node_endpoint": one.node_endpoint}
                | {"cert": one.cert, "key": one.key, "ca": one.ca, "insecure": one.insecure}
                for name, one in listed
            ]
            typer.echo(dumped(rows, Format(output.value)))
        case ListFormat.TABLE:
            cells = [
                ("*" if name == contexts.current else "", name, one.endpoint or one.node_endpoint, one.cert or NONE) for name, one in listed
            ]
            say(table(("", "NAME", "ENDPOINT", "CERTIFICATE"), cells))


@app.command()
def create(
    ctx: typer.Context, name: Name, use: Annotated[bool, typer.Option("--use", help="Make it the current one, too.")] = False
) -> None:
    """Keep the connection that the global options and the environment describe, under a name; the first one becomes the current one.

    Example: hostler --endpoint 10.0.0.1:7400 --cert me.crt --key me.key --ca ca.crt context create prod --use
    """
    from hostler.context import Context

    with refusals_shown():
        found = target_of(ctx).settings
        cert, key, ca = (str(path.absolute()) if path else "" for path in (found.cert, found.key, found.ca))
        where = {"node_endpoint" if found.one_host else "endpoint": found.where}
        kept = Context(cert=cert, key=key, ca=ca, insecure=found.insecure, **where)
        _change(lambda contexts: contexts.with_one(name, kept).using(name) if use else contexts.with_one(name, kept))
        say(f"context {name} kept{' and used' if _loaded().current == name else ''}")


@app.command()
def use(name: Name) -> None:
    """Make it the current one. Example: hostler context use prod"""
    with refusals_shown():
        _change(lambda contexts: contexts.using(name))
        say(f"context {name} used")


@app.command()
@app.command("rm", hidden=True)
def delete(name: Name) -> None:
    """Forget it; its certificates stay. Example: hostler context delete prod"""
    with refusals_shown():
        _change(lambda contexts: contexts.without(name))
        say(f"context {name} deleted")


def _path() -> Path:
    from hostler.context import file_path

    return file_path(os.environ)


def _loaded() -> "Contexts":
    from hostler.context import load

    return load(_path())


def _change(how: "Callable[[Contexts], Contexts]") -> None:
    from hostler.context import save

    save(_path(), how(_loaded()))
