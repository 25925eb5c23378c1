"""`hostler volume`."""

from typing import TYPE_CHECKING, Annotated

import typer

from hostler.cli.output import VOLUMES, Format, mib, say, short, show
from hostler.cli.session import DryRun, Ending, Output, RequestId, Timeout, Wait, finish, run

if TYPE_CHECKING:
    from hostler.api.type.v1.operation_pb2 import Operation
    from hostler.cluster import Cluster

app = typer.Typer(
    help="Make, show and delete volumes.",
    no_args_is_help=True,
    epilog="Example: hostler volume create data --pool shared --size 10240",
)

Name = Annotated[str, typer.Argument(help="The volume's name.")]


@app.command()
def create(
    ctx: typer.Context,
    name: Name,
    pool: Annotated[str, typer.Option(help="The pool it is made in.")],
    size: Annotated[int, typer.Option(metavar="MIB", help="Its size; with an image, default: the image's.")] = 0,
    image: Annotated[str, typer.Option(help="The image it is a copy of.")] = "",
    node: Annotated[str, typer.Option(help="The node, in a local pool.")] = "",
    wait: Wait = True,
    timeout: Timeout = None,
    dry_run: DryRun = False,
    request_id: RequestId = "",
    output: Output = Format.TABLE,
) -> None:
    """Make a volume. Example: hostler volume create data --pool shared --size 10240"""

    async def work(cluster: "Cluster") -> None:
        handle = await cluster.create_volume(
            name, pool=pool, size_mib=size, image=image, node=node, validate_only=dry_run, request_id=request_id
        )
        await finish(handle, Ending(wait, timeout, output), _made)

    run(ctx, work)


def _made(operation: "Operation") -> str:
    volume = operation.volume
    return f"volume {short(operation.target)} of {mib(volume.size_mib)} made in {short(volume.pool)}"


@app.command("list")
@app.command("ls", hidden=True)
def list_(ctx: typer.Context, output: Output = Format.TABLE) -> None:
    """List volumes. Example: hostler volume list -o wide"""

    async def work(cluster: "Cluster") -> None:
        say(show([volume async for volume in cluster.list_volumes()], VOLUMES, output))

    run(ctx, work)


@app.command()
def get(ctx: typer.Context, name: Name, output: Output = Format.TABLE) -> None:
    """Show one volume. Example: hostler volume get data -o json"""

    async def work(cluster: "Cluster") -> None:
        say(show([await cluster.get_volume(name)], VOLUMES, output, one=True))

    run(ctx, work)


@app.command()
@app.command("rm", hidden=True)
def delete(
    ctx: typer.Context,
    name: Name,
    wait: Wait = True,
    timeout: Timeout = None,
    dry_run: DryRun = False,
    request_id: RequestId = "",
    output: Output = Format.TABLE,
) -> None:
    """Delete a volume that no VM uses. Example: hostler volume delete data"""

    async def work(cluster: "Cluster") -> None:
        handle = await cluster.delete_volume(name, validate_only=dry_run, request_id=request_id)
        await finish(handle, Ending(wait, timeout, output), lambda done: f"volume {short(done.target)} deleted")

    run(ctx, work)
