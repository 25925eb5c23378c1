"""A hand edit on one host, as its API shows it: soon after it was made, and no longer once it is undone."""

from dataclasses import replace

import pytest

from hostler.api.type.v1 import vm_pb2
from nodeagent.engine import drift
from tests.rpc.nodeagent.host import WAIT_S, HostClient, LoneHost, watching


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of a second where the product takes its time."""
    monkeypatch.setattr(drift, "PERIOD_S", 0.1)
    monkeypatch.setattr(drift, "PAUSE_S", 0.02)
    monkeypatch.setattr(drift, "CONFIRM_S", 0.02)


async def shown(client: HostClient, *words: str) -> vm_pb2.VM:
    """Watch until the VM's only finding has these words; without words: until it has none."""
    async with watching(client) as call:
        async for event in call:
            found = event.updated.drift
            if event.HasField("updated") and (all(word in found[0] for word in words) if words and found else words == tuple(found)):
                return event.updated
    raise AssertionError(f"not shown within {WAIT_S} s: {words}")


async def test_a_hand_edit_is_shown_and_clears_itself(host: LoneHost, client: HostClient) -> None:
    """Somebody halves a guest's memory with virsh and nobody is told; or the word stays when it is put right."""
    made = await client.made("web-1")
    assert list(made.drift) == []
    host.sim.change_by_hand(made.uid, lambda shape: replace(shape, memory_mib=128))
    edited = await shown(client, "128 MiB of memory, expected 256", "virsh setmem")
    assert edited.state == vm_pb2.VM.RUNNING
    assert edited.etag != made.etag
    assert list((await client.vm("web-1")).drift) == list(edited.drift)
    host.sim.change_by_hand(made.uid, lambda shape: replace(shape, memory_mib=256))
    await shown(client)


async def test_a_suspended_guest_is_no_repaired_guest(host: LoneHost, client: HostClient) -> None:
    """An agent that undoes what a person did to a guest, behind that person's back."""
    made = await client.made("web-1")
    host.sim.suspend_by_hand(made.uid)
    await shown(client, "suspended", "virsh resume")
    assert host.world.guest(made.uid).executing == ()
    host.sim.resume(made.uid)
    await shown(client)


async def test_power_taken_by_hand_is_told_as_such(host: LoneHost, client: HostClient) -> None:
    """`virsh destroy` that is told as a guest which powered off by itself."""
    made = await client.made("web-1")
    host.sim.destroy_by_hand(made.uid)
    seen = await shown(client, "power was taken", "hostler vm start web-1")
    assert seen.state == vm_pb2.VM.STOPPED
    assert "past Hostler" in seen.reason
    started = await client.done(await client.start("web-1"))
    assert started.vm.state == vm_pb2.VM.RUNNING
    await shown(client)


async def test_it_is_remembered_over_a_restart_of_the_agent(host: LoneHost, client: HostClient) -> None:
    """A hand edit that a restarted agent takes for what was meant."""
    made = await client.made("web-1")
    host.sim.change_by_hand(made.uid, lambda shape: replace(shape, persistent=True))
    await shown(client, "virsh undefine")
    await host.restart()
    await shown(host.client(), "virsh undefine")


async def test_what_hostler_does_itself_is_never_called_drift(host: LoneHost, client: HostClient) -> None:
    """A VM that is marked each time it is started or stopped, because it is paused or gone for a moment."""
    await client.made("web-1")
    async with watching(client) as call:
        for _ in range(2):
            await client.done(await client.stop("web-1"))
            await client.done(await client.start("web-1"))
        await client.done(await client.delete("web-1", force=True))
        async for event in call:
            assert list(event.updated.drift) == []
            if event.deleted:
                return
