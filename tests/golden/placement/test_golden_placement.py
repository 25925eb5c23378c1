"""Decisions as text: each folder is a small cluster, a request, and what must come out, word for word.

A changed weight, rule or sentence shows as a diff to be reviewed. `HOSTLER_UPDATE_GOLDEN=1` writes the answers anew, for reading with git diff.
The forms (a line is: kind, then key=value or words):
  cluster   node n1 cpu_milli=CLAIMED/ALLOCATABLE memory_mib/0=... pool_mib/local=... [state= health= networks=a,b acceleration= reason=a_b]
            pool NODE POOL local|shared [fingerprint=] [images=a,b]        shared POOL CLAIMED/ALLOCATABLE
  request   vm NAME vcpus= memory_mib= class= [cpu_floor_milli= purpose= only= acceleration=] · seed N · network NAME · image POOL IMAGE ·
            new_local POOL MIB · new_shared POOL MIB · existing_shared POOL FINGERPRINT · local_volume VOLUME POOL NODE ·
            exclude NODE why ... · stored KEY=AMOUNT ...
"""

import difflib
import os
from pathlib import Path

import pytest

from hostler.model.domain import ServiceClass
from scheduler.core.placement.cluster import ClusterView
from scheduler.core.placement.explain import explain
from scheduler.core.placement.fleet import Fleet
from scheduler.core.placement.place import NoFit, Placement, place
from scheduler.core.placement.policy import SPREAD
from scheduler.core.placement.request import LocalVolume, PlacementRequest, Purpose
from scheduler.core.placement.sift import refusals
from scheduler.core.records import LedgerRecord, NodePool, NodeRecord, NodeState
from scheduler.core.view import Health, NodeView, PoolView

HERE = Path(__file__).parent
CASES = sorted(path.parent.name for path in HERE.glob("*/request"))
UPDATE = "HOSTLER_UPDATE_GOLDEN"


def lines(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]


def pairs(words: list[str], known: set[str] | None = None) -> dict[str, str]:
    found = dict(word.split("=", 1) for word in words)
    assert known is None or found.keys() <= known, f"unknown: {sorted(found.keys() - known)}"
    return found


