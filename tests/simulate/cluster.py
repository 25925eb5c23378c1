"""A whole cluster on a virtual loop: the daemons' own composition roots, with a network, store, disks and hosts that fail as they are told to.

Nothing of the daemons is copied: `scheduler.app.run` and `nodeagent.app.run` are called as by their `__main__`, with other transports in the place of
gRPC's (`net`), a store that can fail or freeze, state files that survive a kill, and simulated hosts. A daemon that is killed does nothing
outward any more: what it has in hand ends at its next step.
"""

import asyncio
import functools
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from typing import Any, cast
from unittest import mock
from uuid import UUID

from hostler.server import channels
from hostler.server.identity import Principal, PrincipalKind
from hostler.server.startup import Shutdown
from hostler.server.tls import ServerTls
from nodeagent import app as agent_app
from nodeagent.adapters.sim_host_facts import SimHostFacts
from nodeagent.adapters.sim_hypervisor import SimHypervisor
from nodeagent.adapters.sim_migration import MigrationFault
from nodeagent.adapters.sim_process import SimProcess
from nodeagent.adapters.sim_storage import SimFileSystem
from nodeagent.adapters.sim_tunnel import SimTunnel
from nodeagent.adapters.sim_volumes import SimVolumes
from nodeagent.adapters.sim_world import SimTimes, SimWorld
from nodeagent.core.ledger import CapacityCap
from nodeagent.core.outgoing import Act, next_act
from nodeagent.engine import outgoing
from nodeagent.engine.vms import Offer
from nodeagent.ports import LiveMigration
from scheduler import app as scheduler_app
from scheduler.adapters.memory_keyspace import Keyspace
from scheduler.adapters.memory_store import RENEWALS_PER_TTL, Fault, MemoryServer, MemoryStore
from scheduler.engine import mirror
from scheduler.ports import (
    Compare,
    Got,
    Lease,
    LeaseLost,
    Listing,
    OutcomeUnknown,
    StoreStatus,
    StoreUnavailable,
    TxnResult,
    WatchBatch,
    Write,
)
from tests.simulate.check import Checker
from tests.simulate.loop import BEGIN, LoopClock, VirtualLoop
from tests.simulate.net import Network, SimChannel, SimServer, SimTls

CLUSTER = "sim"
NODES = ("n1", "n2", "n3")
REPLICAS = ("s1", "s2")
PORT = 7443
HOST_CPU_MILLI, HOST_MEMORY_MIB, RESERVE_MIB = 6000, 3072, 512
POOL_MIB = 100_000
CERTIFICATE = timedelta(days=365)
"""Valid for the whole run: nothing here renews one."""

RESTART_S = 0.3
"""A service manager's pause before it starts a daemon that ended."""


