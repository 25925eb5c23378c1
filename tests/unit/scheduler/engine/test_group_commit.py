"""Decisions that are carried out together: as if each had been alone, in fewer transactions."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import pytest

from hostler.errors import AlreadyExists, Conflict, NoCapacity
from hostler.model.domain import ServiceClass
from hostler.model.node import NodeReport
from hostler.model.quantities import CPU_MILLI, memory_key
from scheduler.adapters.memory_store import MemoryServer, MemoryStore, no_faults
from scheduler.core.accept import Accepted
from scheduler.core.claims import audit
from scheduler.core.decide_create import create_vm
from scheduler.core.decide_nodes import register
from scheduler.core.placement.policy import SPREAD
from scheduler.core.records import FlavorRecord, flavor_key, vm_key
from scheduler.core.state import ClusterState
from scheduler.core.transaction import Transaction
from scheduler.core.view import Health
from scheduler.engine.mirror import Mirror
from scheduler.engine.writer import MAX_TRIES, Writer
from scheduler.ports import PROGRESS_INTERVAL_S, Compare, OutcomeUnknown, Put, TxnResult, Unchanged, Write
from tests.unit.scheduler.core.kept import NAS, asked, wish

SLOT_MIB = 512 + 1 + 64 + 8
"""What `wish` is charged: RAM, page tables, QEMU, a vCPU."""
PATIENCE_S = 20.0


class Store(MemoryStore):
    """Counts transactions, by how many VMs each makes; they wait for `opened`. Before one of them somebody else writes `meanwhile`; the answer of
    one is `lost`, after it was carried out (True) or not."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__(server, no_faults, PROGRESS_INTERVAL_S)
        self.decisions: list[int] = []
        self.opened = asyncio.Event()
        self.opened.set()
        self.meanwhile: list[Write] = []
        self.lost: list[bool] = []

    async def txn(self, compares: Sequence[Compare], writes: Sequence[Write]) -> TxnResult:
        self.decisions.append(len([write for write in writes if write.key.startswith(vm_key(""))]))
        await self.opened.wait()
        if self.meanwhile:
            await super().txn((), [self.meanwhile.pop()])
        if self.lost:
            if self.lost.pop():
                await super().txn(compares, writes)
            raise OutcomeUnknown
        return await super().txn(compares, writes)


@dataclass(slots=True)
class Stage:
    store: Store
    mirror: Mirror
    writer: Writer
    refused: list[str] = field(default_factory=list)

    async def node(self, node_id: str, slots: int) -> None:
        report = NodeReport(
            node_id, {CPU_MILLI: 64_000, memory_key(0): slots * SLOT_MIB}, {}, {}, {}, (NAS,), (), "TCG", "qemu", "1", "dac", 0, False, ""
        )
        await self.writer.apply(lambda state: register(state, report, "boot-1", f"{node_id}:7500")[1])
        self.mirror.state.health = {**self.mirror.state.health, node_id: Health.READY}

    async def create(self, vm_id: str) -> str:
        """The node that it was placed on; "": it was refused."""

        def decide(state: ClusterState) -> Accepted:
            return create_vm(state, asked(f"create {vm_id}"), wish(vm_id), SPREAD)

        try:
            await self.writer.accept(decide)
        except NoCapacity:
            self.refused.append(vm_id)
            return ""
        return self.mirror.state.vms[vm_id].record.owner.node_id

    async def at_once(self, *vm_ids: str) -> list[str]:
        return await asyncio.gather(*(self.create(vm_id) for vm_id in vm_ids))

    def sound(self) -> bool:
        """The sums are what they sum, and nothing is promised twice."""
        state = self.mirror.state
        found = audit(
            {node_id: kept.record for node_id, kept in state.ledgers.items()},
            (kept.record for kept in state.claims.values()),
            {pool_id: kept.record for pool_id, kept in state.shared_pools.items()},
            (kept.record for kept in state.volumes.values()),
        )
        return not found and len(state.claims) == len(state.vms)


@asynccontextmanager
async def staged() -> AsyncIterator[Stage]:
    store = Store(MemoryServer())
    mirror = Mirror(store)
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        following = group.create_task(mirror.run(), name="mirror")
        await mirror.ready.wait()
        yield Stage(store, mirror, Writer(store, mirror))
        following.cancel()


def names(count: int) -> list[str]:
    return [f"vm-{number}" for number in range(count)]


async def test_those_that_wait_are_written_together() -> None:
    """A transaction for each: the store makes three thousand of them a second, however much is in one."""
    async with staged() as stage:
        for node_id in ("n1", "n2"):
            await stage.node(node_id, 40)
        stage.store.decisions.clear()
        placed = await stage.at_once(*names(60))
        assert {*placed} == {"n1", "n2"}
        assert sum(stage.store.decisions) == len(stage.mirror.state.vms) == 60
        assert len(stage.store.decisions) < 10
        assert stage.sound()


async def test_what_one_decision_takes_the_next_does_not_have() -> None:
    """Two in one transaction that both take the last place."""
    async with staged() as stage:
        await stage.node("n1", 3)
        await stage.node("n2", 2)
        placed = await stage.at_once(*names(20))
        assert sorted(node_id for node_id in placed if node_id) == ["n1"] * 3 + ["n2"] * 2
        assert len(stage.refused) == 15
        assert stage.sound()


