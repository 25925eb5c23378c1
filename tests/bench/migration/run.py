"""`python -m tests.bench.migration.run`: migrates by plain libvirt and by Hostler in turns, on one lab, and writes every sample down.

Plain, Hostler, plain, Hostler: neighbours in time share what the machine does besides. The two hosts are not capped here: a quota of CPU time would
stop whoever is in the gap for tens of milliseconds and measure the quota. Cases can be played one by one (`--only`): what was measured before stays
in the file until its case is played again.
"""

import argparse
import asyncio
import json
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import real
from client import CALL_S, Client
from hostler.api.cluster.v1 import pools_pb2, pools_pb2_grpc
from hostler.api.type.v1 import volume_pb2
from hostlerlab import network
from hostlerlab.cluster import LabCluster, Offer, lab_cluster
from hostlerlab.guest import probe
from hostlerlab.guest.build import build
from hostlerlab.hosts import SHARED_POOL, Host
from hostlerlab.kvm import domain_type
from hostlerlab.lab import Lab, default_specs
from tests.bench.migration import figures, guests, peers, picture
from tests.bench.migration.figures import DIRECT, OURS, PLAIN, Sample
from tests.bench.migration.guests import Guest, beating
from tests.bench.migration.peers import Machine, Order, Ours, Outcome, Plain

BUILD = Path("build/bench").resolve()
JSON, PICTURE, RAW = BUILD / "migration.json", BUILD / "client-gap.svg", BUILD / "raw"

