"""A standalone host's decisions and steps: random lives of VMs and volumes keep the laws, and each refusal is for its own reason."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hostler.errors import Conflict, FailedPrecondition, HostlerError, NoCapacity, NotFound, Reason
from hostler.model.domain import ServiceClass
from hostler.model.journal import ACCEPTED, DEFINED, ROLLBACK, STARTING, VOLUMES, Request, begin, cancelled, succeed
from hostler.model.node import VMPower, VMStatus
from hostler.model.owner import OwnerState
from hostler.model.quantities import CPU_MILLI, memory_key, pool_key, total
from hostler.model.records import Kept, Observed, OperationState, StoredError, Verb, VolumeState
from hostler.model.wishes import ExistingDisk, NewDisk, WishedNic, WishedVM
from nodeagent.core import standalone as decide
from nodeagent.core import standalone_steps as steps
from nodeagent.core.ledger import Account
from nodeagent.core.observed import PoolView
from nodeagent.core.standalone import Host, HostRecords, Step, after
from nodeagent.core.standalone_steps import By
from tests.examples import share

CAPACITY = {CPU_MILLI: 1000, memory_key(0): 2000, memory_key(1): 1000, pool_key("local"): 5000}
POOLS = (
    PoolView("local", False, "f1", 5000, 5000, True, {"guest": 300}),
    PoolView("nas", True, "f2", 9000, 9000, True, {"guest": 300}),
)
BY = By("h1", 5)
T = TypeVar("T")


def never_defined(uid: str) -> bool:
    return False


def host_for(records: HostRecords) -> Host:
    """The host with what the records promise."""
    claimed = total(decide.charges_without_definition(records, never_defined))
    return Host("h1", Account(CAPACITY, {}, {}, claimed), POOLS, ("br0",))


def request(number: int, body: str = "") -> Request:
    return Request("spiffe://c/user/alice", f"r-{number}", body or f"body-{number}", number)


def wish(vm_id: str, *disks: NewDisk | ExistingDisk, memory_mib: int = 128, bridge: str = "br0") -> WishedVM:
    nics = (WishedNic(bridge, "52:54:00:00:00:01"),)
    return WishedVM(vm_id, f"uid-of-{vm_id}", "", 1, memory_mib, 0, ServiceClass.BURSTABLE, disks, nics)


def taken(records: HostRecords, step: Step | None) -> HostRecords:
    assert step is not None
    return after(records, step)


def started(vm_id: str = "web-1", *disks: NewDisk | ExistingDisk, records: HostRecords | None = None, number: int = 1) -> HostRecords:
    """Records in which the VM runs and no operation has it."""
    records = records or HostRecords()
    records = taken(records, decide.create_vm(records, host_for(records), request(number), wish(vm_id, *disks)))
    operation_id = request(number).operation_id
    sizes = {volume_id: 64 for volume_id in records.vms[vm_id].record.own_volumes}
    records = taken(records, steps.volumes_made(records, operation_id, sizes, host_for(records).account, BY))
    records = taken(records, steps.enter_phase(records, operation_id, VOLUMES, DEFINED, "", BY))
    records = taken(records, steps.enter_phase(records, operation_id, DEFINED, STARTING, "", BY, steps.let_run))
    return taken(records, steps.finish_vm(records, operation_id, STARTING, Observed.RUNNING, OwnerState.RUNNING, BY))


def refusal(call: Callable[[], object]) -> HostlerError:
    with pytest.raises(HostlerError) as caught:
        call()
    return caught.value


class Lives(RuleBasedStateMachine):
    """Requests and steps in any order, as a host and its driver would take them."""

    def __init__(self) -> None:
        super().__init__()
        self.records = HostRecords()
        self.number = 0
        self.epochs: dict[str, int] = {}

    def try_to(self, step_of: Callable[[Request], Step]) -> None:
        self.number += 1
        try:
            self.records = after(self.records, step_of(request(self.number)))
        except HostlerError:
            return

    @rule(vm=st.sampled_from("abc"), memory_mib=st.integers(16, 2500), pool=st.sampled_from(["local", "nas"]), size=st.integers(0, 3000))
    def create(self, vm: str, memory_mib: int, pool: str, size: int) -> None:
        disk = NewDisk(pool, size, "guest", f"disk-{self.number}")
        wanted = replace(wish(vm, disk, memory_mib=memory_mib), uid=f"uid-{self.number}")
        self.try_to(lambda asked: decide.create_vm(self.records, host_for(self.records), asked, wanted))

    @rule(vm=st.sampled_from("abc"), volume=st.sampled_from("xy"))
    def create_with_volume(self, vm: str, volume: str) -> None:
        wanted = replace(wish(vm, ExistingDisk(volume)), uid=f"uid-{self.number}")
        self.try_to(lambda asked: decide.create_vm(self.records, host_for(self.records), asked, wanted))

    @rule(vm=st.sampled_from("abc"), verb=st.sampled_from(["start", "stop", "reboot", "delete"]))
    def change(self, vm: str, verb: str) -> None:
        verbs: dict[str, Callable[[Request], Step]] = {
            "start": lambda asked: decide.start_vm(self.records, asked, vm, ""),
            "stop": lambda asked: decide.stop_vm(self.records, asked, vm, "", 0, False),
            "reboot": lambda asked: decide.reboot_vm(self.records, asked, vm, "", False),
            "delete": lambda asked: decide.delete_vm(self.records, asked, vm, "", True),
        }
        self.try_to(verbs[verb])

    @rule(volume=st.sampled_from("xy"), size=st.integers(0, 3000))
    def create_volume(self, volume: str, size: int) -> None:
        made = NewDisk("local", size, "", f"volume-{self.number}")
        self.try_to(lambda asked: decide.create_volume(self.records, host_for(self.records), asked, volume, made))

    @rule(volume=st.sampled_from("xy"))
    def delete_volume(self, volume: str) -> None:
        self.try_to(lambda asked: decide.delete_volume(self.records, asked, volume, ""))

    def undone(self) -> list[str]:
        return sorted(name for name, kept in self.records.operations.items() if not kept.record.done)

    @precondition(lambda self: self.undone())
    @rule(data=st.data(), size=st.integers(1, 3000), fails=st.booleans())
    def step(self, data: st.DataObject, size: int, fails: bool) -> None:
        """The driver takes one operation one step further, or it turns back."""
        operation = self.records.operations[data.draw(st.sampled_from(self.undone()))].record
        step = self.next_step(operation.operation_id, operation.verb, operation.phase, size, fails)
        assert step is not None
        self.records = after(self.records, step)

    def next_step(self, operation_id: str, verb: Verb, phase: str, size: int, fails: bool) -> Step | None:
        records, account = self.records, host_for(self.records).account
        error = StoredError("FailedPrecondition", Reason.HYPERVISOR_REFUSED.value, "no")
        target = records.operations[operation_id].record.target_id
        if phase == ROLLBACK and verb is Verb.CREATE_VM:
            return steps.remove_vm(records, operation_id, ROLLBACK, BY, error)
        if verb is Verb.CREATE_VM and phase != ROLLBACK and fails:
            return steps.enter_phase(records, operation_id, phase, ROLLBACK, "no", BY, error=error)
        if verb is Verb.CREATE_VM and phase == ACCEPTED:
            try:
                sizes = {volume_id: size for volume_id in records.vms[target].record.own_volumes}
                return steps.volumes_made(records, operation_id, sizes, account, BY)
            except NoCapacity:
                return steps.enter_phase(records, operation_id, phase, ROLLBACK, "no", BY, error=error)
        if verb in (Verb.CREATE_VM, Verb.START_VM) and phase in (ACCEPTED, VOLUMES):
            return steps.enter_phase(records, operation_id, phase, STARTING, "", BY, steps.let_run)
        if verb in (Verb.CREATE_VM, Verb.START_VM, Verb.REBOOT_VM):
            return steps.finish_vm(records, operation_id, phase, Observed.RUNNING, OwnerState.RUNNING, BY)
        if verb is Verb.STOP_VM:
            return steps.finish_vm(records, operation_id, phase, Observed.STOPPED, OwnerState.STOPPED, BY)
        if verb is Verb.DELETE_VM:
            return steps.remove_vm(records, operation_id, phase, BY)
        if verb is Verb.CREATE_VOLUME:
            try:
                return steps.volume_made(records, operation_id, size, account, BY)
            except NoCapacity:
                return steps.volume_removed(records, operation_id, phase, BY, error)
        if fails:
            return steps.volume_stays(records, operation_id, phase, error, BY)
        return steps.volume_removed(records, operation_id, phase, BY)

    @rule(power=st.sampled_from(list(VMPower)))
    def look(self, power: VMPower) -> None:
        looked_at = {vm_id: kept.revision for vm_id, kept in self.records.vms.items()}
        seen = {kept.record.uid: VMStatus(kept.record.uid, 1, True, power) for kept in self.records.vms.values()}
        step = steps.settle(self.records, seen, looked_at)
        if step is not None:
            self.records = after(self.records, step)
            assert steps.settle(self.records, seen, {name: kept.revision for name, kept in self.records.vms.items()}) is None

    @invariant()
    def nothing_is_promised_twice(self) -> None:
        """Capacity."""
        claimed = total(decide.charges_without_definition(self.records, never_defined))
        assert all(amount <= CAPACITY.get(key, 0) for key, amount in claimed.items())

    @invariant()
    def every_undone_operation_has_its_target_and_nobody_else_has_it(self) -> None:
        """No limbo: an operation without its VM can never end; a VM held by one that ended can never be changed."""
        held = {kept.record.operation_id: vm_id for vm_id, kept in self.records.vms.items() if kept.record.operation_id}
        for operation_id, kept in self.records.operations.items():
            if not kept.record.done and not kept.record.verb.value.endswith("Volume"):
                assert held.get(operation_id) == kept.record.target_id
        assert set(held) <= set(self.undone())

    @invariant()
    def a_volume_has_one_vm_and_that_has_it(self) -> None:
        """Two VMs that write one disk, or a volume that stays in use by a VM that is gone."""
        users = [volume_id for kept in self.records.vms.values() for volume_id in kept.record.volume_ids]
        assert len(users) == len(set(users))
        for volume_id, kept in self.records.volumes.items():
            assert (kept.record.vm_id != "") == (volume_id in users)
            if kept.record.state is VolumeState.READY and not kept.record.vm_id:
                assert kept.record.operation_id == ""

    @invariant()
    def epochs_never_go_back(self) -> None:
        """One owner: a start under an epoch that was used before."""
        for kept in self.records.vms.values():
            assert kept.record.owner.epoch >= self.epochs.get(kept.record.uid, 0)
            self.epochs[kept.record.uid] = kept.record.owner.epoch


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=share(150), stateful_step_count=40, deadline=None)


# ---- decisions


def test_the_operation_s_id_is_the_caller_s_and_the_request_s() -> None:
    """A repeat that is taken for a new request, or two callers that share one operation."""
    records = started()
    assert decide.repeat_of(records, request(1)) == records.operations[request(1).operation_id].record
    assert refusal(lambda: decide.repeat_of(records, request(1, "another body"))).reason is Reason.REQUEST_ID_REUSED
    assert decide.repeat_of(records, replace(request(1), principal="spiffe://c/user/bob")) is None


@pytest.mark.parametrize(
    ("wanted", "kind", "reason"),
    [
        (wish("web-1"), HostlerError, Reason.VM_EXISTS),
        (wish("web-2", bridge="br9"), NotFound, Reason.NETWORK_NOT_FOUND),
        (wish("web-2", NewDisk("tape", 1, "", "u")), NotFound, Reason.POOL_NOT_FOUND),
        (wish("web-2", NewDisk("local", 1, "absent", "u")), NotFound, Reason.IMAGE_NOT_FOUND),
        (wish("web-2", ExistingDisk("absent")), NotFound, Reason.VOLUME_NOT_FOUND),
        (wish("web-2", ExistingDisk("web-1-disk0")), FailedPrecondition, Reason.VOLUME_IN_USE),
        (wish("web-2", memory_mib=1928), NoCapacity, Reason.NODE_CAPACITY_EXCEEDED),
        (wish("web-2", NewDisk("local", 4937, "", "u")), NoCapacity, Reason.NODE_CAPACITY_EXCEEDED),
    ],
    ids=lambda value: value.value if isinstance(value, Reason) else "",
)
def test_a_create_that_is_refused(wanted: WishedVM, kind: type[HostlerError], reason: Reason) -> None:
    """A refusal for another reason than the true one; it is what the user acts on."""
    records = started("web-1", NewDisk("local", 64, "", "u1"))
    error = refusal(lambda: decide.create_vm(records, host_for(records), request(2), wanted))
    assert isinstance(error, kind)
    assert error.reason is reason


def test_a_volume_is_charged_by_its_size_as_soon_as_that_is_known() -> None:
    """A copy of a large image that takes more of its pool than was ever charged."""
    records = taken(
        HostRecords(), decide.create_vm(HostRecords(), host_for(HostRecords()), request(1), wish("a", NewDisk("local", 0, "guest", "u")))
    )
    volume = records.volumes["a-disk0"].record
    assert (volume.size_mib, volume.charged_mib) == (300, 300)
    operation_id = request(1).operation_id
    small = taken(records, steps.volumes_made(records, operation_id, {"a-disk0": 64}, host_for(records).account, BY))
    assert small.volumes["a-disk0"].record.charged_mib == 64
    assert small.vms["a"].record.domain.charged[pool_key("local")] == 64
    largest = taken(records, steps.volumes_made(records, operation_id, {"a-disk0": 5000}, host_for(records).account, BY))
    assert largest.volumes["a-disk0"].record.charged_mib == 5000
    error = refusal(lambda: steps.volumes_made(records, operation_id, {"a-disk0": 5001}, host_for(records).account, BY))
    assert error.reason is Reason.POOL_CAPACITY_EXCEEDED


def test_disks_together_are_refused_together() -> None:
    """Two images that each fit what is left, and together do not."""
    disks = (NewDisk("local", 0, "guest", "u1"), NewDisk("local", 0, "guest", "u2"))
    records = taken(HostRecords(), decide.create_vm(HostRecords(), host_for(HostRecords()), request(1), wish("a", *disks)))
    sizes = {"a-disk0": 2501, "a-disk1": 2500}
    error = refusal(lambda: steps.volumes_made(records, request(1).operation_id, sizes, host_for(records).account, BY))
    assert error.reason is Reason.POOL_CAPACITY_EXCEEDED


def test_a_definition_takes_over_its_charge() -> None:
    """A VM charged twice or not at all, while its charge moves from the record to the definition."""
    records = started("web-1", NewDisk("local", 64, "", "u1"))
    without = total(decide.charges_without_definition(records, never_defined))
    defined = total([decide.run_charge(records.vms["web-1"].record.domain), *decide.charges_without_definition(records, lambda uid: True)])
    assert without == defined == dict(records.vms["web-1"].record.domain.charged)


def test_etags_tell_states_and_namesakes_apart() -> None:
    """A change on the strength of a VM that was deleted and made again, or has changed since."""
    records = started()
    old = decide.etag("uid-of-web-1", records.vms["web-1"].revision)
    assert old != decide.etag("another", records.vms["web-1"].revision)
    records = taken(records, decide.stop_vm(records, request(2), "web-1", old, 0, False))
    error = refusal(lambda: decide.delete_vm(records, request(3), "web-1", old, True))
    assert (type(error), error.reason) == (Conflict, Reason.ETAG_MISMATCH)


def test_one_operation_at_a_time() -> None:
    """Two operations that undo each other's steps."""
    records = started()
    records = taken(records, decide.stop_vm(records, request(2), "web-1", "", 0, False))
    error = refusal(lambda: decide.delete_vm(records, request(3), "web-1", "", True))
    assert error.reason is Reason.VM_BUSY
    assert request(2).operation_id in error.message


