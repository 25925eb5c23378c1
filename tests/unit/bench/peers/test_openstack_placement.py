"""OpenStack Placement's requests and tables, against recorded answers: rows that its API would not have written are another cluster."""

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench.placement.peers.cluster import Cluster, Host, Instance, Shape
from tests.bench.placement.peers.openstack_placement import (
    Placement,
    amounts,
    candidates_query,
    check,
    openstack_placement,
    provider,
    tables,
)
from tests.bench.placement.peers.programs import PeerMissing

A, B = Host("a", 8000, 16384, 10240), Host("b", 4000, 8192)
CLUSTER = Cluster((A, B), (Instance("v1", "a", Shape(2000, 4096, 2048)), Instance("v2", "b", Shape(1000, 1024))))
CLASSES = {"VCPU": 10, "MEMORY_MB": 20, "DISK_GB": 30}


class Recorded:
    """Answers as a service of two hosts does; keeps what it was asked."""

    def __init__(self, *candidates: str, used: int = 2) -> None:
        self.asked: list[tuple[str, str, str, dict[str, Any] | None]] = []
        self._candidates = candidates
        self._used = used

    def must(self, method: str, path: str, query: str = "", body: dict[str, Any] | None = None) -> dict[str, Any]:
        self.asked.append((method, path, query, body))
        if path == "/allocation_candidates":
            of = {"resources": {"VCPU": 2, "MEMORY_MB": 2048}}
            found = [{"allocations": {provider(one): of}, "mappings": {"": [provider(one)]}} for one in self._candidates]
            return {"allocation_requests": found, "provider_summaries": {}}
        if path.endswith("/inventories"):
            totals = {"VCPU": 8, "MEMORY_MB": 16384, "DISK_GB": 10}
            return {"inventories": {name: {"total": total, "reserved": 0, "allocation_ratio": 1.0} for name, total in totals.items()}}
        if path.endswith("/usages"):
            return {"resource_provider_generation": 1, "usages": {"VCPU": self._used, "MEMORY_MB": 4096, "DISK_GB": 2}}
        return {}


def test_a_placement_is_a_question_and_a_claim_on_the_first_candidate() -> None:
    """A claim that is not made, or on another host than is told: the cluster would not fill, and the peer would seem faster."""
    service = Recorded("b", "a")
    answer = Placement(service, CLUSTER, 1000).place(Shape(2000, 2048))
    (asked, _, query, _), (claimed, path, _, body) = service.asked
    assert body is not None
    assert (asked, query) == ("GET", "resources=VCPU:2,MEMORY_MB:2048&limit=1000")
    assert (claimed, path.rpartition("/")[0]) == ("PUT", "/allocations")
    assert body["allocations"] == {provider("b"): {"resources": {"VCPU": 2, "MEMORY_MB": 2048}}}
    assert body["consumer_generation"] is None, "the consumer is a new one"
    assert answer.host_id == "b"
    assert answer.took_s == pytest.approx(answer.parts_s["query"] + answer.parts_s["claim"])


def test_no_candidates_are_a_refusal() -> None:
    """A full cluster that looks like a broken peer, or like a placement."""
    service = Recorded()
    answer = Placement(service, CLUSTER, 1000).place(Shape(2000, 2048))
    assert (answer.host_id, answer.why, list(answer.parts_s)) == (None, "no candidates", ["query"])
    assert len(service.asked) == 1


def test_what_a_round_claimed_is_given_back_once() -> None:
    """The second round would begin with a fuller cluster."""
    service = Recorded("a")
    placement = Placement(service, CLUSTER, 1000)
    for _ in range(2):
        placement.place(Shape(2000, 2048))
    claimed = [path for method, path, _, _ in service.asked if method == "PUT"]
    for _ in range(2):
        placement.undo()
    assert [path for method, path, _, _ in service.asked if method == "DELETE"] == claimed
    assert len(set(claimed)) == 2


def test_the_tables_hold_what_requests_would_have_written() -> None:
    """Room that is taken, and is free for Placement; or a host that takes a VM larger than itself."""
    rows = tables(CLUSTER, CLASSES)
    assert [(one["id"], one["root_provider_id"], one["name"]) for one in rows["ResourceProvider"]] == [(1, 1, "a"), (2, 2, "b")]
    have = [(one["resource_provider_id"], one["resource_class_id"], one["total"], one["max_unit"]) for one in rows["Inventory"]]
    assert have == [(1, 10, 8, 8), (1, 20, 16384, 16384), (1, 30, 10, 10), (2, 10, 4, 4), (2, 20, 8192, 8192)]
    assert {(one["allocation_ratio"], one["reserved"]) for one in rows["Inventory"]} == {(1.0, 0)}
    used = [(one["resource_provider_id"], one["resource_class_id"], one["used"]) for one in rows["Allocation"]]
    assert used == [(1, 10, 2), (1, 20, 4096), (1, 30, 2), (2, 10, 1), (2, 20, 1024)]
    assert {one["consumer_id"] for one in rows["Allocation"]} == {one["uuid"] for one in rows["Consumer"]}
    assert len(rows["Consumer"]) == 2


def test_what_is_not_taken_is_not_asked_for() -> None:
    """A class that no host has would leave no candidates."""
    assert candidates_query(Shape(1000, 512), 5) == "resources=VCPU:1,MEMORY_MB:512&limit=5"
    assert amounts(Shape(1000, 512, 3072)) == {"VCPU": 1, "MEMORY_MB": 512, "DISK_GB": 3}


def test_what_placement_cannot_count_is_refused() -> None:
    """Rounded, it would be another cluster."""
    with pytest.raises(ValueError, match="1500 millicores"):
        amounts(Shape(1500, 512))
    with pytest.raises(ValueError, match="1000 MiB of disk"):
        amounts(Shape(1000, 512, 1000))


def test_the_service_is_asked_whether_it_knows_the_cluster() -> None:
    """Tables of another version, into which rows go that its API does not see."""
    check(Recorded(), A, Shape(6000, 12288, 8192))
    with pytest.raises(RuntimeError, match="the service says"):
        check(Recorded(used=0), A, Shape(6000, 12288, 8192))


def test_an_absent_service_is_told(tmp_path: Path) -> None:
    """A comparison from which Placement has vanished. The tests' Python stands for one without it."""
    with pytest.raises(PeerMissing, match=r"pip install openstack-placement==16\.0\.0"):
        openstack_placement(tmp_path / "none", CLUSTER)
    with pytest.raises(PeerMissing, match=r"has no .*: make a venv and pip install openstack-placement==16\.0\.0"):
        openstack_placement(Path(sys.executable), CLUSTER)