NICE, HOST_WEIGHT = -10, 18
"""What else the machine does is not what is measured: the lab goes before it, both sides alike. A host then counts for as much as a process of that
nice value (sched_prio_to_weight), as etcd, the replicas and the witnesses do."""
LEAD_S = 1.0
"""The guest is seen to run for so long before it is moved, and after."""
LOST_S = 15.0
"""A guest that does not execute so long after its migration is lost."""
LEASE_S = 60.0
CAPPED_MB_S, CAPPED_LINK_MIB_S = 200, 128
"""A guest that dirties more than its link carries."""
NEAR = 0.9
DIRECT_ROUNDS = 3
"""What the tunnel costs plain libvirt is a side question."""
DIRTYING = {"busy": (64, 60), "capped": (128, CAPPED_MB_S)}
"""MiB that it writes over and over, and MB per second that it writes at full speed."""
LOCKS_S = 60.0
DRAINED = 20
POOL = "shared"


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the comparison. `fresh`: a guest of its own for each migration, because two at once would take each other's CPU; `locks`: of the
    shared pool, "probed" or declared to be "none".
    """

    name: str
    guest: str
    peers: tuple[str, ...]
    rounds: int
    locks: str = "probed"
    fresh: bool = False
    link_mib_s: int = 0
    deadline_s: float = 60.0


CASES = (
    Case("idle", "idle", (PLAIN, OURS, DIRECT), 10),
    Case("linux", "linux", (PLAIN, OURS), 4),
    Case("capped", "capped", (PLAIN, OURS), 2, fresh=True, link_mib_s=CAPPED_LINK_MIB_S, deadline_s=45.0),
    Case("busy", "busy", (PLAIN, OURS), 4, fresh=True),
    Case("idle, no locks", "idle", (PLAIN, OURS), 4, locks="none"),
    Case("linux, no locks", "linux", (PLAIN, OURS), 3, locks="none"),
)
DRAIN = "drain"
HOLES = (
    "a busy Linux guest: the emulator by itself loses guests that are busy on the network while they are copied (docs/decisions/0007)",
)


class Bench:
    """The lab, the cluster on it, and the two who migrate."""

    def __init__(self, cluster: LabCluster, client: Client, tunnels: peers.Tunnels, guests_of: dict[str, Guest]) -> None:
        self._cluster = cluster
        self._hosts = list(cluster.lab.hosts.values())
        self._guests = guests_of
        self._ours = Ours(client, cluster)
        self._plain = {peer: Plain(peer, tunnels) for peer in (PLAIN, DIRECT)}
        self._made = 0
        self._definitions: dict[str, str] = {}

    # ---- a case

    async def play(self, case: Case) -> AsyncIterator[Sample]:
        """Every migration of the case, as it is made."""
        machines: dict[str, Machine] = {}
        guest = self._guests[case.guest]
        for turn in range(case.rounds):
            for peer in case.peers if turn < DIRECT_ROUNDS else [peer for peer in case.peers if peer != DIRECT]:
                who = (
                    OURS if peer == OURS else PLAIN
                )  # plain libvirt has one VM for both its ways: an unmanaged one takes from what a node offers
                machine = machines.pop(who, None) or await self._started(case, who, guest)
                sample = await self._moved(case, peer, guest, machine, turn)
                if case.fresh or sample.lost:
                    await self._stopped(peer, machine)
                else:
                    machines[who] = machine
                yield sample
        for peer, machine in machines.items():
            await self._stopped(peer, machine)

    async def _started(self, case: Case, peer: str, guest: Guest) -> Machine:
        host = self._hosts[0]
        if peer == OURS:
            return await self._ours_started(case, guest, host)
        definition = await self._definition(case, guest)
        return await self._plain[peer].start(host, definition, SHARED_POOL / "images" / f"{guest.image}.qcow2")

    async def _ours_started(self, case: Case, guest: Guest, host: Host) -> Machine:
        self._made += 1
        return await self._ours.start(host, f"bench-{self._made}", POOL, guest.image, guest.memory_mib, guest.beat is None)

    async def _definition(self, case: Case, guest: Guest) -> str:
        """As libvirt has it of a VM that Hostler made."""
        key = guest.image
        if key not in self._definitions:
            machine = await self._ours_started(case, guest, self._hosts[0])
            self._definitions[key] = await asyncio.to_thread(machine.host.virsh, "dumpxml", "--migratable", machine.name)
            await self._ours.stop(machine)
        return self._definitions[key]

    async def _stopped(self, peer: str, machine: Machine) -> None:
        if peer == OURS:
            await self._ours.stop(machine)
        else:
            await self._plain[peer].stop(machine, self._hosts)

    # ---- a migration

    async def _moved(self, case: Case, peer: str, guest: Guest, machine: Machine, turn: int) -> Sample:
        source = machine.host
        destination = next(host for host in self._hosts if host is not source)
        order = Order(source, destination, self._link(case, guest), case.deadline_s)
        sample = Sample(case.name, peer, turn, source.name, destination.name, os.getloadavg()[0])
        out = RAW / f"{case.name.replace(', ', '-').replace(' ', '-')}-{peer}-{turn}.txt"
        if guest.beat is None:
            await self._over_the_network(peer, machine, order, sample, out)
        else:
            await self._in_its_memory(peer, guest, machine, order, sample, out)
        return sample

    def _link(self, case: Case, guest: Guest) -> int:
        """A guest that cannot dirty as much as it should gets a link that is smaller by the same factor."""
        reached = guest.dirties / (CAPPED_MB_S * 1e6)
        return round(case.link_mib_s * reached) if case.link_mib_s and reached < NEAR else case.link_mib_s

    async def _migrated(self, peer: str, machine: Machine, order: Order, sample: Sample) -> Outcome:
        before = wire_bytes(order.destination)
        outcome = await (self._ours.migrate(machine, order) if peer == OURS else self._plain[peer].migrate(machine, order))
        sample.wire_bytes = wire_bytes(order.destination) - before
        sample.lost, sample.told_ms, sample.told_bytes = outcome.lost, outcome.told_ms, outcome.told_bytes
        sample.throttle_percent, sample.iterations = outcome.throttle_percent, outcome.iterations
        sample.total_ms = (outcome.ended_s - outcome.began_s) * 1000
        return outcome

    async def _in_its_memory(self, peer: str, guest: Guest, machine: Machine, order: Order, sample: Sample, out: Path) -> None:
        pid_files = [host.folder / "run" / "libvirt" / "qemu" / f"{machine.name}.pid" for host in self._hosts]
        async with guests.watching(guest, pid_files, out):
            first_s = await beating(out, 0.0)
            await beating(out, first_s + LEAD_S)
            outcome = await self._migrated(peer, machine, order, sample)
            try:
                arrived_s = await beating(out, outcome.ended_s, self._hosts.index(machine.host), timeout_s=LOST_S)
                await beating(out, arrived_s + LEAD_S, timeout_s=LOST_S)
            except TimeoutError:
                sample.lost = sample.lost or f"the guest does not execute, {LOST_S:.0f} s after its migration"
        beats = figures.beats_of(await asyncio.to_thread(out.read_text))
        moved = [beat for beat in beats if beat.at_s >= outcome.began_s]
        if not sample.lost:
            sample.gap_ms, gap_end_s = figures.heartbeat_gap(moved)
            if guest.dirties:  # if it fell back, what it does a second time is no standing still
                sample.gap_ms, gap_end_s, sample.fell_back = figures.handover(moved)
            sample.acts_ms = self._acts(order, outcome, gap_end_s - sample.gap_ms / 1000) if peer == OURS else {}
        if guest.dirties:
            gap_at_s = outcome.ended_s if sample.lost else figures.handover(moved)[1]
            sample.work_before = figures.work_rate(beats, first_s, outcome.began_s)
            sample.work_during = figures.work_rate(beats, outcome.began_s, gap_at_s)
            sample.work_least = figures.least_work(beats, outcome.began_s, gap_at_s)
            sample.wrong_pages = beats[-1].word

    async def _over_the_network(self, peer: str, machine: Machine, order: Order, sample: Sample, out: Path) -> None:
        address = await asyncio.to_thread(self._cluster.lab.wait_for_lease, machine.mac, LEASE_S)
        await probe.wait_answer(address)
        async with peers.reading([*peers.tool("lines"), address, str(out)]):
            await executes(address)
            outcome = await self._migrated(peer, machine, order, sample)
            try:
                await executes(address)
            except TimeoutError:
                sample.lost = sample.lost or f"the guest does not answer, {LOST_S:.0f} s after its migration"
        lines = figures.lines_of(await asyncio.to_thread(out.read_text))
        sample.lost = sample.lost or figures.broken_lines(lines)
        if not sample.lost:
            gap_end_s, sample.client_ms = max(figures.client_gaps(lines), key=lambda one: one[1])
            sample.gap_ms = figures.paused_ms(lines)
            sample.acts_ms = self._acts(order, outcome, gap_end_s - sample.client_ms / 1000) if peer == OURS else {}

    def _acts(self, order: Order, outcome: Outcome, stopped_s: float) -> dict[str, float]:
        """What the daemons did first after the guest was last seen to execute, in milliseconds after that."""
        found: dict[str, float] = {}
        to_monotonic = time.monotonic() - datetime.now(UTC).timestamp()
        for unit in self._cluster.units:
            who = {order.source.name: "source", order.destination.name: "destination"}.get(unit, unit)
            for line in self._cluster.log_text(unit).splitlines():
                told = json.loads(line) if line.startswith("{") and "handoff" in line else {}
                if told.get("event") in ("handoff", "commit of a handoff"):
                    at_s = datetime.fromisoformat(told["time"]).timestamp() + to_monotonic
                    if at_s >= max(outcome.began_s, stopped_s - 0.02):
                        found.setdefault(f"{who} {told.get('act', 'commit')}", round((at_s - stopped_s) * 1000, 1))
        return dict(sorted(found.items(), key=lambda one: one[1]))

    # ---- a drain

    async def drain(self) -> dict[str, Any]:
        """`DRAINED` idle VMs leave a host: one at a time, then by a drain, then the same again. Seconds."""
        guest = self._guests["idle"]
        case = Case(DRAIN, "idle", (OURS,), 1)
        machines = [await self._ours_started(case, guest, self._hosts[0]) for _ in range(DRAINED)]
        told: dict[str, Any] = {"vms": DRAINED, "one_at_a_time_s": [], "drain_s": [], "loads": [], "failed": []}
        for way in ("one_at_a_time_s", "drain_s", "one_at_a_time_s", "drain_s"):
            load, source = os.getloadavg()[0], machines[0].host
            destination = next(host for host in self._hosts if host is not source)
            began_s = time.monotonic()
            if way == "drain_s":
                failed = await self._ours.drain(source)
            else:
                outcomes = [await self._ours.migrate(machine, Order(source, destination)) for machine in machines]
                failed = [outcome.lost for outcome in outcomes if outcome.lost]
            told[way].append(round(time.monotonic() - began_s, 2))
            told["loads"].append(load)
            told["failed"] += failed
            print(f"{DRAIN:8} {way}: {told[way][-1]:.1f} s, load {load:.1f}, {len(failed)} failed", flush=True)
            if way == "drain_s":
                await self._ours.uncordon(source)
            for machine in machines:
                machine.host = destination
        for machine in machines:
            await self._ours.stop(machine)
        return told


async def executes(address: str) -> None:
    """Until the guest has gone on for LEAD_S by its own clock. TimeoutError: it does not."""
    async with asyncio.timeout(LOST_S):
        first = await probe.wait_answer(address, timeout_s=LOST_S)
        while True:
            if (await probe.wait_answer(address, timeout_s=LOST_S)).uptime_ms >= first.uptime_ms + LEAD_S * 1000:
                return
            await asyncio.sleep(guests.LOOK_S)


def wire_bytes(host: Host) -> int:
    """What has come to the host's wire."""
    return int(Path(f"/sys/class/net/{network.veth_name(host.name)}/statistics/tx_bytes").read_text())


