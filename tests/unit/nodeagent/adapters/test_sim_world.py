"""The simulated world goes wrong in the ways real hosts do, and its witness notices broken promises. (What must hold: tests/contract.)"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from hostler.model.domain import DiskSpec, DomainSpec, ServiceClass, VolumeSpec
from hostler.server.manual_clock import ManualClock
from nodeagent.adapters.sim_host_facts import SimHostFacts
from nodeagent.adapters.sim_hypervisor import SimHypervisor
from nodeagent.adapters.sim_migration import MigrationFault
from nodeagent.adapters.sim_storage import SimFileSystem
from nodeagent.adapters.sim_time import NeverEnds, in_virtual_time, keep_moving
from nodeagent.adapters.sim_tunnel import SimTunnel
from nodeagent.adapters.sim_volumes import SimVolumes
from nodeagent.adapters.sim_world import GuestBehaviour, SimWorld
from nodeagent.core.observed import CopyTag, Locks, Power
from nodeagent.ports import EventKind, HypervisorRefused, HypervisorUnavailable, Limits, LiveMigration, Tune

VM = "vm-1"
OP = "op-1"
SPEC = DomainSpec(VM, "web", 1, 100, 512, ServiceClass.BURSTABLE, (DiskSpec("vol-1", "shared", "qcow2"),))
TAG = CopyTag(VM, 1, "op-0")


@dataclass
class Scene:
    """Two hosts, one VM running on the first."""

    world: SimWorld
    clock: ManualClock
    source: SimHypervisor
    destination: SimHypervisor
    volumes: tuple[SimVolumes, SimVolumes]
    tunnels: tuple[SimTunnel, SimTunnel]

    async def migrate(self, mib_s: int = 0) -> None:
        endpoint = await self.tunnels[1].open_incoming(OP, "n1")
        sockets = await self.tunnels[0].open_outgoing(OP, endpoint, "n2")
        paths = {"vol-1": self.volumes[1].path("shared", "vol-1", "qcow2")}
        await self.source.migrate(LiveMigration(CopyTag(VM, 2, OP), paths, sockets, Limits(mib_s)))

    async def powers(self) -> tuple[Power | None, Power | None]:
        views = [await self.source.domain(VM), await self.destination.domain(VM)]
        return views[0].power if views[0] else None, views[1].power if views[1] else None

    async def locks(self) -> Locks:
        return await self.source.locks((self.volumes[0].path("shared", "vol-1", "qcow2"),))


@pytest.fixture(params=[True, False], ids=["locks", "no-locks"])
async def scene(request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    clock = ManualClock()
    async with SimWorld(clock) as world, asyncio.TaskGroup() as group:
        pool = SimFileSystem("fs-1", 1024, shared=True, locks=request.param)
        world.add_host("n1", pools={"shared": pool})
        world.add_host("n2", pools={"shared": pool})
        moving = group.create_task(keep_moving(clock), name="virtual time")
        volumes = (SimVolumes(world, "n1"), SimVolumes(world, "n2"))
        tunnels = (SimTunnel(world, "n1"), SimTunnel(world, "n2"))
        scene = Scene(world, clock, SimHypervisor(world, "n1"), SimHypervisor(world, "n2"), volumes, tunnels)
        await volumes[0].ensure(VolumeSpec("vol-1", "shared", 16, ""))
        await scene.source.create_paused(SPEC, TAG, {"vol-1": volumes[0].path("shared", "vol-1", "qcow2")})
        await scene.source.resume(VM)
        yield scene
        moving.cancel()


def has_locks(scene: Scene) -> bool:
    return scene.world.hosts["n1"].pools["shared"].locks


async def test_error_but_moved_leaves_a_running_source_and_a_complete_copy(scene: Scene) -> None:
    """The pair that makes "the migration failed" no verdict must exist here, or nothing is tested against it."""
    scene.world.script_migration(VM, MigrationFault.FINISH_REPLY_LOST)
    with pytest.raises(HypervisorRefused):
        await scene.migrate()
    assert await scene.powers() == (Power.RUNNING, Power.PAUSED)
    scene.world.assert_one_writer()


async def test_resuming_the_stale_copy_is_noticed_or_refused_by_the_lock(scene: Scene) -> None:
    """A witness that misses two running copies makes every simulation green."""
    scene.world.script_migration(VM, MigrationFault.FINISH_REPLY_LOST)
    with pytest.raises(HypervisorRefused):
        await scene.migrate()
    if has_locks(scene):
        with pytest.raises(HypervisorRefused):
            await scene.destination.resume(VM)
        scene.world.assert_one_writer()
    else:
        await scene.destination.resume(VM)
        with pytest.raises(AssertionError, match=r"two copies.*two writers"):
            scene.world.assert_one_writer()


async def test_stale_ram_is_noticed_although_only_one_copy_runs(scene: Scene) -> None:
    """The source ran on and died; its old copy resumes alone: no second writer, and yet the disk is newer than the memory."""
    scene.world.script_migration(VM, MigrationFault.FINISH_REPLY_LOST)
    with pytest.raises(HypervisorRefused):
        await scene.migrate()
    await scene.clock.sleep(1.0)
    await scene.source.kill(VM)
    await scene.destination.resume(VM)
    with pytest.raises(AssertionError, match="stale RAM"):
        scene.world.assert_one_writer()


async def test_an_old_copy_after_a_cold_start_elsewhere_is_noticed(scene: Scene) -> None:
    """Another boot of the guest has written since: going on from the old memory is a rewind too."""
    scene.source.freeze(VM)
    await scene.clock.sleep(1.0)
    paths = {"vol-1": scene.volumes[1].path("shared", "vol-1", "qcow2")}
    if has_locks(scene):
        with pytest.raises(HypervisorRefused):
            await scene.destination.create_paused(SPEC, TAG, paths)
        return
    await scene.destination.create_paused(SPEC, TAG, paths)
    await scene.destination.resume(VM)
    scene.world.assert_one_writer()
    await scene.destination.destroy(VM)
    scene.source.thaw(VM)
    with pytest.raises(AssertionError, match="stale RAM"):
        scene.world.assert_one_writer()


async def test_without_the_paused_flag_only_a_lock_keeps_the_source_from_running_too(scene: Scene) -> None:
    """Finding of the field: one lost reply, two running copies."""
    scene.world.script_migration(VM, MigrationFault.PAUSED_IGNORED)
    with pytest.raises(HypervisorRefused):
        await scene.migrate()
    if has_locks(scene):
        assert await scene.powers() == (Power.PAUSED, Power.RUNNING)
        scene.world.assert_one_writer()
    else:
        assert await scene.powers() == (Power.RUNNING, Power.RUNNING)
        with pytest.raises(AssertionError):
            scene.world.assert_one_writer()


async def test_a_frozen_source_does_not_go_on_by_itself_until_it_is_thawed(scene: Scene) -> None:
    """The daemon's "continue" waits in a stopped process's monitor: frozen means frozen, and a thaw lets it happen."""
    scene.world.script_migration(VM, MigrationFault.FINISH_REPLY_LOST)
    events = scene.destination.events()
    moving = asyncio.ensure_future(scene.migrate())
    async for event in events:
        if event.kind is EventKind.ARRIVED:
            break
    scene.source.freeze(VM)
    await scene.clock.sleep(60.0)
    assert (await scene.powers(), moving.done()) == ((Power.SWITCHED, Power.PAUSED), False)
    assert scene.world.guest(VM).executing == ()
    scene.source.thaw(VM)
    with pytest.raises(HypervisorRefused):
        await moving
    assert await scene.powers() == (Power.RUNNING, Power.PAUSED)
    await events.aclose()


async def test_a_lost_result_is_an_error_with_the_source_ended_as_migrated(scene: Scene) -> None:
    """The caller's connection dies at the last moment: everything happened, nobody said so."""
    events = scene.source.events()
    scene.world.script_migration(VM, MigrationFault.RESULT_LOST)
    with pytest.raises(HypervisorUnavailable):
        await scene.migrate()
    assert await scene.powers() == (None, Power.PAUSED)
    kinds = [(await anext(events)).kind for _ in range(2)]
    assert kinds == [EventKind.SWITCHED, EventKind.STOPPED_MIGRATED]
    await events.aclose()


