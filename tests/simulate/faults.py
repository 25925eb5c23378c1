"""What goes wrong in a run, and how it ends again: one function for each kind of fault, drawn at random with its target and its duration.

A fault is counted when it falls, not when it is drawn. All of them heal by themselves; `Faults.heal` makes the rest whole at the end of a run.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random

import grpc.aio

from hostler.api.cluster.v1 import nodes_pb2
from nodeagent.adapters.sim_migration import MigrationFault
from nodeagent.core.observed import Power
from scheduler.adapters.memory_store import Fault
from scheduler.core.records import LEADER, NodeState
from tests.simulate.cluster import NODES, REPLICAS, Blow, SimCluster
from tests.simulate.handoff_faults import HandoffFaults
from tests.simulate.net import CALM, Weather

MOMENTS = 25
"""A blow falls at one of the victim's next so many outward steps: about as many as an operation or two take."""

SILENT_S = 12.0
"""A node counts as silent 10 s after its last beat."""

AIMED = 0.5

MIGRATION_FAULTS = (
    MigrationFault.FAILS_MIDWAY,
    MigrationFault.STALLS,
    MigrationFault.FINISH_REPLY_LOST,
    MigrationFault.RESULT_LOST,
)
"""PAUSED_IGNORED is not among them: it is a hypervisor that does not do what it was told, and stands for a guard that is taken out."""


