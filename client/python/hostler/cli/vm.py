"""`hostler vm`."""

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hostler.cli import completion
from hostler.cli.exit_codes import ExitCode
from hostler.cli.flavor import Class
from hostler.cli.output import VMS, Format, document, drift, dry_move, dumped, reconciliation, say, short, show
from hostler.cli.session import (
    DryRun,
    Ending,
    Etag,
    Output,
    RequestId,
    Timeout,
    Wait,
    Watch,
    finish,
    follow,
    moved,
    only_in_a_cluster,
    run,
    run_cluster,
    vm_is,
)

if TYPE_CHECKING:
    from hostler.cluster import Cluster
    from hostler.node import Host

app = typer.Typer(
    help="Make, run and move VMs.",
    no_args_is_help=True,
    epilog="Example: hostler vm create web-1 --flavor small --image debian-12 --pool shared --network br0 && hostler vm migrate web-1",
)

Name = Annotated[str, typer.Argument(help="The VM's name.", autocompletion=completion.vms)]
Deadline = Annotated[int, typer.Option(metavar="SECONDS", help="Turn it back if it is not done, or past return, by then; 0: no limit.")]
Force = Annotated[bool, typer.Option("--force", help="Do not ask the guest: take its power.")]


class MoveFallback(StrEnum):
    """--move-fallback"""

    STAY = "stay"
    RESTART = "restart"


@app.command()
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="1 to 63 characters a-z, 0-9 and -, beginning with a letter.")],
    flavor: Annotated[str, typer.Option(help="A named size; or give --vcpus and --memory.", autocompletion=completion.flavors)] = "",
    vcpus: Annotated[int, typer.Option(help="Virtual CPUs.")] = 0,
    memory: Annotated[int, typer.Option(metavar="MIB", help="Guest memory in MiB.")] = 0,
    cpu_floor: Annotated[int, typer.Option(metavar="MILLI", help="Guaranteed thousandths of a CPU; 0: the class decides.")] = 0,
    service_class: Annotated[Class | None, typer.Option("--class", help="How strongly its share is guaranteed.")] = None,
    image: Annotated[str, typer.Option(help="The image that the first disk is a copy of.")] = "",
    pool: Annotated[str, typer.Option(help="The pool that the first disk is made in.")] = "",
    size: Annotated[int, typer.Option(metavar="MIB", help="The first disk's size; default: the image's.")] = 0,
    volume: Annotated[
        list[str], typer.Option(help="An existing volume as a further disk; may be repeated.", autocompletion=completion.volumes)
    ] = [],  # noqa: B006 typer reads it
    network: Annotated[list[str], typer.Option(help="A bridge to attach to; may be repeated.")] = [],  # noqa: B006
    label: Annotated[list[str], typer.Option(metavar="KEY=VALUE", help="A label; may be repeated.")] = [],  # noqa: B006
    node: Annotated[str, typer.Option(help="Place it there or not at all.", autocompletion=completion.nodes)] = "",
    move_fallback: Annotated[
        MoveFallback | None, typer.Option(help="What a drain of its node may do if it cannot be moved while it runs; default: stay.")
    ] = None,
    start: Annotated[bool, typer.Option("--start/--no-start", help="Start it, or leave it stopped.")] = True,
    deadline: Deadline = 0,
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

    wanted: dict[str, Any] = {
        "vcpus": vcpus, "memory_mib": memory, "cpu_floor_milli": cpu_floor, "service_class": service_class.value if service_class else "",
        "image": image, "pool": pool, "size_mib": size, "volumes": volume, "networks": network, "labels": labels,
        "start": start, "validate_only": dry_run, "request_id": request_id,
    }  # fmt: skip

    fallback = move_fallback.value if move_fallback else ""

    async def work(asked: "Cluster | Host") -> None:
        from hostler.node import Host

        if isinstance(asked, Host):
            handle = await asked.create_vm(name, **wanted)
        else:
            handle = await asked.create_vm(name, flavor=flavor, node=node, move_fallback=fallback, deadline_s=deadline, **wanted)
        await finish(handle, Ending(wait, timeout, output), vm_is)

    for option, value in (("--flavor", flavor), ("--node", node), ("--deadline", str(deadline or "")), ("--move-fallback", fallback)):
        only_in_a_cluster(ctx, option, value)
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
    node: Annotated[str, typer.Option(help="Only VMs of this node.", autocompletion=completion.nodes)] = "",
    watch: Watch = False,
    output: Output = Format.TABLE,
) -> None:
    """List VMs. With -w and --node, a VM that moves away is told as LEFT. (drift): somebody changed it past Hostler; `hostler vm get` says what.

    Examples: hostler vm list -o wide; hostler vm list -w --node n1; hostler vm list -o json | jq '.[].node'
    """
    only_in_a_cluster(ctx, "--node", node)
    on = f"nodes/{node.removeprefix('nodes/')}"

    async def work(asked: "Cluster | Host") -> None:
        from hostler.node import Host

        if watch:
            await follow(asked.watch_vms(), VMS, output, lambda vm: not node or vm.node == on)
            return
        listed = asked.list_vms() if isinstance(asked, Host) else asked.list_vms(node=node)
        say(show([vm async for vm in listed], VMS, output))

    run(ctx, work)


