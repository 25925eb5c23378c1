"""One name, one file system: a node that has another one under a shared pool's name takes no part in it."""

from dataclasses import replace

import pytest

from hostler.errors import NoCapacity
from hostler.model.quantities import pool_key
from scheduler.core.decide_migration import migrate_vm
from scheduler.core.placement.policy import SPREAD
from scheduler.core.pools import fingerprint_of, is_shared
from tests.unit.scheduler.core.kept import NAS, Cluster, asked

OTHER = replace(NAS, fingerprint="fs-2", total_mib=77)
LOCAL = replace(NAS, shared=False, fingerprint="")


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.node("n1")
    return cluster


def allocatable(cluster: Cluster) -> int:
    return cluster.state.shared_pools["nas"].record.allocatable[pool_key("nas")]


@pytest.mark.parametrize("other", [OTHER, LOCAL])
def test_a_migration_to_another_file_system_is_refused(cluster: Cluster, other: object) -> None:
    """A guest that resumes where its disk is not, or where somebody else's is."""
    cluster.running("web")
    cluster.node("n2", other)  # type: ignore[arg-type]
    with pytest.raises(NoCapacity, match="n2: pool nas is another file system there"):
        migrate_vm(cluster.state, asked("move"), "web", "", "", 0, SPREAD)


def test_a_new_vm_goes_where_the_file_system_is(cluster: Cluster) -> None:
    """A VM whose disk is made on a directory that no other node sees: the first to register says what the name means."""
    cluster.node("n2", OTHER, memory_mib=9999)
    for number in range(4):
        cluster.running(f"web{number}")
    assert {kept.record.owner.node_id for kept in cluster.state.vms.values()} == {"n1"}


def test_another_file_system_adds_no_room(cluster: Cluster) -> None:
    """A pool that is promised the size of whatever was reported last."""
    cluster.node("n2", OTHER)
    assert (allocatable(cluster), fingerprint_of(cluster.state, "nas")) == (NAS.total_mib, "fs-1")
    cluster.node("n2", replace(NAS, total_mib=20_000))
    assert allocatable(cluster) == 20_000


def test_an_empty_pool_may_be_made_anew(cluster: Cluster) -> None:
    """A pool that was formatted anew and can never be used again."""
    cluster.node("n1", OTHER)
    assert fingerprint_of(cluster.state, "nas") == "fs-2"


def test_a_pool_with_volumes_stays_what_it_is(cluster: Cluster) -> None:
    """Volumes that the records call READY on a file system that never had them."""
    cluster.running("web")
    cluster.node("n1", OTHER)
    assert fingerprint_of(cluster.state, "nas") == "fs-1"


def test_a_shared_name_is_shared_whoever_registers_first(cluster: Cluster) -> None:
    """A pool that is local or shared by the order of the nodes' names."""
    cluster.node("n0", LOCAL)
    assert is_shared(cluster.state, "nas", "pool")


def test_what_other_files_take_is_not_promised(cluster: Cluster) -> None:
    """A pool whose volumes fill up and break, because images were promised a second time."""
    cluster.node("n1", replace(NAS, foreign_mib=300))
    assert allocatable(cluster) == NAS.total_mib - 300
