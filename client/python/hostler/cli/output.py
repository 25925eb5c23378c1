"""How resources and refusals are shown: tables for people, JSON and YAML for programs, names for pipes.

JSON has the API's own field names and enum names, every field present, and integers as numbers (protobuf's own mapping makes 64-bit ones strings,
which breaks `jq '.memory_mib > 512'`; its parsers accept both). Lists are arrays; what is watched is one JSON document per line.
Tables are plain aligned text, so that they can be tested, cut and grepped; only states are coloured, and only on a terminal.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import typer

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from hostler.api.cluster.v1.vms_pb2 import Reconciliation
    from hostler.api.type.v1.node_pb2 import Node
    from hostler.api.type.v1.operation_pb2 import Operation
    from hostler.api.type.v1.resources_pb2 import Quantity
    from hostler.api.type.v1.vm_pb2 import VM, Flavor
    from hostler.api.type.v1.volume_pb2 import Pool, Volume
    from hostler.errors import HostlerError

GAP = "   "
NONE = "-"
M = TypeVar("M", bound="Message")
Row = Sequence[str]


class Format(StrEnum):
    """-o"""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of one kind of resource; `wide` follow the others with -o wide."""

    headers: tuple[str, ...]
    cells: Callable[[Any], Row]
    wide_headers: tuple[str, ...] = ()
    wide_cells: Callable[[Any], Row] = lambda _: ()

    def header(self, form: Format) -> Row:
        return (*self.headers, *(self.wide_headers if form is Format.WIDE else ()))

    def row(self, resource: "Message", form: Format) -> Row:
        return (*self.cells(resource), *(self.wide_cells(resource) if form is Format.WIDE else ()))


# ---- documents


def document(message: "Message") -> dict[str, Any]:
    """The message as JSON values; see above."""
    from google.protobuf.json_format import MessageToDict

    found = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    _numbers(message.DESCRIPTOR, found)
    return found


def _numbers(kind: Any, found: dict[str, Any]) -> None:  # noqa: ANN401 a Descriptor, of either of protobuf's two types
    for name, value in found.items():
        field = kind.fields_by_name.get(name)
        if field is None:
            continue
        if field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64):
            found[name] = [int(one) for one in value] if isinstance(value, list) else int(value)
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, dict) and not field.message_type.full_name.startswith("google.protobuf."):
                    _numbers(field.message_type, one)


def show(resources: Sequence["Message"], columns: Columns, form: Format, *, one: bool = False) -> str:
    """A list, or with `one` a single resource, as text without a final newline."""
    match form:
        case Format.NAME:
            return "\n".join(str(getattr(resource, "name")) for resource in resources)  # noqa: B009 every resource has one, Message does not
        case Format.JSON | Format.YAML:
            documents = [document(resource) for resource in resources]
            return dumped(documents[0] if one else documents, form)
    return table(columns.header(form), [columns.row(resource, form) for resource in resources])


def dumped(value: object, form: Format) -> str:
    if form is Format.JSON:
        return json.dumps(value, indent=2, ensure_ascii=False)
    import yaml

    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True)).rstrip("\n")


def json_line(event: Mapping[str, Any]) -> str:
    """One watched event."""
    return json.dumps(event, ensure_ascii=False, separators=(",", ":"))


# ---- tables


def widths(header: Row, rows: Iterable[Row]) -> tuple[int, ...]:
    found = [len(cell) for cell in header]
    for row in rows:
        found = [max(width, len(cell)) for width, cell in zip(found, row, strict=True)]
    return tuple(found)


def line(row: Row, width: Sequence[int]) -> str:
    """One row, aligned, without trailing blanks; cells may be wider than `width`."""
    return GAP.join(cell.ljust(size) for cell, size in zip(row, width, strict=True)).rstrip()


def table(header: Row, rows: Sequence[Row]) -> str:
    """Aligned columns under a header."""
    width = widths(header, rows)
    return "\n".join(line(row, width) for row in (header, *rows))


_GOOD = frozenset({"RUNNING", "READY", "ACTIVE", "SUCCEEDED"})
_BAD = frozenset({"CRASHED", "FROZEN", "FAILED", "SILENT", "HYPERVISOR_DOWN"})


def coloured(text: str) -> str:
    """Known states green or red; for terminals."""
    return GAP.join(_coloured(part) for part in text.split(GAP))


