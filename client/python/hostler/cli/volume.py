"""`hostler volume`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hostler.cli import completion
from hostler.cli.output import VOLUMES, Format, mib, say, short, show
from hostler.cli.session import DryRun, Ending, Etag, Output, RequestId, Timeout, Wait, finish, only_in_a_cluster, run

if TYPE_CHECKING:
    from hostler.api.type.v1.operation_pb2 import Operation
    from hostler.cluster import Cluster
    from hostler.node import Host

app = typer.Typer(
    help="Make, show and delete volumes.",
    no_args_is_help=True,
    epilog="Example: hostler volume create data --pool shared --size 10240",
)

Name = Annotated[str, typer.Argument(help="The volume's name.", autocompletion=completion.volumes)]

NewName = Annotated[str, typer.Argument(help="1 to 63 characters a-z, 0-9 and -, beginning with a letter.")]


@app.command()
def create(
    ctx: typer.Context,
    name: NewName,
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
    wanted: dict[str, Any] = {"pool": pool, "size_mib": size, "image": image, "validate_only": dry_run, "request_id": request_id}
    only_in_a_cluster(ctx, "--node", node)

    async def work(asked: "Cluster | Host") -> None:
        from hostler.node import Host

        if isinstance(asked, Host):
            handle = await asked.create_volume(name, **wanted)
        else:
            handle = await asked.create_volume(name, node=node, **wanted)
        await finish(handle, Ending(wait, timeout, output), _made)

    run(ctx, work)


def _made(operation: "Operation") -> str:
    volume = operation.volume
    return f"volume {short(operation.target)} of {mib(volume.size_mib)} made in {short(volume.pool)}"


@app.command("list")
@app.command("ls", hidden=True)
def list_(ctx: typer.Context, output: Output = Format.TABLE) -> None:
    """List volumes. Example: hostler volume list -o wide"""

    async def work(asked: "Cluster | Host") -> None:
        say(show([volume async for volume in asked.list_volumes()], VOLUMES, output))

    run(ctx, work)


@app.command()
@app.command("show", hidden=True)
@app.command("info", hidden=True)
@app.command("describe", hidden=True)
def get(ctx: typer.Context, name: Name, output: Output = Format.TABLE) -> None:
    """Show one volume. Example: hostler volume get data -o json"""

    async def work(asked: "Cluster | Host") -> None:
        say(show([await asked.get_volume(name)], VOLUMES, output, one=True))

    run(ctx, work)


@app.command()
@app.command("rm", hidden=True)
def delete(
    ctx: typer.Context,
    name: Name,
    etag: Etag = "",
    wait: Wait = True,
    timeout: Timeout = None,
    dry_run: DryRun = False,
    request_id: RequestId = "",
    output: Output = Format.TABLE,
) -> None:
    """Delete a volume that no VM uses. Example: hostler volume delete data"""

    async def work(asked: "Cluster | Host") -> None:
        handle = await asked.delete_volume(name, etag=etag, validate_only=dry_run, request_id=request_id)
        await finish(handle, Ending(wait, timeout, output), lambda done: f"volume {short(done.target)} deleted")

    run(ctx, work)
