"""One seed: a cluster lives through its operations and faults, then everything works again, and then there must be nothing that has not ended.

The same seed does the same, step by step: what decides (times, faults, requests, ids) comes from generators made of the seed, and the digest of all
transactions, decisions and faults says whether two runs were one.
"""

import asyncio
import gc
import json
import traceback
from collections import Counter
from collections.abc import Callable, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from random import Random
from typing import Any

import structlog

from hostler.model.owner import OwnerState
from nodeagent.adapters.sim_world import SimTimes
from scheduler.core.records import STATE, Observed
from tests.simulate.check import Checker
from tests.simulate.cluster import NODES, REPLICAS, CheckedWorld, SimCluster, SimStoreServer, transports
from tests.simulate.faults import Faults
from tests.simulate.loop import Stuck, VirtualLoop
from tests.simulate.net import Network
from tests.simulate.workload import Workload

OPERATIONS = 200
FAULTS = 5
"""A seed has at least as many of both."""

USERS = 5
BETWEEN_FAULTS_S = 7.0
READY_S = 30.0
WORK_LIMIT_S = 7200.0
END_LIMIT_S = 1800.0
"""Once nothing fails any more every operation ends within it: a migration of a VM whose copies failed is held back for ten minutes at most, and
others may wait for it."""

SETTLE_S = 30.0
"""Reports come every two seconds, and are taken one by one."""

COLLECT_EVERY = 8
"""Seeds between two collections; one leaves some 20 MiB of cycles."""

Mutation = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a seed. `violation` is empty if every promise was kept."""

    seed: int
    violation: str
    digest: str
    hit: Counter[str]
    operations: int
    faults: int
    virtual_s: float
    story: tuple[str, ...]


def run_seed(seed: int, *, story: bool = False, mutation: Mutation = nullcontext, aim: str = "", operations: int = OPERATIONS) -> Run:
    """Live through one seed; `aim` is the kind of fault to have more of."""
    gc.disable()
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    try:
        loop.set_exception_handler(_quiet)
        return loop.run_until_complete(_Life(seed, loop, story, operations, aim).live(mutation))
    finally:
        asyncio.set_event_loop(None)
        loop.close()
        if seed % COLLECT_EVERY == 0:
            gc.collect()


def _quiet(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    """What ends with a killed daemon is nobody's to see."""