class SeededIds:
    """UUIDs of one seed, never the same twice, also over restarts."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def uuid(self) -> str:
        return str(UUID(int=self._random.getrandbits(128), version=4))


@dataclass(slots=True)
class Blow:
    """Kill a daemon at its n-th outward step from now, before it or after it."""

    left: int
    after: bool
    fall: Callable[[str], None]


@dataclass(slots=True, eq=False)
class Process:
    """One life of a daemon. `held`: it is stopped by a signal until the event is set. `slow`: its disk."""

    name: str
    task: "asyncio.Task[None] | None" = None
    server: SimServer | None = None
    dead: bool = False
    held: asyncio.Event | None = None
    watch_held: asyncio.Event | None = None
    blow: Blow | None = None
    store_fault: Callable[[str], Fault | None] | None = None
    wall_ahead_s: float = 0.0

    async def before(self, what: str) -> None:
        """Each outward step begins here. Raises CancelledError if the daemon is dead, or dies of it."""
        if self.held is not None:
            await self.held.wait()
        self.alive()
        self._strike(what, after=False)

    async def after(self, what: str) -> None:
        if self.held is not None:
            await self.held.wait()
        self.alive()
        self._strike(what, after=True)

    def alive(self) -> None:
        if self.dead:
            raise asyncio.CancelledError

    def _strike(self, what: str, *, after: bool) -> None:
        blow = self.blow
        if blow is None or blow.after is not after:
            return
        blow.left -= 1
        if blow.left <= 0:
            self.blow = None
            blow.fall(f"{'after' if after else 'before'} it {what}")
            self.alive()


class CheckedKeyspace(Keyspace):
    """Every revision goes by the checker."""

    def __init__(self, checker: Checker) -> None:
        super().__init__()
        self._checker = checker

    def _append(self, writes: Sequence[Write]) -> None:
        before = self.revision
        super()._append(writes)
        if self.revision > before:
            self._checker.committed(self.revision, self._log[-1])


class SimStoreServer(MemoryServer):
    """The store of the cluster. `frozen`: nothing is answered until it is set."""

    def __init__(self, loop: VirtualLoop, checker: Checker) -> None:
        super().__init__(LoopClock(loop))
        self._keyspace = CheckedKeyspace(checker)
        self._loop = loop
        self.frozen: asyncio.Event | None = None

    async def wait(self, prefix: str, seen_revision: int, limit_s: float) -> None:
        """As its base does, with a timer of the loop in the place of two tasks: each watcher calls it after every revision that it is told of."""
        keyspace = self.keyspace()
        if keyspace.revision > seen_revision:
            return
        woken = self._loop.create_future()
        expiry_s = keyspace.next_expiry_s()
        tick_s = limit_s if expiry_s is None else min(limit_s, expiry_s - self._loop.now_s)
        timer = self._loop.call_later(max(tick_s, 0.0), lambda: None if woken.done() else woken.set_result(None))
        self._waiting[woken] = prefix
        try:
            await woken
        finally:
            timer.cancel()
            self._waiting.pop(woken, None)


class SimStore:
    """One replica's connection to it: each call takes a moment, and may go wrong as its process and the store do."""

    def __init__(self, server: SimStoreServer, process: Process, random: Random, checker: Checker) -> None:
        self._server, self._process, self._random, self._checker = server, process, random, checker
        self._inner: MemoryStore = server.connect(faults=self._fault)

    def _fault(self, call: str) -> Fault | None:
        fault = self._process.store_fault(call) if self._process.store_fault is not None else None
        if fault is not None:
            self._checker.hit[f"fault store {fault.value}"] += 1
            self._checker.note(f"{self._process.name}: store {call} {fault.value}")
        return fault

    async def _before(self, what: str) -> None:
        await self._process.before(what)
        await asyncio.sleep(0.0003 + 0.001 * self._random.random())
        if self._server.frozen is not None:
            await self._server.frozen.wait()
        if self._process.held is not None:
            await self._process.held.wait()
        self._process.alive()

    async def get(self, key: str) -> Got:
        await self._before("reads")
        got = await self._inner.get(key)
        self._process.alive()
        return got

    async def list(self, prefix: str, *, revision: int = 0) -> Listing:
        await self._before("lists")
        return await self._inner.list(prefix, revision=revision)

    async def txn(self, compares: Sequence[Compare], writes: Sequence[Write]) -> TxnResult:
        await self._before("writes")
        result = await self._inner.txn(compares, writes)
        await self._process.after("writes")
        return result

    async def watch(self, prefix: str, from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        async with aclosing(self._inner.watch(prefix, from_revision)) as batches:
            async for batch in batches:
                if self._process.watch_held is not None:
                    await self._process.watch_held.wait()
                if self._process.held is not None:
                    await self._process.held.wait()
                self._process.alive()
                yield batch

    async def grant(self, ttl_s: int) -> Lease:
        await self._before("takes a lease")
        lease = await self._inner.grant(ttl_s)
        return SimLease(lease, self._server, self._inner, self._process, ttl_s)

    async def status(self) -> StoreStatus:
        await self._before("asks")
        return await self._inner.status()

    async def close(self) -> None:
        await self._inner.close()


class SimLease:
    """A dead process neither renews nor gives up; one that is stopped renews late, and learns of the loss when it wakes, not before."""

    def __init__(self, lease: Lease, server: SimStoreServer, inner: MemoryStore, process: Process, ttl_s: int) -> None:
        self._lease, self._server, self._inner, self._process, self._ttl_s = lease, server, inner, process, ttl_s
        self._ends_s = asyncio.get_running_loop().time() + ttl_s

    @property
    def lease_id(self) -> int:
        return self._lease.lease_id

    async def keep_alive(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._ttl_s / RENEWALS_PER_TTL)
            if self._process.held is not None:
                await self._process.held.wait()
            sent_s = loop.time()
            if sent_s >= self._ends_s:
                raise LeaseLost("not renewed before its local deadline")
            if self._server.frozen is not None:
                continue
            try:
                known = await self._inner.renew(self.lease_id)
            except (StoreUnavailable, OutcomeUnknown):
                continue
            if not known:
                raise LeaseLost("the store does not know the lease any more")
            self._ends_s = sent_s + self._ttl_s

    async def revoke(self) -> bool:
        self._process.alive()
        return await self._lease.revoke()


class SimFiles:
    """An agent's state files: a save is atomic, and is there or not when the agent is killed during it."""

    def __init__(self, files: dict[str, dict[str, bytes]], process: Process, random: Random) -> None:
        self._files, self._process, self._random = files, process, random

    def load(self, kind: str) -> Mapping[str, bytes]:
        return dict(self._files.get(kind, {}))

    async def save(self, kind: str, key: str, value: bytes) -> None:
        await self._process.before(f"saves {kind}")
        await asyncio.sleep(0.0005 + 0.002 * self._random.random())
        self._process.alive()
        self._files.setdefault(kind, {})[key] = value
        await self._process.after(f"saves {kind}")

    async def remove(self, kind: str, key: str) -> None:
        await self._process.before(f"removes {kind}")
        self._process.alive()
        self._files.get(kind, {}).pop(key, None)
        await self._process.after(f"removes {kind}")


class SimAgentHypervisor(SimHypervisor):
    """A killed agent commands nothing any more; each command is a moment at which it may be killed."""

    def __init__(self, world: SimWorld, node_id: str, process: Process, checker: Checker) -> None:
        super().__init__(world, node_id)
        self._process, self._name, self._checker = process, node_id, checker

    async def create_paused(self, *args: Any) -> Any:  # noqa: ANN401 as its base
        return await self._step("creates", super().create_paused(*args))

    async def resume(self, vm_uid: str) -> None:
        await self._step("resumes", super().resume(vm_uid))

    async def press_power_button(self, vm_uid: str) -> None:
        self._checker.ends(self._name, vm_uid, "presses the power button of")
        await super().press_power_button(vm_uid)

    async def destroy(self, vm_uid: str) -> None:
        self._checker.ends(self._name, vm_uid, "destroys")
        await self._step("destroys", super().destroy(vm_uid))

    async def kill(self, vm_uid: str) -> None:
        self._checker.ends(self._name, vm_uid, "kills")
        await self._step("kills", super().kill(vm_uid))

    async def locks(self, disk_paths: tuple[str, ...]) -> Any:  # noqa: ANN401 as its base
        return await self._step("inspects", super().locks(disk_paths))

    async def migrate(self, migration: LiveMigration) -> None:
        await self._step("migrates", super().migrate(migration))

    def thaw(self, vm_uid: str) -> bool:
        self._process.alive()
        return super().thaw(vm_uid)

    def freeze(self, vm_uid: str) -> bool:
        self._process.alive()
        return super().freeze(vm_uid)

    async def _step(self, what: str, work: Any) -> Any:  # noqa: ANN401 any answer
        try:
            await self._process.before(what)
        except BaseException:
            work.close()
            raise
        answer = await work
        await self._process.after(what)
        return answer


class _Violations(list[str]):
    def __init__(self, checker: Checker) -> None:
        super().__init__()
        self._checker = checker

    def append(self, what: str) -> None:
        super().append(what)
        self._checker.broken(what)


class CheckedWorld(SimWorld):
    """Every copy that begins to execute goes by the checker."""

    def __init__(self, loop: VirtualLoop, checker: Checker, times: SimTimes) -> None:
        super().__init__(LoopClock(loop), times)
        self._checker = checker
        self.violations = _Violations(checker)

    def _note_execution(self, process: SimProcess) -> None:
        super()._note_execution(process)
        self._checker.note(f"{process.node_id}: a copy of {process.vm_uid[:8]} executes")
        self._checker.executes(process)

    def unscript(self) -> None:
        """No migration goes wrong by itself any more."""
        self._faults.clear()

    def take_migration_fault(self, vm_uid: str) -> MigrationFault | None:
        fault = super().take_migration_fault(vm_uid)
        if fault is not None:
            self._checker.hit[f"fault migration {fault.value}"] += 1
            self._checker.tell(f"migration of {vm_uid[:8]}: {fault.value}")
        return fault


@dataclass(slots=True)
class SimCluster:
    """Three nodes, two replicas, one store."""

    loop: VirtualLoop
    random: Random
    checker: Checker
    network: Network
    world: CheckedWorld
    store: SimStoreServer
    lockless: bool
    processes: dict[str, Process] = field(default_factory=dict)
    files: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    wall_ahead_s: dict[str, float] = field(default_factory=dict)
    tasks: dict["asyncio.Task[None]", None] = field(default_factory=dict)
    starting: Process | None = None

    def build(self) -> None:
        shared = SimFileSystem("shared", POOL_MIB, shared=True, locks=not self.lockless)
        shared.add_image("guest", 64)
        for node_id in NODES:
            local = SimFileSystem(f"local-{node_id}", POOL_MIB)
            local.add_image("guest", 64)
            self.world.add_host(
                node_id, cpu_milli=HOST_CPU_MILLI, memory_mib_by_cell={0: HOST_MEMORY_MIB}, pools={"shared": shared, "local": local}
            )
            self.files[node_id] = {}

    # ---- daemons

    def start(self, name: str) -> Process:
        """A new life of that daemon; it starts anew by itself if it ends by itself."""
        process = self.processes[name] = Process(name)
        process.task = self.loop.create_task(self._live(process), name=name)
        self.tasks[process.task] = None
        process.task.add_done_callback(lambda task: self.tasks.pop(task, None))
        return process

    async def _live(self, process: Process) -> None:
        run = self._replica if process.name in REPLICAS else self._agent
        try:
            await run(process)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self.checker.broken(f"daemon {process.name} ended by itself: {error!r}")

    async def _replica(self, process: Process) -> None:
        store = SimStore(self.store, process, self.random, self.checker)
        replica = scheduler_app.Replica(
            process.name,
            cast(ServerTls, SimTls(Principal(CLUSTER, PrincipalKind.SCHEDULER, process.name))),
            store,
            f"{process.name}:{PORT}",
            clock=self.clock_of(process.name),
            ids=SeededIds(self.random),
        )
        self.starting = process
        await scheduler_app.run(replica, Shutdown(), lambda port: self.checker.note(f"{process.name} serves"))

    async def _agent(self, process: Process) -> None:
        name = process.name
        address = f"{name}:{PORT}"
        node = agent_app.Node(
            name,
            cast(ServerTls, SimTls(Principal(CLUSTER, PrincipalKind.NODE, name))),
            address,
            address,
            tuple(f"{replica}:{PORT}" for replica in REPLICAS),
            Offer(CapacityCap(), RESERVE_MIB),
            clock=self.clock_of(name),
            ids=SeededIds(self.random),
        )
        parts = agent_app.Parts(
            SimAgentHypervisor(self.world, name, process, self.checker),
            SimVolumes(self.world, name),
            SimHostFacts(self.world, name),
            SimTunnel(self.world, name),
            SimFiles(self.files[name], process, self.random),
        )
        self.starting = process
        await agent_app.run(node, parts, Shutdown(), lambda port: self.checker.note(f"{name} serves"))

    def clock_of(self, name: str) -> LoopClock:
        return LoopClock(self.loop, self.wall_ahead_s.get(name, 0.0))

    def kill(self, name: str) -> None:
        """As kill -9 is: nothing is put away, nothing is told to anybody; what the kernel closes is closed."""
        process = self.processes[name]
        process.dead = True
        if process.held is not None:
            process.held.set()
        for server in list(self.network.servers.values()):
            if server.name == name:
                server.close()
        if process.task is not None:
            process.task.cancel()
        if name in NODES:
            self.world.fabric.close_all_of(name)

    def lives(self, name: str) -> bool:
        return name in self.processes and not self.processes[name].dead

    def held(self, name: str) -> asyncio.Event | None:
        process = self.processes.get(name)
        return process.held if process is not None else None

    async def end(self) -> None:
        for name in (*NODES, *REPLICAS):
            if self.lives(name):
                self.kill(name)
        if self.tasks:
            await asyncio.wait(list(self.tasks))

    def channel(self, user: str, replica: str) -> SimChannel:
        return SimChannel(self.network, Principal(CLUSTER, PrincipalKind.USER, user), f"{replica}:{PORT}")


@contextmanager
def transports(network: Network, checker: Checker) -> Iterator[None]:
    """While this lasts the composition roots get these transports, and what their engines decide is counted."""

    def server(**_options: object) -> SimServer:
        return SimServer(network)

    def to_node(material: Any, node_id: str, endpoint: str) -> SimChannel:  # noqa: ANN401 stands in for TLS
        return SimChannel(network, material.principal, endpoint)

    def to_scheduler(material: Any, endpoint: str) -> SimChannel:  # noqa: ANN401 stands in for TLS
        return SimChannel(network, material.principal, endpoint)

    @functools.wraps(next_act)
    def counted(handoff: Any, evidence: Any) -> Any:  # noqa: ANN401 as the wrapped one
        act = next_act(handoff, evidence)
        row = f"row {_record(handoff, evidence)} {evidence.copy.value} {act.value}"
        checker.hit[row] += 1
        if act is not Act.WAIT:
            checker.tell(f"{handoff.operation_id[:6]} source: {row}")
        return act

    with (
        mock.patch.object(scheduler_app, "build_server", server),
        mock.patch.object(agent_app, "build_server", server),
        mock.patch.object(agent_app, "_version", return_value="simulated"),
        mock.patch.object(agent_app, "valid_until", return_value=BEGIN + CERTIFICATE),
        mock.patch.object(channels, "to_node", to_node),
        mock.patch.object(channels, "to_scheduler", to_scheduler),
        mock.patch.object(outgoing, "next_act", counted),
        mock.patch.object(mirror, "decode", checker.decode),
    ):
        yield


def _record(handoff: Any, evidence: Any) -> str:  # noqa: ANN401 as the wrapped one
    """What the owner record says to this handoff."""
    if evidence.owner is None:
        return "unread"
    owner = evidence.owner.owner
    if owner.epoch != handoff.epoch:
        return "other epoch"
    kind: str = owner.state.value
    return kind if owner.operation_id == handoff.operation_id or kind != "HANDOFF" else "HANDOFF of another"
