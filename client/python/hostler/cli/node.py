"""`hostler node`."""

from typing import TYPE_CHECKING, Annotated

import typer

from hostler.cli.output import NODES, Format, say, show
from hostler.cli.session import DryRun, Output, RequestId, Watch, follow, run

if TYPE_CHECKING:
    from hostler.cluster import Cluster

app = typer.Typer(
    help="Show nodes, and say which of them take new VMs.",
    no_args_is_help=True,
    epilog="Example: hostler node list -o wide; hostler node cordon n1",
)

Name = Annotated[str, typer.Argument(help="The node's name.")]


@app.command("list")
@app.command("ls", hidden=True)
def list_(ctx: typer.Context, watch: Watch = False, output: Output = Format.TABLE) -> None:
    """List nodes with what is free on them. Example: hostler node list -w"""

    async def work(cluster: "Cluster") -> None:
        if watch:
            await follow(cluster.watch_nodes(), NODES, output)
        else:
            say(show([node async for node in cluster.list_nodes()], NODES, output))

    run(ctx, work)


@app.command()
def get(ctx: typer.Context, name: Name, output: Output = Format.TABLE) -> None:
    """Show one node. Example: hostler node get n1 -o yaml"""

    async def work(cluster: "Cluster") -> None:
        say(show([await cluster.get_node(name)], NODES, output, one=True))

    run(ctx, work)


@app.command()
def cordon(ctx: typer.Context, name: Name, dry_run: DryRun = False, request_id: RequestId = "", output: Output = Format.TABLE) -> None:
    """Take no new VMs; those there stay. Example: hostler node cordon n1"""

    async def work(cluster: "Cluster") -> None:
        say(show([await cluster.cordon_node(name, validate_only=dry_run, request_id=request_id)], NODES, output, one=True))

    run(ctx, work)


@app.command()
def uncordon(ctx: typer.Context, name: Name, dry_run: DryRun = False, request_id: RequestId = "", output: Output = Format.TABLE) -> None:
    """Take new VMs again. Example: hostler node uncordon n1"""

    async def work(cluster: "Cluster") -> None:
        say(show([await cluster.uncordon_node(name, validate_only=dry_run, request_id=request_id)], NODES, output, one=True))

    run(ctx, work)
