"""Whether a history of the store ever broke the promise of capacity: counted anew at every revision, from the claims themselves.

Nothing of Hostler's is imported: keys and values are taken apart here, as an operator with etcdctl would. A ledger is believed in nothing but what it
says is allocatable, and in that only up to what the hosts were built with.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import groupby
from typing import Any

from tests.contention.history import Change

STATE = "/hostler/state/"
ENDED = frozenset({"SUCCEEDED", "FAILED", "CANCELLED"})

Record = Mapping[str, Any]
Offers = Mapping[str, Mapping[str, int]]


class Rule(StrEnum):
    """What must be so. The first ones at every revision, the others when all is over."""

    FITS = "the claims of a node fit into what it can give"
    LEDGER_IS_SUM = "a ledger says what its claims sum to"
    CLAIM_IN_PLACE = "a claim is kept under its own node and VM"
    CLAIM_HAS_VM = "a claim has its VM"
    VM_HAS_CLAIM = "a VM is claimed on the node that owns it"
    ONE_RUN_CLAIM = "a VM runs on one node's account"
    EPOCH_GROWS = "an owner's epoch never goes back"
    ONE_CLAIM = "a VM that rests has one claim"
    VOLUME_HAS_VM = "a volume that was made with a VM goes with it"
    OPERATION_ENDED = "every operation ends"
    FAILURE_EXPLAINED = "what failed says why"


@dataclass(frozen=True, slots=True)
class Breach:
    """A rule that was broken, and since which revision."""

    revision: int
    rule: Rule
    story: str

    def __str__(self) -> str:
        return f"revision {self.revision}: not so that {self.rule}: {self.story}"


@dataclass(slots=True)
class Records:
    """The records of one revision, by kind and by name (`claim` -> `n1/web-1`)."""

    revision: int = 0
    kinds: dict[str, dict[str, Record]] = field(default_factory=lambda: defaultdict(dict))

    def take(self, change: Change) -> None:
        self.revision = change.revision
        kind, _, name = change.key.removeprefix(STATE).partition("/")
        if not change.key.startswith(STATE) or not name:
            return
        if change.value is None:
            self.kinds[kind].pop(name, None)
        else:
            self.kinds[kind][name] = json.loads(change.value)

    def of(self, kind: str) -> Mapping[str, Record]:
        return self.kinds[kind]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a history holds: its breaches, how many revisions were looked at, and the records at its end."""

    breaches: tuple[Breach, ...]
    revisions: int
    last: Records


def judge(history: Iterable[Change], offers: Offers) -> Verdict:
    """Look at every revision. `offers`: what each node was built to give, by quantity. A breach that lasts is told once."""
    records, epochs = Records(), _Epochs()
    breaches: list[Breach] = []
    standing: set[tuple[Rule, str]] = set()
    revisions = 0
    for _, changes in groupby(history, key=lambda change: change.revision):
        for change in changes:
            records.take(change)
        revisions += 1
        found = {(rule, story): None for rule, story in (*_now(records, offers), *epochs.gone_back(records))}
        breaches += [Breach(records.revision, *one) for one in found if one not in standing]
        standing = set(found)
    return Verdict(tuple(breaches), revisions, records)


def at_rest(records: Records) -> tuple[Breach, ...]:
    """What must be so besides when nothing is under way any more."""
    return tuple(Breach(records.revision, rule, story) for rule, story in _left(records))


Finding = tuple[Rule, str]


def _now(records: Records, offers: Offers) -> Iterator[Finding]:
    yield from _nodes(records, offers)
    yield from _pools(records)
    yield from _claims(records)


def _nodes(records: Records, offers: Offers) -> Iterator[Finding]:
    sums: dict[str, Counter[str]] = defaultdict(Counter)
    for key, claim in records.of("claim").items():
        sums[key.partition("/")[0]].update(claim["charged"])
    for volume in records.of("volume").values():
        if volume["node_id"] and volume["charged_mib"]:
            sums[volume["node_id"]][f"pool_mib/{volume['pool_id']}"] += volume["charged_mib"]
    ledgers = records.of("ledger")
    for node in sorted(sums.keys() | ledgers.keys()):
        yield from _account(f"node {node}", sums[node], ledgers.get(node, {}))
        for quantity, amount in sorted(sums[node].items()):
            if amount > offers.get(node, {}).get(quantity, 0):
                yield Rule.FITS, f"node {node} was built with {offers.get(node, {}).get(quantity, 0)} {quantity}, claimed is {amount}"