@app.command()
@app.command("show", hidden=True)
@app.command("info", hidden=True)
@app.command("describe", hidden=True)
def get(ctx: typer.Context, name: Name, output: Output = Format.TABLE) -> None:
    """Show one VM, and what somebody changed of it past Hostler. Example: hostler vm get web-1 -o yaml"""

    async def work(asked: "Cluster | Host") -> None:
        vm = await asked.get_vm(name)
        say(show([vm], VMS, output, one=True))
        if output in (Format.TABLE, Format.WIDE) and vm.drift:
            say(drift(vm))

    run(ctx, work)


@app.command()
def watch(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Only this VM.", autocompletion=completion.vms)] = "",
    output: Output = Format.TABLE,
) -> None:
    """Print VMs and then every change, until Ctrl-C. Example: hostler vm watch web-1 -o json"""
    only = f"vms/{name.removeprefix('vms/')}" if name else ""
    run(ctx, lambda asked: follow(asked.watch_vms(), VMS, output, lambda vm: not only or vm.name == only))


@app.command()
def start(
    ctx: typer.Context,
    name: Name,
    etag: Etag = "",
    wait: Wait = True,
    timeout: Timeout = None,
    dry_run: DryRun = False,
    request_id: RequestId = "",
    output: Output = Format.TABLE,
) -> None:
    """Start a stopped VM on the node that holds its claim. Example: hostler vm start web-1"""

    async def work(asked: "Cluster | Host") -> None:
        await finish(
            await asked.start_vm(name, etag=etag, validate_only=dry_run, request_id=request_id), Ending(wait, timeout, output), vm_is
        )

    run(ctx, work)


@app.command()
def stop(
    ctx: typer.Context,
    name: Name,
    grace: Annotated[int, typer.Option(metavar="SECONDS", help="What the guest has to power off by itself; 0: 60.")] = 0,
    force: Force = False,
    etag: Etag = "",
    wait: Wait = True,
    timeout: Timeout = None,
    dry_run: DryRun = False,
    request_id: RequestId = "",
    output: Output = Format.TABLE,
) -> None:
    """Stop a VM; its claim stays. Example: hostler vm stop web-1 --grace 10"""

    async def work(asked: "Cluster | Host") -> None:
        handle = await asked.stop_vm(name, grace_s=grace, force=force, etag=etag, validate_only=dry_run, request_id=request_id)
        await finish(handle, Ending(wait, timeout, output), vm_is)

    run(ctx, work)


@app.command()
@app.command("restart", hidden=True)
def reboot(
    ctx: typer.Context,
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Reset it at once instead of asking the guest.")] = False,
    etag: Etag = "",
    wait: Wait = True,
    timeout: Timeout = None,
    dry_run: DryRun = False,
    request_id: RequestId = "",
    output: Output = Format.TABLE,
) -> None:
    """Reboot a running VM. Example: hostler vm reboot web-1"""

    async def work(asked: "Cluster | Host") -> None:
        handle = await asked.reboot_vm(name, force=force, etag=etag, validate_only=dry_run, request_id=request_id)
        await finish(handle, Ending(wait, timeout, output), vm_is)

    run(ctx, work)


