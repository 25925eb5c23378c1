"""The scan that is the unit of bar 1, on a stand-in for numpy: a unit that decides wrongly, or not one after the other, is no unit."""

import random
import sys
from pathlib import Path

import pytest

from tests.bench.placement.peers.cluster import Cluster, Host, Instance, Shape, free
from tests.bench.placement.peers.numpy_scan import WAYS, NumpyScan, numpy_scan
from tests.bench.placement.peers.programs import PeerMissing
from tests.unit.bench.peers import stand_in_numpy


@pytest.fixture(autouse=True)
def numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", stand_in_numpy)


def some_cluster(seed: int) -> Cluster:
    dice = random.Random(seed)
    hosts = tuple(Host(f"h{number}", dice.choice([8000, 16000]), dice.choice([16384, 65536])) for number in range(12))
    running = tuple(
        Instance(f"v{host.id}", host.id, Shape(dice.randrange(1000, 8000, 1000), dice.randrange(1024, 16384))) for host in hosts
    )
    return Cluster(hosts, running)


def placed(scan: NumpyScan, shapes: list[Shape]) -> list[str | None]:
    return [scan.place(shape).host_id for shape in shapes]


def expected(cluster: Cluster, shapes: list[Shape]) -> list[str | None]:
    """The same rule without arrays."""
    left, whole = free(cluster), {host.id: host for host in cluster.hosts}
    found: list[str | None] = []
    for shape in shapes:
        fit = [name for name, one in left.items() if one.cpu_milli >= shape.cpu_milli and one.memory_mib >= shape.memory_mib]
        shares = {name: left[name].cpu_milli / whole[name].cpu_milli + left[name].memory_mib / whole[name].memory_mib for name in fit}
        best = min(shares, key=lambda name: round(shares[name], 9), default=None)
        found.append(best)
        if best is not None:
            left[best] = Shape(left[best].cpu_milli - shape.cpu_milli, left[best].memory_mib - shape.memory_mib)
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", range(5))
def test_the_fullest_host_that_fits_is_taken_and_is_fuller_then(way: str, seed: int) -> None:
    """A scan that does not apply its decisions, looks at one resource, or overfills a host is faster than one that does."""
    cluster, dice = some_cluster(seed), random.Random(seed + 100)
    shapes = [Shape(dice.randrange(1000, 5000, 1000), dice.randrange(512, 12288)) for _ in range(60)]
    found = placed(NumpyScan(cluster, way), shapes)
    assert found == expected(cluster, shapes)
    assert None in found
    assert len(set(found)) > 5


@pytest.mark.parametrize("way", WAYS)
def test_a_host_is_filled_to_the_last_and_no_further(way: str) -> None:
    """A limit that is off by one."""
    scan = NumpyScan(Cluster((Host("a", 4000, 4096),)), way)
    assert placed(scan, [Shape(4001, 1), Shape(1, 4097), Shape(4000, 4096), Shape(1, 0)]) == [None, None, "a", None]


@pytest.mark.parametrize("way", WAYS)
def test_a_round_is_taken_back(way: str) -> None:
    """The second round, or the third, would be of a fuller cluster."""
    scan, shapes = NumpyScan(some_cluster(1), way), [Shape(1000, 1024)] * 9
    first = placed(scan, shapes)
    for _ in range(2):
        scan.undo()
        assert placed(scan, shapes) == first
    assert len(set(first)) > 1


def test_an_unknown_way_is_refused() -> None:
    """A misspelt one would be another figure."""
    with pytest.raises(ValueError, match="'fast' is none of"):
        NumpyScan(some_cluster(1), "fast")


def test_an_absent_numpy_is_told(tmp_path: Path) -> None:
    """A comparison without its unit."""
    with pytest.raises(PeerMissing, match="pip install numpy"):
        numpy_scan(tmp_path / "none", some_cluster(1))
