"""Memory by cell: what is promised of a cell must be there, and what is there must be on offer."""

from hypothesis import given
from hypothesis import strategies as st

from nodeagent.core.memory_cells import cells_mib

CELLS = st.dictionaries(st.integers(0, 7), st.tuples(st.integers(0, 1 << 26), st.integers(0, 1 << 26)), max_size=8)


@given(host=st.integers(0, 1 << 28), cells=CELLS)
def test_the_sum_is_never_above_the_hosts_and_no_cell_above_what_is_present(host: int, cells: dict[int, tuple[int, int]]) -> None:
    """Memory promised that is not there."""
    managed = {cell: kib for cell, (kib, _) in cells.items()}
    present = {cell: kib + more for cell, (kib, more) in cells.items()}
    found = cells_mib(host, managed, present)
    assert sum(found.values()) * 1024 <= host
    assert set(found) == set(managed or {0: 0})
    if len(cells) > 1:
        assert all(0 <= mib * 1024 <= present[cell] for cell, mib in found.items())
        if sum(managed.values()) <= host <= sum(present.values()):
            assert host - sum(found.values()) * 1024 < 1024 * len(cells), "memory that is there and is not on offer"


def test_the_only_cell_has_what_the_host_has() -> None:
    """A host of 24,105 MiB that offers 9,178: the kernel had not handed the rest to its allocator yet."""
    assert cells_mib(24_684_084, {0: 9_398_476}, {0: 25_165_432}) == {0: 24_105}


def test_what_was_handed_over_late_is_counted_where_it_is() -> None:
    """Half of a host's second cell that nobody can use."""
    assert cells_mib(12 << 20, {0: 4 << 20, 1: 4 << 20}, {0: 4 << 20, 1: 8 << 20}) == {0: 4096, 1: 8192}


def test_a_cell_is_not_given_more_than_it_has_for_certain() -> None:
    """A kernel that does not say what is present."""
    assert cells_mib(12 << 20, {0: 4 << 20, 1: 4 << 20}, {}) == {0: 4096, 1: 4096}
    assert cells_mib(4 << 20, {0: 4 << 20, 1: 4 << 20}, {}) == {0: 2048, 1: 2048}