def test_a_cancel_between_two_steps_is_not_passed_by() -> None:
    """A create that was asked to stop, and whose next step was already on its way, starts the VM."""
    records = taken(HostRecords(), decide.create_vm(HostRecords(), host_for(HostRecords()), request(1), wish("a")))
    operation_id = request(1).operation_id
    records = taken(records, steps.volumes_made(records, operation_id, {}, host_for(records).account, BY))
    records = taken(records, Step(cancelled(records.operations[operation_id].record)))
    assert steps.enter_phase(records, operation_id, VOLUMES, DEFINED, "", BY, unless_cancelled=True) is None
    error = StoredError("FailedPrecondition", Reason.OPERATION_CANCELLED.value, "It was cancelled.")
    records = taken(records, steps.enter_phase(records, operation_id, VOLUMES, ROLLBACK, "", BY, error=error))
    records = taken(records, steps.remove_vm(records, operation_id, ROLLBACK, BY, error))
    assert records.operations[operation_id].record.state is OperationState.CANCELLED
    assert records.vms == {}


# ---- what was seen


def test_an_old_look_changes_nothing() -> None:
    """A VM that was started while somebody looked, shown as stopped by that look."""
    records = started()
    revision = records.vms["web-1"].revision
    off = {"uid-of-web-1": VMStatus("uid-of-web-1", 2, True, VMPower.OFF)}
    assert steps.settle(records, off, {"web-1": revision - 1}) is None
    step = steps.settle(records, off, {"web-1": revision})
    assert step is not None
    vm = step.vms["web-1"]
    assert vm is not None
    assert (vm.observed, vm.owner.state) == (Observed.STOPPED, OwnerState.STOPPED)


