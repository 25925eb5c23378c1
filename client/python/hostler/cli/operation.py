"""`hostler op`."""

from typing import TYPE_CHECKING, Annotated

import typer

from hostler.cli import completion
from hostler.cli.output import OPERATIONS, Format, say, short, show
from hostler.cli.session import Ending, Output, Timeout, Wait, finish, run, run_cluster

if TYPE_CHECKING:
    from hostler.api.type.v1.operation_pb2 import Operation
    from hostler.cluster import Cluster
    from hostler.node import Host

app = typer.Typer(
    help="What accepted requests are doing, have done, and why.",
    no_args_is_help=True,
    epilog="Example: hostler op list --target vms/web-1; hostler op watch 3f2a...",
)

Name = Annotated[str, typer.Argument(help="The operation's name, as printed when it was accepted.", autocompletion=completion.operations)]


@app.command("list")
@app.command("ls", hidden=True)
def list_(
    ctx: typer.Context,
    target: Annotated[str, typer.Option(help="Only operations on vms/NAME or volumes/NAME.")] = "",
    output: Output = Format.TABLE,
) -> None:
    """List operations, newest first. Example: hostler op list --target vms/web-1"""

    async def work(asked: "Cluster | Host") -> None:
        say(show([operation async for operation in asked.list_operations(target=target)], OPERATIONS, output))

    run(ctx, work)


@app.command()
@app.command("show", hidden=True)
@app.command("info", hidden=True)
@app.command("describe", hidden=True)
def get(ctx: typer.Context, name: Name, output: Output = Format.TABLE) -> None:
    """Show one operation. Example: hostler op get NAME -o yaml"""

    async def work(asked: "Cluster | Host") -> None:
        say(show([await asked.get_operation(name)], OPERATIONS, output, one=True))

    run(ctx, work)


@app.command()
def watch(ctx: typer.Context, name: Name, timeout: Timeout = None, output: Output = Format.TABLE) -> None:
    """Show an operation's progress until it is done; fails if it fails. Example: hostler op watch NAME"""

    async def work(asked: "Cluster | Host") -> None:
        handle = asked.operation(name)
        await handle.refresh()
        await finish(handle, Ending(True, timeout, output), _ended)

    run(ctx, work)


@app.command()
def cancel(ctx: typer.Context, name: Name, wait: Wait = True, timeout: Timeout = None, output: Output = Format.TABLE) -> None:
    """Ask an operation to stop before its point of no return, and see whether it did. Example: hostler op cancel NAME"""

    async def work(asked: "Cluster | Host") -> None:
        from hostler.operations import OperationFailed

        handle = await asked.cancel_operation(name)
        try:
            await finish(handle, Ending(wait, timeout, output), _ended)
        except OperationFailed as error:
            if error.operation.state != error.operation.CANCELLED:
                raise
            say(show([error.operation], OPERATIONS, output, one=True))

    run(ctx, work)


@app.command()
def tune(
    ctx: typer.Context,
    name: Name,
    bandwidth: Annotated[int | None, typer.Option(metavar="MIB/S", help="Limit of the copy; 0: none.")] = None,
    max_downtime: Annotated[int | None, typer.Option(metavar="MS", help="The longest that the guest may stand still; 0: 300.")] = None,
    output: Output = Format.TABLE,
) -> None:
    """Change the limits of a migration while it copies. Example: hostler op tune NAME --bandwidth 64 --max-downtime 500"""
    if bandwidth is None and max_downtime is None:
        raise typer.BadParameter("Say --bandwidth, --max-downtime, or both.")

    async def work(cluster: "Cluster") -> None:
        handle = await cluster.tune_migration(name, bandwidth_mib_s=bandwidth, max_downtime_ms=max_downtime)
        if output is not Format.TABLE:
            say(show([handle.operation], OPERATIONS, output, one=True))
            return
        limits = handle.operation.migration
        say(f"op {short(handle.name)}: bandwidth {limits.bandwidth_mib_s or 'no limit'}{' MiB/s' if limits.bandwidth_mib_s else ''}, "
            f"downtime at most {limits.max_downtime_ms} ms")  # fmt: skip

    run_cluster(ctx, work)


def _ended(operation: "Operation") -> str:
    return show([operation], OPERATIONS, Format.TABLE, one=True)
