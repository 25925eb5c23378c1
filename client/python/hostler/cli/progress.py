"""How a wait is shown: one line that is drawn again in place on a terminal, one plain line per change elsewhere. Both on stderr, so that stdout stays
what was asked for.

The line is made for the terminal's width: what stands first is never moved by what follows, and what does not fit is left out, the amounts first,
then the bar. It never wraps, and at the end, and at Ctrl-C, it is erased.
"""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

import typer

from hostler.cli import drain
from hostler.cli.output import colours, duration, short, size

if TYPE_CHECKING:
    from hostler.api.type.v1.operation_pb2 import Operation

PERCENT_STEP = 10
"""Plain lines say progress within one phase no more often than this."""
TICK_S = 1.0
"""A line without progress counts the seconds."""
LONGEST_BAR, SHORTEST_BAR = 30, 8
LEFT_WIDTH = len("99 min left")
MARGIN = 3
"""Columns that stay free, so that the ^C of the terminal's echo wraps nothing."""
GAP = "  "
ERASE_LINE, ERASE_REST, ERASE_BELOW = "\r\x1b[K", "\x1b[K", "\x1b[J"


@contextmanager
def shown() -> "Iterator[Callable[[Operation], None]]":
    """What is to be called with each state of the operation. Used in a running event loop."""
    if not (sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"):
        yield _lines()
        return
    line = Line(sys.stderr)
    try:
        yield line.update
    finally:
        line.end()


def _lines() -> "Callable[[Operation], None]":
    last: tuple[str, int] = ("", -1)
    vms: dict[str, str] = {}

    def update(operation: "Operation") -> None:
        nonlocal last
        now = (operation.phase, operation.progress.percent // PERCENT_STEP)
        if now != last and not operation.done:
            typer.echo(plain(operation), err=True)
        last = now
        for line in drain.changes(vms, operation):
            typer.echo(line, err=True)

    return update


def plain(operation: "Operation") -> str:
    """`MigrateVM vms/web-1: COPYING 40% 204.8 MiB of 512 MiB at 100 MiB/s, 3 s left`."""
    parts = [f"{operation.verb} {operation.target}: {operation.phase or 'PENDING'}"]
    if operation.HasField("progress"):
        told = (" ".join(amounts(operation.progress)), left(operation.progress))
        parts.append(f"{operation.progress.percent}% {', '.join(one for one in told if one)}".strip())
    elif operation.reason:
        parts.append(f"({operation.reason})")
    return " ".join(parts)


def amounts(progress: "Operation.Progress") -> list[str]:
    """Bytes and rates, as far as they are known, and what the copy costs the guest."""
    parts = [f"{size(progress.bytes_done)} of {size(progress.bytes_total)}"] if progress.bytes_total else []
    parts += [f"at {size(progress.rate_bytes_per_s)}/s"] if progress.rate_bytes_per_s else []
    parts += [f"{size(progress.dirty_bytes_per_s)}/s dirtied"] if progress.dirty_bytes_per_s else []
    parts += [f"pass {progress.iteration}"] if progress.iteration > 1 else []
    return [*parts, f"slowed {progress.throttle_percent}%"] if progress.throttle_percent else parts


def left(progress: "Operation.Progress") -> str:
    """The time, if it is known."""
    return f"{duration(progress.eta_s)} left" if progress.eta_s else ""


class Line:
    """The line on the terminal; of a drain the rows of its VMs below it."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self._fancy = (terminal.encoding or "").lower().replace("-", "") == "utf8"
        self._coloured = colours(terminal)
        self._operation: Operation | None = None
        self._loop = asyncio.get_running_loop()
        self._began_s = self._loop.time()
        self._height = 1
        self._tick = self._loop.call_later(TICK_S, self._again)

    def update(self, operation: "Operation") -> None:
        """Draw how it stands now."""
        self._operation = None if operation.done else operation
        self._draw()

    def end(self) -> None:
        """Erase it. It is not drawn again."""
        self._tick.cancel()
        self._write(self._top() + ERASE_LINE + (ERASE_BELOW if self._height > 1 else ""))

    def _again(self) -> None:
        """Now and then: the seconds, and the terminal's width, change by themselves."""
        self._tick = self._loop.call_later(TICK_S, self._again)
        self._draw()

    def _draw(self) -> None:
        if self._operation is None:
            return
        terminal = os.get_terminal_size(self._terminal.fileno())
        width = terminal.columns - MARGIN
        drawn = bar_line(self._operation, int(self._loop.time() - self._began_s), width, fancy=self._fancy)
        if self._coloured and self._operation.phase:
            drawn = drawn.replace(self._operation.phase, typer.style(self._operation.phase, bold=True), 1)
        lines = [drawn, *drain.rows(self._operation, width, terminal.lines - 2, fancy=self._fancy)]
        text = f"{self._top()}\r" + "\n".join(f"{line}{ERASE_REST}" for line in lines)
        self._write(text + (ERASE_BELOW if len(lines) < self._height else ""))
        self._height = len(lines)

    def _top(self) -> str:
        """Up to the first line of what is drawn."""
        return f"\x1b[{self._height - 1}A" if self._height > 1 else ""

    def _write(self, text: str) -> None:
        """At once, so that nothing half drawn is seen."""
        self._terminal.write(text)
        self._terminal.flush()


def bar_line(operation: "Operation", elapsed_s: int, width: int, *, fancy: bool = True) -> str:
    """At most `width` characters: `MigrateVM web-1  COPYING  ━━━━━━────  42%  4 s left  1.7 GiB of 4 GiB  at 600 MiB/s`.

    Without progress the seconds so far and the reason.
    """
    phase = operation.phase or "PENDING"
    what = f"{operation.verb} {short(operation.target)}{GAP}{phase}"
    if not operation.HasField("progress"):
        return _cut(f"{what}{GAP}{duration(elapsed_s)}{GAP}{operation.reason}".rstrip(), width, fancy=fancy)
    percent, progress = operation.progress.percent, operation.progress
    figures = f"{percent:3d}%{GAP}{left(progress):<{LEFT_WIDTH}}"
    room = width - len(what) - len(figures) - 2 * len(GAP)
    if room < SHORTEST_BAR:
        whole = f"{what}{GAP}{figures.rstrip()}"
        return whole if len(whole) <= width else _cut(f"{phase}{GAP}{figures.rstrip()}", width, fancy=fancy)
    text = f"{what}{GAP}{_bar(percent, min(room, LONGEST_BAR), fancy=fancy)}{GAP}{figures}"
    for more in amounts(progress):
        if len(text) + len(GAP) + len(more) > width:
            break
        text += GAP + more
    return text.rstrip()


def _bar(percent: int, length: int, *, fancy: bool) -> str:
    full = length * min(max(percent, 0), 100) // 100
    done, rest = ("━", "─") if fancy else ("#", "-")
    return done * full + rest * (length - full)


def _cut(text: str, width: int, *, fancy: bool) -> str:
    mark = "…" if fancy else "..."
    return text if len(text) <= width else text[: max(width - len(mark), 0)] + mark