async def test_a_refusal_counts_only_if_what_it_rests_on_is_written() -> None:
    """Refused for want of a place that nobody has got."""
    async with staged() as stage:
        await stage.node("n1", 1)
        async with staged() as source:
            await source.node("n1", 1)
            await source.create("vm-0")
            record = await source.store.get(vm_key("vm-0"))
        assert record.item is not None
        stage.store.meanwhile = [Put(vm_key("vm-0"), record.item.value)]
        taken, placed = await asyncio.gather(stage.create("vm-0"), stage.create("vm-1"), return_exceptions=True)
        assert isinstance(taken, AlreadyExists)
        assert placed == "n1"


async def test_nothing_shows_before_it_is_written() -> None:
    """A reader who is told of a VM, or a free place, that there may never be."""
    async with staged() as stage:
        await stage.node("n1", 5)
        before = dict(stage.mirror.state.ledgers), stage.mirror.state.revision
        stage.store.opened.clear()
        creating = asyncio.ensure_future(stage.at_once(*names(5)))
        while len(stage.store.decisions) < 2:  # noqa: ASYNC110 the store has no event
            await asyncio.sleep(0)
        assert (stage.mirror.state.vms, stage.mirror.state.claims, stage.mirror.state.operations) == ({}, {}, {})
        assert (dict(stage.mirror.state.ledgers), stage.mirror.state.revision) == before
        stage.store.opened.set()
        assert await creating == ["n1"] * 5


@pytest.mark.parametrize("carried_out", [True, False])
async def test_an_answer_that_is_lost_makes_nothing_twice(carried_out: bool) -> None:
    """A VM of a whole group that is made twice, or forgotten."""
    async with staged() as stage:
        await stage.node("n1", 10)
        stage.store.lost = [carried_out]
        assert await stage.at_once(*names(6)) == ["n1"] * 6
        assert len(stage.mirror.state.vms) == 6
        assert stage.sound()


async def test_who_leaves_takes_nobody_with_him() -> None:
    """The others of a group wait for ever, because the one whose turn it was has been cancelled."""
    async with staged() as stage:
        await stage.node("n1", 10)
        stage.store.opened.clear()
        all_of_them = [asyncio.ensure_future(stage.create(vm_id)) for vm_id in names(4)]
        while len(stage.store.decisions) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        all_of_them[0].cancel()
        await asyncio.wait([all_of_them[0]])
        stage.store.opened.set()
        assert await asyncio.gather(*all_of_them[1:]) == ["n1"] * 3
        assert "vm-0" not in stage.mirror.state.vms
        assert stage.sound()


async def test_a_term_that_is_over_fails_those_alone_that_stand_on_it() -> None:
    """A step of a replica that leads no more is written; or what users ask of it is refused."""
    async with staged() as stage:
        await stage.node("n1", 5)
        over = Unchanged("/hostler/election/s1", 99)
        small = FlavorRecord("small", 1, 64, 0, ServiceClass.BURSTABLE)
        step = stage.writer.apply(lambda state: Transaction({flavor_key("small"): 0}, {flavor_key("small"): small}), (over,))
        stepped, created = await asyncio.gather(step, stage.create("vm-0"), return_exceptions=True)
        assert isinstance(stepped, Conflict)
        assert "does not lead" in stepped.message
        assert created == "n1"
        assert not stage.mirror.state.flavors


async def test_a_decision_that_never_holds_gives_up_and_holds_up_nobody() -> None:
    """One whose guard is always out of date: it would be tried for ever, and each group with it."""
    async with staged() as stage:
        await stage.node("n1", 5)
        small = FlavorRecord("small", 1, 64, 0, ServiceClass.BURSTABLE)
        never = stage.writer.apply(lambda state: Transaction({flavor_key("small"): 12345}, {flavor_key("small"): small}))
        stale, *created = await asyncio.gather(never, *(stage.create(vm_id) for vm_id in names(5)), return_exceptions=True)
        assert isinstance(stale, Conflict)
        assert created == ["n1"] * 5
        assert len(stage.store.decisions) < MAX_TRIES + 10


async def test_two_of_a_group_that_know_nothing_of_each_other_do_not_overwrite_each_other() -> None:
    """A decision on what was known before the group: what the one before it wrote is lost, and it was acknowledged."""
    async with staged() as stage:
        flavors = [FlavorRecord("small", 1, memory_mib, 0, ServiceClass.BURSTABLE) for memory_mib in (64, 128)]

        def write(flavor: FlavorRecord) -> Awaitable[bool]:
            return stage.writer.apply(lambda state: Transaction({flavor_key("small"): 0}, {flavor_key("small"): flavor}))

        first, second = await asyncio.gather(*map(write, flavors), return_exceptions=True)
        assert first is True
        assert isinstance(second, Conflict)
        assert stage.mirror.state.flavors["small"].record == flavors[0]


async def test_a_defect_of_one_decision_is_its_own() -> None:
    """Everybody who waits beside a decision that cannot be written is told of its defect, one after the other."""
    async with staged() as stage:
        await stage.node("n1", 5)
        broken = FlavorRecord("broken", 1, cast("int", object()), 0, ServiceClass.BURSTABLE)
        defect = stage.writer.apply(lambda state: Transaction({flavor_key("broken"): 0}, {flavor_key("broken"): broken}))
        *created, failed = await asyncio.gather(*map(stage.create, names(3)), defect, return_exceptions=True)
        assert isinstance(failed, TypeError)
        assert created == ["n1"] * 3
        assert stage.sound()
