"""`hostler vm`."""

from typing import TYPE_CHECKING, Annotated

import typer

from hostler.cli.output import VMS, Format, say, short, show
from hostler.cli.session import DryRun, Ending, Output, RequestId, Timeout, Wait, Watch, finish, follow, moved, run, vm_is

if TYPE_CHECKING:
    from hostler.cluster import Cluster

app = typer.Typer(
    help="Make, run and move VMs.",
    no_args_is_help=True,
    epilog="Example: hostler vm create web-1 --flavor small --image debian-12 --pool shared --network br0 && hostler vm migrate web-1",
)

Name = Annotated[str, typer.Argument(help="The VM's name.")]
Force = Annotated[bool, typer.Option("--force", help="Do not ask the guest: take its power.")]


@app.command()
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="1 to 63 characters a-z, 0-9 and -, beginning with a letter.")],
    flavor: Annotated[str, typer.Option(help="A named size; or give --vcpus and --memory.")] = "",
    vcpus: Annotated[int, typer.Option(help="Virtual CPUs.")] = 0,
    memory: Annotated[int, typer.Option(metavar="MIB", help="Guest memory in MiB.")] = 0,
    image: Annotated[str, typer.Option(help="The image that the first disk is a copy of.")] = "",
    pool: Annotated[str, typer.Option(help="The pool that the first disk is made in.")] = "",
    size: Annotated[int, typer.Option(metavar="MIB", help="The first disk's size; default: the image's.")] = 0,
    volume: Annotated[list[str], typer.Option(help="An existing volume as a further disk; may be repeated.")] = [],  # noqa: B006 typer reads it
    network: Annotated[list[str], typer.Option(help="A bridge to attach to; may be repeated.")] = [],  # noqa: B006
    label: Annotated[list[str], typer.Option(metavar="KEY=VALUE", help="A label; may be repeated.")] = [],  # noqa: B006
    node: Annotated[str, typer.Option(help="Place it there or not at all.")] = "",
    start: Annotated[bool, typer.Option("--start/--no-start", help="Start it, or leave it stopped.")] = True,
    wait: Wait = True,
    timeout: Timeout = None,
    dry_run: DryRun = False,
    request_id: RequestId = "",
    output: Output = Format.TABLE,
) -> None:
    """Make a VM: place it, claim what it costs, make its disk, start it.

    Example: hostler vm create web-1 --flavor small --image debian-12 --pool shared --network br0 --label tier=web
    """
    labels = dict(_label(one) for one in label)

    async def work(cluster: "Cluster") -> None:
        handle = await cluster.create_vm(
            name,
            flavor=flavor,
            vcpus=vcpus,
            memory_mib=memory,
            image=image,
            pool=pool,
            size_mib=size,
            volumes=volume,
            networks=network,
            node=node,
            labels=labels,
            start=start,
            validate_only=dry_run,
            request_id=request_id,
        )
        await finish(handle, Ending(wait, timeout, output), vm_is)

    run(ctx, work)