async def test_a_copy_that_breaks_halfway_leaves_the_source_alone(scene: Scene) -> None:
    """The plain failure."""
    scene.world.script_migration(VM, MigrationFault.FAILS_MIDWAY)
    with pytest.raises(HypervisorRefused):
        await scene.migrate()
    assert await scene.powers() == (Power.RUNNING, None)


async def test_a_stalled_copy_moves_again_when_told(scene: Scene) -> None:
    """A stall must last: only so is stall detection tested."""
    scene.world.script_migration(VM, MigrationFault.STALLS)
    moving = asyncio.ensure_future(scene.migrate())
    await scene.clock.sleep(100.0)
    progress = await scene.source.migration_progress(VM)
    assert progress is not None
    assert (progress.bytes_done, progress.rate_bytes_per_s) == (0, 0)
    scene.world.hosts["n1"].jobs[VM].end_stall()
    await moving
    assert await scene.powers() == (None, Power.PAUSED)


async def test_a_guest_that_dirties_faster_than_the_link_even_throttled_never_converges(scene: Scene) -> None:
    """A simulation in which everything converges cannot show a policy for what does not."""
    scene.world.behave(VM, GuestBehaviour(dirty_mib_s=10_000))
    moving = asyncio.ensure_future(scene.migrate(mib_s=32))
    await scene.clock.sleep(600.0)
    assert not moving.done()
    assert await scene.powers() == (Power.RUNNING, Power.INCOMING)
    await scene.source.abort_migration(VM)
    with pytest.raises(HypervisorRefused):
        await moving