@app.command()
@app.command("rm", hidden=True)
def delete(
    ctx: typer.Context,
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Take its power if it runs.")] = False,
    etag: Etag = "",
    wait: Wait = True,
    timeout: Timeout = None,
    dry_run: DryRun = False,
    request_id: RequestId = "",
    output: Output = Format.TABLE,
) -> None:
    """Delete a VM with the volumes that were made with it. Example: hostler vm delete web-1 --force"""

    async def work(asked: "Cluster | Host") -> None:
        handle = await asked.delete_vm(name, force=force, etag=etag, validate_only=dry_run, request_id=request_id)
        await finish(handle, Ending(wait, timeout, output), lambda done: f"vm {short(done.target)} deleted")

    run(ctx, work)


class Priority(StrEnum):
    """--priority"""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


@app.command()
@app.command("move", hidden=True)
def migrate(
    ctx: typer.Context,
    name: Name,
    to: Annotated[str, typer.Option(help="The node it goes to; default: the scheduler chooses.", autocompletion=completion.nodes)] = "",
    bandwidth: Annotated[int, typer.Option(metavar="MIB/S", help="Limit of the copy; 0: none.")] = 0,
    max_downtime: Annotated[int, typer.Option(metavar="MS", help="The longest that the guest may stand still; 0: 300.")] = 0,
    priority: Annotated[
        Priority | None, typer.Option(help="Who goes first when several wait for the same node.", case_sensitive=False)
    ] = None,
    deadline: Deadline = 0,
    etag: Etag = "",
    wait: Wait = True,
    timeout: Timeout = None,
    dry_run: DryRun = False,
    request_id: RequestId = "",
    output: Output = Format.TABLE,
) -> None:
    """Move a VM while it runs, or one that is off without a copy. Ends with where from, where to, time, bytes and downtime.

    Examples: hostler vm migrate web-1 --to n2 --bandwidth 200 --max-downtime 500; hostler vm migrate web-2 --priority high --async;
    hostler vm migrate web-1 --dry-run
    """

    async def work(cluster: "Cluster") -> None:
        handle = await cluster.migrate_vm(
            name,
            to,
            bandwidth_mib_s=bandwidth,
            max_downtime_ms=max_downtime,
            priority=priority.value if priority else "",
            deadline_s=deadline,
            etag=etag,
            validate_only=dry_run,
            request_id=request_id,
        )
        if dry_run and output is Format.TABLE and handle.operation.migration.checks:
            say(dry_move(handle.operation))
        else:
            await finish(handle, Ending(wait, timeout, output), moved)
        if dry_run and not all(check.ok for check in handle.operation.migration.checks):
            raise typer.Exit(ExitCode.CONFLICT)

    run_cluster(ctx, work)


@app.command()
def reconcile(
    ctx: typer.Context,
    name: Name,
    apply: Annotated[
        bool, typer.Option("--apply", help="Do what is proposed; asks before anything that may cost a guest its memory.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --apply: do not ask.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Ask every node what it has of a VM, and say what would make record and nodes agree. Example: hostler vm reconcile web-1 --apply

    Without --apply nothing is changed. Ends with status 1 while something is left to do.
    """

    async def work(cluster: "Cluster") -> None:
        found = await cluster.reconcile_vm(name)
        if apply and found.actions:
            destructive = [action for action in found.actions if action.destructive]
            allowed = yes or (bool(destructive) and _agreed(reconciliation(found)))
            found = await cluster.reconcile_vm(name, apply=True, allow_destructive=allowed)
        say(dumped(document(found), output) if output in (Format.JSON, Format.YAML) else reconciliation(found))
        if any(action.state != action.DONE for action in found.actions) or found.reason:
            raise typer.Exit(ExitCode.ELSE)

    run_cluster(ctx, work)


def _agreed(plan: str) -> bool:
    """A person's yes at a terminal; anywhere else: no."""
    if not sys.stdin.isatty():
        return False
    say(plan)
    return typer.confirm("Do also what is marked destructive?")