def test_a_vm_in_hand_is_its_operation_s() -> None:
    """A look that declares a VM stopped which is being started."""
    records = taken(started(), decide.reboot_vm(started(), request(2), "web-1", "", False))
    assert steps.settle(records, {}, {"web-1": records.vms["web-1"].revision}) is None


def test_a_crash_is_not_forgotten_by_the_next_look() -> None:
    """A crashed VM shown as merely stopped by an agent that was restarted and did not see the crash."""
    records = started()
    crashed = {"uid-of-web-1": VMStatus("uid-of-web-1", 2, True, VMPower.CRASHED, "It ended by itself.")}
    records = taken(records, steps.settle(records, crashed, {"web-1": records.vms["web-1"].revision}))
    assert records.vms["web-1"].record.observed is Observed.CRASHED
    assert steps.settle(records, {}, {"web-1": records.vms["web-1"].revision}) is None


# ---- retention


def ended(count: int, at_ms: Callable[[int], int]) -> HostRecords:
    operations = {}
    for number in range(count):
        operation = succeed(begin(request(number), Verb.STOP_VM, "web-1", ""), "h1", at_ms(number))
        operations[operation.operation_id] = Kept(operation, number + 1)
    return HostRecords(count, operations=operations)


def test_ended_operations_are_kept_for_a_day_and_no_more_than_so_many() -> None:
    """A request_id that is forgotten while a client may still repeat it; a journal that grows for ever."""
    young = ended(5, lambda number: number)
    assert steps.expired(young, steps.KEEP_MS) == ()
    assert steps.expired(young, steps.KEEP_MS + 3) == tuple(request(number).operation_id for number in range(3))
    assert steps.expired(ended(steps.KEEP_MOST + 2, lambda number: number), 0) == (request(0).operation_id, request(1).operation_id)


def test_only_the_oldest_go() -> None:
    """A later operation forgotten before an earlier one, whose last step would then be taken again after a restart."""
    jumped = ended(3, lambda number: 1_000_000_000 if number == 0 else 0)
    assert steps.expired(jumped, steps.KEEP_MS + 10) == ()
    undone = HostRecords(1, operations={"a": Kept(begin(request(1), Verb.STOP_VM, "web-1", ""), 1)})
    assert steps.expired(undone, 10 * steps.KEEP_MS) == ()
