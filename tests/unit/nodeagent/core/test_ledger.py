"""The host's own account: never promised above what is allocatable, whatever is measured and whoever asks."""

from hypothesis import given
from hypothesis import strategies as st

from hostler.errors import Reason
from hostler.model.cost import charge
from hostler.model.domain import DomainSpec, ServiceClass
from hostler.model.quantities import CPU_MILLI, Quantities, at_least_zero, memory_key, minus, plus, pool_key
from nodeagent.core.ledger import MEMORY_RESERVE_FLOOR_MIB, Account, CapacityCap, account, misfit, no_room
from nodeagent.core.observed import DomainView, HostTotals, PoolView, Power

CELLS = st.dictionaries(st.integers(0, 3), st.integers(0, 8192), min_size=1, max_size=4)
CAPS = st.builds(CapacityCap, st.integers(0, 20_000), st.integers(0, 20_000))
STRANGERS = st.lists(
    st.builds(lambda v, m: DomainView("x", "x", Power.RUNNING, None, v, m), st.integers(0, 8), st.integers(0, 2048)), max_size=4
)
POOLS = (PoolView("local", False, "f1", 1000, 10, True, {}), PoolView("nas", True, "f2", 9000, 10, True, {}))
CHARGES = st.lists(
    st.dictionaries(st.sampled_from([CPU_MILLI, memory_key(0), memory_key(1), pool_key("local")]), st.integers(0, 3000)), max_size=12
)


def totals(cpu_milli: int, cells: dict[int, int]) -> HostTotals:
    return HostTotals("boot", cpu_milli, cells, ())


def spec(charged: Quantities) -> DomainSpec:
    return DomainSpec("uid", "web-1", 1, 0, 64, ServiceClass.BURSTABLE, charged=charged)


@given(cpu=st.integers(0, 16_000), cells=CELLS, cap=CAPS, reserve=st.integers(0, 4096), strangers=STRANGERS, wishes=CHARGES)
def test_what_is_promised_is_never_above_what_is_allocatable(
    cpu: int, cells: dict[int, int], cap: CapacityCap, reserve: int, strangers: list[DomainView], wishes: list[dict[str, int]]
) -> None:
    """Capacity promised twice: each wish is taken as `misfit` says, one after the other."""
    taken: list[Quantities] = []
    for wish in wishes:
        now = account(totals(cpu, cells), POOLS, cap, reserve, strangers, taken)
        if not misfit(now, spec(wish)):
            taken.append(wish)
    now = account(totals(cpu, cells), POOLS, cap, reserve, strangers, taken)
    assert all(amount <= now.allocatable.get(key, 0) for key, amount in now.claimed.items())


@given(cpu=st.integers(0, 16_000), cells=CELLS, cap=CAPS, reserve=st.integers(0, 4096), strangers=STRANGERS)
def test_a_cap_never_raises_and_never_offers_more_than_it_says(
    cpu: int, cells: dict[int, int], cap: CapacityCap, reserve: int, strangers: list[DomainView]
) -> None:
    """A cap above what there is that invents capacity, or one that is not kept."""
    free = account(totals(cpu, cells), POOLS, CapacityCap(), reserve, strangers, []).allocatable
    capped = account(totals(cpu, cells), POOLS, cap, reserve, strangers, []).allocatable
    assert all(amount <= free.get(key, 0) for key, amount in capped.items())
    memory_mib = sum(amount for key, amount in capped.items() if key.startswith("memory_mib/"))
    assert memory_mib <= (cap.memory_mib or memory_mib)
    assert capped.get(CPU_MILLI, 0) <= (cap.cpu_milli or cpu)