def _label(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise typer.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--label")
    return key, value


@app.command("list")
@app.command("ls", hidden=True)
def list_(
    ctx: typer.Context,
    node: Annotated[str, typer.Option(help="Only VMs of this node.")] = "",
    watch: Watch = False,
    output: Output = Format.TABLE,
) -> None:
    """List VMs. Examples: hostler vm list -o wide; hostler vm list -w; hostler vm list -o json | jq '.[].node'"""
    if watch and node:
        raise typer.BadParameter("cannot be combined with --watch", param_hint="--node")

    async def work(cluster: "Cluster") -> None:
        if watch:
            await follow(cluster.watch_vms(), VMS, output)
        else:
            say(show([vm async for vm in cluster.list_vms(node=node)], VMS, output))

    run(ctx, work)


@app.command()
def get(ctx: typer.Context, name: Name, output: Output = Format.TABLE) -> None:
    """Show one VM. Example: hostler vm get web-1 -o yaml"""

    async def work(cluster: "Cluster") -> None:
        say(show([await cluster.get_vm(name)], VMS, output, one=True))

    run(ctx, work)


@app.command()
def watch(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Only this VM.")] = "",
    output: Output = Format.TABLE,
) -> None:
    """Print VMs and then every change, until Ctrl-C. Example: hostler vm watch web-1 -o json"""
    only = f"vms/{name.removeprefix('vms/')}" if name else ""
    run(ctx, lambda cluster: follow(cluster.watch_vms(), VMS, output, only))


@app.command()
def start(
    ctx: typer.Context,
    name: Name,
    wait: Wait = True,
    timeout: Timeout = None,
    dry_run: DryRun = False,
    request_id: RequestId = "",
    output: Output = Format.TABLE,
) -> None:
    """Start a stopped VM on the node that holds its claim. Example: hostler vm start web-1"""

    async def work(cluster: "Cluster") -> None:
        await finish(await cluster.start_vm(name, validate_only=dry_run, request_id=request_id), Ending(wait, timeout, output), vm_is)

    run(ctx, work)


@app.command()
def stop(
    ctx: typer.Context,
    name: Name,
    grace: Annotated[int, typer.Option(metavar="SECONDS", help="What the guest has to power off by itself; 0: 60.")] = 0,
    force: Force = False,
    wait: Wait = True,
    timeout: Timeout = None,
    dry_run: DryRun = False,
    request_id: RequestId = "",
    output: Output = Format.TABLE,
) -> None:
    """Stop a VM; its claim stays. Example: hostler vm stop web-1 --grace 10"""

    async def work(cluster: "Cluster") -> None:
        handle = await cluster.stop_vm(name, grace_s=grace, force=force, validate_only=dry_run, request_id=request_id)
        await finish(handle, Ending(wait, timeout, output), vm_is)

    run(ctx, work)


@app.command()
def reboot(
    ctx: typer.Context,
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Reset it at once instead of asking the guest.")] = False,
    wait: Wait = True,
    timeout: Timeout = None,
    dry_run: DryRun = False,
    request_id: RequestId = "",
    output: Output = Format.TABLE,
) -> None:
    """Reboot a running VM. Example: hostler vm reboot web-1"""

    async def work(cluster: "Cluster") -> None:
        handle = await cluster.reboot_vm(name, force=force, validate_only=dry_run, request_id=request_id)
        await finish(handle, Ending(wait, timeout, output), vm_is)

    run(ctx, work)


@app.command()
@app.command("rm", hidden=True)
def delete(
    ctx: typer.Context,
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Take its power if it runs.")] = False,
    wait: Wait = True,
    timeout: Timeout = None,
    dry_run: DryRun = False,
    request_id: RequestId = "",
    output: Output = Format.TABLE,
) -> None:
    """Delete a VM with the volumes that were made with it. Example: hostler vm delete web-1 --force"""

    async def work(cluster: "Cluster") -> None:
        handle = await cluster.delete_vm(name, force=force, validate_only=dry_run, request_id=request_id)
        await finish(handle, Ending(wait, timeout, output), lambda done: f"vm {short(done.target)} deleted")

    run(ctx, work)


@app.command()
def migrate(
    ctx: typer.Context,
    name: Name,
    to: Annotated[str, typer.Option(help="The node it goes to; default: the scheduler chooses.")] = "",
    bandwidth: Annotated[int, typer.Option(metavar="MIB/S", help="Limit of the copy; 0: none.")] = 0,
    wait: Wait = True,
    timeout: Timeout = None,
    dry_run: DryRun = False,
    request_id: RequestId = "",
    output: Output = Format.TABLE,
) -> None:
    """Move a VM while it runs. Ends with where from, where to, time, bytes and downtime.

    Example: hostler vm migrate web-1 --to n2 --bandwidth 200
    """

    async def work(cluster: "Cluster") -> None:
        handle = await cluster.migrate_vm(name, to, bandwidth_mib_s=bandwidth, validate_only=dry_run, request_id=request_id)
        await finish(handle, Ending(wait, timeout, output), moved)

    run(ctx, work)
