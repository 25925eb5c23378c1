"""Ganeti's formats and answers: a cluster that its programs read differently, or an error taken for a refusal, makes the comparison worthless."""

import json
from pathlib import Path

import pytest

from tests.bench.placement.peers import ganeti
from tests.bench.placement.peers.cluster import Answer, Cluster, Host, Instance, Shape
from tests.bench.placement.peers.programs import PeerFailed, PeerMissing

CLUSTER = Cluster(
    hosts=(Host("a", 8000, 16384, 102400), Host("b", 4000, 8192)),
    instances=(
        Instance("v1", "a", Shape(2000, 4096, 10240)),
        Instance("v2", "a", Shape(1000, 1024)),
        Instance("v3", "b", Shape(1000, 1024)),
    ),
)
SHAPE = Shape(2000, 2048, 1024)
TEXT = """\
default|00000000-0000-4000-8000-000000000000|preferred||

a|16385|0|11265|102400|92160|8|N|00000000-0000-4000-8000-000000000000|1||N|0|0
b|8193|0|7169|0|0|4|N|00000000-0000-4000-8000-000000000000|1||N|0|0

v1|4096|10240|2|running|Y|a||rbd||1
v2|1024|0|1|running|Y|a||rbd||1
v3|1024|0|1|running|Y|b||rbd||1


|1,1,1,1,1,1|0,0,0,0,0,0;1073741824,1073741824,1073741824,1073741824,1073741824,1073741824|rbd|1.0|1000.0
default|1,1,1,1,1,1|0,0,0,0,0,0;1073741824,1073741824,1073741824,1073741824,1073741824,1073741824|rbd|1.0|1000.0
"""
"""hspace 3.0.2 reads this and finds that 8 more of 1 CPU and 1 GiB fit: 5 on a, 3 on b."""

PLACED = (
    '{"success":true,"info":"Request successful: Selected group: default, Group default (preferred): score: 0.26873665, '
    'successes 2, failures 0 () for node(s) b","result":["b"]}\n'
)
FULL = (
    '{"success":false,"info":"Request failed: Group default (preferred): No valid allocation solutions, '
    'failure reasons: FailCPU: 2","result":[]}\n'
)
SPACE = "HTS_TRL_INST_CNT=6\nHTS_TSPEC='64,0,5,1=1 64,0,3,1=1'\nHTS_ALLOC_INSTANCES=8\nHTS_ALLOC_FAIL_REASON=FAILCPU\nHTS_OK=1\n"


def program(path: Path, output: str) -> Path:
    """Answers as recorded, and keeps the words it was called with."""
    path.with_suffix(".out").write_text(output)
    path.write_text(f'#!/bin/sh\necho "$@" >{path}.words\ncat {path.with_suffix(".out")}\n')
    path.chmod(0o755)
    return path


def words(path: Path) -> list[str]:
    return Path(f"{path}.words").read_text().split()


# ---- what they read


def test_the_text_is_what_hspace_reads() -> None:
    """A field in another place: what is free on a host, or its last CPU, would be another number."""
    assert ganeti.cluster_text(CLUSTER) == TEXT


def test_an_empty_cluster_keeps_its_sections() -> None:
    """The format counts its empty lines."""
    assert ganeti.cluster_text(Cluster(CLUSTER.hosts)).count("\n\n") == 3
    assert ganeti.cluster_text(Cluster(CLUSTER.hosts)).split("\n\n\n")[1].startswith("\n|1,1")


def test_the_request_is_what_hail_reads() -> None:
    """A cluster without what runs there, or with more room than ours: hail would be measured on another problem."""
    request = json.loads(ganeti.request_text(CLUSTER, SHAPE))
    a, b = request["nodes"]["a"], request["nodes"]["b"]
    assert (a["total_cpus"], a["total_memory"], a["free_memory"], a["total_disk"], a["free_disk"]) == (8, 16385, 11265, 102400, 92160)
    assert (b["total_cpus"], b["total_memory"], b["free_memory"]) == (4, 8193, 7169)
    assert {node["reserved_cpus"] for node in (a, b)} == {node["reserved_memory"] for node in (a, b)} == {0}
    assert {node["group"] for node in (a, b)} == set(request["nodegroups"])
    assert request["nodegroups"][ganeti.GROUP_ID]["ipolicy"]["vcpu-ratio"] == 1.0
    assert {name: (one["nodes"], one["vcpus"], one["memory"]) for name, one in request["instances"].items()} == {
        "v1": (["a"], 2, 4096),
        "v2": (["a"], 1, 1024),
        "v3": (["b"], 1, 1024),
    }
    asked = request["request"]
    assert (asked["type"], asked["required_nodes"], asked["vcpus"], asked["memory"]) == ("allocate", 1, 2, 2048)
    assert (asked["disk_template"], asked["disk_space_total"], asked["disks"]) == ("rbd", 1024, [{"size": 1024}])
    assert asked["name"] not in request["instances"]


