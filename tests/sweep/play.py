"""One cell, played: a VM that counts on its disk is migrated, the daemon of the step stands at its gate, the journal is read, the blow lands, the
gate opens. Then everything is waited for as a condition: the victim's return, the end of the operation, a guest that counts, and etcd, agents and
libvirt being equal. The observer's samples are judged afterwards, by `observer.breaches` alone.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc.aio

import real
import story
from client import CALL_S, Client
from hostler.api.cluster.v1 import vms_pb2
from hostler.api.type.v1 import operation_pb2, vm_pb2
from hostlerlab.cluster import Daemons, LabCluster, lab_cluster
from hostlerlab.guest.build import build
from hostlerlab.hosts import LOCAL_POOL, SHARED_POOL, Host
from hostlerlab.lab import Lab, default_specs
from hostlerlab.shell import wait_for
from tests.sweep import control, lockless, observer
from tests.sweep.cells import BY_NAME, CONTROL, LASTS_S, LOST_FINISH, Cell, Pool, Who
from tests.sweep.pause import Control
from tests.sweep.results import ROOT, Row, commit
from tests.sweep.strikes import LoopbackLoss, NotLanded, Scene, lose_finish, scheduler_uid, strike

IMAGE = "bootsector"
MEMORY_MIB = 32
STATE = "/hostler/state/"

RECOVERY_S = 10.0
"""The VM counts again so long after the victim's return, at the latest."""
ORPHAN_S = 60.0
"""After the victim's return everything is over and equal by then; it is awaited, not slept through."""
LEAD_IN_S = 1.0
"""The guest is seen to run for so long before anything happens to it."""
LEAD_OUT_S = 1.5
"""And after everything is over."""
LOOK_S = 0.05
SLOW_MIB_S = 1
"""Of a migration whose connections have to be told apart while they are open: a guest of 32 MiB that is mostly zeros then takes a second or two."""

T = TypeVar("T")


class Red(Exception):
    """What the cell shows to be broken."""


@dataclass(slots=True)
class Guest:
    """The VM that is moved about, and where it is on the brick; or, of a disk that is not shared, where its file is on each host that has one."""

    vm_id: str
    vm_uid: str
    image: Path
    mounted: str
    files: dict[str, Path] = field(default_factory=dict)