async def test_a_throttled_guest_converges(scene: Scene) -> None:
    """A throttle that does nothing, or is taken at once, shows nothing about the policy that chooses it."""
    scene.world.behave(VM, GuestBehaviour(dirty_mib_s=200, working_set_mib=256))
    moving = asyncio.ensure_future(scene.migrate(mib_s=128))
    await scene.clock.sleep(5.0)
    progress = await scene.source.migration_progress(VM)
    assert progress is not None
    assert (progress.iteration, progress.throttle_percent, progress.dirty_bytes_per_s >> 20) == (2, 0, 63)
    await scene.source.tune_migration(VM, Tune(throttle_percent=75))
    await scene.clock.sleep(2.0)
    progress = await scene.source.migration_progress(VM)
    assert progress is not None
    assert progress.throttle_percent == 75
    await moving
    assert await scene.powers() == (None, Power.PAUSED)


@pytest.mark.parametrize("how", ["link", "tunnel"])
async def test_a_connection_lost_during_the_copy_ends_it(scene: Scene, how: str) -> None:
    """A closed tunnel must end what went through it: that is how a destination gets rid of a source."""
    moving = asyncio.ensure_future(scene.migrate(mib_s=16))
    await scene.clock.sleep(1.0)
    if how == "link":
        scene.world.cut_link("n1", "n2")
    else:
        await scene.tunnels[1].close_incoming(OP)
    with pytest.raises(HypervisorRefused):
        await moving
    assert await scene.powers() == (Power.RUNNING, None)


async def test_another_source_does_not_get_through_the_tunnel(scene: Scene) -> None:
    """The tunnel is for the node named in the handoff."""
    endpoint = await scene.tunnels[1].open_incoming(OP, "n3")
    sockets = await scene.tunnels[0].open_outgoing(OP, endpoint, "n2")
    paths = {"vol-1": scene.volumes[1].path("shared", "vol-1", "qcow2")}
    with pytest.raises(HypervisorRefused):
        await scene.source.migrate(LiveMigration(TAG, paths, sockets, Limits(0)))