class Faults(HandoffFaults):
    """`strike` lets one fault happen; its aftermath runs in `group`. `aim`: the kind of which every second fault is; empty: none."""

    def __init__(self, cluster: SimCluster, random: Random, group: asyncio.TaskGroup, aim: str) -> None:
        super().__init__(cluster, random)
        self._group = group
        self._mending: dict[asyncio.Task[None], None] = {}
        self._aim: Callable[[], Awaitable[None]] | None = getattr(self, f"_{aim}") if aim else None
        self._kinds: tuple[tuple[int, Callable[[], Awaitable[None]]], ...] = (
            (6, self._agent_killed),
            (10, self._agent_killed_at_a_step),
            (4, self._replica_killed),
            (8, self._replica_killed_at_a_step),
            (6, self._daemon_crashes),
            (4, self._daemon_hangs),
            (4, self._domain_hangs),
            (4, self._host_crashes),
            (2, self._host_fenced),
            (6, self._process_dies),
            (12, self._migration_goes_wrong),
            (8, self._moved_and_nobody_to_ask),
            (6, self._moved_and_heard_late),
            (6, self._source_killed_at_its_commit),
            (8, self._old_commands),
            (4, self._commit_told_that_was_not_made),
            (6, self._nodes_cut_off),
            (6, self._node_cut_off_from_replicas),
            (6, self._storm),
            (5, self._store_errs),
            (3, self._store_freezes),
            (4, self._replica_stopped),
            (2, self._lease_revoked),
            (2, self._compacted),
            (3, self._watch_stalls),
            (2, self._no_tunnel),
            (4, self._creation_refused),
            (4, self._cut_off_at_its_commit_and_cancelled),
            (4, self._source_killed_and_its_hypervisor_silent),
            (4, self._driver_killed_at_a_definition_and_cancelled),
            (6, self._source_killed_and_nobody_to_ask),
            (2, self._wall_clock_jumps),
        )

    def strike(self) -> None:
        """Draw one and let it fall, now or at a step of its victim."""
        kind = self._random.choices([kind for _, kind in self._kinds], [weight for weight, _ in self._kinds])[0]
        if self._aim is not None and self._random.random() < AIMED:
            kind = self._aim
        task = self._group.create_task(self._until_mended(kind), name="fault")
        self._mending[task] = None
        task.add_done_callback(lambda done: self._mending.pop(done, None))

    async def _until_mended(self, kind: Callable[[], Awaitable[None]]) -> None:
        await kind()

    async def heal(self) -> None:
        """Everything works from now on."""
        for task in list(self._mending):
            task.cancel()
        if self._mending:
            await asyncio.wait(list(self._mending))
        cluster, world = self._cluster, self._cluster.world
        cluster.network.cut.clear()
        cluster.network.weather = CALM
        world.unscript()
        world.fabric.cut.clear()
        world.fabric.unopenable.clear()
        self._thaw_store()
        for host in world.hosts.values():
            host.refuse_create = ""
            host.unhang_all()
            if not host.up:
                host.boot_host() if host.node_id in self._off else host.restart_daemon()
            for job in host.jobs.values():
                job.end_stall()
        self._off.clear()
        for name in (*NODES, *REPLICAS):
            process = cluster.processes[name]
            process.blow, process.store_fault = None, None
            self._release(name)
            if process.dead:
                cluster.start(name)
        for node_id in NODES:
            await self._uncordon(node_id)

    # ---- daemons

    async def _agent_killed(self) -> None:
        name = self._node()
        if self._cluster.lives(name):
            await self._kill(name, "agent killed", "")

    async def _agent_killed_at_a_step(self) -> None:
        await self._at_a_step(self._node(), "agent killed at a step")

    async def _replica_killed(self) -> None:
        name = self._busy_replica()
        if self._cluster.lives(name):
            await self._kill(name, "replica killed", "")

    async def _replica_killed_at_a_step(self) -> None:
        await self._at_a_step(self._busy_replica(), "replica killed at a step")

    async def _at_a_step(self, name: str, kind: str) -> None:
        if not self._cluster.lives(name):
            return
        fallen: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def fall(what: str) -> None:
            self._cluster.kill(name)
            if not fallen.done():
                fallen.set_result(what)

        self._cluster.processes[name].blow = Blow(self._random.randint(1, MOMENTS), self._random.random() < 0.5, fall)
        what = await fallen
        self._fell(kind, f"{name} {what}")
        await self._restart(name)

    async def _kill(self, name: str, kind: str, what: str) -> None:
        self._fell(kind, f"{name} {what}")
        self._cluster.kill(name)
        await self._restart(name)

    async def _replica_stopped(self) -> None:
        """By a signal, for longer than its lease: two replicas lead when it goes on."""
        name = self._leader()
        process = self._cluster.processes[name]
        if process.dead or process.held is not None:
            return
        self._fell("replica stopped by a signal", name)
        process.held = asyncio.Event()
        try:
            await self._sleep(1.0, 20.0)
        finally:
            self._release(name)

    def _release(self, name: str) -> None:
        process = self._cluster.processes[name]
        for held in (process.held, process.watch_held):
            if held is not None:
                held.set()
        process.held, process.watch_held = None, None

    async def _watch_stalls(self) -> None:
        """What a replica knows gets old."""
        name = self._busy_replica()
        process = self._cluster.processes[name]
        if process.dead or process.watch_held is not None:
            return
        self._fell("watch stalls", name)
        process.watch_held = asyncio.Event()
        try:
            await self._sleep(0.2, 6.0)
        finally:
            if process.watch_held is not None:
                process.watch_held.set()
                process.watch_held = None

    async def _wall_clock_jumps(self) -> None:
        name = self._random.choice((*NODES, *REPLICAS))
        self._cluster.wall_ahead_s[name] = self._random.uniform(-3600.0, 3600.0)
        if self._cluster.lives(name):
            await self._kill(name, "wall clock jumps", f"restarted {self._cluster.wall_ahead_s[name]:+.0f} s off")

    # ---- hypervisors and hosts

    async def _daemon_crashes(self) -> None:
        host = self._cluster.world.hosts[self._node()]
        if not host.up:
            return
        self._fell("hypervisor daemon crashes", host.node_id)
        host.crash_daemon()
        await self._sleep(0.0, 0.5) if self._random.random() < 0.5 else await self._sleep(0.5, 15.0)
        if host.node_id not in self._off and not host.up:
            host.restart_daemon()

    async def _daemon_hangs(self) -> None:
        host = self._cluster.world.hosts[self._node()]
        if not host.up:
            return
        self._fell("hypervisor daemon hangs", host.node_id)
        host.hang()
        await self._sleep(0.5, 20.0)
        host.unhang()

    async def _domain_hangs(self) -> None:
        host = self._cluster.world.hosts[self._node()]
        if not host.up or not host.domains:
            return
        vm_uid = self._random.choice(list(host.domains))
        self._fell("hypervisor hangs for one domain", f"{host.node_id} {vm_uid[:8]}")
        host.hang(vm_uid)
        await self._sleep(0.5, 15.0)
        host.unhang(vm_uid)

    async def _host_crashes(self) -> None:
        node_id = self._node()
        if node_id in self._off:
            return
        self._fell("host loses power", node_id)
        self._power_off(node_id)
        await self._sleep(0.5, 3.0) if self._random.random() < 0.6 else await self._sleep(3.0, 90.0)
        self._power_on(node_id)

    def _power_off(self, node_id: str) -> None:
        self._off.add(node_id)
        if self._cluster.lives(node_id):
            self._cluster.kill(node_id)
        self._cluster.world.hosts[node_id].crash_host()

    def _power_on(self, node_id: str) -> None:
        self._off.discard(node_id)
        self._cluster.world.hosts[node_id].boot_host()
        self._cluster.start(node_id)

    async def _host_fenced(self) -> None:
        """It is off, a person says so, and comes back later."""
        node_id = self._node()
        if node_id in self._off:
            return
        self._fell("host off and fenced", node_id)
        self._power_off(node_id)
        request_id = f"fence-{self._cluster.loop.now_s:.6f}"
        await asyncio.sleep(SILENT_S)
        for _ in range(10):
            try:
                await self._nodes().FenceNode(
                    nodes_pb2.FenceNodeRequest(name=f"nodes/{node_id}", confirm_powered_off=True, request_id=request_id), timeout=5
                )
                break
            except grpc.aio.AioRpcError:
                await asyncio.sleep(2.0)
        await self._sleep(0.5, 40.0)
        self._power_on(node_id)
        await self._uncordon(node_id)

    async def _uncordon(self, node_id: str) -> None:
        """Once it is back from being fenced; a person looks at it."""
        for _ in range(60):
            kept = self._cluster.checker.state.nodes.get(node_id)
            if kept is not None and kept.record.state is NodeState.ACTIVE:
                return
            if kept is not None and kept.record.state is NodeState.CORDONED:
                with suppress(grpc.aio.AioRpcError):
                    await self._nodes().UncordonNode(nodes_pb2.UncordonNodeRequest(name=f"nodes/{node_id}"), timeout=5)
            await asyncio.sleep(1.0)

    async def _process_dies(self) -> None:
        hosts = [host for host in self._cluster.world.hosts.values() if host.up and host.domains]
        if not hosts:
            return
        host = self._random.choice(hosts)
        moving = [uid for uid, domain in host.domains.items() if uid in host.jobs or domain.power is not Power.RUNNING]
        vm_uid = self._random.choice(moving or list(host.domains))
        self._fell("guest's process dies", f"{host.node_id} {vm_uid[:8]} {host.domains[vm_uid].power.value}")
        host.crash_domain(vm_uid)

    async def _creation_refused(self) -> None:
        host = self._cluster.world.hosts[self._node()]
        self._fell("hypervisor refuses to create", host.node_id)
        host.refuse_create = "simulated: no"
        await self._sleep(1.0, 6.0)
        host.refuse_create = ""

    async def _migration_goes_wrong(self) -> None:
        """The next migrations of some VMs, each in its own way."""
        uids = [kept.record.uid for kept in self._cluster.checker.state.vms.values()]
        for vm_uid in self._random.sample(uids, min(len(uids), 5)):
            self._cluster.world.script_migration(vm_uid, self._random.choice(MIGRATION_FAULTS))
        self._fell("migrations go wrong", f"of {min(len(uids), 5)} VMs")
        await self._sleep(5.0, 40.0)
        for host in self._cluster.world.hosts.values():
            for job in host.jobs.values():
                job.end_stall()

    async def _no_tunnel(self) -> None:
        node_id = self._node()
        self._fell("no tunnel can be opened", node_id)
        self._cluster.world.fabric.unopenable.add(node_id)
        await self._sleep(2.0, 10.0)
        self._cluster.world.fabric.unopenable.discard(node_id)

    # ---- network

    async def _nodes_cut_off(self) -> None:
        """From each other."""
        a, b = self._random.sample(NODES, 2)
        self._fell("link between nodes cut", f"{a} {b}")
        self._cluster.world.cut_link(a, b)
        await self._cut([frozenset((a, b))])
        self._cluster.world.mend_link(a, b)

    async def _node_cut_off_from_replicas(self) -> None:
        node_id, random = self._node(), self._random
        replicas = list(REPLICAS) if random.random() < 0.6 else [random.choice(REPLICAS)]
        self._fell("node cut off from " + ("every replica" if len(replicas) > 1 else "one replica"), f"{node_id} {' '.join(replicas)}")
        await self._cut([frozenset((node_id, replica)) for replica in replicas])

    async def _storm(self) -> None:
        """Messages are late, lost on the way there or back, or come twice."""
        self._fell("network storm", "")
        self._cluster.network.weather = Weather(late=0.03, request_lost=0.05, reply_lost=0.06, twice=0.06)
        await self._sleep(3.0, 20.0)
        self._cluster.network.weather = CALM

    # ---- the store

    async def _store_errs(self) -> None:
        names = REPLICAS if self._random.random() < 0.5 else (self._busy_replica(),)
        random, share = self._random, self._random.uniform(0.05, 0.5)
        kinds = list(Fault) if self._random.random() < 0.7 else [self._random.choice(list(Fault))]

        def fault(_call: str) -> Fault | None:
            return random.choice(kinds) if random.random() < share else None

        self._fell("store errs", f"{' '.join(names)} {share:.2f} {' '.join(kind.value for kind in kinds)}")
        for name in names:
            self._cluster.processes[name].store_fault = fault
        await self._sleep(1.0, 12.0)
        for name in names:
            self._cluster.processes[name].store_fault = None

    async def _store_freezes(self) -> None:
        if self._cluster.store.frozen is not None:
            return
        self._fell("store freezes", "")
        self._cluster.store.frozen = asyncio.Event()
        await self._sleep(0.5, 10.0)
        self._thaw_store()

    def _thaw_store(self) -> None:
        frozen, self._cluster.store.frozen = self._cluster.store.frozen, None
        if frozen is not None:
            frozen.set()

    async def _lease_revoked(self) -> None:
        item = self._cluster.store.keyspace().get(LEADER)
        if item is not None:
            self._fell("lease revoked", item.value.decode())
            self._cluster.store.keyspace().revoke(item.lease_id)
            self._cluster.store.wake()

    async def _compacted(self) -> None:
        keyspace = self._cluster.store.keyspace()
        if keyspace.revision > keyspace.compacted_revision:
            self._fell("store compacted", f"at {keyspace.revision}")
            self._cluster.store.compact(keyspace.revision)