# ---- the lab, the file


@asynccontextmanager
async def lab_of(kinds: set[str]) -> AsyncIterator[tuple[Lab, dict[str, Guest]]]:
    """Two hosts, and only the guests that are needed."""
    images = build(Path("build/guest").resolve())  # noqa: ASYNC240 once, before anything runs
    work = BUILD / "work"
    for folder in (work, RAW):
        folder.mkdir(parents=True, exist_ok=True)
    found = {"idle": guests.idle(work), "linux": guests.linux(images.linux)}
    accelerator = "kvm" if domain_type(images.linux) == "kvm" else "tcg"
    for name, (mib, mb_s) in DIRTYING.items():
        if name in kinds:
            found[name] = await guests.dirtying(work, name, mib, mb_s * 1e6, accelerator)
    cpus = os.cpu_count() or 1
    lab = Lab(
        BUILD / "lab", [replace(spec, caps=replace(spec.caps, cpu_milli=cpus * 1000, weight=HOST_WEIGHT)) for spec in default_specs(2)]
    )
    await asyncio.to_thread(lab.up, fresh=True)
    try:
        host = next(iter(lab.hosts.values()))
        host.run(["mkdir", "-p", str(SHARED_POOL / "images")])
        for guest in found.values():
            host.run(["cp", str(guest.disk.resolve()), str(SHARED_POOL / "images" / f"{guest.image}.qcow2")])
        yield lab, found
    finally:
        await asyncio.to_thread(lab.down)


