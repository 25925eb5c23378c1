"""What this host may promise, and whether one more VM fits: the host's own check, made whoever asks.

allocatable = total - reserved - unmanaged. `reserved` is the host's reserve and whatever the `[capacity]` cap takes away; `unmanaged` is what
domains that we did not make have, and of a local pool the space that files take which are no volumes. Invariant: the
charges of all definitions, incoming ones included, are never above allocatable when a definition is added.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hostler.errors import NoCapacity, Reason, Violation
from hostler.model.domain import DomainSpec
from hostler.model.quantities import (
    CPU_MILLI,
    Quantities,
    Shortfall,
    amount_short,
    at_least_zero,
    memory_key,
    minus,
    plus,
    pool_key,
    shortfalls,
    total,
)
from nodeagent.core.observed import DomainView, HostTotals, PoolView

MEMORY_RESERVE_FLOOR_MIB = 256
"""Less than this is never left to the host: kernel, libvirtd, the agent itself."""


@dataclass(frozen=True, slots=True)
class CapacityCap:
    """`[capacity]` of the settings: at most this much is offered, 0: no cap. Never raises what the host has."""

    cpu_milli: int = 0
    memory_mib: int = 0


@dataclass(frozen=True, slots=True)
class Account:
    """The host's account; `claimed` is the sum of the definitions' charges."""

    total: Quantities
    reserved: Quantities
    unmanaged: Quantities
    claimed: Quantities

    @property
    def allocatable(self) -> Quantities:
        return at_least_zero(minus(minus(self.total, self.reserved), self.unmanaged))

    @property
    def free(self) -> Quantities:
        return at_least_zero(minus(self.allocatable, self.claimed))


def account(
    totals: HostTotals,
    pools: Iterable[PoolView],
    cap: CapacityCap,
    reserve_mib: int,
    strangers: Iterable[DomainView],
    charges: Iterable[Quantities],
) -> Account:
    """The account from what was measured (`totals`, `pools`, `strangers`: domains that are not ours) and what was promised (`charges`)."""
    what = {CPU_MILLI: totals.cpu_milli} | {memory_key(cell): mib for cell, mib in sorted(totals.memory_mib_by_cell.items())}
    pools = tuple(pools)
    local = {pool_key(pool.pool_id): pool.total_mib for pool in pools if not pool.shared}
    return Account(
        total=plus(what, local),
        reserved=_reserved(totals, cap, max(reserve_mib, MEMORY_RESERVE_FLOOR_MIB)),
        unmanaged=plus(total(_stranger_cost(domain) for domain in strangers), foreign_storage(pools)),
        claimed=total(charges),
    )


def foreign_storage(pools: Iterable[PoolView]) -> Quantities:
    """What of the local pools is taken by files that are no volumes, so that no claim can have it."""
    return {pool_key(pool.pool_id): pool.foreign_mib for pool in pools if not pool.shared and pool.foreign_mib}


def misfit(accounts: Account, spec: DomainSpec) -> tuple[Shortfall, ...]:
    """What of the VM's charge is more than what is free; empty means that it fits."""
    return shortfalls(spec.charged, accounts.free)


def no_room(node_id: str, vm_id: str, short: Iterable[Shortfall]) -> NoCapacity:
    """The refusal, with the figures."""
    short = tuple(short)
    detail = ", ".join(amount_short(s) for s in short)
    return NoCapacity(
        Reason.NODE_CAPACITY_EXCEEDED,
        f"{node_id} cannot take {vm_id}: {detail}.",
        "Choose a smaller size, or free capacity on this node.",
        violations=tuple(Violation(f"nodes/{node_id}", amount_short(s)) for s in short),
    )


def _reserved(totals: HostTotals, cap: CapacityCap, reserve_mib: int) -> Mapping[str, int]:
    """The host's reserve comes out of cell 0; a cap takes the rest away, from the highest cell down."""
    cells = dict(totals.memory_mib_by_cell)
    reserved = {memory_key(0): min(reserve_mib, cells.get(0, 0))}
    offered = sum(cells.values()) - reserved[memory_key(0)]
    over = max(0, offered - cap.memory_mib) if cap.memory_mib else 0
    for cell in sorted(cells, reverse=True):
        taken = min(over, cells[cell] - reserved.get(memory_key(cell), 0))
        reserved[memory_key(cell)] = reserved.get(memory_key(cell), 0) + taken
        over -= taken
    if cap.cpu_milli:
        reserved[CPU_MILLI] = max(0, totals.cpu_milli - cap.cpu_milli)
    return {key: amount for key, amount in reserved.items() if amount}


def _stranger_cost(domain: DomainView) -> Quantities:
    """A domain that we did not make is taken at its full size: nothing is known of its promises."""
    return {CPU_MILLI: 1000 * domain.vcpus, memory_key(0): domain.memory_mib}
