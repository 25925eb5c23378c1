"""The demonstration: what Hostler's main job looks like, told step by step and checked as it goes.

The same story runs on real hosts and on simulated ones; what differs is a `Stage`: how to look at a guest from outside and how to kill a replica.
Every claim printed is checked, and the first one that does not hold ends the story with a non-zero exit code.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import grpc

from client import Client
from hostler.api.type.v1 import operation_pb2, vm_pb2
from hostler.errors import NoCapacity
from hostler.rpc_status import from_rpc_error

FLAVORS = {"small": 128, "medium": 192}
VMS = (("web-1", "small"), ("web-2", "small"), ("web-3", "small"), ("db-1", "medium"), ("db-2", "medium"), ("db-3", "medium"))
READY_TIMEOUT_S = 60
SUCCEEDED = operation_pb2.Operation.SUCCEEDED


class Failed(Exception):
    """A claim did not hold."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a client outside saw of a guest during a migration."""

    lines: int
    sequence_gaps: int
    reconnects: int
    boot_ids: int
    outage_ms: float


class Watched(Protocol):
    """A client that talks to the guest all the while."""

    async def settle(self) -> None:
        """Until enough has been heard to judge by."""

    def seen(self) -> Seen: ...


class Stage(Protocol):
    """Where the story is played."""

    replicas: tuple[str, ...]
    slow_mib_s: int
    """A limit that stretches a copy over seconds, so that a kill falls into it."""

    def client(self, replica: str) -> Client: ...

    def watch(self, vm: vm_pb2.VM) -> AbstractAsyncContextManager[Watched]: ...

    async def kill_replica(self, replica: str) -> None:
        """As kill -9."""

    async def check(self) -> str:
        """An independent look at everything; one line, or raises Failed."""


