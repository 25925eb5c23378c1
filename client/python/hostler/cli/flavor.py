"""`hostler flavor`."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from hostler.cli import completion
from hostler.cli.output import FLAVORS, Format, say, show
from hostler.cli.session import DryRun, Output, RequestId, run_cluster

if TYPE_CHECKING:
    from hostler.cluster import Cluster

app = typer.Typer(
    help="Named sizes that VMs are made in.",
    no_args_is_help=True,
    epilog="Example: hostler flavor create small --vcpus 1 --memory 512",
)

Name = Annotated[str, typer.Argument(help="The flavor's name.", autocompletion=completion.flavors)]

NewName = Annotated[str, typer.Argument(help="1 to 63 characters a-z, 0-9 and -, beginning with a letter.")]


class Class(StrEnum):
    """How strongly a share is guaranteed."""

    GUARANTEED = "guaranteed"
    BURSTABLE = "burstable"
    BEST_EFFORT = "best-effort"


@app.command()
def create(
    ctx: typer.Context,
    name: NewName,
    vcpus: Annotated[int, typer.Option(help="Virtual CPUs.")],
    memory: Annotated[int, typer.Option(metavar="MIB", help="Guest memory in MiB.")],
    cpu_floor: Annotated[int, typer.Option(metavar="MILLI", help="Guaranteed thousandths of a CPU; 0: the class decides.")] = 0,
    service_class: Annotated[Class, typer.Option("--class", help="How strongly it is guaranteed.")] = Class.BURSTABLE,
    dry_run: DryRun = False,
    request_id: RequestId = "",
    output: Output = Format.TABLE,
) -> None:
    """Make a flavor; making the same one again is harmless.

    Example: hostler flavor create small --vcpus 1 --memory 512 --cpu-floor 100 --class burstable
    """

    async def work(cluster: "Cluster") -> None:
        flavor = await cluster.create_flavor(
            name,
            vcpus=vcpus,
            memory_mib=memory,
            cpu_floor_milli=cpu_floor,
            service_class=service_class.value,
            validate_only=dry_run,
            request_id=request_id,
        )
        say(show([flavor], FLAVORS, output, one=True))

    run_cluster(ctx, work)


@app.command("list")
@app.command("ls", hidden=True)
def list_(ctx: typer.Context, output: Output = Format.TABLE) -> None:
    """List flavors. Example: hostler flavor list"""

    async def work(cluster: "Cluster") -> None:
        say(show([flavor async for flavor in cluster.list_flavors()], FLAVORS, output))

    run_cluster(ctx, work)


@app.command()
@app.command("show", hidden=True)
@app.command("info", hidden=True)
@app.command("describe", hidden=True)
def get(ctx: typer.Context, name: Name, output: Output = Format.TABLE) -> None:
    """Show one flavor. Example: hostler flavor get small -o json"""

    async def work(cluster: "Cluster") -> None:
        say(show([await cluster.get_flavor(name)], FLAVORS, output, one=True))

    run_cluster(ctx, work)


@app.command()
@app.command("rm", hidden=True)
def delete(ctx: typer.Context, name: Name, dry_run: DryRun = False, request_id: RequestId = "") -> None:
    """Delete a flavor; VMs made with it keep their size. Example: hostler flavor delete small"""

    async def work(cluster: "Cluster") -> None:
        await cluster.delete_flavor(name, validate_only=dry_run, request_id=request_id)
        say(f"flavor {name} {'would be deleted' if dry_run else 'deleted'}")

    run_cluster(ctx, work)
