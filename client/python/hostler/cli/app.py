"""`hostler`: the command line. Here are the global options and the list of commands; the SDK does the work."""

import os
import sys
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING, Annotated

import typer

from hostler.cli import context as context_commands
from hostler.cli import flavor, node, operation, pool, vm, volume
from hostler.cli.exit_codes import EPILOG, ExitCode
from hostler.cli.output import NONE, say, short, table
from hostler.cli.plugins import PluginGroup, group
from hostler.cli.session import Target, run

if TYPE_CHECKING:
    from hostler.cluster import Cluster
    from hostler.node import Host

app = typer.Typer(
    name="hostler",
    cls=PluginGroup,
    help="Run virtual machines on a set of Linux/KVM hosts as if they were one.",
    epilog=f"Example: hostler --endpoint 10.0.0.1:7400 vm list -o wide. {EPILOG}",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS: tuple[tuple[typer.Typer, str, tuple[str, ...]], ...] = (
    (vm.app, "vm", ("vms",)),
    (node.app, "node", ("nodes",)),
    (volume.app, "volume", ("volumes", "vol")),
    (pool.app, "pool", ("pools",)),
    (flavor.app, "flavor", ("flavors",)),
    (operation.app, "op", ("ops", "operation", "operations")),
    (context_commands.app, "context", ("contexts",)),
)
"""Each with the other names that users of kubectl and incus type; help does not show those."""

for commands, name, others in COMMANDS:
    group(commands, name)
    for other in others:
        group(commands, other, hidden=True)


@app.callback()
def options(
    ctx: typer.Context,
    endpoint: Annotated[str | None, typer.Option(metavar="HOST:PORT[,...]", help="Scheduler replicas. [HOSTLER_ENDPOINT]")] = None,
    cert: Annotated[str | None, typer.Option(metavar="FILE", help="Your certificate. [HOSTLER_CERT]")] = None,
    key: Annotated[str | None, typer.Option(metavar="FILE", help="Its private key. [HOSTLER_KEY]")] = None,
    ca: Annotated[str | None, typer.Option(metavar="FILE", help="The cluster's authority. [HOSTLER_CA]")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="No TLS; for loopback only. [HOSTLER_INSECURE=1]")] = False,
    context: Annotated[str | None, typer.Option(metavar="NAME", help="A connection kept by name. [HOSTLER_CONTEXT]")] = None,
    node_endpoint: Annotated[
        str | None, typer.Option(metavar="NODE@HOST:PORT", help="One host without a scheduler. [HOSTLER_NODE_ENDPOINT]")
    ] = None,
) -> None:
    if endpoint and node_endpoint:
        raise typer.BadParameter("cannot be combined with --endpoint: a cluster or one host is asked", param_hint="--node-endpoint")
    ctx.obj = Target(endpoint, cert, key, ca, True if insecure else None, context, node_endpoint)


@app.command()
def version(
    ctx: typer.Context, server: Annotated[bool, typer.Option("--server", help="And that of each node's agent that is known.")] = False
) -> None:
    """Print this program's version. Example: hostler version --server"""
    typer.echo(installed_version("hostler"))
    if server:
        run(ctx, _agents)


async def _agents(asked: "Cluster | Host") -> None:
    from hostler.node import Host

    nodes = [await asked.get_host()] if isinstance(asked, Host) else [node async for node in asked.list_nodes()]
    say(table(("NODE", "AGENT", "HYPERVISOR"), [(short(node.name), node.agent_version or NONE, node.hypervisor or NONE) for node in nodes]))


def main() -> None:
    """Carry out the command line. A traceback, and gRPC's own log, is shown with HOSTLER_DEBUG=1 alone."""
    debugging = os.environ.get("HOSTLER_DEBUG") == "1"
    if not debugging:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        app()
    except Exception as error:
        if debugging:
            raise
        typer.echo(f"error: something broke in this program: {type(error).__name__}: {error}\nHOSTLER_DEBUG=1 shows where.", err=True)
        sys.exit(ExitCode.ELSE)
