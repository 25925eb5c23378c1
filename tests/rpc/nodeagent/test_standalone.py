"""One host without a scheduler, through its API: the three promises hold there too, over restarts of the agent and a hypervisor that hangs."""

import asyncio

import pytest

from hostler.api.node.v1 import operations_pb2, vms_pb2
from hostler.api.type.v1 import node_pb2, operation_pb2, vm_pb2, volume_pb2
from hostler.errors import (
    AlreadyExists,
    Conflict,
    FailedPrecondition,
    InvalidRequest,
    NoCapacity,
    NotFound,
    Reason,
    Unavailable,
)
from tests.rpc.nodeagent.host import CALL_S, IMAGES_MIB, MEMORY_MIB, NODE, POOL_MIB, RESERVE_MIB, HostClient, LoneHost, refused, watching

SUCCEEDED, FAILED, CANCELLED = operation_pb2.Operation.SUCCEEDED, operation_pb2.Operation.FAILED, operation_pb2.Operation.CANCELLED
VM = vm_pb2.VM
OVERHEAD_MIB = 64 + 8
"""Of one vCPU, without RAM/512."""


async def test_the_life_of_a_vm(host: LoneHost, client: HostClient) -> None:
    """A VM that is not what its operation said, or leaves a domain, a file, a claim or an epoch behind."""
    made = await client.made("web-1")
    assert (made.state, made.epoch, made.node) == (VM.RUNNING, 2, "nodes/h1")
    assert {q.key: q.amount for q in made.charged} == {"cpu_milli": 100, "memory_mib/0": 256 + 1 + OVERHEAD_MIB, "pool_mib/local": 64}
    assert await client.claimed() == {q.key: q.amount for q in made.charged}
    assert host.world.guest(made.uid).executing == ("h1",)
    stopped = await client.done(await client.stop("web-1"))
    assert [entry.phase for entry in stopped.phases] == ["ACCEPTED", "STOPPING", "DONE"]
    assert (await client.vm("web-1")).state == VM.STOPPED
    assert host.sim.domains == {}
    started = await client.done(await client.start("web-1"))
    assert (started.vm.state, started.vm.epoch, started.vm.etag) == (VM.RUNNING, 3, (await client.vm("web-1")).etag)
    gone = await client.done(await client.delete("web-1", force=True))
    assert gone.state == SUCCEEDED, gone.error.message
    assert (await refused(client.vm("web-1"))).reason is Reason.VM_NOT_FOUND
    assert (await client.claimed(), await client.volume_names(), host.sim.domains) == ({}, [], {})
    assert [name for name in host.sim.pools["local"].files if name.startswith("volumes/")] == []


async def test_leave_stopped_and_start_later(client: HostClient) -> None:
    """A VM that runs although it was to be left stopped."""
    made = await client.made("web-1", leave_stopped=True)
    assert (made.state, made.epoch) == (VM.STOPPED, 1)
    started = await client.done(await client.start("web-1"))
    assert (started.state, started.vm.state) == (SUCCEEDED, VM.RUNNING)


async def test_what_is_so_already_is_left_alone(host: LoneHost, client: HostClient) -> None:
    """A start of a running VM that restarts its guest, or a stop of a stopped one that is an error."""
    made = await client.made("web-1")
    boot_id = host.world.guest(made.uid).boot_id
    again = await client.start("web-1")
    assert (again.state, again.vm.epoch, host.world.guest(made.uid).boot_id) == (SUCCEEDED, made.epoch, boot_id)
    await client.done(await client.stop("web-1"))
    assert (await client.stop("web-1")).state == SUCCEEDED
    reboot = client.vms.RebootVM(vms_pb2.RebootVMRequest(name="vms/web-1"), timeout=CALL_S)
    assert (await refused(reboot)).reason is Reason.VM_NOT_RUNNING


async def test_reboot_is_a_new_boot_of_the_same_copy(host: LoneHost, client: HostClient) -> None:
    """A reboot that does nothing, or changes the owner's epoch."""
    made = await client.made("web-1")
    boot_id = host.world.guest(made.uid).boot_id
    done = await client.done(await client.vms.RebootVM(vms_pb2.RebootVMRequest(name="vms/web-1"), timeout=CALL_S))
    assert (done.state, done.vm.epoch) == (SUCCEEDED, made.epoch)
    assert host.world.guest(made.uid).boot_id != boot_id


