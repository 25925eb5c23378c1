"""What must be true at every revision of the store and whenever a copy begins to execute; what is broken is told once, and ends the run.

The checker reads the transactions themselves, not what any replica believes: one copy of the records, kept by the same functions as a replica's. The
invariants are the protocol's: I1 one running copy, I2 one writer and I8 no stale memory (watched by the simulated world), I3 ledgers, I7 epochs and
what the owner record allows.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from hostler.model.owner import OwnerState
from hostler.model.quantities import minus, plus, pool_key
from scheduler.core.records import (
    STATE,
    TICK,
    ClaimRecord,
    LedgerRecord,
    OperationRecord,
    Record,
    Verb,
    VMRecord,
    VolumeRecord,
    ledger_key,
    shared_pool_key,
)
from scheduler.core.state import ClusterState
from scheduler.engine.codec import decode, kind_and_id
from scheduler.engine.mirror import put_record
from scheduler.ports import KeyEvent, KeyPut

if TYPE_CHECKING:
    from nodeagent.adapters.sim_process import SimProcess
    from tests.simulate.cluster import SimCluster

MAY_EXECUTE = frozenset({OwnerState.RUNNING, OwnerState.HANDOFF, OwnerState.COMMITTED})
MAY_END = frozenset({Verb.CREATE_VM, Verb.START_VM, Verb.STOP_VM, Verb.DELETE_VM})
"""A creation and a start end what they began when they turn back."""


class Violated(Exception):
    """A promise is broken; the text says which, and how."""


class Checker:
    """`failed` is set by the first violation; `hit` counts what has happened, by name; `digest` is of everything that counts, in order."""

    def __init__(self, now_s: Callable[[], float], *, story: bool) -> None:
        self.state = ClusterState()
        self.hit: Counter[str] = Counter()
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.violation = ""
        self.story: list[str] = []
        self.cluster: SimCluster | None = None
        self.decoded: dict[tuple[str, bytes], Record | None] = {}
        self._story = story
        self._digest = hashlib.blake2b(digest_size=16)
        self._now_s = now_s
        self._sums: dict[str, dict[str, int]] = {}
        self._epochs: dict[str, tuple[int, str]] = {}
        self._ran: dict[tuple[str, int], int] = {}
        """The process of each VM and epoch that has executed."""
        self._done: dict[str, asyncio.Future[None]] = {}
        self._moved: dict[str, asyncio.Event] = {}
        self.moves: dict[Callable[[OperationRecord], None], None] = {}
        """Told of every operation that enters a phase."""

    # ---- telling

    def tell(self, what: str) -> None:
        """A line of the story, and of what must be the same when the seed is run again."""
        self._digest.update(f"{self._now_s():.6f} {what}\n".encode())
        if self._story:
            self.story.append(f"{self._now_s():10.3f} {what}")

    def note(self, what: str) -> None:
        """A line of the story alone."""
        if self._story:
            self.story.append(f"{self._now_s():10.3f} {what}")

    def broken(self, what: str) -> None:
        if not self.violation:
            self.violation = f"at {self._now_s():.3f} s: {what}"
            self.tell(f"VIOLATION {what}")
            if not self.failed.done():
                self.failed.set_result(None)

    def digest(self) -> str:
        return self._digest.hexdigest()

    def decode(self, key: str, value: bytes) -> Record | None:
        """As the replicas decode it; each value once for all of them."""
        at = (key, value)
        if at not in self.decoded:
            self.decoded[at] = decode(key, value)
        return self.decoded[at]

    # ---- the store

    def committed(self, revision: int, events: tuple[KeyEvent, ...]) -> None:
        """One transaction has been written."""
        touched: dict[str, LedgerRecord | None] = {}
        for event in events:
            key = event.item.key if isinstance(event, KeyPut) else event.key
            if not key.startswith(STATE) or key == TICK:
                continue
            value = event.item.value if isinstance(event, KeyPut) else b""
            self._digest.update(key.encode() + value)
            record = self.decode(key, value) if value else None
            self._take(key, record, revision, touched)
        for key, before in touched.items():
            self._ledger(key, before)
        self.state.revision = revision

    def _take(self, key: str, record: Record | None, revision: int, touched: dict[str, LedgerRecord | None]) -> None:
        kind, name = kind_and_id(key)
        state = self.state
        match kind:
            case "claim":
                node_id, _, vm_id = name.partition("/")
                kept_claim = state.claims.get((node_id, vm_id))
                self._add(ledger_key(node_id), kept_claim.record if kept_claim else None, record, touched)
            case "volume":
                kept_volume = state.volumes.get(name)
                self._add_volume(kept_volume.record if kept_volume else None, record, touched)
            case "ledger" | "pool":
                table = state.ledgers if kind == "ledger" else state.shared_pools
                if key not in touched:
                    touched[key] = table[name].record if name in table else None
            case "vm":
                self._vm(state.vms[name].record if name in state.vms else None, record)
            case "op":
                self._operation(state.operations[name].record if name in state.operations else None, record)
        put_record(state, key, revision, record)

    def _add(self, ledger: str, before: ClaimRecord | None, now: Record | None, touched: dict[str, LedgerRecord | None]) -> None:
        sums = self._sums.get(ledger, {})
        if before is not None:
            sums = minus(sums, before.charged)
        if isinstance(now, ClaimRecord):
            sums = plus(sums, now.charged)
        self._sums[ledger] = sums
        self._touch(ledger, touched)

    def _add_volume(self, before: VolumeRecord | None, now: Record | None, touched: dict[str, LedgerRecord | None]) -> None:
        for record, sign in ((before, -1), (now, 1)):
            if isinstance(record, VolumeRecord) and record.charged_mib:
                key = ledger_key(record.node_id) if record.node_id else shared_pool_key(record.pool_id)
                self._sums[key] = plus(self._sums.get(key, {}), {pool_key(record.pool_id): sign * record.charged_mib})
                self._touch(key, touched)

    def _touch(self, key: str, touched: dict[str, LedgerRecord | None]) -> None:
        if key not in touched:
            kind, name = kind_and_id(key)
            table = self.state.ledgers if kind == "ledger" else self.state.shared_pools
            touched[key] = table[name].record if name in table else None

    def _ledger(self, key: str, before: LedgerRecord | None) -> None:
        """I3: the ledger is what it sums, and nothing was promised that is not there."""
        kind, name = kind_and_id(key)
        kept = (self.state.ledgers if kind == "ledger" else self.state.shared_pools).get(name)
        claimed = {quantity: amount for quantity, amount in kept.record.claimed.items() if amount} if kept is not None else {}
        if claimed != self._sums.get(key, {}):
            self.broken(f"I3: {key} says {claimed}, its claims are {self._sums.get(key, {})}")
        if kept is None:
            return
        for quantity, amount in claimed.items():
            grown = before is None or amount > before.claimed.get(quantity, 0)
            if grown and amount > kept.record.allocatable.get(quantity, 0):
                self.broken(f"I3: {key} promises {amount} of {kept.record.allocatable.get(quantity, 0)} {quantity}")

    def _vm(self, before: VMRecord | None, now: Record | None) -> None:
        """I7: an epoch never goes back, an owner never changes without a new one, and no copy executes that the record forbids."""
        if isinstance(now, VMRecord):
            epoch, node_id = self._epochs.get(now.uid, (0, now.owner.node_id))
            if now.owner.epoch < epoch:
                self.broken(f"I7: the epoch of {now.vm_id} goes from {epoch} back to {now.owner.epoch}")
            if now.owner.node_id != node_id and now.owner.epoch == epoch:
                self.broken(f"I7: {now.vm_id} goes from {node_id} to {now.owner.node_id} under the same epoch {epoch}")
            self._epochs[now.uid] = (now.owner.epoch, now.owner.node_id)
            if before is None or before.owner != now.owner:
                self.note(f"record of {now.vm_id}: {now.owner.state.value} {now.owner.node_id} epoch {now.owner.epoch}")
        vm = now if isinstance(now, VMRecord) else before
        if vm is None or self.cluster is None:
            return
        for process in self.cluster.world.copies(vm.uid):
            if process.executing:
                self._judge(process, now if isinstance(now, VMRecord) else None, "the record is written")

    def executes(self, process: "SimProcess") -> None:
        """A copy begins to execute, or goes on."""
        kept = self.state.vm_by_uid(process.vm_uid)
        self._judge(process, kept.record if kept is not None else None, "it begins to execute")
        self._runs_once(process)

    def _runs_once(self, process: "SimProcess") -> None:
        """A guest that has ended is not started again under its epoch."""
        domain = self.cluster.world.hosts[process.node_id].domains.get(process.vm_uid) if self.cluster is not None else None
        if domain is None or domain.tag is None:
            return
        first = self._ran.setdefault((process.vm_uid, domain.tag.epoch), process.pid)
        if first != process.pid:
            self.broken(f"a second guest of {process.vm_uid} executes under epoch {domain.tag.epoch}, on {process.node_id}")

    def _judge(self, process: "SimProcess", vm: VMRecord | None, when: str) -> None:
        if self.cluster is None:
            return
        where = f"a copy of {process.vm_uid} executes on {process.node_id} when {when}"
        if vm is None:
            self.broken(f"I7: {where}, and there is no record")
            return
        if vm.owner.node_id != process.node_id or vm.owner.state not in MAY_EXECUTE:
            self.broken(f"I7: {where}, and the record of {vm.vm_id} says {vm.owner.state.value} {vm.owner.node_id}")
            return
        domain = self.cluster.world.hosts[process.node_id].domains.get(process.vm_uid)
        if domain is not None and domain.tag is not None and domain.tag.epoch != vm.owner.epoch:
            self.broken(f"I7: {where} under epoch {domain.tag.epoch}, and the record of {vm.vm_id} has {vm.owner.epoch}")

    def ends(self, node_id: str, vm_uid: str, what: str) -> None:
        """An agent ends a copy: never one that the record lets run, unless an operation that may end it has the VM in hand."""
        kept = self.state.vm_by_uid(vm_uid)
        domain = self.cluster.world.hosts[node_id].domains.get(vm_uid) if self.cluster is not None else None
        if kept is None or domain is None or domain.tag is None or not domain.process.executing:
            return
        vm = kept.record
        operation = self.state.operations.get(vm.operation_id)
        allowed = operation is not None and operation.record.verb in MAY_END
        if vm.owner.state is OwnerState.RUNNING and (vm.owner.node_id, vm.owner.epoch) == (node_id, domain.tag.epoch) and not allowed:
            verb = operation.record.verb.value if operation is not None else "no operation"
            self.broken(f"{node_id} {what} the guest of {vm.vm_id}, which its record lets run, with {verb} in hand")

    # ---- operations

    def _operation(self, before: OperationRecord | None, now: Record | None) -> None:
        if not isinstance(now, OperationRecord):
            return
        verb = f"{now.verb.value} cold" if now.migration is not None and now.migration.cold else now.verb.value
        if before is None:
            self.hit[f"step {verb}: accepted"] += 1
            self.tell(f"{now.operation_id[:6]} {verb} {now.target_id} accepted")
        if before is not None and before.done and before != now:
            self.broken(f"operation {now.operation_id} ended {before.state.value} and was written again")
        if before is not None and before.phase != now.phase:
            for told in tuple(self.moves):
                told(now)
            if now.operation_id in self._moved:
                self._moved[now.operation_id].set()
            self.hit[f"step {verb}: {before.phase} -> {now.phase}"] += 1
            self.note(f"{now.operation_id[:6]} {verb} {now.target_id}: {before.phase} -> {now.phase} {now.reason}")
        if before is not None and now.cancel_requested and not before.cancel_requested:
            self.hit[f"step {verb}: cancel asked"] += 1
        if now.done and (before is None or not before.done):
            self.hit[f"end {verb}: {now.state.value}"] += 1
            self.tell(f"{now.operation_id[:6]} {verb} {now.target_id} {now.state.value} {now.error.message if now.error else ''}")
            waiting = self._done.pop(now.operation_id, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(None)

    async def until_done(self, operation_id: str, timeout_s: float) -> bool:
        """Whether the operation ends within that time."""
        kept = self.state.operations.get(operation_id)
        if kept is not None and kept.record.done:
            return True
        ended = self._done.get(operation_id)
        if ended is None:
            ended = self._done[operation_id] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(ended)
        except TimeoutError:
            return False
        return True

    async def until_moved(self, operation_id: str, steps: int, timeout_s: float) -> None:
        """Until the operation has entered so many more phases, or that time has passed: a moment that is too short to be met by chance."""
        moved = self._moved[operation_id] = asyncio.Event()
        try:
            async with asyncio.timeout(timeout_s):
                for _ in range(steps):
                    await moved.wait()
                    moved.clear()
        except TimeoutError:
            return
        finally:
            del self._moved[operation_id]

    def undone(self) -> list[OperationRecord]:
        return [kept.record for kept in self.state.operations.values() if not kept.record.done]
