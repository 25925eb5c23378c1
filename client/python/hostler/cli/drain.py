"""A drain for people: its plan and its end as a table, and while it lasts one row per VM, those that move with their bars."""

from typing import TYPE_CHECKING

from hostler.cli.output import NONE, short, table

if TYPE_CHECKING:
    from hostler.api.type.v1.operation_pb2 import Operation

GAP = "  "
BAR = 12
"""Characters of a bar in a row: enough to see that it grows."""

FIRST = ("MOVING", "FAILED", "BLOCKED", "PLANNED", "SKIPPED", "MOVED")
"""What is shown when there is no room for all: what happens, what needs a person, what is still to come."""


def report(operation: "Operation") -> str:
    """Every VM with where it goes or went; for what stays, why and what to do."""
    rows = [(short(entry.vm), _name(entry), short(entry.destination_node), _why(entry)) for entry in operation.drain.entries]
    if not rows:
        return f"node {short(operation.target)} has no VMs"
    return table(("VM", "STATE", "TO", "REASON"), rows)


def planned(operation: "Operation") -> str:
    """A dry run."""
    return f"would be accepted: {operation.verb} {operation.target}\n  {operation.reason}\n{report(operation)}"


def drained(operation: "Operation") -> str:
    """The end."""
    return f"node {short(operation.target)} is drained and stays cordoned\n{report(operation)}"


def rows(operation: "Operation", width: int, most: int, *, fancy: bool = True) -> list[str]:
    """At most `most` rows of at most `width` characters, in the drain's order; the last says how many there was no room for."""
    entries = list(operation.drain.entries)
    if len(entries) > most:
        wanted = sorted(range(len(entries)), key=lambda index: (FIRST.index(_name(entries[index])), index))[: max(0, most - 1)]
        shown = [entries[index] for index in sorted(wanted)]
    else:
        shown = entries
    names = max((len(short(entry.vm)) for entry in shown), default=0)
    arrow = len("→ " if fancy else "-> ")
    nodes = max((arrow + len(short(entry.destination_node)) for entry in shown if entry.destination_node), default=0)
    lines = [_cut(_row(entry, names, nodes, fancy=fancy), width, fancy=fancy) for entry in shown]
    if hidden := len(entries) - len(shown):
        lines.append(_cut(f"  and {hidden} more", width, fancy=fancy))
    return lines[: max(0, most)]


def changes(before: dict[str, str], operation: "Operation") -> list[str]:
    """For a log: `web-1: MOVING to n2`, once for each change of a VM's state; `before` is kept up to date."""
    lines = []
    for entry in operation.drain.entries:
        now = _name(entry)
        if before.get(entry.vm) != now:
            before[entry.vm] = now
            to = f" to {short(entry.destination_node)}" if entry.destination_node and now in ("PLANNED", "MOVING", "MOVED") else ""
            why = f" ({entry.reason})" if entry.reason and now in ("BLOCKED", "FAILED", "SKIPPED") else ""
            lines.append(f"{entry.vm}: {now}{to}{why}")
    return lines


def _row(entry: "Operation.DrainMetadata.Entry", names: int, nodes: int, *, fancy: bool) -> str:
    to = f"{'→' if fancy else '->'} {short(entry.destination_node)}" if entry.destination_node else ""
    begins = f"  {short(entry.vm):<{names}}{GAP}{_name(entry):<7}{GAP}{to:<{nodes}}"
    if not entry.HasField("progress"):
        return f"{begins}{GAP}{entry.reason}".rstrip()
    percent = entry.progress.percent
    full = BAR * min(max(percent, 0), 100) // 100
    done, rest = ("━", "─") if fancy else ("#", "-")
    return f"{begins}{GAP}{done * full}{rest * (BAR - full)} {percent:3d}%"


def _state(entry: "Operation.DrainMetadata.Entry") -> str:
    return _name(entry)


def _name(entry: "Operation.DrainMetadata.Entry") -> str:
    from hostler.api.type.v1.operation_pb2 import Operation

    return Operation.DrainMetadata.State.Name(entry.state)


def _why(entry: "Operation.DrainMetadata.Entry") -> str:
    restart = "stopped, moved and started" if entry.restart else ""
    return " ".join(part for part in (entry.reason, entry.fix) if part) or restart or NONE


def _cut(text: str, width: int, *, fancy: bool) -> str:
    mark = "…" if fancy else "..."
    return text if len(text) <= width else text[: max(width - len(mark), 0)] + mark
