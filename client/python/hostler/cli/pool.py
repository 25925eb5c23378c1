"""`hostler pool`. Pools are made by whoever configures the nodes: they can be listed and shown, and that is all there is to ask."""

from typing import TYPE_CHECKING, Annotated

import typer

from hostler.cli import completion
from hostler.cli.output import POOLS, Format, say, show
from hostler.cli.session import Output, run

if TYPE_CHECKING:
    from hostler.cluster import Cluster
    from hostler.node import Host

app = typer.Typer(
    help="Show storage pools: what they have, and what they can promise.",
    no_args_is_help=True,
    epilog="LIVE MOVE is how a running VM with a disk there changes its node, and for how long its guest then stands still (measured on a lab). "
    "Example: hostler pool list -o wide",
)

Name = Annotated[str, typer.Argument(help="The pool's name.", autocompletion=completion.pools)]


@app.command("list")
@app.command("ls", hidden=True)
def list_(ctx: typer.Context, output: Output = Format.TABLE) -> None:
    """List pools with their locks, their space and their nodes. Examples: hostler pool list; hostler pool list -o json | jq '.[].lock_kind'"""

    async def work(asked: "Cluster | Host") -> None:
        say(show([pool async for pool in asked.list_pools()], POOLS, output))

    run(ctx, work)


@app.command()
@app.command("show", hidden=True)
@app.command("info", hidden=True)
@app.command("describe", hidden=True)
def get(ctx: typer.Context, name: Name, output: Output = Format.TABLE) -> None:
    """Show one pool, and what was found about its locks. Example: hostler pool get shared -o yaml"""

    async def work(asked: "Cluster | Host") -> None:
        pool = await asked.get_pool(name)
        say(show([pool], POOLS, output, one=True))
        if output is Format.TABLE and pool.reason:
            say(f"\n{pool.reason}")

    run(ctx, work)