class _Life:
    def __init__(self, seed: int, loop: VirtualLoop, story: bool, operations: int, aim: str) -> None:
        self._seed, self._loop, self._operations, self._aim = seed, loop, operations, aim
        self._story = story
        self._faults = 0

    async def live(self, mutation: Mutation) -> Run:
        seed, loop = self._seed, self._loop
        random = Random(f"{seed} world")
        checker = self.checker = Checker(loop.time, story=self._story)
        network = Network(loop, Random(f"{seed} network"), checker.hit, checker.tell, broke=self._broke)
        if self._story:
            network.note = checker.note
        times = SimTimes(
            call_s=random.choice((0.0, 0.0, 0.0, 0.004)),
            shutdown_s=random.choice((0.5, 2.0, 4.0)),
            reply_timeout_s=random.choice((1.0, 8.0)),
        )
        world = CheckedWorld(loop, checker, times)
        store = SimStoreServer(loop, checker)
        lockless = random.random() < 0.25
        self.cluster = SimCluster(loop, Random(f"{seed} cluster"), checker, network, world, store, lockless)
        network.hold = self.cluster.held
        checker.cluster = self.cluster
        workload = Workload(self.cluster, checker, Random(f"{seed} workload"), self._operations)
        with self._logs(), transports(network, checker), mutation():
            async with world:
                self.cluster.build()
                try:
                    working = loop.create_task(self._work(workload), name="work")
                    await asyncio.wait({working, checker.failed}, return_when=asyncio.FIRST_COMPLETED)
                    if working.done():
                        self._outcome(working)
                    else:
                        working.cancel()
                        await asyncio.wait([working])
                except Stuck as stuck:
                    checker.broken(str(stuck))
                finally:
                    virtual_s = loop.now_s
                    checker.cluster = None
                    await self.cluster.end()
        return Run(
            seed, checker.violation, checker.digest(), checker.hit, len(workload.accepted), self._faults, virtual_s, tuple(checker.story)
        )

    def _outcome(self, working: "asyncio.Task[None]") -> None:
        error = working.exception()
        if error is not None:
            self.checker.broken("the simulation broke: " + "".join(traceback.format_exception(error)))

    def _broke(self, where: str, error: BaseException) -> None:
        self.checker.hit[f"incident {where.partition(' ')[2]} {error!r:.60}"] += 1
        self.checker.broken(f"an incident in {where}: " + "".join(traceback.format_exception(error)))

    def _logs(self) -> AbstractContextManager[object]:
        if not self._story:
            return nullcontext()

        def into_story(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
            what = event.pop("event")
            error = event.pop("exc_info", None)
            more = "".join(traceback.format_exception(error)) if isinstance(error, BaseException) else ""
            self.checker.note(f"  log: {what} {event} {more}")
            raise structlog.DropEvent

        structlog.configure(processors=[structlog.contextvars.merge_contextvars, into_story], cache_logger_on_first_use=False)
        return nullcontext()

    # ---- the course of it

    async def _work(self, workload: Workload) -> None:
        for name in (*REPLICAS, *NODES):
            self.cluster.start(name)
        await self._until(lambda: len(self.checker.state.nodes) == len(NODES), READY_S, "the nodes do not register")
        async with asyncio.TaskGroup() as group:
            faults = Faults(self.cluster, Random(f"{self._seed} faults"), group, self._aim)
            striking = group.create_task(self._strike(faults), name="faults")
            async with asyncio.timeout(WORK_LIMIT_S), asyncio.TaskGroup() as users:
                for number in range(USERS):
                    users.create_task(
                        workload.user(f"user-{number}", lambda: workload.enough and faults.count >= FAULTS), name=f"user-{number}"
                    )
            striking.cancel()
            self._faults = faults.count
            self.checker.tell("everything works from now on")
            await faults.heal()
            self.checker.tell("healed")
        await self._all_ended(workload)

    async def _strike(self, faults: Faults) -> None:
        random = Random(f"{self._seed} when")
        while True:
            await asyncio.sleep(random.expovariate(1 / BETWEEN_FAULTS_S))
            faults.strike()

    async def _all_ended(self, workload: Workload) -> None:
        checker = self.checker
        await self._until(lambda: not checker.undone(), END_LIMIT_S, lambda: f"limbo: {self._undone()}")
        await workload.repeat_everything()
        await self._until(lambda: not self._untrue(), SETTLE_S, lambda: f"the records are not true: {self._untrue()}")
        await workload.clean_up(END_LIMIT_S)
        await self._until(lambda: not self._left_over(), SETTLE_S, lambda: f"left over: {self._left_over()}")

    async def _until(self, so: Callable[[], bool], limit_s: float, otherwise: Callable[[], str] | str) -> None:
        end_s = self._loop.now_s + limit_s
        while not so():
            if self._loop.now_s >= end_s:
                self.checker.broken(otherwise if isinstance(otherwise, str) else otherwise())
                await asyncio.Event().wait()
            await asyncio.sleep(0.5)

    def _undone(self) -> list[str]:
        return [f"{one.operation_id} {one.verb.value} {one.target_id} in {one.phase}: {one.reason}" for one in self.checker.undone()]

    def _untrue(self) -> list[str]:
        """What the records say that is not so: a VM called running that does not execute there, or one that executes and is not called so."""
        found = []
        for vm_id, kept in self.checker.state.vms.items():
            executing = [process.node_id for process in self.cluster.world.copies(kept.record.uid) if process.executing]
            running = kept.record.observed is Observed.RUNNING and kept.record.owner.state is OwnerState.RUNNING
            if executing != ([kept.record.owner.node_id] if running else []):
                found.append(f"{vm_id} is {kept.record.observed.value} on {kept.record.owner.node_id} and executes on {executing}")
        return found

    def _left_over(self) -> list[str]:
        """What should be gone, straight from the store, the hosts, the file systems and the agents' files."""
        found = []
        for item in self.cluster.store.keyspace().list(STATE, 0):
            kind, _, _name = item.key.removeprefix(STATE).partition("/")
            value = json.loads(item.value or b"{}")
            if kind in ("vm", "claim", "volume", "owed"):
                found.append(item.key)
            if kind in ("ledger", "pool") and any(value["claimed"].values()):
                found.append(f"{item.key} claims {value['claimed']}")
        for node_id, host in self.cluster.world.hosts.items():
            found += [f"{node_id} has domain {uid}" for uid in host.domains]
            for pool_id, pool in host.pools.items():
                found += [f"{node_id} {pool_id} has {path}" for path in pool.files if path.startswith("volumes/")]
            for kind, files in self.cluster.files[node_id].items():
                if kind == "gone":
                    continue  # to refuse what comes late: bounded, and charged to nobody
                for key, raw in files.items():
                    if json.loads(raw).get("stage") not in ("FINISHED", "ABORTED"):
                        found.append(f"{node_id} keeps {kind}/{key}")
        found += [f"process {p.pid} of {p.vm_uid} on {p.node_id}" for p in self.cluster.world.processes.values()]
        return found
