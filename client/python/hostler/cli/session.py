"""What every command does around its own work: the options they share, connect, run, wait, and turn a refusal into text and exit status."""

import asyncio
import os
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hostler.cli.exit_codes import ExitCode, exit_code
from hostler.cli.output import Columns, Format, document, dumped, json_line, line, migration, refusal, say, short, widths

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from hostler.api.type.v1.operation_pb2 import Operation
    from hostler.cluster import Cluster
    from hostler.node import Host
    from hostler.operations import OperationHandle
    from hostler.settings import Settings

Output = Annotated[Format, typer.Option("-o", "--output", help="How to print it.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say whether it would be accepted; change nothing.")]
Wait = Annotated[bool, typer.Option("--wait/--async", help="Wait for the end, or return once it is accepted.")]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", min=0.1, metavar="SECONDS", help="Wait no longer; the operation goes on. Default: as long as it takes."),
]
RequestId = Annotated[
    str,
    typer.Option(
        "--request-id",
        callback=lambda given: given or str(uuid.uuid4()),
        help="Repeat with the same id and it still happens once. Default: a new one.",
    ),
]
Etag = Annotated[str, typer.Option("--etag", help="Only if nobody changed it since: its etag, as in `get -o json`.")]
Watch = Annotated[bool, typer.Option("-w", "--watch", help="Then print every change, until Ctrl-C.")]


@dataclass(frozen=True, slots=True)
class Target:
    """The global options; what is None comes from the context or the environment."""

    endpoint: str | None = None
    cert: str | None = None
    key: str | None = None
    ca: str | None = None
    insecure: bool | None = None
    context: str | None = None
    node_endpoint: str | None = None

    @property
    def one_host(self) -> bool:
        """Whether a single host is meant rather than a cluster. Raises as `hostler.context.variables`."""
        from hostler.context import means_one_host

        if self.endpoint or self.node_endpoint:
            return not self.endpoint
        return means_one_host(self.context, os.environ)

    @property
    def settings(self) -> "Settings":
        """Where to connect, and as whom. Raises InvalidRequest, NotFound."""
        from hostler.settings import node_settings, settings

        if self.one_host:
            return node_settings(self.node_endpoint, **self._as_whom)
        return settings(self.endpoint, **self._as_whom)

    @property
    def _as_whom(self) -> dict[str, Any]:
        return {"cert": self.cert, "key": self.key, "ca": self.ca, "insecure": self.insecure, "context": self.context}


@dataclass(frozen=True, slots=True)
class Ending:
    """How the end of a mutation is awaited and printed."""

    wait: bool
    timeout_s: float | None
    form: Format


def run(ctx: typer.Context, work: "Callable[[Cluster | Host], Awaitable[None]]") -> None:
    """Connect to the cluster or the host, do the work; see `refusals_shown`."""
    with refusals_shown(), _repeatable(ctx):
        asyncio.run(_connected(target_of(ctx).settings, work))


def run_cluster(ctx: typer.Context, work: "Callable[[Cluster], Awaitable[None]]") -> None:
    """As `run`, for what one host has not."""
    from hostler.settings import needs_a_cluster

    with refusals_shown():
        settings = target_of(ctx).settings
        if settings.one_host:
            raise needs_a_cluster(settings.where)
        with _repeatable(ctx):
            asyncio.run(_connected(settings, work))


def only_in_a_cluster(ctx: typer.Context, option: str, value: str) -> None:
    """What a single host does not know is refused, not left out."""
    with refusals_shown():
        if value and target_of(ctx).one_host:
            raise typer.BadParameter("is for a cluster; one host has neither flavors nor other nodes", param_hint=option)


def target_of(ctx: typer.Context) -> Target:
    return ctx.obj if isinstance(ctx.obj, Target) else Target()


@contextmanager
def refusals_shown() -> Iterator[None]:
    """A refusal goes to stderr and becomes the exit status."""
    from hostler.errors import HostlerError

    try:
        yield
    except HostlerError as error:
        if os.environ.get("HOSTLER_DEBUG") == "1":
            raise
        say(refusal(error), err=True)
        raise typer.Exit(exit_code(error)) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(ExitCode.INTERRUPTED) from error


@contextmanager
def _repeatable(ctx: typer.Context) -> Iterator[None]:
    """Whoever gives up before the answer to a change came is told how to repeat it without doing it twice."""
    from hostler.errors import DeadlineExceeded, Unavailable

    request_id = "" if ctx.params.get("dry_run") else ctx.params.get("request_id", "")
    told = f"It may have been accepted. Repeat it with --request-id {request_id}: it happens once."
    try:
        yield
    except KeyboardInterrupt:
        if request_id:
            typer.echo(told, err=True)
        raise
    except (DeadlineExceeded, Unavailable) as error:
        unheard = isinstance(error, DeadlineExceeded) or "detail" in error.metadata
        if request_id and unheard and "operation" not in error.metadata:
            error.fix = told
        raise


async def _connected(settings: "Settings", work: "Callable[[Any], Awaitable[None]]") -> None:
    if settings.one_host:
        from hostler.node import Host

        async with Host(settings) as host:
            await work(host)
    else:
        from hostler.cluster import Cluster

        async with Cluster(settings) as cluster:
            await work(cluster)