def listed(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def ledger(amounts: dict[str, str]) -> LedgerRecord:
    split = {key: tuple(map(int, amount.split("/"))) for key, amount in amounts.items()}
    return LedgerRecord({key: of for key, (_, of) in split.items() if of}, {key: claimed for key, (claimed, _) in split.items() if claimed})


def read_cluster(path: Path) -> ClusterView:
    nodes: dict[str, dict[str, str]] = {}
    pools: dict[str, list[NodePool]] = {}
    shared: dict[str, PoolView] = {}
    for number, (kind, name, *words) in enumerate(lines(path), 1):
        match kind:
            case "node":
                nodes[name] = {"revision": str(100 + number)} | pairs(words)
            case "pool":
                pool_id, reach, *more = words
                told = pairs(more, {"fingerprint", "images"})
                images = dict.fromkeys(listed(told.get("images", "")), 1)
                pools.setdefault(name, []).append(NodePool(pool_id, reach == "shared", told.get("fingerprint", ""), 0, True, images))
            case "shared":
                shared[name] = PoolView(name, ledger({f"pool_mib/{name}": words[0]}), 100 + number)
            case _:
                raise ValueError(f"{path}: {kind}?")
    assert pools.keys() <= nodes.keys(), f"{path}: a pool of no node"
    return ClusterView(200, Fleet(node_view(name, told, tuple(pools.get(name, ()))) for name, told in nodes.items()), shared)


def node_view(name: str, told: dict[str, str], pools: tuple[NodePool, ...]) -> NodeView:
    account = ledger({key: amount for key, amount in told.items() if key == "cpu_milli" or "/" in key})
    words = {key: word for key, word in told.items() if key != "cpu_milli" and "/" not in key}
    pairs([f"{key}={word}" for key, word in words.items()], {"revision", "state", "health", "networks", "acceleration", "reason"})
    record = NodeRecord(
        name,
        NodeState(words.get("state", "ACTIVE")),
        f"boot-{name}",
        1,
        "",
        account.allocatable,
        {},
        {},
        pools,
        listed(words.get("networks", "")),
        words.get("acceleration", "KVM"),
        reason=words.get("reason", "").replace("_", " "),
    )
    return NodeView(record, account, int(words["revision"]), Health(words.get("health", "READY")))


def read_request(path: Path) -> tuple[PlacementRequest, int]:
    told = lines(path)

    def every(kind: str) -> list[list[str]]:
        return [words for first, *words in told if first == kind]

    known = {"vm", "seed", "network", "image", "new_local", "new_shared", "existing_shared", "local_volume", "exclude", "stored"}
    assert {first for first, *_ in told} <= known, f"{path}: only {sorted(known)}"
    [[vm_id, *words]] = every("vm")
    vm = pairs(words, {"vcpus", "memory_mib", "class", "cpu_floor_milli", "purpose", "only", "acceleration"})
    request = PlacementRequest(
        vm_id=vm_id,
        vcpus=int(vm["vcpus"]),
        memory_mib=int(vm["memory_mib"]),
        service_class=ServiceClass(vm.get("class", "BURSTABLE")),
        cpu_floor_milli=int(vm.get("cpu_floor_milli", "0")),
        purpose=Purpose(vm.get("purpose", "CREATE")),
        local_mib={pool: int(mib) for pool, mib in every("new_local")},
        shared_mib={pool: int(mib) for pool, mib in every("new_shared")},
        fingerprints={pool: fingerprint for pool, fingerprint in every("existing_shared")},
        local_volumes=tuple(LocalVolume(*words) for words in every("local_volume")),
        images=tuple((pool, image) for pool, image in every("image")),
        networks=tuple(name for [name] in every("network")),
        only_node_id=vm.get("only", ""),
        excluded={node: " ".join(why) for node, *why in every("exclude")},
        acceleration=vm.get("acceleration", ""),
        stored_charge={key: int(amount) for words in every("stored") for key, amount in pairs(words).items()},
    )
    return request, int(every("seed")[0][0]) if every("seed") else 1


def rendered(view: ClusterView, request: PlacementRequest, answer: Placement | NoFit) -> str:
    match answer:
        case Placement():
            told = [f"placed {answer.node_id} cell={answer.cell} incarnation={answer.incarnation} ledger_revision={answer.ledger_revision}"]
            told += [f"charge {key}={amount}" for key, amount in answer.charged.items()]
            for pool_id, charged in answer.shared_charged.items():
                told += [f"charge shared {key}={amount} pool_revision={answer.pool_revisions[pool_id]}" for key, amount in charged.items()]
            for rank in answer.ranking:
                told.append(f"ranked {rank.node_id} total={rank.total} ({', '.join(f'{name} {score}' for name, score in rank.scores)})")
            for refusal in refusals(view.nodes, request, SPREAD):
                told += [f"rejected {one.node_id} {one.rule}: {one.detail}" for one in refusal.rejects]
        case NoFit():
            why = explain(request, answer)
            told = [f"no fit: {why.sentence}"]
            told += [f"rejected {one.node_id} {one.rule}: {one.sentence}" for one in why.violations]
            told += [f"fix: {why.fix}"] if why.fix else []
    return "\n".join(told) + "\n"


@pytest.mark.parametrize("case", CASES)
def test_the_decision_is_as_reviewed(case: str) -> None:
    """A decision, or the words that explain it, would change unseen."""
    folder = HERE / case
    request, seed = read_request(folder / "request")
    view = read_cluster(folder / "cluster")
    actual = rendered(view, request, place(view, request, SPREAD, seed))
    expect = folder / "expect"
    if os.environ.get(UPDATE) == "1":
        expect.write_text(actual)
    expected = expect.read_text()
    diff = "".join(difflib.unified_diff(expected.splitlines(True), actual.splitlines(True), f"{case}/expect", "decided now"))
    assert actual == expected, f"{(folder / 'README').read_text()}\n{diff}\n{UPDATE}=1 writes what is decided now."


def test_every_case_is_whole() -> None:
    """A folder without its story or its question would be skipped in silence."""
    folders = [path for path in HERE.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert [path.name for path in folders if {"README", "cluster", "request", "expect"} - {file.name for file in path.iterdir()}] == []
    assert len(CASES) >= 12