def test_what_ganeti_cannot_be_told_is_refused() -> None:
    """Half a CPU that becomes none, or a name that is two fields."""
    with pytest.raises(ValueError, match="500 millicores"):
        ganeti.request_text(CLUSTER, Shape(500, 1))
    with pytest.raises(ValueError, match="500 millicores"):
        ganeti.cluster_text(Cluster((Host("a", 4500, 1),)))
    with pytest.raises(ValueError, match=r"a\|b"):
        ganeti.cluster_text(Cluster((Host("a|b", 4000, 1),)))


# ---- what they answer


def test_the_chosen_node_is_read() -> None:
    """The node in the result, not a word of the text."""
    assert ganeti.answer_of(PLACED.replace('["b"]', '["c"]')) == ("c", "")


def test_a_refusal_is_an_answer() -> None:
    """A full cluster that looks like a broken peer."""
    host_id, why = ganeti.answer_of(FULL)
    assert host_id is None
    assert why.endswith("FailCPU: 2")


@pytest.mark.parametrize(
    "answer",
    [
        '{"success":false,"info":"Request failed: Unknown node a","result":[]}',
        '{"success":true,"info":"Request successful","result":["a","b"]}',
        '{"success":true,"info":"Request successful","result":[]}',
        '{"success":true}',
        "[]",
        "",
    ],
)
def test_an_error_is_no_refusal(answer: str) -> None:
    """A request that hail cannot read is answered fast, and would be its best figure."""
    with pytest.raises(PeerFailed, match="hail answered"):
        ganeti.answer_of(answer)


def test_what_fits_is_that_of_one_size() -> None:
    """The count of the other pass, or of all instances."""
    assert ganeti.space_of(SPACE) == (8, "FAILCPU")


def test_an_output_that_breaks_off_is_no_count() -> None:
    """A killed hspace has printed its counts of before."""
    with pytest.raises(PeerFailed, match="broke off"):
        ganeti.space_of(SPACE.replace("HTS_OK=1\n", ""))


# ---- the programs


@pytest.mark.parametrize("checked", [True, False])
def test_the_guarantee_is_asked_for_or_not(tmp_path: Path, checked: bool) -> None:
    """The price of the guarantee would be the ratio of two equal times."""
    hail, hspace = program(tmp_path / "hail", PLACED), program(tmp_path / "hspace", SPACE)
    answer = ganeti.hail(tmp_path / "request", checked=checked, timeout_s=30.0, program=hail)
    assert answer == Answer("b", answer.took_s, cpu_s=answer.cpu_s)
    assert answer.took_s > 0
    assert answer.cpu_s is not None
    space = ganeti.hspace(tmp_path / "data", CLUSTER, Shape(1000, 1024), checked=checked, timeout_s=30.0, program=hspace)
    assert (space.fits, space.why) == (8, "FAILCPU")
    assert ("--no-capacity-checks" in words(hail)) is ("--no-capacity-checks" in words(hspace)) is not checked
    assert words(hail)[-1] == str(tmp_path / "request")


def test_hspace_is_asked_for_the_shape_and_for_little_else(tmp_path: Path) -> None:
    """Disk, memory, CPU in this order; and the pass that it makes anyway takes a host in one step."""
    hspace = program(tmp_path / "hspace", SPACE)
    ganeti.hspace(tmp_path / "data", CLUSTER, Shape(1000, 2048, 512), checked=False, timeout_s=30.0, program=hspace)
    told = words(hspace)
    assert told[told.index("-t") + 1] == str(tmp_path / "data")
    assert told[told.index("--standard-alloc") + 1] == "512,2048,1"
    assert told[told.index("--tiered-alloc") + 1] == "0,64,5"


def test_absent_programs_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison from which Ganeti has vanished."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(ganeti, "FOLDERS", ())
    with pytest.raises(PeerMissing, match="hail is not installed: apt-get install ganeti-htools"):
        ganeti.hail(tmp_path / "request", checked=False, timeout_s=1.0)
    with pytest.raises(PeerMissing, match="hspace is not installed: apt-get install ganeti-htools"):
        ganeti.hspace(tmp_path / "data", CLUSTER, SHAPE, checked=False, timeout_s=1.0)