async def finish(handle: "OperationHandle", ending: Ending, done: "Callable[[Operation], str]") -> None:
    """Wait if that is wanted, and print: `done`'s text of the operation for people, the operation itself for programs."""
    if not handle.name:
        begins = f"\n  it would begin: {handle.operation.reason}" if handle.operation.reason else ""
        tell(handle.operation, ending.form, f"would be accepted: {handle.operation.verb} {handle.operation.target}{begins}")
        return
    if not ending.wait:
        tell(handle.operation, ending.form, f"accepted: {handle.name}\n{_follow_up(handle.name)}")
        return
    operation = await waited(handle, ending.timeout_s)
    tell(operation, ending.form, done(operation))


async def waited(handle: "OperationHandle", timeout_s: float | None) -> "Operation":
    """The end, with progress shown meanwhile. Whoever is interrupted is told how to go on."""
    from hostler.cli.progress import shown
    from hostler.errors import DeadlineExceeded, Unavailable

    try:
        with shown() as update:
            return await handle.wait(timeout_s, update)
    except (asyncio.CancelledError, DeadlineExceeded, Unavailable) as error:
        typer.echo(f"{handle.name} goes on without you.\n{_follow_up(handle.name)}", err=True)
        if isinstance(error, asyncio.CancelledError):
            raise typer.Exit(ExitCode.INTERRUPTED) from error
        error.metadata = {**error.metadata, "operation": handle.name}
        raise


def _follow_up(name: str) -> str:
    return f"  watch:  hostler op watch {short(name)}\n  cancel: hostler op cancel {short(name)}"


def tell(operation: "Operation", form: Format, text: str) -> None:
    """`text` for people, the operation itself for programs."""
    match form:
        case Format.JSON | Format.YAML:
            typer.echo(dumped(document(operation), form))
        case Format.NAME:
            typer.echo(operation.name or operation.target)
        case _:
            say(text)


def moved(operation: "Operation") -> str:
    """The end of a migration."""
    return f"{operation.target.replace('vms/', 'vm ')} moved\n{migration(operation)}"


def vm_is(operation: "Operation") -> str:
    """The VM at the end of an operation."""
    from hostler.machines import left_alone

    vm = operation.vm
    if left_alone(operation):
        return f"vm {short(operation.target)} was {'running' if operation.verb == 'StartVM' else 'stopped'} already"
    return f"vm {short(operation.target)} is {vm.State.Name(vm.state)} on {short(vm.node)}"


async def follow(events: "AsyncGenerator[Any]", columns: Columns, form: Format, wanted: "Callable[[Any], bool]" = lambda _: True) -> None:
    """Print what a watch tells of the resources that are `wanted`: a first column EVENT, or one JSON document (YAML too: documents by line are JSON)
    per event. LEFT: it is there, and no longer one that is wanted.
    """
    from contextlib import aclosing

    printer = _EventPrinter(columns, form, wanted)
    async with aclosing(events) as told:
        async for event in told:
            printer.take(event)


class _EventPrinter:
    """Rows are aligned to the first listing; later ones may be wider."""

    def __init__(self, columns: Columns, form: Format, wanted: "Callable[[Any], bool]") -> None:
        self._columns = columns
        self._form = form
        self._wanted = wanted
        self._shown: set[str] = set()
        self._listing: list[tuple[str, ...]] | None = []
        self._width: tuple[int, ...] = ()

    def take(self, event: object) -> None:
        from hostler.watch import Bookmark, Deleted, Resync, Updated

        match event:
            case Updated(resource=resource) if self._wanted(resource):
                self._shown.add(resource.name)
                self._tell("UPDATED", resource.name, resource)
            case Updated(resource=resource) if resource.name in self._shown:
                self._shown.discard(resource.name)
                self._tell("LEFT", resource.name, resource)
            case Deleted(name=name) if name in self._shown:
                self._shown.discard(name)
                self._tell("DELETED", name, None)
            case Resync():
                self._shown.clear()
                self._tell("RESYNC", "", None)
            case Bookmark():
                self._end_of_listing()

    def _tell(self, kind: str, name: str, resource: "Message | None") -> None:
        match self._form:
            case Format.JSON | Format.YAML:
                shown = {"resource": document(resource)} if resource is not None else {}
                typer.echo(json_line({"event": kind, "name": name, **shown}))
            case Format.NAME:
                typer.echo(name or kind)
            case _:
                cells = self._columns.row(resource, self._form) if resource is not None else self._blank(name)
                self._row((kind, *cells))

    def _blank(self, name: str) -> tuple[str, ...]:
        return (short(name), *("-" for _ in self._columns.header(self._form)[1:]))

    def _row(self, row: tuple[str, ...]) -> None:
        if self._listing is not None:
            self._listing.append(row)
        else:
            say(line(row, self._width))

    def _end_of_listing(self) -> None:
        if self._listing is None or self._form not in (Format.TABLE, Format.WIDE):
            return
        header = ("EVENT", *self._columns.header(self._form))
        rows, self._listing = self._listing, None
        self._width = widths(header, rows)
        for row in (header, *rows):
            say(line(row, self._width))