# ---- repeats, and who is first


async def test_a_repeat_has_one_effect(host: LoneHost, client: HostClient) -> None:
    """A client that lost the answer and asks again gets a second VM or an error, also after a restart of the agent."""
    first = await client.create("web-1", request_id="r-1")
    assert (await client.create("web-1", request_id="r-1")).name == first.name
    await client.done(first)
    await host.restart()
    again = await host.client().create("web-1", request_id="r-1")
    assert (again.name, again.state) == (first.name, SUCCEEDED)
    other = await refused(host.client().create("web-2", request_id="r-1"))
    assert other.reason is Reason.REQUEST_ID_REUSED
    assert (await host.client(name="bob").create("web-2", request_id="r-1")).name != first.name
    assert len(host.sim.domains) <= 2


async def test_at_once_with_one_request_id(client: HostClient, host: LoneHost) -> None:
    """A retry that overtakes its first try."""
    answers = await asyncio.gather(*(client.create("web-1", request_id="r-1") for _ in range(8)))
    assert len({answer.name for answer in answers}) == 1
    await client.done(answers[0])
    assert len(host.sim.domains) == 1


async def test_one_operation_per_vm_and_etags(host: LoneHost, client: HostClient) -> None:
    """Two operations on one VM at a time, or a change on the strength of an old read."""
    host.gates.shut("created paused")
    operation = await client.create("web-1")
    await host.gates.reached("created paused")
    busy = await refused(client.delete("web-1", force=True))
    assert busy.reason is Reason.VM_BUSY
    assert operation.name.removeprefix("operations/") in busy.message
    host.gates.open("created paused")
    made = (await client.done(operation)).vm
    await client.done(await client.stop("web-1", etag=made.etag))
    old = await refused(client.delete("web-1", etag=made.etag))
    assert (type(old), old.reason) == (Conflict, Reason.ETAG_MISMATCH)
    assert (await refused(client.create("web-1"))).reason is Reason.VM_EXISTS


async def test_validate_only_writes_nothing(client: HostClient) -> None:
    """A dry run that makes something, or that says yes where the real one says no."""
    would = await client.create("web-1", validate_only=True)
    assert (would.name, would.verb, would.target) == ("", "CreateVM", "vms/web-1")
    assert (await client.claimed(), await client.volume_names(), len((await client.vm_list()).vms)) == ({}, [], 0)
    assert isinstance(await refused(client.create("web-1", memory_mib=MEMORY_MIB, validate_only=True)), NoCapacity)


async def test_bad_requests_name_their_fields(client: HostClient) -> None:
    """Input that reaches the host unchecked."""
    request = vms_pb2.CreateVMRequest(vm_id="Web_1", vm=VM(flavor="flavors/small"))
    error = await refused(client.vms.CreateVM(request, timeout=CALL_S))
    assert isinstance(error, InvalidRequest)
    assert {violation.field for violation in error.violations} == {"vm_id", "vm.flavor"}
    nic = VM(vcpus=1, memory_mib=64, nics=[VM.Nic(network="networks/br9")])
    assert (
        await refused(client.vms.CreateVM(vms_pb2.CreateVMRequest(vm_id="a", vm=nic), timeout=CALL_S))
    ).reason is Reason.NETWORK_NOT_FOUND
    disk = VM(vcpus=1, memory_mib=64, disks=[VM.Disk(new_volume=VM.NewVolume(pool="pools/local", image="absent"))])
    assert (
        await refused(client.vms.CreateVM(vms_pb2.CreateVMRequest(vm_id="a", vm=disk), timeout=CALL_S))
    ).reason is Reason.IMAGE_NOT_FOUND


# ---- capacity


