"""How large a new volume is: what was asked for, or its image's size, and charged as large as it is."""

import pytest

from hostler.errors import InvalidRequest
from hostler.model.quantities import pool_key
from hostler.model.wishes import DEFAULT_VOLUME_MIB, NewDisk
from scheduler.core.decide_create import create_vm
from scheduler.core.decide_volumes import create_volume
from scheduler.core.placement.policy import SPREAD
from tests.unit.scheduler.core.kept import Cluster, asked, wish


@pytest.fixture
def cluster() -> Cluster:
    """Its image `guest` is of 300 MiB."""
    cluster = Cluster()
    cluster.node("n1")
    return cluster


def wished(size_mib: int, image: str) -> NewDisk:
    return NewDisk("nas", size_mib, image, "uid-disk")


def claimed(cluster: Cluster) -> int:
    return cluster.state.shared_pools["nas"].record.claimed.get(pool_key("nas"), 0)


@pytest.mark.parametrize(
    ("size_mib", "image", "expected_mib"),
    [(0, "", DEFAULT_VOLUME_MIB), (0, "guest", 300), (300, "guest", 300), (400, "guest", 400), (5, "", 5)],
)
def test_a_volume_is_charged_as_large_as_it_will_be(cluster: Cluster, size_mib: int, image: str, expected_mib: int) -> None:
    """A copy of a large image that is charged as a small volume, or refused because nobody gave it a size."""
    cluster.accept(create_vm(cluster.state, asked("vm"), wish("web", disk=wished(size_mib, image)), SPREAD))
    assert (cluster.state.volumes["web-disk0"].record.size_mib, claimed(cluster)) == (expected_mib, expected_mib)
    cluster.accept(create_volume(cluster.state, asked("volume"), "data", "uid-data", "nas", "", size_mib, image))
    assert (cluster.state.volumes["data"].record.size_mib, claimed(cluster)) == (expected_mib, 2 * expected_mib)


def test_a_volume_smaller_than_its_image_is_refused_at_once(cluster: Cluster) -> None:
    """A create that is accepted and fails later on its node, for a size that was wrong from the start."""
    with pytest.raises(InvalidRequest) as refused:
        create_vm(cluster.state, asked("vm"), wish("web", disk=wished(299, "guest")), SPREAD)
    assert refused.value.violations[0].field == "vm.disks[0].new_volume.size_mib"
    with pytest.raises(InvalidRequest, match="image guest needs 300 MiB"):
        create_volume(cluster.state, asked("volume"), "data", "uid-data", "nas", "", 299, "guest")