class Teller:
    """Prints the story; counts what was shown."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._shown = 0

    def chapter(self, title: str) -> None:
        print(f"\n[{time.monotonic() - self._began_s:6.1f} s] {title}", flush=True)

    def say(self, text: str) -> None:
        print(f"           {text}", flush=True)

    def show(self, holds: bool, claim: str) -> None:
        """A claim that holds is shown; one that does not ends the story."""
        if not holds:
            raise Failed(claim)
        self._shown += 1
        self.say(f"ok  {claim}")

    @property
    def shown(self) -> int:
        return self._shown


async def tell(stage: Stage, teller: Teller) -> None:
    """The whole story."""
    client = stage.client(stage.replicas[0])
    await _nodes(client, teller)
    await _create(client, teller)
    await _too_many(client, teller)
    await _migrate(stage, client, teller)
    await _migrate_and_kill(stage, teller)
    teller.chapter("An independent look at store, agents and hypervisors")
    teller.show(True, await stage.check())


async def _nodes(client: Client, teller: Teller) -> None:
    teller.chapter("Nodes register with their certificates and beat")
    await client.until_ready(3, timeout_s=READY_TIMEOUT_S)
    for node in await client.list_nodes():
        free = {one.key: one.amount for one in node.ledger.free}
        offer = f"{free.get('cpu_milli', 0)} milli-CPU, {free.get('memory_mib/0', 0)} MiB free"
        teller.say(f"{node.name.removeprefix('nodes/'):4} {offer}   {node.hypervisor}   confined by {node.confinement or 'nothing'}")


async def _create(client: Client, teller: Teller) -> None:
    teller.chapter(f"{len(VMS)} VMs of {len(FLAVORS)} flavors, created through the API")
    for flavor, memory_mib in FLAVORS.items():
        await client.flavor(flavor, memory_mib)
    operations = [await client.create(vm_id, flavor=flavor) for vm_id, flavor in VMS]
    spread: dict[str, list[str]] = {}
    for operation in await asyncio.gather(*(client.wait(operation) for operation in operations)):
        if operation.state != SUCCEEDED:
            raise Failed(f"{operation.target}: {operation.error.message}")
        spread.setdefault(operation.vm.node.removeprefix("nodes/"), []).append(operation.target.removeprefix("vms/"))
    for node, names in sorted(spread.items()):
        teller.say(f"{node:4} {', '.join(sorted(names))}")
    teller.show(sorted(len(names) for names in spread.values()) == [2, 2, 2], "the ledger spread them evenly over the nodes")


async def _too_many(client: Client, teller: Teller) -> None:
    teller.chapter("One request too many, and the same one MiB under the limit")
    refusal = await _refused(client, "big", 4_000_000)
    limit = int(refusal.metadata["largest_memory_mib"])
    refusal = await _refused(client, "big", limit + 1)
    teller.say(f"asked for {limit + 1} MiB: {refusal.message}")
    teller.say(f"fix: {refusal.fix}")
    nodes = {violation.field for violation in refusal.violations}
    teller.show(len(nodes) == 3, f"{limit + 1} MiB is refused, with the reason for each of the 3 nodes")
    done = await client.wait(await client.create("big", memory_mib=limit, start=False))
    teller.show(done.state == SUCCEEDED, f"{limit} MiB is accepted, on {done.vm.node.removeprefix('nodes/')}")
    gone = await client.wait(await client.delete("big"))
    teller.show(gone.state == SUCCEEDED, "and deleted again: its claim is free")


async def _refused(client: Client, vm_id: str, memory_mib: int) -> NoCapacity:
    try:
        await client.create(vm_id, memory_mib=memory_mib)
    except grpc.aio.AioRpcError as error:
        refusal = from_rpc_error(error)
        if isinstance(refusal, NoCapacity):
            return refusal
        raise Failed(f"refused for another reason: {refusal}") from error
    raise Failed(f"{memory_mib} MiB were accepted")


async def _migrate(stage: Stage, client: Client, teller: Teller) -> None:
    teller.chapter("Live migration on shared storage, while a TCP client streams from the guest")
    before = await client.vm("web-1")
    async with stage.watch(before) as watched:
        await watched.settle()
        done = await _follow(client, await client.migrate("web-1"), teller)
        await watched.settle()
        seen = watched.seen()
    _judge(teller, before, done, seen)
    again = await client.vm("web-1")
    teller.show((again.node, again.state) == (done.migration.destination_node, vm_pb2.VM.RUNNING), f"web-1 runs on {_short(again.node)}")


async def _migrate_and_kill(stage: Stage, teller: Teller) -> None:
    teller.chapter("The same again, and the replica that drives it is killed (kill -9) while memory is copied")
    client = stage.client(stage.replicas[0])
    before = await client.vm("web-1")
    async with stage.watch(before) as watched:
        await watched.settle()
        operation = await client.migrate("web-1", bandwidth_mib_s=stage.slow_mib_s)
        copying = await client.until_phase(operation, "COPYING")
        driver = copying.phases[-1].driver
        teller.show(copying.phase == "COPYING", f"COPYING is journaled by replica {driver}, nothing is committed")
        victim = driver.partition("@")[0]
        await stage.kill_replica(victim)
        teller.say(f"replica {victim} killed")
        other = stage.client(next(replica for replica in stage.replicas if replica != victim))
        done = await _follow(other, operation, teller)
        await watched.settle()
        seen = watched.seen()
    _judge(teller, before, done, seen)
    drivers = {entry.phase: entry.driver for entry in done.phases}
    teller.show(drivers["COMMITTED"] != driver, f"driven: COPYING by {drivers['COPYING']}, COMMITTED and DONE by {drivers['COMMITTED']}")


async def _follow(client: Client, operation: operation_pb2.Operation, teller: Teller) -> operation_pb2.Operation:
    """Print the phases and the progress as they come."""
    phase, last_percent = "", -1
    async for now in client.follow(operation):
        if now.phase != phase:
            phase = now.phase
            teller.say(f"{phase.lower():18} {now.reason}")
        if now.HasField("progress") and now.progress.percent >= last_percent + 20:
            last_percent = now.progress.percent
            done, whole = now.progress.bytes_done >> 20, now.progress.bytes_total >> 20
            teller.say(f"{'':18} {last_percent:3d} %  {done} of {whole} MiB, {now.progress.rate_bytes_per_s >> 20} MiB/s")
        if now.done:
            return now
    raise Failed("the operation was not followed to its end")


def _judge(teller: Teller, before: vm_pb2.VM, done: operation_pb2.Operation, seen: Seen) -> None:
    if done.state != SUCCEEDED:
        raise Failed(f"migration: {done.error.message}")
    facts = done.migration
    teller.show(
        facts.committed_epoch == before.epoch + 1,
        f"moved {_short(facts.source_node)} -> {_short(facts.destination_node)}, epoch {before.epoch} -> {facts.committed_epoch}",
    )
    teller.show(seen.sequence_gaps == 0, f"the client got {seen.lines} numbered lines, none missing")
    teller.show(seen.reconnects == 0 and seen.boot_ids == 1, "one TCP connection, one boot id")
    teller.say(
        f"outage seen by the client {seen.outage_ms:.0f} ms, downtime {facts.downtime_ms} ms, "
        f"total {facts.total_ms} ms, {facts.bytes_transferred >> 20} MiB moved"
    )


def _short(name: str) -> str:
    return name.rpartition("/")[2]


Play = Callable[[Teller], Coroutine[object, object, None]]


def run(play: Play) -> int:
    """Play it; 0 only if every claim held."""
    teller = Teller()
    try:
        asyncio.run(play(teller))
    except* Failed as errors:
        for error in _leaves(errors):
            teller.chapter(f"FAILED: {error}")
        return_code = 1
    else:
        teller.chapter(f"All {teller.shown} claims held.")
        return_code = 0
    return return_code


def _leaves(group: BaseException) -> list[BaseException]:
    return [leaf for one in group.exceptions for leaf in _leaves(one)] if isinstance(group, BaseExceptionGroup) else [group]