class Stage:
    """One warm lab and the VM on it."""

    def __init__(self, lab: Lab, cluster: LabCluster, gates: Control) -> None:
        self._lab = lab
        self._cluster = cluster
        self._gates = gates
        self._real = real.Real(lab, cluster)
        self._etcd = observer.Etcd(cluster.etcd.client_urls)
        self._guests: dict[Pool, Guest] = {}
        self._made = 0

    async def close(self) -> None:
        await self._real.close()

    async def ready(self) -> None:
        """All of the cluster answers, before the first cell and after each."""
        for member in self._cluster.etcd.members:
            await asyncio.to_thread(self._cluster.etcd.wait_healthy, member.name)
        await self._ask(lambda client: client.until_ready(len(self._lab.hosts)))

    # ---- one cell

    async def play(self, cell: Cell, folder: Path) -> Row:
        row, began_s = Row(cell.name, commit=commit()), time.monotonic()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)  # noqa: ASYNC240 a local directory
        try:
            if cell.step == CONTROL:
                await self._control_of_the_fault(row, folder)
                return row
            guest = await self._guest(cell.pool)
            async with self._observed(guest, folder) as samples:
                try:
                    await self._move(cell, guest, row, samples)
                finally:
                    self._judge(row, samples())
        except Exception as error:  # whatever it is, the cell has not shown what it was to show
            row.why = f"{type(error).__name__}: {error}"
            (folder / "traceback.txt").write_text(traceback.format_exc())
        finally:
            row.took_s = round(time.monotonic() - began_s, 1)
        row.verdict = "red" if row.why or row.breaches else "green"
        return row

    async def _control_of_the_fault(self, row: Row, folder: Path) -> None:
        """Green if the fault that Hostler survives makes a second copy without Hostler, and the observer sees it."""
        source, destination = list(self._lab.hosts.values())[:2]
        brick = self._lab.store.folder / "brick"
        row.proof, seen = await asyncio.to_thread(control.played, self._cluster, source, destination, brick, folder, IMAGE)
        row.outcome = "; ".join(f"{breach.rule}: {breach.what}" for breach in seen[:3])
        if not any(breach.rule == "two running" for breach in seen):
            raise Red("the fault makes no second copy, or the observer does not see it")
        row.verdict = "green"

    async def _move(self, cell: Cell, guest: Guest, row: Row, samples: Callable[[], list[observer.Sample]]) -> None:
        before = self._vm(guest)
        source = self._lab.hosts[before["owner"]["node_id"]]
        destination = next(host for host in self._lab.hosts.values() if host is not source)
        step = BY_NAME.get(cell.step)
        self._arm(cell, source, destination)
        operation = await self._ordered(guest, destination, SLOW_MIB_S if cell.step == LOST_FINISH else 0)
        scene = Scene(self._cluster, guest.vm_uid, source, destination, "", "")
        if cell.step == LOST_FINISH:
            landed = await lose_finish(source, destination, lambda: self._tunnel(operation), LASTS_S[cell.blow])
            row.phase = self._phase(operation)
        else:
            assert step is not None
            stand = None
            if step.who is Who.NOBODY:
                await asyncio.to_thread(wait_for, "the destination's QEMU", lambda: self._arriving(guest, destination), ORPHAN_S)
            else:
                stand = await self._gates.standing()
            journal = self._operation(operation)
            row.phase = journal["phase"]
            replica = stand.unit if stand is not None and step.who is Who.SCHEDULER else journal["phases"][-1]["driver"].partition("@")[0]
            scene = Scene(self._cluster, guest.vm_uid, source, destination, replica, journal["migration"]["tunnel_endpoint"])
            try:
                landed = await strike(cell.victim, cell.blow, scene)
            finally:
                self._gates.disarm()
            if row.phase not in step.phases:
                raise NotLanded(f"the journal says {row.phase} at {step.name}, not {' or '.join(step.phases)}")
        row.proof = landed.proof
        row.proof += await landed.back()
        back_s = time.monotonic()
        await self._ended(operation, back_s, row)
        await self._runs_or_was_lost(guest, row)
        row.recovery_s = round(await self._counting(samples, back_s, cold=row.outcome.startswith("cold")), 1)
        await self._equal(guest, back_s)

    async def _ordered(self, guest: Guest, destination: Host, limit_mib_s: int) -> str:
        """The migration is accepted: an agent that has just been started again counts as silent until its first beat is heard."""
        async with asyncio.timeout(ORPHAN_S):
            while True:
                try:
                    accepted = await self._ask(lambda client: client.migrate(guest.vm_id, destination.name, limit_mib_s))
                    return accepted.name.removeprefix("operations/")
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED or "silent" not in str(error.details()):
                        raise
                await asyncio.sleep(LOOK_S)

    def _arm(self, cell: Cell, source: Host, destination: Host) -> None:
        step = BY_NAME.get(cell.step)
        if step is not None and step.who is not Who.NOBODY:
            units = {Who.SOURCE: (source.name,), Who.DESTINATION: (destination.name,), Who.SCHEDULER: self._cluster.replicas}[step.who]
            self._gates.arm(units, step.point)

    async def _ended(self, operation: str, back_s: float, row: Row) -> None:
        """No limbo: the operation ends. What it says if it does not is the reason that the table shows."""

        def over() -> bool:
            try:
                return self._operation(operation)["state"] in ("SUCCEEDED", "FAILED", "CANCELLED")
            except OSError:
                return False

        try:
            await asyncio.to_thread(wait_for, "the operation", over, ORPHAN_S)
        except TimeoutError as late:
            now = self._operation(operation)
            raise Red(f"limbo: {now['phase']} {ORPHAN_S:.0f} s after the victim's return, {now.get('reason', '')}") from late
        ended = self._operation(operation)
        row.ended_s = round(time.monotonic() - back_s, 1)
        row.outcome = "moved" if ended["state"] == "SUCCEEDED" else f"back ({ended['error']['reason']})"

    async def _runs_or_was_lost(self, guest: Guest, row: Row) -> None:
        """The record says RUNNING, or that the guest was lost, and why: then it is started cold."""
        await asyncio.to_thread(wait_for, "the VM to be said to run, or lost", lambda: self._settled(guest), ORPHAN_S)
        vm = self._vm(guest)
        if vm["owner"]["state"] == "RUNNING" and vm["observed"] == "RUNNING":
            return
        if not vm.get("reason"):
            raise Red(f"{vm['owner']['state']}, {vm['observed']}, and no reason is told")
        row.outcome = f"cold ({vm['observed']}: {vm['reason']})"
        request = vms_pb2.StartVMRequest(name=f"vms/{guest.vm_id}")
        started = await self._ask(lambda client: client.vms.StartVM(request, timeout=CALL_S))
        done = await self._ask(lambda client: client.wait(started))
        if done.state != operation_pb2.Operation.SUCCEEDED:
            raise Red(f"it cannot be started: {done.error.message}")

    def _settled(self, guest: Guest) -> bool:
        vm = self._vm(guest)
        running = vm["owner"]["state"] == "RUNNING" and vm["observed"] == "RUNNING"
        return running or (vm["owner"]["state"] in ("STOPPED", "FROZEN") and vm["observed"] != "RUNNING")

    async def _counting(self, samples: Callable[[], list[observer.Sample]], back_s: float, *, cold: bool) -> float:
        """Seconds from the victim's return until the guest counts for good; 0: it did all along. The observer's eyes decide."""

        def counts() -> bool:
            last = [sample for sample in samples()[-15:] if sample.at_s > time.monotonic() - LEAD_OUT_S]
            return len({sample.counter for sample in last}) > 5

        await asyncio.to_thread(wait_for, "the guest to count on its disk", counts, ORPHAN_S)
        ends = [end for _, end in observer.outages(samples()) if end > back_s]
        late_s = max(ends, default=back_s) - back_s
        if late_s > RECOVERY_S and not cold:
            raise Red(f"counts again only {late_s:.1f} s after the victim's return")
        return late_s

    async def _equal(self, guest: Guest, back_s: float) -> None:
        """No orphan: the script that imports nothing of ours finds etcd, the agents' files and libvirt of every host equal, no tunnel is open, and of
        a disk that was copied along one file is left, its owner's."""
        while True:
            try:
                await self._real.check()
                self._tunnels_closed()
                self._one_file(guest)
                return
            except (story.Failed, Red) as wrong:
                if time.monotonic() - back_s > ORPHAN_S:
                    raise Red(f"orphan: {wrong}") from wrong
            await asyncio.sleep(LOOK_S)

    def _tunnels_closed(self) -> None:
        for host in self._lab.hosts.values():
            left = [path.name for path in host.outside("/run/hostler/tunnel").glob("*")]
            if left:
                raise Red(f"{host.name} keeps {', '.join(left)} in its tunnel directory")

    def _one_file(self, guest: Guest) -> None:
        having = [name for name, path in guest.files.items() if path.exists()]
        owner = self._vm(guest)["owner"]["node_id"]
        if guest.files and having != [owner]:
            raise Red(f"{', '.join(having) or 'nobody'} has a file of the disk, {owner} owns it")

    @staticmethod
    def _judge(row: Row, samples: Sequence[observer.Sample]) -> None:
        row.samples = len(samples)
        row.still_s = round(observer.longest_still_s(samples), 1)
        row.breaches = [f"{breach.rule}: {breach.what}" for breach in observer.breaches(samples)]
        if len(samples) and len(samples[-1].processes) != 1:
            row.breaches.append(f"orphan: {len(samples[-1].processes)} QEMU processes of the VM at the end")

    # ---- the guest

    async def _guest(self, pool: Pool) -> Guest:
        if pool not in self._guests:
            self._made += 1
            vm_id = f"sweep-{self._made}"
            disk = vm_pb2.VM.Disk(new_volume=vm_pb2.VM.NewVolume(pool=f"pools/{pool.value}", image=IMAGE))
            request = vms_pb2.CreateVMRequest(vm_id=vm_id, vm=vm_pb2.VM(vcpus=1, memory_mib=MEMORY_MIB, disks=[disk]))
            operation = await self._ask(lambda client: client.vms.CreateVM(request, timeout=CALL_S))
            done = await self._ask(lambda client: client.wait(operation))
            assert done.state == operation_pb2.Operation.SUCCEEDED, done.error.message
            self._guests[pool] = self._found(vm_id, pool)
        return self._guests[pool]

    def _found(self, vm_id: str, pool: Pool) -> Guest:
        vm = self._etcd.range(f"{STATE}vm/")[vm_id][1]
        volume = self._etcd.range(f"{STATE}volume/")[vm["volume_ids"][0]][1]["uid"]
        brick = self._lab.store.folder / "brick"
        match pool:
            case Pool.SHARED:
                name = f"volumes/{volume}.qcow2"
                return Guest(vm_id, vm["uid"], brick / name, str(SHARED_POOL / name))
            case Pool.LOCKLESS:
                return Guest(vm_id, vm["uid"], brick / f"lockless/volumes/{volume}.raw", "")
            case Pool.LOCAL:
                file = LOCAL_POOL / "volumes" / f"{volume}.qcow2"
                return Guest(vm_id, vm["uid"], file, "", {name: host.outside(file) for name, host in self._lab.hosts.items()})

    @asynccontextmanager
    async def _observed(self, guest: Guest, folder: Path) -> AsyncIterator[Callable[[], list[observer.Sample]]]:
        """The observer runs as a program of its own while the block does; yields what it has seen so far."""
        out = folder / "samples.jsonl"
        hosts = {name: host.space.holder().pid for name, host in self._lab.hosts.items()}
        urls = list(self._cluster.etcd.client_urls)
        files = {name: str(path) for name, path in guest.files.items()}
        config = observer.Config(guest.vm_id, guest.vm_uid, hosts, urls, str(guest.image), guest.mounted, str(out), files)
        (folder / "observer.json").write_text(json.dumps(asdict(config)))
        process = subprocess.Popen([sys.executable, str(Path(observer.__file__)), str(folder / "observer.json")])  # noqa: ASYNC220 returns at once

        def seen() -> list[observer.Sample]:
            return observer.load(out) if out.exists() else []

        def steady() -> bool:
            samples = seen()
            return bool(samples) and samples[-1].counter - samples[0].counter >= 18 * LEAD_IN_S and samples[-1].record is not None

        try:
            await asyncio.to_thread(wait_for, "the guest to count", steady, ORPHAN_S)
            yield seen
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait, CALL_S)

    # ---- etcd and the API

    def _vm(self, guest: Guest) -> dict[str, Any]:
        return self._etcd.range(f"{STATE}vm/")[guest.vm_id][1]

    def _operation(self, operation: str) -> dict[str, Any]:
        return self._etcd.range(f"{STATE}op/")[operation][1]

    def _phase(self, operation: str) -> str:
        return str(self._operation(operation)["phase"])

    def _tunnel(self, operation: str) -> str:
        return str((self._operation(operation).get("migration") or {}).get("tunnel_endpoint", ""))

    def _arriving(self, guest: Guest, destination: Host) -> bool:
        spaces = {os.readlink(f"/proc/{destination.space.holder().pid}/ns/net"): destination.name}
        return any(seen.host == destination.name for seen in observer.processes(guest.vm_uid, spaces))

    async def _ask(self, call: Callable[[Client], Awaitable[T]]) -> T:
        """Of whichever replica answers, for as long as an election takes."""
        async with asyncio.timeout(ORPHAN_S):
            while True:
                for replica in self._cluster.replicas:
                    try:
                        return await call(self._real.client(replica))
                    except grpc.aio.AioRpcError as error:
                        if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                            raise
                await asyncio.sleep(LOOK_S)


