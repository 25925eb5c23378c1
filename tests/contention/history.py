"""Everything that a store was ever told, read back by etcdctl: every revision from the first, and proof that none is missing.

Nothing of Hostler's is imported. The history is what a watch from revision 1 brings, and old servers' watches can drop an event, so it is believed
only if it is whole: no revision is left out, each key's versions are counted without a gap, and what it adds up to is what the store lists.
"""

import base64
import json
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

END = "/end-of-history"
"""Written once when all is over: the watch has brought everything when it brings this."""

READ_S = 60.0
"""Ten thousand revisions take a second; a watch that has not brought the end by then never will."""


class Incomplete(Exception):
    """The history has a hole; nothing can be said about what happened in it."""


@dataclass(frozen=True, slots=True)
class Change:
    """One key at one revision. `value` None: deleted. `version`: how often it was written since it was made, 0: deleted."""

    revision: int
    key: str
    value: bytes | None
    version: int


@dataclass(frozen=True, slots=True)
class Listed:
    """One key as the store lists it."""

    value: bytes
    revision: int


def read(endpoint: str) -> tuple[Change, ...]:
    """The store's history until now, in order. It must not have been compacted. Raises Incomplete."""
    end = int(_ctl(endpoint, "put", END, "")["header"]["revision"])
    listing = _ctl(endpoint, "get", "/", "--prefix", "--rev", str(end))
    changes = tuple(change for change in _watched(endpoint) if change.revision <= end)
    require_whole(changes, end, {_text(kv["key"]): Listed(_bytes(kv.get("value", "")), kv["mod_revision"]) for kv in listing["kvs"]})
    return changes


def require_whole(changes: Sequence[Change], end: int, listing: dict[str, Listed]) -> None:
    """Whether these are all changes from revision 2 (the first that etcd writes) to `end`. Raises Incomplete."""
    seen = {change.revision for change in changes}
    if missing := sorted(set(range(2, end + 1)) - seen):
        raise Incomplete(f"{len(missing)} of {end} revisions are missing, the first is {missing[0]}")
    versions: dict[str, int] = {}
    for change in changes:
        expected = versions.get(change.key, 0) + 1 if change.value is not None else 0
        if change.version != expected or (change.value is None and change.key not in versions):
            raise Incomplete(f"{change.key} has version {change.version} at revision {change.revision}, {expected} was expected")
        versions.pop(change.key, None)
        if change.value is not None:
            versions[change.key] = change.version
    last = {change.key: change for change in changes}
    adds_up = {key: Listed(change.value, change.revision) for key, change in last.items() if change.value is not None}
    if adds_up != listing:
        wrong = sorted(key for key in adds_up.keys() | listing.keys() if adds_up.get(key) != listing.get(key))
        raise Incomplete(f"the history does not add up to what the store lists: {', '.join(wrong[:5])}")


def _watched(endpoint: str) -> Iterator[Change]:
    """What a watch of everything from revision 1 brings, until END."""
    argv = ["timeout", f"{READ_S:.0f}", *_argv(endpoint, "watch", "/", "--prefix", "--rev", "1")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        try:
            for line in watch.stdout:
                answer = json.loads(line)
                if answer.get("CompactRevision"):
                    raise Incomplete(f"the store was compacted at revision {answer['CompactRevision']}")
                changes = list(_changes(answer.get("Events") or ()))
                yield from changes
                if any(change.key == END for change in changes):
                    return
        finally:
            watch.terminate()
    raise Incomplete(f"the watch ended without {END}")


def _changes(events: Iterable[dict[str, Any]]) -> Iterator[Change]:
    for event in events:
        kv = event["kv"]
        value = None if event.get("type") == 1 else _bytes(kv.get("value", ""))
        yield Change(kv["mod_revision"], _text(kv["key"]), value, kv.get("version", 0))


def _ctl(endpoint: str, *command: str) -> Any:  # noqa: ANN401 JSON
    done = subprocess.run(_argv(endpoint, *command), check=True, capture_output=True, text=True, timeout=READ_S)
    return json.loads(done.stdout)


def _argv(endpoint: str, *command: str) -> list[str]:
    return ["env", "ETCDCTL_API=3", "etcdctl", "--endpoints", endpoint, "-w", "json", *command]


def _bytes(encoded: str) -> bytes:
    return base64.b64decode(encoded)


def _text(encoded: str) -> str:
    return _bytes(encoded).decode()
