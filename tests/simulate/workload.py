"""What users ask of the cluster meanwhile: random requests through the cluster's own API, some of them sensible, repeated when no answer came.

Each accepted operation is remembered with its request, so that at the end every request can be sent once more and must name the same operation.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from hostler.api.cluster.v1 import (
    nodes_pb2,
    nodes_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
    vms_pb2,
    vms_pb2_grpc,
    volumes_pb2,
    volumes_pb2_grpc,
)
from hostler.api.type.v1 import vm_pb2, volume_pb2
from hostler.rpc_status import from_rpc_error
from scheduler.core.records import Observed
from tests.simulate.check import Checker
from tests.simulate.cluster import NODES, REPLICAS, SimCluster

VM_IDS = tuple(f"vm-{i}" for i in range(1, 9))
VOLUME_IDS = tuple(f"vol-{i}" for i in range(1, 4))
CALL_S = 15.0
STUBS: tuple[Any, ...] = (
    vms_pb2_grpc.VMServiceStub,
    operations_pb2_grpc.OperationServiceStub,
    volumes_pb2_grpc.VolumeServiceStub,
    nodes_pb2_grpc.NodeServiceStub,
)
ASKED_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED, grpc.StatusCode.CANCELLED)
STEP_S = 3.0
"""How long a user who cancels at a step waits for it."""
PATIENCE_S = 45.0
"""How long a user waits for an operation before asking for something else."""


@dataclass(slots=True)
class Workload:
    """`accepted`: how each operation was asked for, by its id."""

    cluster: SimCluster
    checker: Checker
    random: Random
    wanted: int
    accepted: dict[str, tuple[str, Message]] = field(default_factory=dict)
    refused: int = 0
    _requests: int = 0
    _stubs: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def enough(self) -> bool:
        return len(self.accepted) >= self.wanted

    async def user(self, name: str, until: Callable[[], bool]) -> None:
        """One user, who asks for one thing after the other."""
        while not until():
            method, message = self._draw()
            operation_id = await self._ask(method, message)
            if operation_id is not None:
                await self._go_on_with(operation_id)
            await asyncio.sleep(self.random.uniform(0.0, 0.4))

    async def _go_on_with(self, operation_id: str) -> None:
        random = self.random
        dice = random.random()
        if dice < 0.12:
            if random.random() < 0.5:
                await asyncio.sleep(random.random() ** 2 * 3.0)
            else:
                await self.checker.until_moved(operation_id, random.randrange(4), STEP_S)
            await self._cancel(operation_id)
        elif dice < 0.2:
            await self._repeat(operation_id)
        elif dice < 0.25:
            return
        await self.checker.until_done(operation_id, PATIENCE_S)

    # ---- what is asked

    def _draw(self) -> tuple[str, Message]:
        random, state = self.random, self.checker.state
        vm_id = random.choice(VM_IDS)
        self._requests += 1
        request_id = f"r{self._requests}"
        kept = state.vms.get(vm_id)
        dice = random.random()
        if dice < 0.04:
            return self._volume(request_id)
        if dice < 0.06:
            return self._node(request_id)
        sensible = random.random() < 0.93
        if sensible and kept is not None and kept.record.operation_id:
            free = [one for one in VM_IDS if one not in state.vms or not state.vms[one].record.operation_id]
            vm_id = random.choice(free) if free else vm_id
            kept = state.vms.get(vm_id)
        name = f"vms/{vm_id}"
        if kept is None:
            if sensible:
                return self._create(vm_id, request_id)
            return "StartVM", vms_pb2.StartVMRequest(name=name, request_id=request_id)
        running = kept.record.observed is Observed.RUNNING
        weights = (6, 1, 3, 2, 1.3) if running else (2, 6, 0.5, 0.2, 1.5)
        if not sensible:
            weights = (1, 1, 1, 1, 1)
        match random.choices(("migrate", "start", "stop", "reboot", "delete"), weights)[0]:
            case "migrate":
                destination = f"nodes/{random.choice(NODES)}" if random.random() < 0.3 else ""
                return "MigrateVM", vms_pb2.MigrateVMRequest(name=name, request_id=request_id, destination_node=destination)
            case "start":
                return "StartVM", vms_pb2.StartVMRequest(name=name, request_id=request_id)
            case "stop":
                force = random.random() < 0.3
                return "StopVM", vms_pb2.StopVMRequest(name=name, request_id=request_id, force=force, grace_s=random.choice((0, 1, 5)))
            case "reboot":
                return "RebootVM", vms_pb2.RebootVMRequest(name=name, request_id=request_id, force=random.random() < 0.5)
            case _:
                return "DeleteVM", vms_pb2.DeleteVMRequest(name=name, request_id=request_id, force=random.random() < 0.8)

    def _create(self, vm_id: str, request_id: str) -> tuple[str, Message]:
        random, state = self.random, self.checker.state
        pool = "pools/shared" if random.random() < 0.85 else "pools/local"
        disks = [vm_pb2.VM.Disk(new_volume=vm_pb2.VM.NewVolume(pool=pool, image="guest"))]
        ready = sorted(volume_id for volume_id, kept in state.volumes.items() if volume_id in VOLUME_IDS and not kept.record.vm_id)
        if ready and random.random() < 0.5:
            disks.append(vm_pb2.VM.Disk(volume=f"volumes/{random.choice(ready)}"))
        vm = vm_pb2.VM(
            vcpus=random.choice((1, 1, 2)),
            memory_mib=random.choice((256, 256, 512, 768)),
            disks=disks,
            nics=[vm_pb2.VM.Nic(network="networks/br0")],
        )
        return "CreateVM", vms_pb2.CreateVMRequest(vm_id=vm_id, vm=vm, request_id=request_id, leave_stopped=random.random() < 0.15)

    def _volume(self, request_id: str) -> tuple[str, Message]:
        volume_id = self.random.choice(VOLUME_IDS)
        if volume_id in self.checker.state.volumes:
            return "DeleteVolume", volumes_pb2.DeleteVolumeRequest(name=f"volumes/{volume_id}", request_id=request_id)
        node = f"nodes/{self.random.choice(NODES)}" if self.random.random() < 0.3 else ""
        volume = volume_pb2.Volume(pool="pools/local" if node else "pools/shared", node=node, size_mib=32)
        return "CreateVolume", volumes_pb2.CreateVolumeRequest(volume_id=volume_id, volume=volume, request_id=request_id)

    def _node(self, request_id: str) -> tuple[str, Message]:
        name = f"nodes/{self.random.choice(NODES)}"
        if self.random.random() < 0.4:
            return "CordonNode", nodes_pb2.CordonNodeRequest(name=name, request_id=request_id)
        return "UncordonNode", nodes_pb2.UncordonNodeRequest(name=name, request_id=request_id)

    # ---- asking

    async def _ask(self, method: str, message: Message) -> str | None:
        """The operation's id; None: refused, or nobody answers. Asked again with the same request_id while no answer comes."""
        for _ in range(4):
            try:
                answer = await self._call(method, message)
            except grpc.aio.AioRpcError as error:
                if error.code() in ASKED_AGAIN:
                    await asyncio.sleep(self.random.uniform(0.05, 1.0))
                    continue
                self.refused += 1
                self.checker.hit[f"refused {from_rpc_error(error).reason.value}"] += 1
                return None
            if method in ("CordonNode", "UncordonNode"):
                return None
            operation_id: str = answer.name.removeprefix("operations/")
            self.accepted[operation_id] = (method, message)
            return operation_id
        return None

    async def _call(self, method: str, message: Message) -> Any:  # noqa: ANN401 any message
        replica = self.random.choice(REPLICAS)
        if replica not in self._stubs:
            channel: Any = self.cluster.channel("admin", replica)
            self._stubs[replica] = tuple(stub(channel) for stub in STUBS)
        stub = next(stub for stub in self._stubs[replica] if hasattr(stub, method))
        return await getattr(stub, method)(message, timeout=CALL_S)

    async def _cancel(self, operation_id: str) -> None:
        try:
            await self._call("CancelOperation", operations_pb2.CancelOperationRequest(name=f"operations/{operation_id}"))
        except grpc.aio.AioRpcError as error:
            self.checker.hit[f"cancel {error.code().name}"] += 1
            return
        self.checker.hit["cancel answered"] += 1
        kept = self.checker.state.operations.get(operation_id)
        if kept is None or not kept.record.cancel_requested:
            self.checker.broken(f"a cancel of {operation_id} was answered and is not in the journal")

    async def _repeat(self, operation_id: str) -> None:
        """The same request once more, while it may be anywhere."""
        method, message = self.accepted[operation_id]
        try:
            answer = await self._call(method, message)
        except grpc.aio.AioRpcError as error:
            if error.code() not in ASKED_AGAIN:
                self.checker.broken(f"the repeat of {method} {operation_id} was refused: {from_rpc_error(error)}")
            return
        if answer.name != f"operations/{operation_id}":
            self.checker.broken(f"the repeat of {method} {operation_id} made {answer.name}")

    # ---- the end

    async def repeat_everything(self) -> None:
        """Every request gives the operation that it gave."""
        for operation_id in list(self.accepted):
            await self._repeat(operation_id)

    async def clean_up(self, timeout_s: float) -> None:
        """Delete what is there; a cancelled or failed deletion is asked for again."""
        end_s = self.cluster.loop.now_s + timeout_s
        while self.cluster.loop.now_s < end_s:
            state = self.checker.state
            left: list[tuple[str, Any]] = [
                ("DeleteVM", vms_pb2.DeleteVMRequest(name=f"vms/{vm_id}", force=True)) for vm_id in sorted(state.vms)
            ]
            if not left:
                left = [("DeleteVolume", volumes_pb2.DeleteVolumeRequest(name=f"volumes/{one}")) for one in sorted(state.volumes)]
            if not left:
                return
            for method, message in left:
                self._requests += 1
                message.request_id = f"clean-{self._requests}"
                operation_id = await self._ask(method, message)
                if operation_id is not None:
                    await self.checker.until_done(operation_id, PATIENCE_S)
