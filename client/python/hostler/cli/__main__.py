"""`hostler`: the command line. Here are the global options and the list of commands; the SDK does the work."""

import os
import sys
from importlib.metadata import version as installed_version
from typing import Annotated

import typer

from hostler.cli import context as context_commands
from hostler.cli import flavor, node, operation, vm, volume
from hostler.cli.exit_codes import EPILOG, ExitCode
from hostler.cli.plugins import PluginGroup
from hostler.cli.session import Target

app = typer.Typer(
    name="hostler",
    cls=PluginGroup,
    help="Run virtual machines on a set of Linux/KVM hosts as if they were one.",
    epilog=f"Example: hostler --endpoint 10.0.0.1:7443 vm list -o wide. {EPILOG}",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(vm.app, name="vm")
app.add_typer(node.app, name="node")
app.add_typer(volume.app, name="volume")
app.add_typer(flavor.app, name="flavor")
app.add_typer(operation.app, name="op")
app.add_typer(context_commands.app, name="context")


@app.callback()
def options(
    ctx: typer.Context,
    endpoint: Annotated[str | None, typer.Option(metavar="HOST:PORT[,...]", help="Scheduler replicas. [HOSTLER_ENDPOINT]")] = None,
    cert: Annotated[str | None, typer.Option(metavar="FILE", help="Your certificate. [HOSTLER_CERT]")] = None,
    key: Annotated[str | None, typer.Option(metavar="FILE", help="Its private key. [HOSTLER_KEY]")] = None,
    ca: Annotated[str | None, typer.Option(metavar="FILE", help="The cluster's authority. [HOSTLER_CA]")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="No TLS; for loopback only. [HOSTLER_INSECURE=1]")] = False,
    context: Annotated[str | None, typer.Option(metavar="NAME", help="A connection kept by name. [HOSTLER_CONTEXT]")] = None,
) -> None:
    ctx.obj = Target(endpoint, cert, key, ca, True if insecure else None, context)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(installed_version("hostler"))


def main() -> None:
    """The console script. A traceback is shown with HOSTLER_DEBUG=1 alone."""
    try:
        app()
    except Exception as error:
        if os.environ.get("HOSTLER_DEBUG") == "1":
            raise
        typer.echo(f"error: something broke in this program: {type(error).__name__}: {error}\nHOSTLER_DEBUG=1 shows where.", err=True)
        sys.exit(ExitCode.ELSE)


if __name__ == "__main__":
    main()