@asynccontextmanager
async def bench_of(lab: Lab, found: dict[str, Guest], locks: str) -> AsyncIterator[Bench]:
    """Three members of etcd, two replicas, two agents, once it is known what the pool's locks are worth."""
    offer = Offer((os.cpu_count() or 1) * 1000 + DRAINED * 100, 4096)
    async with lab_cluster(lab, BUILD / "cluster", offer=offer, shared_locks=locks) as cluster:
        with peers.tunnels(cluster) as through:
            stage = real.Real(lab, cluster)
            try:
                client = stage.client(cluster.replicas[0])
                await client.until_ready(2)
                await locks_known(client, locks)
                yield Bench(cluster, client, through, found)
            finally:
                await stage.close()


async def locks_known(client: Client, locks: str) -> None:
    """A pool that is to be relied on has been probed between the nodes. TimeoutError: it has not."""
    expected = volume_pb2.Pool.BY_WORD if locks == "none" else volume_pb2.Pool.BY_LOCKS
    stub = pools_pb2_grpc.PoolServiceStub(client.channel)
    async with asyncio.timeout(LOCKS_S):
        while True:
            pool = await stub.GetPool(pools_pb2.GetPoolRequest(name=f"pools/{POOL}"), timeout=CALL_S)
            if pool.live_move == expected:
                return
            await asyncio.sleep(guests.LOOK_S)


def commit() -> str:
    return peers.said("git", "describe", "--always", "--dirty", "--exclude=*")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    memory_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    return {"cpus": os.cpu_count(), "memory_mib": memory_mib, "qemu": peers.said("qemu-system-x86_64", "--version").splitlines()[0],
            "libvirt": peers.said("libvirtd", "--version")}  # fmt: skip


def load_file() -> dict[str, Any]:
    told: dict[str, Any] = json.loads(JSON.read_text()) if JSON.exists() else {"cases": {}}
    return told | {"machine": machine(), "holes": list(HOLES)}


def store(told: dict[str, Any]) -> None:
    part = JSON.with_suffix(".part")
    part.write_text(json.dumps(told, indent=1) + "\n")
    part.replace(JSON)


def samples_of(told: dict[str, Any]) -> list[Sample]:
    return [Sample(**raw) for case in told["cases"].values() for raw in case.get("samples", [])]


