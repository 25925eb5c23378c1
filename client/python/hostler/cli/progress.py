"""How a wait is shown: a bar on a terminal, one plain line per change elsewhere. Both on stderr, so that stdout stays what was asked for."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from hostler.cli.output import size

if TYPE_CHECKING:
    from hostler.api.type.v1.operation_pb2 import Operation

PERCENT_STEP = 10
"""Plain lines say progress within one phase no more often than this."""


@contextmanager
def shown() -> "Iterator[Callable[[Operation], None]]":
    """What is to be called with each state of the operation."""
    if sys.stdout.isatty() and sys.stderr.isatty():
        with _bar() as update:
            yield update
    else:
        yield _lines()


def _lines() -> "Callable[[Operation], None]":
    last: tuple[str, int] = ("", -1)

    def update(operation: "Operation") -> None:
        nonlocal last
        now = (operation.phase, operation.progress.percent // PERCENT_STEP)
        if now != last and not operation.done:
            typer.echo(plain(operation), err=True)
        last = now

    return update


def plain(operation: "Operation") -> str:
    """`MigrateVM vms/web-1: COPYING 40% 204.8 MiB of 512 MiB at 100 MiB/s, 3 s left`."""
    parts = [f"{operation.verb} {operation.target}: {operation.phase or 'PENDING'}"]
    if operation.HasField("progress"):
        parts.append(f"{operation.progress.percent}% {amounts(operation.progress)}".strip())
    elif operation.reason:
        parts.append(f"({operation.reason})")
    return " ".join(parts)


def amounts(progress: "Operation.Progress") -> str:
    """Bytes, rate and time left, as far as they are known."""
    parts = []
    if progress.bytes_total:
        parts.append(f"{size(progress.bytes_done)} of {size(progress.bytes_total)}")
    if progress.rate_bytes_per_s:
        parts.append(f"at {size(progress.rate_bytes_per_s)}/s,")
    if progress.eta_s:
        parts.append(f"{progress.eta_s} s left")
    return " ".join(parts).rstrip(",")


@contextmanager
def _bar() -> "Iterator[Callable[[Operation], None]]":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[percent]}"),
        TextColumn("{task.fields[amounts]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, percent="", amounts="")

        def update(operation: "Operation") -> None:
            known = operation.HasField("progress")
            bar.update(
                task,
                description=f"{operation.verb} {operation.target} [bold]{operation.phase}[/bold]",
                total=100 if known else None,
                completed=operation.progress.percent if known else 0,
                percent=f"{operation.progress.percent}%" if known else "",
                amounts=amounts(operation.progress) if known else "",
            )

        yield update