def _coloured(part: str) -> str:
    word = part.strip()
    if word in _GOOD or word in _BAD:
        return part.replace(word, typer.style(word, fg="green" if word in _GOOD else "red"))
    return part


def colours(stream: TextIO) -> bool:
    """Whether to colour there: on a terminal that can, unless the user does not want it (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def say(text: str, *, err: bool = False) -> None:
    """Print, coloured on a terminal."""
    typer.echo(coloured(text) if colours(sys.stderr if err else sys.stdout) else text, err=err)


# ---- the kinds


def short(name: str) -> str:
    """`vms/web-1` -> `web-1`; empty -> `-`."""
    return name.rpartition("/")[2] or NONE


def mib(amount: int) -> str:
    """4096 -> `4 GiB`, 1536 -> `1.5 GiB`, 700 -> `700 MiB`."""
    if amount >= 1 << 20:
        return f"{round(amount / (1 << 20), 1):g} TiB"
    return f"{round(amount / 1024, 1):g} GiB" if amount >= 1024 else f"{amount} MiB"


def size(amount: int) -> str:
    """Bytes for people."""
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if amount >= 1 << power:
            return f"{round(amount / (1 << power), 1):g} {unit}"
    return f"{amount} B"


def duration(seconds: int) -> str:
    """In one unit, two or three digits: `42 s`, `12 min`, `3 h`."""
    if seconds < 100:
        return f"{seconds} s"
    return f"{round(seconds / 60)} min" if seconds < 6000 else f"{round(seconds / 3600)} h"


def _cpus(milli: int) -> str:
    return f"{round(milli / 1000, 2):g}"


def _sum(quantities: Iterable["Quantity"], prefix: str) -> int:
    return sum(quantity.amount for quantity in quantities if quantity.key == prefix or quantity.key.startswith(f"{prefix}/"))


def _time(message: "Message", field: str) -> str:
    return getattr(message, field).ToJsonString()[:19] + "Z" if message.HasField(field) else NONE


def _vm(vm: "VM") -> Row:
    marks = [*(["stale"] if vm.stale else []), *(["drift"] if vm.drift else [])]
    state = vm.State.Name(vm.state) + (f" ({', '.join(marks)})" if marks else "")
    return (short(vm.name), state, short(vm.node), str(vm.vcpus), mib(vm.memory_mib), short(vm.flavor), vm.reason or NONE)


def drift(vm: "VM") -> str:
    """What was changed past Hostler, below the table of one VM; "": nothing."""
    return "\n".join(["", "Changed past Hostler:", *(f"- {finding}" for finding in vm.drift)]) if vm.drift else ""


def _vm_wide(vm: "VM") -> Row:
    disks = ",".join(short(disk.volume) if disk.volume else f"new in {short(disk.new_volume.pool)}" for disk in vm.disks)
    nics = ",".join(f"{short(nic.network)} {nic.mac_address}".strip() for nic in vm.nics)
    labels = ",".join(f"{key}={value}" for key, value in sorted(vm.labels.items()))
    return (str(vm.epoch), disks or NONE, nics or NONE, labels or NONE, short(vm.operation), vm.uid, _time(vm, "create_time"))


def _node(node: "Node") -> Row:
    ledger = node.ledger
    return (
        short(node.name),
        node.State.Name(node.state),
        node.Health.Name(node.health).replace("HEALTH_UNSPECIFIED", "UNKNOWN"),
        str(node.vm_count),
        f"{_cpus(_sum(ledger.free, 'cpu_milli'))} of {_cpus(_sum(ledger.allocatable, 'cpu_milli'))}",
        f"{mib(_sum(ledger.free, 'memory_mib'))} of {mib(_sum(ledger.allocatable, 'memory_mib'))}",
        node.reason or NONE,
    )


def _node_wide(node: "Node") -> Row:
    pools = ",".join(f"{short(pool.name)} {mib(pool.free_mib)} free" for pool in node.pools)
    return (
        node.Acceleration.Name(node.acceleration),
        node.hypervisor or NONE,
        node.confinement or NONE,
        pools or NONE,
        ",".join(node.networks) or NONE,
        node.endpoint or NONE,
        str(node.unmanaged_count),
    )


def _volume(volume: "Volume") -> Row:
    state = volume.State.Name(volume.state)
    return (short(volume.name), state, short(volume.pool), mib(volume.size_mib), short(volume.vm), short(volume.node))


def _class(value: int) -> str:
    from hostler.api.type.v1.resources_pb2 import ServiceClass

    return ServiceClass.Name(value).removeprefix("SERVICE_CLASS_")  # type: ignore[arg-type]


def _flavor(flavor: "Flavor") -> Row:
    floor = _cpus(flavor.cpu_floor_milli) if flavor.cpu_floor_milli else "by class"
    return (short(flavor.name), str(flavor.vcpus), mib(flavor.memory_mib), floor, _class(flavor.service_class))


def _operation(operation: "Operation") -> Row:
    percent = f"{operation.progress.percent}%" if operation.HasField("progress") else NONE
    state = operation.State.Name(operation.state)
    reason = operation.error.message or operation.reason or NONE
    return (short(operation.name), operation.verb, operation.target, state, operation.phase or NONE, percent, reason)


def _operation_wide(operation: "Operation") -> Row:
    return (operation.principal or NONE, operation.request_id or NONE, _time(operation, "create_time"), _time(operation, "update_time"))


_LIVE_MOVES = {"BY_LOCKS": "by locks", "BY_WORD": "by the hypervisor's word", "COLD_ONLY": "cold only", "BY_COPY": "by copy"}


def _pool(pool: "Pool") -> Row:
    move = _LIVE_MOVES.get(pool.LiveMove.Name(pool.live_move), NONE)
    return (
        short(pool.name),
        pool.Reach.Name(pool.reach),
        pool.LockKind.Name(pool.lock_kind).replace("LOCK_KIND_UNSPECIFIED", "UNKNOWN"),
        f"{move}, {pool.downtime_min_ms}-{pool.downtime_max_ms} ms" if pool.downtime_max_ms else move,
        mib(pool.total_mib),
        mib(pool.claimed_mib),
        mib(pool.free_mib),
        ",".join(short(node) for node in pool.nodes) or NONE,
    )


def _pool_wide(pool: "Pool") -> Row:
    images = ",".join(image.name for image in pool.images)
    return (pool.filesystem or NONE, pool.fingerprint or NONE, images or NONE, pool.reason or NONE)


POOLS = Columns(
    ("NAME", "REACH", "LOCKS", "LIVE MOVE", "SIZE", "CLAIMED", "FREE", "NODES"),
    _pool,
    ("FILESYSTEM", "FINGERPRINT", "IMAGES", "REASON"),
    _pool_wide,
)
VMS = Columns(
    ("NAME", "STATE", "NODE", "VCPUS", "MEMORY", "FLAVOR", "REASON"),
    _vm,
    ("EPOCH", "DISKS", "NICS", "LABELS", "OPERATION", "UID", "CREATED"),
    _vm_wide,
)
NODES = Columns(
    ("NAME", "STATE", "HEALTH", "VMS", "CPU FREE", "MEMORY FREE", "REASON"),
    _node,
    ("ACCELERATION", "HYPERVISOR", "CONFINEMENT", "POOLS", "NETWORKS", "ENDPOINT", "UNMANAGED"),
    _node_wide,
)
VOLUMES = Columns(
    ("NAME", "STATE", "POOL", "SIZE", "VM", "NODE"),
    _volume,
    ("IMAGE", "UID", "CREATED"),
    lambda volume: (volume.image or NONE, volume.uid, _time(volume, "create_time")),
)
FLAVORS = Columns(("NAME", "VCPUS", "MEMORY", "CPU FLOOR", "CLASS"), _flavor)
OPERATIONS = Columns(
    ("NAME", "VERB", "TARGET", "STATE", "PHASE", "DONE", "REASON"),
    _operation,
    ("PRINCIPAL", "REQUEST ID", "CREATED", "UPDATED"),
    _operation_wide,
)


def reconciliation(found: "Reconciliation") -> str:
    """The record, what the nodes have, what is proposed or was done, and what cannot be known."""
    copies = [
        (
            short(copy.node),
            copy.power if copy.answered else "NO ANSWER",
            "yes" if copy.defined else "no",
            str(copy.epoch),
            "*" if copy.owner else "",
        )
        for copy in found.copies
    ]
    actions = [
        (short(one.node), one.verb, "yes" if one.destructive else "no", one.State.Name(one.state), one.reason) for one in found.actions
    ]
    parts = [found.record, table(("NODE", "COPY", "DEFINED", "EPOCH", "OWNER"), copies)]
    if actions:
        parts.append(table(("NODE", "ACTION", "DESTRUCTIVE", "STATE", "WHY"), actions))
    parts.append(found.reason or ("Record and nodes agree." if found.consistent else ""))
    return "\n".join(part for part in parts if part)


def migration(operation: "Operation") -> str:
    """Where from, where to, and what it cost."""
    facts = operation.migration
    if facts.cold:
        return "\n".join(
            line(row, (8, 0)) for row in (("from", short(facts.source_node)), ("to", short(facts.destination_node)), ("cold", "yes"))
        )
    rows = [
        ("from", short(facts.source_node)),
        ("to", short(facts.destination_node)),
        ("total", f"{facts.total_ms / 1000:.2f} s"),
        ("bytes", f"{size(facts.bytes_transferred)} ({facts.bytes_transferred})"),
        ("downtime", f"{facts.downtime_ms} ms, {'above' if facts.downtime_exceeded else 'within'} the {facts.max_downtime_ms} ms allowed"),
    ]
    if facts.iterations:  # else it was over before anybody looked
        rows.append(("passes", f"{facts.iterations} over memory, guest slowed by {facts.throttle_percent} %"))
    return "\n".join(line(row, (8, 0)) for row in rows)


def dry_move(operation: "Operation") -> str:
    """Whether a migration could begin, rule by rule, and what it would take."""
    facts = operation.migration
    verdict = "would be accepted" if all(check.ok for check in facts.checks) else "would be refused"
    lines = [f"{verdict}: {operation.target.replace('vms/', 'vm ')} from {short(facts.source_node)} to {short(facts.destination_node)}"]
    for check in facts.checks:
        lines.append(line(("ok" if check.ok else "NO", check.name, check.message), (3, 13, 0)))
        if check.fix:
            lines.append(line(("", "", check.fix), (3, 13, 0)))
    return "\n".join([*lines, *_forecast(operation)])


def _forecast(operation: "Operation") -> list[str]:
    if not operation.migration.HasField("forecast"):
        return []
    told = operation.migration.forecast
    ends = {
        told.CONVERGES: "yes",
        told.CONVERGES_THROTTLED: f"yes, with the guest slowed by {told.throttle_percent} %",
        told.DOES_NOT_CONVERGE: f"no, not even with the guest slowed by {told.throttle_percent} %",
    }
    rows = [
        ("dirties", f"{size(told.dirty_bytes_per_s)}/s, {'measured now' if told.dirty_measured else 'a guess from its memory'}"),
        ("link", f"{size(told.bandwidth_bytes_per_s)}/s, {'known' if told.bandwidth_known else 'a guess: 1 Gbit/s'}"),
        ("ends", ends.get(told.convergence, "?")),
        ("time", f"at most {duration(told.seconds)}"),
        ("downtime", f"at most {told.downtime_ms} ms"),
    ]
    if told.disk_bytes:
        rows.insert(0, ("disks", f"{size(told.disk_bytes)} are copied along first"))
    return ["", *(line(row, (8, 0)) for row in rows)]


# ---- refusals


def refusal(error: "HostlerError") -> str:
    """The message, what is wrong where, the fix; for stderr."""
    parts = [f"error: {error.message}"]
    if detail := error.metadata.get("detail"):
        parts.append(f"  {detail}")
    if error.violations and not (len(error.violations) == 1 and error.violations[0].description in error.message):
        on_nodes = all(violation.field.startswith("nodes/") for violation in error.violations)
        rows = [(_where(violation.field), _what(violation.field, violation.description)) for violation in error.violations]
        parts += ["", table(("NODE", "REASON") if on_nodes else ("FIELD", "PROBLEM"), rows)]
        if omitted := error.metadata.get("violations_omitted"):
            parts.append(f"... and {omitted} more")
        parts += [""] if error.fix else []
    if error.fix:
        parts.append(error.fix)
    if incident := error.metadata.get("incident"):
        parts.append(f"incident: {incident}")
    if operation := error.metadata.get("operation"):
        parts.append(f"operation: {operation}")
    return "\n".join(parts)


def _where(field: str) -> str:
    return field.removeprefix("nodes/")


def _what(field: str, description: str) -> str:
    """`n1 cannot take web-1: its memory ...` says in a row of n1 what the row says already."""
    told, _, rest = description.partition(": ")
    return rest if rest and told.startswith(f"{_where(field)} cannot take ") else description