def line_of(sample: Sample) -> str:
    def ms(value: float | None) -> str:
        return "     –" if value is None else f"{value:6.0f}"

    text = f"{sample.case:15} {sample.peer:13} {sample.round:2} load {sample.load:4.1f}  gap {ms(sample.gap_ms)}  client {ms(sample.client_ms)}"
    text += f"  total {ms(sample.total_ms)} ms  {sample.wire_bytes / (1 << 20):6.0f} MiB"
    if sample.work_before is not None:
        rates = (sample.work_before, sample.work_during, sample.work_least)
        text += "  work " + "/".join("–" if rate is None else f"{rate / 1e6:.0f}" for rate in rates)
        text += f" MB/s before/during/least, throttle {sample.throttle_percent}, {sample.iterations} passes"
        text += f", {sample.wrong_pages} wrong pages, fell back by {sample.fell_back}"
    return text + (f"  LOST: {sample.lost}" if sample.lost else "")


async def run(chosen: Sequence[Case], drained: bool) -> None:
    """The cases of one kind of pool on one cluster; then the next kind on the same lab."""
    told = load_file()
    async with lab_of({case.guest for case in chosen}) as (lab, found):
        for locks in ("probed", "none"):
            cases = [case for case in chosen if case.locks == locks]
            drains = drained and locks == "probed"
            if not cases and not drains:
                continue
            async with bench_of(lab, found, locks) as bench:
                for case in cases:
                    await measure(bench, case, told)
                if drains:
                    told["cases"][DRAIN] = {"commit": commit(), **await bench.drain()}
                    store(told)


async def measure(bench: Bench, case: Case, told: dict[str, Any]) -> None:
    """Written down after each migration: what was measured stays, whatever happens to the rest."""
    samples: list[dict[str, Any]] = []
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    told["cases"][case.name] = {"commit": commit(), "begun": begun, "case": asdict(case), "samples": samples}
    async for sample in bench.play(case):
        samples.append(asdict(sample))
        store(told)
        print(line_of(sample), flush=True)


def draw(told: dict[str, Any]) -> None:
    """Of each side the migration whose client's gap is the middle one."""
    series = []
    for peer, name in ((PLAIN, "virsh migrate, through the same tunnel"), (OURS, "Hostler")):
        runs = [run for run in samples_of(told) if run.case == "linux" and run.peer == peer and run.good]
        runs = [run for run in runs if (RAW / f"linux-{peer}-{run.round}.txt").exists()]
        if not runs:
            return
        middle = sorted(runs, key=lambda run: run.client_ms or 0.0)[len(runs) // 2]
        gaps = figures.client_gaps(figures.lines_of((RAW / f"linux-{peer}-{middle.round}.txt").read_text()))
        peak_s = max(gaps, key=lambda one: one[1])[0]
        series.append((name, [(at_s - peak_s + 2.0, gap_ms) for at_s, gap_ms in gaps if abs(at_s - peak_s) <= 2.0]))
    PICTURE.write_text(picture.svg("Time without a line from the guest, ms (a line every 10 ms; one live migration)", series))


def report(told: dict[str, Any]) -> None:
    samples = samples_of(told)
    print("\n" + figures.table(samples) + "\n")
    print(*figures.verdicts(samples), sep="\n")
    if (drain := told["cases"].get(DRAIN)) is not None:
        print(f"drain of {drain['vms']} VMs: by `hostler node drain` {drain['drain_s']} s, one at a time {drain['one_at_a_time_s']} s")
    print(*(f"not measured: {hole}" for hole in HOLES), f"samples in {JSON}, the client's gap in {PICTURE}", sep="\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.bench.migration.run", description="live migration beside plain virsh migrate, in one run")
    parser.add_argument("--only", default="", help=f"cases whose name matches this expression: {', '.join(c.name for c in CASES)}, {DRAIN}")
    parser.add_argument("--rounds", type=int, default=0, help="another number of rounds")
    parser.add_argument("--report", action="store_true", help="only print what was measured last")
    options = parser.parse_args()
    if not options.report:
        chosen = [replace(case, rounds=options.rounds or case.rounds) for case in CASES if re.search(options.only, case.name)]
        os.nice(NICE)
        asyncio.run(run(chosen, re.search(options.only, DRAIN) is not None))
    told = load_file()
    draw(told)
    report(told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