@asynccontextmanager
async def lab_of(folder: Path) -> AsyncIterator[Stage]:
    """Two hosts, three members of etcd, two replicas that are users of their own."""
    images = build(Path("build/guest").resolve())  # noqa: ASYNC240 once, before anything runs
    LoopbackLoss.heal_left_over()
    lab = Lab(folder / "lab", default_specs(2))
    await asyncio.to_thread(lab.up, fresh=True)
    hosts = list(lab.hosts.values())
    for host, pool in [(hosts[0], SHARED_POOL), (hosts[0], lockless.PATH), *((host, LOCAL_POOL) for host in hosts)]:
        host.run(["mkdir", "-p", str(pool / "images")])
        host.run(["cp", str(images.bootsector.resolve()), str(pool / "images" / f"{IMAGE}.qcow2")])
    gates = Control(folder / "control")
    try:
        async with gates.serving(), lab_cluster(lab, folder / "cluster", daemons=Daemons(_launch(folder / "control"), 0.0)) as cluster:
            stage = Stage(lab, cluster, gates)
            try:
                await stage.ready()
                yield stage
            finally:
                await stage.close()
    finally:
        LoopbackLoss.heal_left_over()
        await asyncio.to_thread(lab.down)


def _launch(control: Path) -> Callable[[str, str], Sequence[str]]:
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "client/python", "deploy/lab", "deploy/demo"))

    def launch(program: str, unit: str) -> Sequence[str]:
        module = {"hostler-nodeagent": "agent", "hostler-scheduler": "scheduler"}[program]
        # As the daemon's own `__main__` says before it imports gRPC; a launcher that wraps its parts imports gRPC earlier.
        daemon = [
            "env",
            f"PYTHONPATH={paths}",
            "GRPC_ENABLE_FORK_SUPPORT=false",
            sys.executable,
            "-m",
            f"tests.sweep.{module}",
            str(control),
        ]
        if module == "agent":
            return daemon
        # Its own user, so that its packets on loopback can be dropped; it may read what root may.
        return ["setpriv", f"--reuid={scheduler_uid(unit)}", "--inh-caps=+dac_override", "--ambient-caps=+dac_override",
                "--pdeathsig", "KILL", *daemon]  # fmt: skip

    return launch