async def test_a_hung_request_is_carried_out_when_the_daemon_comes_to_itself(scene: Scene) -> None:
    """A create that the agent gave up still happens: the reason why it is created paused."""
    await scene.source.destroy(VM)
    scene.world.hosts["n1"].hang()
    with pytest.raises(HypervisorUnavailable):
        await scene.source.create_paused(SPEC, TAG, {"vol-1": scene.volumes[0].path("shared", "vol-1", "qcow2")})
    scene.world.hosts["n1"].unhang()
    await scene.clock.sleep(0.1)
    assert await scene.powers() == (Power.PAUSED, None)


async def test_domains_outlive_their_daemon_and_their_agent(scene: Scene) -> None:
    """Neither may disturb a guest."""
    host, before = scene.world.hosts["n1"], scene.world.guest(VM)
    events = scene.source.events()
    host.crash_daemon()
    with pytest.raises(HypervisorUnavailable):
        await scene.source.domains()
    await scene.clock.sleep(1.0)
    host.restart_daemon()
    assert [(await anext(events)).kind for _ in range(2)] == [EventKind.CONNECTION_LOST, EventKind.CONNECTION_BACK]
    (view,) = await SimHypervisor(scene.world, "n1").domains()
    assert (view.power, view.tag) == (Power.RUNNING, TAG)
    assert scene.world.guest(VM).ticks > before.ticks
    assert scene.world.guest(VM).boot_id == before.boot_id
    await events.aclose()


async def test_a_migration_outlives_its_agent(scene: Scene) -> None:
    """A restarted agent finds it running, and its end."""
    moving = asyncio.ensure_future(scene.migrate(mib_s=64))
    await scene.clock.sleep(1.0)
    moving.cancel()
    fresh = SimHypervisor(scene.world, "n1")
    assert await fresh.migration_progress(VM) is not None
    await scene.clock.sleep(60.0)
    assert await scene.powers() == (None, Power.PAUSED)


async def test_a_host_that_loses_power_comes_back_empty_under_another_boot_id(scene: Scene) -> None:
    """The boot id is half of the incarnation: unchanged, a dead VM would be believed alive."""
    facts, host = SimHostFacts(scene.world, "n1"), scene.world.hosts["n1"]
    before = await facts.totals()
    host.crash_host()
    host.boot_host()
    assert await scene.source.domains() == ()
    assert (await facts.totals()).boot_id != before.boot_id
    assert await scene.locks() is (Locks.FREE if has_locks(scene) else Locks.UNPROVABLE)


async def test_creation_can_be_refused_and_a_domain_can_crash(scene: Scene) -> None:
    """The two plainest faults."""
    host, events = scene.world.hosts["n1"], scene.source.events()
    host.crash_domain(VM)
    assert (await anext(events)).kind is EventKind.CRASHED
    host.refuse_create = "No."
    with pytest.raises(HypervisorRefused, match=r"No\."):
        await scene.source.create_paused(SPEC, TAG, {"vol-1": scene.volumes[0].path("shared", "vol-1", "qcow2")})
    assert await scene.powers() == (None, None)
    await events.aclose()


async def test_a_guest_may_ignore_the_power_button(scene: Scene) -> None:
    """The grace period is only tested by a guest that does not listen."""
    scene.world.behave(VM, GuestBehaviour(ignores_power_button=True))
    await scene.source.press_power_button(VM)
    await scene.clock.sleep(3600.0)
    assert (await scene.powers())[0] is Power.RUNNING


async def test_virtual_time_says_when_nobody_waits_for_it() -> None:
    """A deadlock in a simulation must be a failure with a reason, not a hang."""
    with pytest.raises(NeverEnds):
        await in_virtual_time(ManualClock(), asyncio.Event().wait())
    clock = ManualClock()
    await in_virtual_time(clock, clock.sleep(3600.0))
    assert clock.monotonic_s() == 3600.0
