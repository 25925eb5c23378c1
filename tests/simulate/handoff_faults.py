"""Faults at one moment of a handoff, too rare if left to chance: each waits for its moment, then strikes everybody who belongs to it."""

import asyncio
from contextlib import suppress
from typing import Any

import grpc.aio

from hostler.internal.v1 import peer_pb2, peer_pb2_grpc
from hostler.model.owner import OwnerState
from hostler.server.identity import Principal, PrincipalKind
from nodeagent.adapters.sim_migration import MigrationFault
from scheduler.core.records import OperationRecord, Verb, VMRecord
from tests.simulate.cluster import CLUSTER, NODES, PORT, REPLICAS, RESTART_S
from tests.simulate.hand import Hand
from tests.simulate.net import SimCall, SimChannel

OLD_S = 60.0
"""How late a command may come once more: longer than any replica was stopped or cut off with one in hand."""


class HandoffFaults(Hand):
    """One function for each kind."""

    async def _moved_and_nobody_to_ask(self) -> None:
        """Error but moved, at a source that reaches no replica: the hardest moment of a handoff, too rare by itself."""
        cluster, node_id = self._cluster, self._node()
        host = cluster.world.hosts[node_id]
        for vm_uid in host.domains:
            cluster.world.script_migration(vm_uid, MigrationFault.FINISH_REPLY_LOST)
        if not await self._comes_true(lambda: bool(host.jobs)):
            return
        await self._sleep(0.0, 0.6)
        self._fell("error but moved, and nobody to ask", node_id)
        await self._cut([frozenset((node_id, replica)) for replica in REPLICAS])

    async def _moved_and_heard_late(self) -> None:
        """Error but moved, and the source, which reaches no replica, learns that the copy is there only after it has run on by itself. In a part of
        the cases it has ended since."""
        cluster, node_id, random = self._cluster, self._node(), self._random
        host = cluster.world.hosts[node_id]
        for vm_uid in host.domains:
            cluster.world.script_migration(vm_uid, MigrationFault.FINISH_REPLY_LOST)
        asking = await self._departure("/AwaitArrival", node_id)
        if asking is None or not host.jobs:
            return
        vm_uid = list(host.jobs)[-1]
        self._fell("error but moved, and heard late", f"{node_id} {vm_uid[:8]}")
        asking.reply_late_s = cluster.world.times.reply_timeout_s + random.uniform(0.0, 4.0)
        links = [frozenset((node_id, replica)) for replica in REPLICAS]
        cluster.network.cut.update(dict.fromkeys(links, random.random() < 0.5))
        if await self._comes_true(lambda: vm_uid not in host.jobs) and random.random() < 0.4:
            await self._sleep(0.0, 1.0)
            if vm_uid in host.domains:
                host.crash_domain(vm_uid)
        await self._sleep(0.0, 8.0)
        for link in links:
            cluster.network.cut.pop(link, None)

    async def _source_killed_at_its_commit(self) -> None:
        """The commit is on its way and the source's agent dies: it knows of nothing when it comes back, and its hypervisor may call the copy a
        failure meanwhile. The destination is cut off, so that no lock stops the source."""
        network, random = self._cluster.network, self._random
        if random.random() < 0.7:
            for kept in self._cluster.checker.state.vms.values():
                self._cluster.world.script_migration(kept.record.uid, MigrationFault.FINISH_REPLY_LOST)
        call = await self._departure("/CommitHandoff")
        if call is None:
            return
        await asyncio.sleep(random.random() * 0.01)
        name, destination = call.caller_id, self._destination_of(call.vm_uid())
        if not self._cluster.lives(name):
            return
        self._fell("source killed at its commit", f"{name} {call.operation_id()[:6]}")
        links = [frozenset((destination, one)) for one in (*NODES, *REPLICAS) if one != destination]
        network.cut.update(dict.fromkeys(links, True))
        self._cluster.kill(name)
        await asyncio.sleep(RESTART_S)
        if name not in self._off and not self._cluster.lives(name):
            self._cluster.start(name)
        await self._sleep(0.0, 6.0)
        for link in links:
            network.cut.pop(link, None)

    async def _source_killed_and_nobody_to_ask(self) -> None:
        """An agent that comes back to a handoff, and cannot read what became of it."""
        cluster = self._cluster
        call = await self._departure("/AwaitArrival")
        if call is None:
            return
        await self._sleep(0.0, 0.4)
        name = call.caller_id
        if not cluster.lives(name):
            return
        self._fell("source killed, and nobody to ask", f"{name} {call.operation_id()[:6]}")
        cluster.kill(name)
        links = [frozenset((name, replica)) for replica in REPLICAS]
        cluster.network.cut.update(dict.fromkeys(links, self._random.random() < 0.5))
        await asyncio.sleep(RESTART_S)
        if name not in self._off and not cluster.lives(name):
            cluster.start(name)
        await self._sleep(0.5, 6.0)
        for link in links:
            cluster.network.cut.pop(link, None)

    async def _cut_off_at_its_commit_and_cancelled(self) -> None:
        """The source stands frozen and its commit does not get through; meanwhile the migration is cancelled, and goes back."""
        network, random = self._cluster.network, self._random
        call = await self._departure("/CommitHandoff")
        if call is None:
            return
        name, operation_id = call.caller_id, call.operation_id()
        links = [frozenset((name, replica)) for replica in REPLICAS]
        network.cut.update(dict.fromkeys(links, random.random() < 0.5))
        self._fell("source cut off at its commit, and cancelled", f"{name} {operation_id[:6]}")
        await self._cancel(operation_id)
        await self._sleep(0.0, 6.0)
        for link in links:
            network.cut.pop(link, None)

    async def _source_killed_and_its_hypervisor_silent(self) -> None:
        """A migration is cancelled while its source's agent is gone; it comes back to a hypervisor that says nothing about the copy."""
        cluster = self._cluster
        call = await self._departure("/AwaitArrival")
        if call is None or not cluster.lives(call.caller_id):
            return
        name, host = call.caller_id, cluster.world.hosts[call.caller_id]
        self._fell("source killed, its hypervisor silent, and cancelled", f"{name} {call.operation_id()[:6]}")
        cluster.kill(name)
        host.hang()
        await self._cancel(call.operation_id())
        await asyncio.sleep(RESTART_S)
        if name not in self._off and not cluster.lives(name):
            cluster.start(name)
        await self._sleep(0.5, 12.0)
        host.unhang()

    async def _driver_killed_at_a_definition_and_cancelled(self) -> None:
        """Between two steps that follow each other at once, the driver dies and the creation is cancelled."""
        checker = self._cluster.checker
        defined: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def moved(operation: OperationRecord) -> None:
            if (operation.verb, operation.phase) == (Verb.CREATE_VM, "DEFINED") and not defined.done():
                defined.set_result(operation.operation_id)

        checker.moves[moved] = None
        try:
            async with asyncio.timeout(30.0):
                operation_id = await defined
        except TimeoutError:
            return
        finally:
            del checker.moves[moved]
        name = self._leader()
        if not self._cluster.lives(name):
            return
        self._fell("driver killed at a definition, and cancelled", f"{name} {operation_id[:6]}")
        self._cluster.kill(name)
        await self._cancel(operation_id)
        await self._restart(name)

    async def _old_commands(self) -> None:
        """Commands and commits of the last minute come once more, when another operation has the VM in hand, or none."""
        cluster, random, state = self._cluster, self._random, self._cluster.checker.state
        vm: VMRecord | None = None
        old: list[SimCall] = []
        for _ in range(40):
            await self._sleep(0.1, 0.5)
            busy = [kept.record for kept in state.vms.values() if kept.record.owner.state is OwnerState.HANDOFF]
            kept = busy or [kept.record for kept in state.vms.values()]
            vm = random.choice(kept) if kept else None
            old = [call for call in cluster.network.sent if vm is not None and call.vm_uid() == vm.uid and self._is_old(call)]
            if old:
                break
        if vm is None or not old:
            return
        self._fell("old commands come once more", f"{len(old)} about {vm.vm_id}")
        host = cluster.world.hosts[vm.owner.node_id]
        if random.random() < 0.4 and vm.uid in host.domains and not vm.operation_id:
            # The last command that its node has heard is the start: only the record says that it is not to run any more.
            host.crash_domain(vm.uid)
            if random.random() < 0.5:  # else the word of its end is on its way while they come
                await self._comes_true(lambda: (now := state.vm_by_uid(vm.uid)) is None or now.record.owner.state is OwnerState.STOPPED)
        for call in old:
            await asyncio.sleep(random.random() * 0.1)
            call.again()

    def _is_old(self, call: SimCall) -> bool:
        """A command of an operation that has ended."""
        operation = self._cluster.checker.state.operations.get(call.operation_id())
        return operation is not None and operation.record.done and self._cluster.loop.now_s - call.sent_s <= OLD_S

    async def _commit_told_that_was_not_made(self) -> None:
        """A source says so to its destination while it has not asked for the commit: no message alone lets a copy run."""
        cluster, state = self._cluster, self._cluster.checker.state

        def handoffs() -> list[VMRecord]:
            return [kept.record for kept in state.vms.values() if kept.record.owner.state is OwnerState.HANDOFF]

        if not await self._comes_true(lambda: bool(handoffs())):
            return
        vm = handoffs()[0]
        owner = vm.owner
        self._fell("commit told that was not made", f"{owner.node_id} -> {owner.destination_node_id} {owner.operation_id[:6]}")
        channel: Any = SimChannel(
            cluster.network, Principal(CLUSTER, PrincipalKind.NODE, owner.node_id), f"{owner.destination_node_id}:{PORT}"
        )
        stub: Any = peer_pb2_grpc.PeerServiceStub(channel)
        for _ in range(150):
            kept = state.vm_by_uid(vm.uid)
            if kept is None or kept.record.owner != owner:
                return
            with suppress(grpc.aio.AioRpcError):
                await stub.NoteCommitted(peer_pb2.NoteCommittedRequest(operation_id=owner.operation_id), timeout=1.0)
            await asyncio.sleep(0.05)

    def _destination_of(self, vm_uid: str) -> str:
        kept = self._cluster.checker.state.vm_by_uid(vm_uid)
        owner = kept.record.owner if kept is not None else None
        return (owner.destination_node_id or owner.node_id) if owner is not None else ""
