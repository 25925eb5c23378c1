"""What a real migration left in etcd, as a small file: every change of a VM's owner record and of its operations' phases, in the store's order.

Read from etcd's own history, key by key backwards (a value at a revision tells the revision before it), over etcd's JSON gateway; nothing of
Hostler's own codec is imported. Names, ids and epochs stay as they were on the hosts; whoever compares gives them other names.
"""

import base64
import json
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

STATE = "/hostler/state/"
TIMEOUT_S = 5.0
"""For one read on loopback, with an election of etcd in it."""

MAX_VERSIONS = 500
"""Of one key: a migration writes about ten; more is another VM's life, or a loop."""


@dataclass(frozen=True, slots=True)
class OwnerSeen:
    """The owner record."""

    state: str
    node: str
    epoch: int
    operation: str
    destination: str


@dataclass(frozen=True, slots=True)
class PhaseSeen:
    """One operation: `state` is RUNNING until it has ended."""

    phase: str
    state: str
    cancelled: bool


@dataclass(frozen=True, slots=True)
class Seen:
    """The owner and the operations after one of the store's revisions that changed any of them."""

    revision: int
    owner: OwnerSeen
    operations: Mapping[str, PhaseSeen]


@dataclass(frozen=True, slots=True)
class Recording:
    """`what` was done to it, in words. The first of `seen` is how things were before the first operation was accepted."""

    what: str
    vm: str
    seen: tuple[Seen, ...]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def load(path: Path) -> Recording:
    """Raises KeyError, TypeError for a file that is no recording."""
    raw = json.loads(path.read_text())
    seen = tuple(
        Seen(one["revision"], OwnerSeen(**one["owner"]), {name: PhaseSeen(**phase) for name, phase in one["operations"].items()})
        for one in raw["seen"]
    )
    return Recording(raw["what"], raw["vm"], seen)


def record(urls: Sequence[str], vm_id: str, operation_ids: Sequence[str], what: str) -> Recording:
    """Take it from etcd now, before it is compacted. Raises OSError (nobody answers, or the history is gone), LookupError (no such VM)."""
    owners = versions(urls, f"{STATE}vm/{vm_id}")
    if not owners:
        raise LookupError(vm_id)
    phases = {operation_id: versions(urls, f"{STATE}op/{operation_id}") for operation_id in operation_ids}
    first = min(min(history) for history in phases.values())
    changed = sorted({r for history in phases.values() for r in history} | {r for r in owners if r >= first})
    seen = [Seen(first - 1, _owner(_at(owners, first - 1)), {})]
    for revision in changed:
        operations = {name: _phase(_at(history, revision)) for name, history in phases.items() if min(history) <= revision}
        now = Seen(revision, _owner(_at(owners, revision)), operations)
        if (now.owner, now.operations) != (seen[-1].owner, seen[-1].operations):
            seen.append(now)
    return Recording(what, vm_id, tuple(seen))


def versions(urls: Sequence[str], key: str) -> dict[int, dict[str, Any]]:
    """Every value that the key has had since it was made, by the store's revision. Raises OSError if the oldest of them are gone."""
    found: dict[int, dict[str, Any]] = {}
    revision = 0
    for _ in range(MAX_VERSIONS):
        pairs = _ask(urls, {"key": base64.b64encode(key.encode()).decode(), "revision": str(revision)}).get("kvs", [])
        if not pairs:
            return found
        pair = pairs[0]
        written = int(pair["mod_revision"])
        found[written] = json.loads(base64.b64decode(pair["value"]))
        if written == int(pair["create_revision"]):
            return found
        revision = written - 1
    raise OSError(f"{key} has more than {MAX_VERSIONS} versions")


def _ask(urls: Sequence[str], body: Mapping[str, str]) -> dict[str, Any]:
    refusal: OSError = OSError("no member of etcd was named")
    for url in urls:
        request = urllib.request.Request(f"{url}/v3/kv/range", json.dumps(body).encode())
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
                answer: dict[str, Any] = json.load(reply)
                return answer
        except OSError as error:
            refusal = error
    raise refusal


def _at(history: Mapping[int, dict[str, Any]], revision: int) -> dict[str, Any]:
    return history[max(written for written in history if written <= revision)]


def _owner(vm: Mapping[str, Any]) -> OwnerSeen:
    owner = vm["owner"]
    return OwnerSeen(owner["state"], owner["node_id"], owner["epoch"], owner.get("operation_id", ""), owner.get("destination_node_id", ""))


def _phase(operation: Mapping[str, Any]) -> PhaseSeen:
    return PhaseSeen(operation["phase"], operation["state"], operation.get("cancel_requested", False))