def _pools(records: Records) -> Iterator[Finding]:
    sums: dict[str, Counter[str]] = defaultdict(Counter)
    for volume in records.of("volume").values():
        if not volume["node_id"] and volume["charged_mib"]:
            sums[volume["pool_id"]][f"pool_mib/{volume['pool_id']}"] += volume["charged_mib"]
    ledgers = records.of("pool")
    for pool in sorted(sums.keys() | ledgers.keys()):
        yield from _account(f"pool {pool}", sums[pool], ledgers.get(pool, {}))


def _account(whose: str, sums: Mapping[str, int], ledger: Record) -> Iterator[Finding]:
    """What is claimed, against its ledger; no ledger has nothing to give."""
    claimed, allocatable = ledger.get("claimed", {}), ledger.get("allocatable", {})
    for quantity in sorted(sums.keys() | claimed.keys()):
        amount = sums.get(quantity, 0)
        if amount > allocatable.get(quantity, 0):
            yield Rule.FITS, f"{whose} can give {allocatable.get(quantity, 0)} {quantity}, claimed is {amount}"
        if amount != claimed.get(quantity, 0):
            yield Rule.LEDGER_IS_SUM, f"{whose}: the ledger says {claimed.get(quantity, 0)} {quantity}, the claims {amount}"


def _claims(records: Records) -> Iterator[Finding]:
    vms, running = records.of("vm"), Counter[str]()
    for key, claim in records.of("claim").items():
        if key != f"{claim['node_id']}/{claim['vm_id']}":
            yield Rule.CLAIM_IN_PLACE, f"{key} is about {claim['vm_id']} on {claim['node_id']}"
        if vms.get(claim["vm_id"], {}).get("uid") != claim["vm_uid"]:
            yield Rule.CLAIM_HAS_VM, f"{key} is of {claim['vm_uid']}, which is no VM"
        running[claim["vm_id"]] += claim["kind"] == "RUN"
    for vm_id, count in sorted(running.items()):
        if count > 1:
            yield Rule.ONE_RUN_CLAIM, f"{vm_id} has {count}"
    for vm_id, vm in vms.items():
        if f"{vm['owner']['node_id']}/{vm_id}" not in records.of("claim"):
            yield Rule.VM_HAS_CLAIM, f"{vm_id} has none on {vm['owner']['node_id']}"


class _Epochs:
    """The highest epoch of each VM so far, by its uid: a VM of the same name that was made later is another one."""

    def __init__(self) -> None:
        self._highest: dict[str, int] = {}

    def gone_back(self, records: Records) -> Iterator[Finding]:
        for vm_id, vm in records.of("vm").items():
            epoch, highest = vm["owner"]["epoch"], self._highest.get(vm["uid"], 0)
            if epoch < highest:
                yield Rule.EPOCH_GROWS, f"{vm_id} is at {epoch} after {highest}"
            self._highest[vm["uid"]] = max(epoch, highest)


def _left(records: Records) -> Iterator[Finding]:
    vms = records.of("vm")
    claims = Counter(claim["vm_id"] for claim in records.of("claim").values())
    for vm_id in vms:
        if claims[vm_id] != 1:
            yield Rule.ONE_CLAIM, f"{vm_id} has {claims[vm_id]}"
    for volume_id, volume in records.of("volume").items():
        if volume_id not in vms.get(volume["vm_id"], {}).get("own_volumes", ()):
            yield Rule.VOLUME_HAS_VM, f"{volume_id} is of {volume['vm_id'] or 'nobody'}"
    for operation_id, operation in records.of("op").items():
        if operation["state"] not in ENDED:
            yield Rule.OPERATION_ENDED, f"{operation_id} ({operation['verb']} {operation['target_id']}) is in {operation['phase']}"
        elif operation["state"] != "SUCCEEDED" and not (operation["error"] or {}).get("reason"):
            yield Rule.FAILURE_EXPLAINED, f"{operation_id} ({operation['verb']} {operation['target_id']}) does not"
