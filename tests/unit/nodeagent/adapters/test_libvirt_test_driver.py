"""The adapter on libvirt's built-in test driver, as far as that reaches: looking, strangers, events, several loops, errors in our words.

Not possible there: a paused start, migration, signals and locks (no process), a hung daemon (it is in this process). Those run on the lab's
libvirt, in tests/contract/hypervisor.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import libvirt
import pytest
import uvloop

from hostler.server.clock import SystemClock
from nodeagent.adapters.libvirt_errors import answer
from nodeagent.adapters.libvirt_events import EventHub
from nodeagent.adapters.libvirt_hypervisor import LibvirtHypervisor, LibvirtSettings
from nodeagent.core.domain_xml import NAMESPACE, Acceleration
from nodeagent.ports import CopyTag, EventKind, HypervisorRefused, HypervisorUnavailable, Power

URI = "test:///default"  # one state for the whole process
HEAR_S = 20.0


def adapter() -> LibvirtHypervisor:
    return LibvirtHypervisor(LibvirtSettings(uri=URI), SystemClock(), Acceleration.EMULATION)


@pytest.fixture
async def hypervisor() -> AsyncIterator[LibvirtHypervisor]:
    async with adapter().connected() as connected:
        yield connected


@contextmanager
def domain(tagged: bool) -> Iterator[tuple[str, libvirt.virDomain]]:
    """A running domain that the adapter did not make."""
    uid = str(uuid.uuid4())
    tag = f'<h:copy xmlns:h="{NAMESPACE}" uid="{uid}" epoch="4" operation="op-x" label=""/>' if tagged else ""
    connection = libvirt.open(URI)
    made = connection.createXML(
        f"<domain type='test'><name>{uid}</name><uuid>{uid}</uuid><metadata>{tag}</metadata><memory unit='MiB'>64</memory>"
        "<vcpu>2</vcpu><os><type>hvm</type></os></domain>"
    )
    try:
        yield uid, made
    finally:
        for left in connection.listAllDomains():
            if left.UUIDString() == uid:
                left.destroy()
        connection.close()


async def test_our_domain_is_seen_with_its_tag_and_size(hypervisor: LibvirtHypervisor) -> None:
    """A restarted agent knows nothing but what it finds."""
    with domain(tagged=True) as (uid, _):
        view = await hypervisor.domain(uid)
        assert view is not None
        assert (view.power, view.tag, view.vcpus, view.memory_mib, view.pid) == (Power.RUNNING, CopyTag(uid, 4, "op-x"), 2, 64, 0)
    assert await hypervisor.domain(uid) is None


async def test_a_stranger_is_listed_but_is_nobodys_vm(hypervisor: LibvirtHypervisor) -> None:
    """What has no tag must be counted and never be acted on as a VM."""
    with domain(tagged=False) as (uid, _):
        assert await hypervisor.domain(uid) is None
        assert [view.tag for view in await hypervisor.domains() if view.uuid == uid] == [None]


async def test_a_stranger_is_never_acted_on(hypervisor: LibvirtHypervisor) -> None:
    """A domain that somebody named like a VM of ours is still theirs."""
    with domain(tagged=False) as (uid, made):
        with pytest.raises(HypervisorRefused):
            await hypervisor.resume(uid)
        await hypervisor.destroy(uid)  # there is no domain of ours: done
        assert made.isActive()


async def test_destroy_ends_it_and_says_so_in_an_event(hypervisor: LibvirtHypervisor) -> None:
    """Without the event nobody looks again."""
    with domain(tagged=True) as (uid, _):
        events = hypervisor.events()
        await hypervisor.destroy(uid)
        assert await hypervisor.domain(uid) is None
        async with asyncio.timeout(HEAR_S):
            async for event in events:
                if (event.vm_uid, event.kind) == (uid, EventKind.STOPPED):
                    break
        await events.aclose()


@pytest.mark.parametrize("round_number", [1, 2])
@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_events_come_on_every_loop_of_the_process(factory: Callable[[], asyncio.AbstractEventLoop], round_number: int) -> None:
    """An event bridge bound to the first loop is silent for everybody after it."""

    async def hear() -> None:
        async with adapter().connected() as hypervisor:
            events = hypervisor.events()
            with domain(tagged=True) as (uid, _):
                async with asyncio.timeout(HEAR_S):
                    async for event in events:
                        if (event.vm_uid, event.kind) == (uid, EventKind.STARTED):
                            return

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(hear())


async def test_a_reader_that_went_away_costs_nothing_and_one_that_is_late_looks_again() -> None:
    """A closed or slow reader must not grow without bound, nor stop the others."""
    hub = EventHub(lambda: 5, limit=2)
    gone, late = hub.subscribe(), hub.subscribe()
    await gone.aclose()
    for _ in range(3):
        hub.publish(EventKind.STARTED, "a")
    await asyncio.sleep(0)
    assert (await anext(late)).kind is EventKind.CONNECTION_BACK
    with pytest.raises(StopAsyncIteration):
        await anext(gone)


async def test_an_end_that_we_asked_for_is_told_once_and_is_no_crash() -> None:
    """libvirt may call it a crash, or say nothing at all, or say it late."""
    hub = EventHub(lambda: 5)
    reader = hub.subscribe()
    hub.expect_end("called a crash")
    assert hub.judged_end("called a crash", EventKind.CRASHED) is EventKind.STOPPED
    hub.end_seen("called a crash")
    hub.expect_end("not mentioned")
    hub.end_seen("not mentioned")
    assert hub.judged_end("not mentioned", EventKind.STOPPED) is None
    hub.expect_end("started again")
    hub.end_seen("started again")
    hub.forget_end("started again")
    assert hub.judged_end("started again", EventKind.CRASHED) is EventKind.CRASHED
    hub.expect_end("migrated")
    assert hub.judged_end("migrated", EventKind.STOPPED_MIGRATED) is EventKind.STOPPED_MIGRATED
    told = [(await anext(reader)).vm_uid for _ in range(2)]
    assert told == ["not mentioned", "started again"]
    await reader.aclose()


async def test_a_libvirt_that_is_not_there_is_unavailable() -> None:
    """A missing socket is a state to wait out, not a crash of the agent."""
    settings = LibvirtSettings(uri="qemu+unix:///system?socket=/nonexistent/libvirt.sock")
    async with LibvirtHypervisor(settings, SystemClock(), Acceleration.EMULATION).connected() as hypervisor:
        with pytest.raises(HypervisorUnavailable):
            await hypervisor.domains()


def test_libvirts_own_words_never_leave() -> None:
    """They carry paths, command lines and what the guest made QEMU say."""
    connection = libvirt.open(URI)
    try:
        with pytest.raises(libvirt.libvirtError, match="secret-name") as caught:
            connection.createXML("<domain type='test'><name>a</name><memory>1024</memory><os><type>secret-name</type></os></domain>")
    finally:
        connection.close()
    said = answer(caught.value, "test", alive=True)
    assert isinstance(said, HypervisorRefused)
    assert "secret-name" not in said.detail


def test_on_a_dead_connection_no_answer_is_a_no() -> None:
    """After kill -9 libvirt calls it an internal error: "no" would be believed."""
    error = libvirt.libvirtError("internal error: client socket is closed")
    assert isinstance(answer(error, "test", alive=True), HypervisorRefused)
    assert isinstance(answer(error, "test", alive=False), HypervisorUnavailable)
