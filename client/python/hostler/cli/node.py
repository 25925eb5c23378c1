"""`hostler node`. A single host without a scheduler is its own only node: it can be listed and shown, and that is all there is to ask."""

from typing import TYPE_CHECKING, Annotated

import typer

from hostler.cli import completion
from hostler.cli.drain import drained, planned
from hostler.cli.output import NODES, NONE, Format, say, short, show, table
from hostler.cli.session import DryRun, Ending, Etag, Output, RequestId, Timeout, Wait, Watch, finish, follow, run, run_cluster, tell

if TYPE_CHECKING:
    from hostler.cluster import Cluster
    from hostler.node import Host

app = typer.Typer(
    help="Show nodes, and say which of them take new VMs.",
    no_args_is_help=True,
    epilog="Example: hostler node list -o wide; hostler node cordon n1",
)

Name = Annotated[str, typer.Argument(help="The node's name.", autocompletion=completion.nodes)]


@app.command("list")
@app.command("ls", hidden=True)
def list_(ctx: typer.Context, watch: Watch = False, output: Output = Format.TABLE) -> None:
    """List nodes with what is free on them. Example: hostler node list -w"""

    async def watched(cluster: "Cluster") -> None:
        await follow(cluster.watch_nodes(), NODES, output)

    async def listed(asked: "Cluster | Host") -> None:
        from hostler.node import Host

        nodes = [await asked.get_host()] if isinstance(asked, Host) else [node async for node in asked.list_nodes()]
        say(show(nodes, NODES, output))

    if watch:
        run_cluster(ctx, watched)
    else:
        run(ctx, listed)


@app.command()
@app.command("show", hidden=True)
@app.command("info", hidden=True)
@app.command("describe", hidden=True)
def get(ctx: typer.Context, name: Name, output: Output = Format.TABLE) -> None:
    """Show one node. Example: hostler node get n1 -o yaml"""

    async def work(asked: "Cluster | Host") -> None:
        from hostler.errors import NotFound, Reason
        from hostler.node import Host

        node = await (asked.get_host() if isinstance(asked, Host) else asked.get_node(name))
        if short(node.name) != short(name):
            raise NotFound(Reason.NODE_NOT_FOUND, f"There is no node {short(name)} here: this is the host {short(node.name)}.")
        say(show([node], NODES, output, one=True))

    run(ctx, work)


@app.command()
def cordon(
    ctx: typer.Context, name: Name, etag: Etag = "", dry_run: DryRun = False, request_id: RequestId = "", output: Output = Format.TABLE
) -> None:
    """Take no new VMs; those there stay. Example: hostler node cordon n1"""

    async def work(cluster: "Cluster") -> None:
        node = await cluster.cordon_node(name, etag=etag, validate_only=dry_run, request_id=request_id)
        say(show([node], NODES, output, one=True))

    run_cluster(ctx, work)


@app.command()
def uncordon(
    ctx: typer.Context,
    name: Name,
    move_back: Annotated[
        str,
        typer.Option(
            metavar="OPERATION", help="A drain of this node: what it moved away comes back.", autocompletion=completion.operations
        ),
    ] = "",
    etag: Etag = "",
    dry_run: DryRun = False,
    request_id: RequestId = "",
    output: Output = Format.TABLE,
) -> None:
    """Take new VMs again. Examples: hostler node uncordon n1; hostler node uncordon n1 --move-back 3f2a...

    With --move-back every VM that the drain moved away, and that is still where it went, is moved back: one operation each, which this does not wait
    for. It fails if one of them is refused.
    """

    async def work(cluster: "Cluster") -> None:
        if move_back:
            await _is_drain_of(cluster, move_back, name)
        node = await cluster.uncordon_node(name, etag=etag, validate_only=dry_run, request_id=request_id)
        say(show([node], NODES, output, one=True))
        if move_back and not dry_run:
            await _bring_back(cluster, move_back)

    run_cluster(ctx, work)


@app.command()
def fence(
    ctx: typer.Context,
    name: Name,
    confirm_powered_off: Annotated[
        bool, typer.Option("--confirm-powered-off", help="Your word that the host is off. Nothing else proves that its guests are gone.")
    ] = False,
    etag: Etag = "",
    wait: Wait = True,
    timeout: Timeout = None,
    dry_run: DryRun = False,
    request_id: RequestId = "",
    output: Output = Format.TABLE,
) -> None:
    """Go on without a node that will not come back. Example: hostler node fence n1 --confirm-powered-off

    Power the host off first. What waits for it then ends; its VMs are stopped, and `hostler vm start` starts them on other nodes if their volumes are
    shared. When its agent answers again, it ends whatever guests are left, and the node is cordoned until you uncordon it.
    """

    async def work(cluster: "Cluster") -> None:
        handle = await cluster.fence_node(
            name, confirm_powered_off=confirm_powered_off, etag=etag, validate_only=dry_run, request_id=request_id
        )
        await finish(handle, Ending(wait, timeout, output), lambda operation: f"node {short(operation.target)} is fenced")

    run_cluster(ctx, work)


@app.command()
@app.command("evacuate", hidden=True)
def drain(
    ctx: typer.Context,
    name: Name,
    parallel: Annotated[int, typer.Option(help="Moves begun at once; 0: 4. How many copy at the same time is limited per node.")] = 0,
    etag: Etag = "",
    wait: Wait = True,
    timeout: Timeout = None,
    dry_run: DryRun = False,
    request_id: RequestId = "",
    output: Output = Format.TABLE,
) -> None:
    """Empty a node: cordon it and move its VMs away, while they run. Examples: hostler node drain n1 --dry-run; hostler node drain n1 --parallel 2

    All places are held before the first move. A VM is never stopped, unless it was made with --move-fallback restart and cannot be moved live. What
    cannot be moved stays, and the drain ends as failed and says why; the node stays cordoned. --dry-run shows the plan and changes nothing. After
    Ctrl-C the drain goes on; `hostler op cancel` begins no further move, and those that have begun go on to their end.
    """

    async def work(cluster: "Cluster") -> None:
        handle = await cluster.drain_node(name, parallel=parallel, etag=etag, validate_only=dry_run, request_id=request_id)
        if dry_run:
            tell(handle.operation, output, planned(handle.operation))
        else:
            await finish(handle, Ending(wait, timeout, output), drained)

    run_cluster(ctx, work)


async def _is_drain_of(cluster: "Cluster", operation: str, name: str) -> None:
    """Before anything is changed."""
    from hostler.errors import Violation, invalid

    found = await cluster.get_operation(operation)
    if found.verb != "DrainNode" or short(found.target) != short(name):
        raise invalid(Violation("--move-back", f"{short(found.name)} is {found.verb} of {found.target}, no drain of {short(name)}"))


async def _bring_back(cluster: "Cluster", operation: str) -> None:
    """What was accepted and what was not, on stderr: stdout has the node."""
    from hostler.errors import HostlerError

    asked = await cluster.move_back(operation)
    refused = [one for _, one in asked if isinstance(one, HostlerError)]
    rows = [
        (vm, "refused" if isinstance(one, HostlerError) else short(one.name), one.message if isinstance(one, HostlerError) else NONE)
        for vm, one in asked
    ]
    say(table(("VM", "OPERATION", "REASON"), rows) if rows else "nothing is to be moved back", err=True)
    if refused:
        raise refused[0]