def largest_mib() -> int:
    """The largest guest that fits the empty host."""
    free = MEMORY_MIB - RESERVE_MIB
    return max(mib for mib in range(free) if mib + -(-mib // 512) + OVERHEAD_MIB <= free)


async def test_one_mib_decides_and_the_refusal_has_the_figures(client: HostClient) -> None:
    """A limit that is off by one, or a refusal that does not say by how much."""
    error = await refused(client.create("big", memory_mib=largest_mib() + 1))
    assert (type(error), error.reason) == (NoCapacity, Reason.NODE_CAPACITY_EXCEEDED)
    needed = largest_mib() + 1 + -(-(largest_mib() + 1) // 512) + OVERHEAD_MIB
    assert f"memory short by {needed - 1792} MiB (needs {needed}, free 1792)" in error.message
    assert error.violations[0].field == "nodes/h1"
    await client.made("big", memory_mib=largest_mib())


async def test_many_at_once_fill_the_host_exactly(client: HostClient) -> None:
    """Creates that are decided at the same time and spend the same memory twice."""
    slots = (MEMORY_MIB - RESERVE_MIB) // (256 + 1 + OVERHEAD_MIB)
    answers = await asyncio.gather(*(client.create(f"web-{n}") for n in range(slots + 5)), return_exceptions=True)
    accepted = [answer for answer in answers if isinstance(answer, operation_pb2.Operation)]
    assert len(accepted) == slots
    done = await asyncio.gather(*(client.done(operation) for operation in accepted))
    assert [one.state for one in done] == [SUCCEEDED] * slots
    assert (await client.claimed())["memory_mib/0"] == slots * (256 + 1 + OVERHEAD_MIB)


@pytest.mark.parametrize("cells", [{0: 1024, 1: 1024}])
async def test_a_vm_is_charged_to_the_emptiest_cell(client: HostClient) -> None:
    """A VM spread over cells, or a cell promised more than it has."""
    made = [await client.made(f"web-{n}", memory_mib=400) for n in range(3)]
    charged = [next(q.key for q in vm.charged if q.key.startswith("memory")) for vm in made]
    assert charged == ["memory_mib/1", "memory_mib/0", "memory_mib/1"]
    assert isinstance(await refused(client.create("web-3", memory_mib=400)), NoCapacity)


async def test_what_a_stranger_takes_is_not_promised(host: LoneHost, client: HostClient) -> None:
    """Memory that a domain of somebody else uses, promised to a VM."""
    host.sim.add_unmanaged("theirs", memory_mib=1024)
    assert isinstance(await refused(client.create("web-1", memory_mib=800)), NoCapacity)
    await client.made("web-1", memory_mib=256)


# ---- rollback, cancel


async def test_a_create_that_fails_leaves_nothing(host: LoneHost, client: HostClient) -> None:
    """A refused start that keeps its claim, its volumes, or the attached volume."""
    await client.done(await client.make_volume("data", 100))
    host.sim.refuse_create = "The hypervisor does not like it."
    disks = [VM.Disk(new_volume=VM.NewVolume(pool="pools/local", size_mib=10)), VM.Disk(volume="volumes/data")]
    request = vms_pb2.CreateVMRequest(vm_id="web-1", vm=VM(vcpus=1, memory_mib=64, disks=disks))
    done = await client.done(await client.vms.CreateVM(request, timeout=CALL_S))
    assert done.state == FAILED
    assert done.error.message == "The hypervisor does not like it."
    assert [entry.phase for entry in done.phases][-2:] == ["ROLLBACK", "DONE"]
    assert (await client.claimed(), await client.volume_names()) == ({"pool_mib/local": 100}, ["data"])
    assert (await client.vm_list()).vms == []
    host.sim.refuse_create = ""
    done = await client.done(await client.vms.CreateVM(request, timeout=CALL_S))
    assert done.state == SUCCEEDED, done.error.message


async def test_cancel_before_the_start_leaves_nothing(host: LoneHost, client: HostClient) -> None:
    """A cancelled create that goes on, or keeps what it made."""
    host.gates.shut("volume made")
    operation = await client.create("web-1")
    await host.gates.reached("volume made")
    assert (await client.cancel(operation)).cancellable
    await client.cancel(operation)
    host.gates.open("volume made")
    done = await client.done(operation)
    assert (done.state, done.error.message) == (CANCELLED, "The operation was cancelled.")
    assert (await client.claimed(), await client.volume_names(), host.sim.domains) == ({}, [], {})
    assert (await refused(client.cancel(operation))).reason is Reason.NOT_CANCELLABLE


# ---- restarts


@pytest.mark.parametrize("place", ["volume made", "created paused", "resumed"])
async def test_a_restart_in_the_middle_of_a_create_goes_on(place: str, host: LoneHost, client: HostClient) -> None:
    """An operation that dies with its agent, or whose step is done twice."""
    host.gates.shut(place)
    operation = await client.create("web-1", request_id="r-1")
    await host.gates.reached(place)
    await host.kill()
    host.gates.open(place)
    await host.start()
    done = await host.client().done(operation)
    assert done.state == SUCCEEDED, done.error.message
    assert [entry.phase for entry in done.phases] == ["ACCEPTED", "VOLUMES", "DEFINED", "STARTING", "DONE"]
    vm = await host.client().vm("web-1")
    assert (vm.state, vm.epoch, len(host.sim.domains)) == (VM.RUNNING, 2, 1)
    assert await host.client().claimed() == {q.key: q.amount for q in vm.charged}


@pytest.mark.parametrize("place", ["destroyed", "volume removed"])
async def test_a_restart_in_the_middle_of_a_delete_goes_on(place: str, host: LoneHost, client: HostClient) -> None:
    """A VM that is half deleted for ever."""
    await client.made("web-1")
    host.gates.shut(place)
    operation = await client.delete("web-1", force=True)
    await host.gates.reached(place)
    await host.kill()
    host.gates.open(place)
    await host.start()
    done = await host.client().done(operation)
    assert done.state == SUCCEEDED, done.error.message
    assert (await host.client().claimed(), await host.client().volume_names(), host.sim.domains) == ({}, [], {})


async def test_a_restart_disturbs_no_guest(host: LoneHost, client: HostClient) -> None:
    """A restarted agent that stops, restarts or forgets what runs."""
    made = await client.made("web-1")
    boot_id = host.world.guest(made.uid).boot_id
    await host.restart()
    vm = await host.client().vm("web-1")
    assert (vm.state, vm.etag, host.world.guest(made.uid).boot_id) == (VM.RUNNING, made.etag, boot_id)


async def test_a_rebooted_host_starts_nothing_by_itself(host: LoneHost, client: HostClient) -> None:
    """A VM shown as running after the host lost power, or one that cannot be started again."""
    await client.made("web-1")
    await host.kill()
    host.sim.crash_host()
    host.sim.boot_host()
    await host.start()
    after = host.client()
    assert (await after.vm("web-1")).state == VM.STOPPED
    started = await after.done(await after.start("web-1"))
    assert (started.vm.state, started.vm.epoch) == (VM.RUNNING, 3)


async def test_a_guest_that_ends_by_itself_is_told(host: LoneHost, client: HostClient) -> None:
    """A dead VM that is shown as running, to a watcher who does not ask."""
    made = await client.made("web-1")
    host.sim.crash_domain(made.uid)
    assert "by itself" in (await client.until("web-1", VM.CRASHED)).reason
    started = await client.done(await client.start("web-1"))
    assert (started.vm.state, started.vm.epoch) == (VM.RUNNING, made.epoch + 1)


# ---- a hypervisor that hangs


async def test_a_hung_hypervisor_makes_reads_stale_and_holds_up_nobody(host: LoneHost, client: HostClient) -> None:
    """An agent that hangs with its hypervisor, or shows old facts as new ones."""
    created = await client.create("web-1", request_id="r-1")
    await client.done(created)
    host.sim.hang()
    async with asyncio.timeout(5):
        seen = await client.vm("web-1")
    assert (seen.state, seen.stale) == (VM.RUNNING, True)
    assert "does not answer" in seen.reason
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    for _ in range(20):
        assert (await client.vm_list()).vms[0].stale
    for change in (client.create("web-2"), client.stop("web-1"), client.delete("web-1", force=True)):
        error = await refused(change)
        assert (type(error), error.reason) == (Unavailable, Reason.HYPERVISOR_UNAVAILABLE)
        assert error.retry_after_s
    assert (await client.create("web-1", request_id="r-1")).name == created.name
    assert loop.time() - began_s < 2, "once it is known to hang, nobody waits for it any more"
    assert (await client.done(await client.make_volume("data", 10))).state == SUCCEEDED
    host.sim.unhang()
    async with watching(client) as call:
        async for event in call:
            if event.updated.name and not event.updated.stale:
                break
    await client.made("web-2")


async def test_an_operation_waits_for_the_hypervisor_in_the_open(host: LoneHost, client: HostClient) -> None:
    """An accepted operation that fails or is forgotten because the hypervisor was away for a while, or does not say what it waits for."""
    host.gates.shut("volume made")
    operation = await client.create("web-1")
    await host.gates.reached("volume made")
    host.sim.crash_daemon()
    host.gates.open("volume made")
    call = client.operations.WatchOperation(operations_pb2.WatchOperationRequest(name=operation.name), timeout=CALL_S)
    async for answer in call:
        if "hypervisor" in answer.operation.reason:
            break
    call.cancel()
    host.sim.restart_daemon()
    assert (await client.done(operation)).state == SUCCEEDED
    assert (await client.host()).health == node_pb2.Node.READY


# ---- lists and watches


async def test_pages_are_of_one_moment(client: HostClient) -> None:
    """A page that misses or repeats a VM because something changed in between."""
    for n in range(5):
        await client.made(f"web-{n}", memory_mib=64, leave_stopped=True)
    first = await client.vm_list(2)
    await client.done(await client.delete("web-2"))
    await client.made("web-9", memory_mib=64, leave_stopped=True)
    second = await client.vm_list(2, first.next_page_token)
    third = await client.vm_list(2, second.next_page_token)
    names = [vm.name for page in (first, second, third) for vm in page.vms]
    assert names == [f"vms/web-{n}" for n in range(5)]
    assert third.next_page_token == ""
    assert first.resume_token == third.resume_token
    wrong = await refused(
        client.operations.ListOperations(operations_pb2.ListOperationsRequest(page_token=first.next_page_token), timeout=CALL_S)
    )
    assert wrong.reason is Reason.PAGE_TOKEN_INVALID


async def test_operations_newest_first_and_by_target(client: HostClient) -> None:
    """A list of operations in no order, or with those of another resource of the same name."""
    await client.made("web-1", leave_stopped=True)
    await client.done(await client.make_volume("web-1", 10))
    await client.done(await client.start("web-1"))
    everything = await client.operations.ListOperations(operations_pb2.ListOperationsRequest(), timeout=CALL_S)
    assert [one.verb for one in everything.operations] == ["StartVM", "CreateVolume", "CreateVM"]
    of_one = await client.operations.ListOperations(operations_pb2.ListOperationsRequest(target="volumes/web-1"), timeout=CALL_S)
    assert [one.verb for one in of_one.operations] == ["CreateVolume"]


async def test_a_watch_resumes_without_a_gap(client: HostClient) -> None:
    """A change between two watches that nobody is told of."""
    await client.made("web-1", leave_stopped=True)
    token = ""
    async with watching(client) as call:
        async for event in call:
            if event.bookmark:
                token = event.resume_token
                break
            assert event.updated.name == "vms/web-1"
    await client.done(await client.start("web-1"))
    await client.done(await client.delete("web-1", force=True))
    told = []
    async with watching(client, token) as call:
        async for event in call:
            told.append(event.deleted or vm_pb2.VM.State.Name(event.updated.state))
            if event.deleted:
                break
    in_order = [state for index, state in enumerate(told) if index == 0 or told[index - 1] != state]
    assert in_order == ["STOPPED", "STARTING", "RUNNING", "DELETING", "vms/web-1"]


async def test_the_list_s_token_continues_after_the_list(client: HostClient) -> None:
    """A change right after a list that its watcher misses."""
    token = (await client.vm_list()).resume_token
    await client.made("web-1")
    async with watching(client, token) as call:
        first = await call.read()
    assert isinstance(first, vms_pb2.WatchVMsResponse)
    assert (first.updated.name, first.updated.state) == ("vms/web-1", VM.CREATING)


async def test_a_token_from_before_the_restart_is_too_old(host: LoneHost, client: HostClient) -> None:
    """A restarted agent, which has forgotten its changes, that pretends there were none."""
    await client.made("web-1", leave_stopped=True)
    token = (await client.vm_list()).resume_token
    await host.restart()
    async with watching(host.client(), token) as call:
        assert (await refused(call.read())).reason is Reason.REVISION_COMPACTED


# ---- volumes


async def test_a_volume_outlives_the_vm_that_used_it(client: HostClient) -> None:
    """A user's own volume that is deleted with a VM, used twice, or charged to nobody."""
    made = await client.done(await client.make_volume("data", 0, image="big"))
    assert (made.volume.size_mib, made.volume.state, made.volume.node) == (1500, volume_pb2.Volume.READY, "nodes/h1")
    assert await client.claimed() == {"pool_mib/local": 1500}
    vm = VM(vcpus=1, memory_mib=64, disks=[VM.Disk(volume="volumes/data")])
    await client.done(await client.vms.CreateVM(vms_pb2.CreateVMRequest(vm_id="web-1", vm=vm), timeout=CALL_S))
    assert (await refused(client.delete_volume("data"))).reason is Reason.VOLUME_IN_USE
    second = client.vms.CreateVM(vms_pb2.CreateVMRequest(vm_id="web-2", vm=vm), timeout=CALL_S)
    assert (await refused(second)).reason is Reason.VOLUME_IN_USE
    await client.done(await client.delete("web-1", force=True))
    assert (await client.volume_names(), await client.claimed()) == (["data"], {"pool_mib/local": 1500})
    await client.done(await client.delete_volume("data"))
    assert (await client.volume_names(), await client.claimed()) == ([], {})
    assert isinstance(await refused(client.delete_volume("data")), NotFound)


async def test_a_local_pool_is_never_promised_twice(client: HostClient, host: LoneHost) -> None:
    """Volumes that together are larger than their pool, or one that could not be made and stays charged."""
    await client.done(await client.make_volume("a", POOL_MIB - IMAGES_MIB - 3000))
    full = await refused(client.make_volume("b", 3001))
    assert (type(full), full.reason) == (NoCapacity, Reason.POOL_CAPACITY_EXCEEDED)
    assert "short by 1 MiB (needs 3001, free 3000)" in full.message
    host.world.hosts[NODE].pools["local"].create("volumes/nobodys.qcow2", 2000)  # that a crash left: nobody's claim, and in the way
    too_big = await client.done(await client.make_volume("b", 0, image="big"))
    assert too_big.state == FAILED
    assert await client.volume_names() == ["a"]
    assert await client.claimed() == {"pool_mib/local": POOL_MIB - IMAGES_MIB - 3000}
    del host.world.hosts[NODE].pools["local"].files["volumes/nobodys.qcow2"]
    assert (await client.done(await client.make_volume("b", 1400))).state == SUCCEEDED
    assert isinstance(await refused(client.make_volume("b", 1)), AlreadyExists)
    disk = VM.Disk(new_volume=VM.NewVolume(pool="pools/local", size_mib=1601))
    vm = vms_pb2.CreateVMRequest(vm_id="web-1", vm=VM(vcpus=1, memory_mib=64, disks=[disk]))
    assert "pool local short by 1 MiB" in (await refused(client.vms.CreateVM(vm, timeout=CALL_S))).message
    assert (await client.done(await client.make_volume("c", 3000, pool="shared"))).volume.node == ""


async def test_a_volume_in_the_making_cannot_be_used(host: LoneHost, client: HostClient) -> None:
    """A disk that is attached before it is whole."""
    host.gates.shut("volume made")
    operation = await client.make_volume("data", 10)
    await host.gates.reached("volume made")
    vm = VM(vcpus=1, memory_mib=64, disks=[VM.Disk(volume="volumes/data")])
    error = await refused(client.vms.CreateVM(vms_pb2.CreateVMRequest(vm_id="web-1", vm=vm), timeout=CALL_S))
    assert (type(error), error.reason) == (FailedPrecondition, Reason.VOLUME_IN_USE)
    host.gates.open("volume made")
    await client.done(operation)
