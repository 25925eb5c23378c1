"""`hostler dev`: a cluster in one process that stays up until it is told to stop. Says what is simulated and what to type next."""

import asyncio
import signal
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from devcluster.cluster import DevOptions, dev_cluster
from hostler.server import logs

app = typer.Typer(help="Run a simulated cluster in one process, for people who write clients.", invoke_without_command=True)


@app.callback()
def dev(
    nodes: Annotated[int, typer.Option(min=1, max=100, help="Simulated hosts.")] = 3,
    replicas: Annotated[int, typer.Option(min=1, max=5, help="Scheduler replicas.")] = 2,
    log_level: Annotated[str, typer.Option(help="What the daemons log.")] = "warning",
) -> None:
    """Run a simulated cluster until Ctrl-C. Nothing is kept afterwards.

    Example: hostler dev --nodes 5
    """
    logs.configure(level=log_level)
    asyncio.run(_run(DevOptions(nodes=nodes, replicas=replicas)))


async def _run(options: DevOptions) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with tempfile.TemporaryDirectory(prefix="hostler-dev-") as directory:
        async with dev_cluster(Path(directory), options) as cluster:
            tls = cluster.user_certificate()
            typer.echo(
                "A cluster runs in this process. Simulated: hosts, hypervisor, storage and etcd. Real: schedulers, agents, API, TLS."
            )
            typer.echo("In another terminal:\n")
            typer.echo(f"  export HOSTLER_ENDPOINT={','.join(cluster.endpoints)}")
            typer.echo(f"  export HOSTLER_CERT={tls}/tls.crt HOSTLER_KEY={tls}/tls.key HOSTLER_CA={tls}/ca.crt")
            typer.echo("  hostler node list")
            typer.echo("  hostler flavor create small --vcpus 1 --memory 512")
            typer.echo("  hostler vm create web-1 --flavor small --image guest --pool shared --network br0")
            typer.echo("  hostler vm migrate web-1\n")
            typer.echo("Ctrl-C ends it.")
            await stop.wait()
            typer.echo("stopping")