@given(cells=CELLS, cap=CAPS, reserve=st.integers(0, 4096))
def test_nothing_reserved_is_more_than_what_is_there(cells: dict[int, int], cap: CapacityCap, reserve: int) -> None:
    """A reserve that spills into a cell that does not have it: columns that do not add up for whoever reads them."""
    now = account(totals(4000, cells), POOLS, cap, reserve, [], [])
    assert all(0 < amount <= now.total.get(key, 0) for key, amount in now.reserved.items())
    assert plus(now.allocatable, now.reserved) == now.total


def test_the_columns_of_an_ordinary_host() -> None:
    """A host's figures: reserve out of cell 0, the cap from the highest cell down, strangers at their full size, shared pools nobody's."""
    stranger = DomainView("x", "x", Power.RUNNING, None, 2, 512)
    now = account(totals(8000, {0: 4096, 1: 4096}), POOLS, CapacityCap(6000, 6000), 512, [stranger], [{memory_key(0): 100}])
    assert now.total == {CPU_MILLI: 8000, memory_key(0): 4096, memory_key(1): 4096, pool_key("local"): 1000}
    assert now.reserved == {CPU_MILLI: 2000, memory_key(0): 512, memory_key(1): 8192 - 512 - 6000}
    assert now.unmanaged == {CPU_MILLI: 2000, memory_key(0): 512}
    assert now.allocatable == at_least_zero(minus(minus(now.total, now.reserved), now.unmanaged))
    assert now.free == {CPU_MILLI: 4000, memory_key(0): 4096 - 512 - 512 - 100, memory_key(1): 2416, pool_key("local"): 1000}


def test_the_reserve_has_a_floor() -> None:
    """A host that gives its last MiB away and is killed by its own kernel."""
    now = account(totals(1000, {0: 1024}), (), CapacityCap(), 0, [], [])
    assert now.allocatable[memory_key(0)] == 1024 - MEMORY_RESERVE_FLOOR_MIB


def test_one_mib_decides() -> None:
    """A limit that is off by one."""
    now = Account({memory_key(0): 1000}, {}, {}, {memory_key(0): 400})
    assert misfit(now, spec({memory_key(0): 600})) == ()
    (short,) = misfit(now, spec({memory_key(0): 601}))
    assert (short.key, short.needed, short.free, short.missing) == (memory_key(0), 601, 600, 1)


def test_the_refusal_names_every_quantity_and_by_how_much() -> None:
    """A "no" without its figures."""
    now = Account({memory_key(0): 100, CPU_MILLI: 100}, {}, {}, {})
    error = no_room("n1", "web-1", misfit(now, spec(charge(2, 500, 256))))
    assert error.reason is Reason.NODE_CAPACITY_EXCEEDED
    assert "cpu short by 400 milli-CPU (needs 500, free 100), memory short by 237 MiB (needs 337, free 100)" in error.message
    assert [(one.field, one.description) for one in error.violations] == [
        ("nodes/n1", "cpu short by 400 milli-CPU (needs 500, free 100)"),
        ("nodes/n1", "memory short by 237 MiB (needs 337, free 100)"),
    ]


@given(capacity=st.integers(0, 5000), foreign=st.integers(0, 6000), wishes=st.lists(st.integers(0, 3000), max_size=8))
def test_claims_and_what_is_not_ours_fit_into_the_file_system(capacity: int, foreign: int, wishes: list[int]) -> None:
    """A volume that was promised and finds its space taken by images."""
    pools = (
        PoolView("local", False, "f1", capacity, 0, True, {}, min(foreign, capacity)),
        PoolView("nas", True, "f2", 9000, 0, True, {}, 77),
    )
    taken: list[Quantities] = []
    for wish in wishes:
        charged = {pool_key("local"): wish}
        if not misfit(account(totals(1000, {0: 1024}), pools, CapacityCap(), 0, [], taken), spec(charged)):
            taken.append(charged)
    assert sum(charged[pool_key("local")] for charged in taken) + min(foreign, capacity) <= capacity
    assert pool_key("nas") not in account(totals(1000, {0: 1024}), pools, CapacityCap(), 0, [], taken).unmanaged
