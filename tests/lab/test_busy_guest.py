"""A guest that dirties more memory than the link carries, on real QEMU: what the policy of the copy does with libvirt's own figures.

The guest is a boot sector that writes to memory and to nothing else, so that the emulator's fault with busy guests and slow copies
(docs/decisions/0007) has nothing to break: what is judged is the copy, not the guest's data."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nodeagent.core.observed import CopyTag, MigrationProgress, Power
from nodeagent.core.precopy import Course, GiveUp, Limits, Tune, next_move
from nodeagent.ports import HypervisorRefused, LiveMigration
from tests.contract.hypervisor import rigs_libvirt
from tests.contract.hypervisor.rig import ContractVM, until
from tests.contract.hypervisor.rigs_libvirt import LibvirtRig

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]
OPERATION = "5f0c1b7a-8d43-4f0e-9a55-6c1d7e2f3a4b"
PAGES = 32_768
"""128 MiB, over and over."""
BUSY_SPIN, WILD_SPIN = 5_000, 1_000
"""Turns between two pages: more than the link carries, also on a machine that does other things; and more than it carries at a tenth of the speed."""
LOOK_S = 0.5
DISK_BYTES = 1 << 20


@pytest.fixture
async def rig() -> AsyncIterator[LibvirtRig]:
    async with rigs_libvirt.open_rig() as opened:
        assert isinstance(opened, LibvirtRig)
        yield opened


def assemble(folder: Path, spin: int) -> Path:
    """The boot sector as a qcow2 image."""
    source = Path(__file__).with_name("busysector.S")
    obj, raw, image = folder / "busy.o", folder / "busy.raw", folder / "busy.qcow2"
    subprocess.run(["as", "--32", f"--defsym=PAGES={PAGES}", f"--defsym=SPIN={spin}", "-o", obj, source], check=True)
    flat = ["-m", "elf_i386", "--oformat", "binary", "-Ttext", "0x7c00", "-e", "_start"]
    subprocess.run(["ld", *flat, "-o", raw, obj], check=True)
    raw.write_bytes(raw.read_bytes().ljust(DISK_BYTES, b"\0"))
    subprocess.run(["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", raw, image], check=True)
    return image


async def busy_vm(rig: LibvirtRig, folder: Path, spin: int = BUSY_SPIN) -> ContractVM:
    vm = await rig.new_vm()
    (path,) = vm.disk_paths[0].values()
    image = await asyncio.to_thread(assemble, folder, spin)
    await asyncio.to_thread(rig.hosts[0].run, ["cp", str(image), path])
    await rig.hypervisor(0).create_paused(vm.spec, CopyTag(vm.uid, 1, "op-start"), vm.disk_paths[0])
    await rig.hypervisor(0).resume(vm.uid)
    return vm


async def copied(rig: LibvirtRig, vm: ContractVM, limits: Limits) -> tuple[list[MigrationProgress], str]:
    """Steered as the engine does it; what was seen at each look, and why it was given up, if it was."""
    source, sockets = rig.hypervisor(0), await rig.connect(OPERATION)
    tag, course, seen, why = CopyTag(vm.uid, 2, OPERATION), Course(limits), [], ""
    moving = asyncio.ensure_future(source.migrate(LiveMigration(tag, vm.disk_paths[1], sockets, limits)))
    while not moving.done():
        progress = await source.migration_progress(vm.uid)
        if progress is not None and not why:
            seen.append(progress)
            course, move = next_move(course, limits, progress, rig.clock.monotonic_s())
            if isinstance(move, Tune):
                await source.tune_migration(vm.uid, move)
            if isinstance(move, GiveUp):
                why = move.reason
                await source.abort_migration(vm.uid)
        await asyncio.wait([moving], timeout=LOOK_S)
    if why:
        with pytest.raises(HypervisorRefused):
            await moving
    else:
        await moving
    return seen, why


async def test_a_busy_guest_arrives_once_it_is_throttled_as_measured(rig: LibvirtRig, tmp_path: Path) -> None:
    """A throttle that does not reach QEMU, or steps so small that the copy goes on for minutes."""
    vm = await busy_vm(rig, tmp_path)
    seen, why = await copied(rig, vm, Limits(32))
    assert why == ""
    view = await rig.hypervisor(1).domain(vm.uid)
    assert view is not None
    assert view.power is Power.PAUSED
    throttles = [one.throttle_percent for one in seen]
    assert max(throttles) > 30, "the first step is what was measured, not QEMU's twenty"
    assert max(throttles) <= 90


async def test_a_copy_that_cannot_end_is_given_up_with_its_figures(rig: LibvirtRig, tmp_path: Path) -> None:
    """A guest held at a tenth of its speed without an end, or one that is left throttled or paused by the end."""
    vm = await busy_vm(rig, tmp_path, WILD_SPIN)
    seen, why = await copied(rig, vm, Limits(32))
    assert "does not converge" in why
    assert "at 10 % of its speed" in why
    assert max(one.throttle_percent for one in seen) == 90
    view = await rig.hypervisor(0).domain(vm.uid)
    assert view is not None
    assert view.power is Power.RUNNING

    async def at_full_speed() -> bool:
        return (await rig.hypervisor(0).dirty_rate(vm.uid) or 0) > 100 << 20

    await until(rig, at_full_speed, "QEMU ends its throttle with the copy", 30)


async def test_the_dirty_rate_is_seen_before_the_copy(rig: LibvirtRig, tmp_path: Path) -> None:
    """A forecast that takes a busy guest for an idle one: does the hypervisor's measurement work under this kind of acceleration at all?"""
    vm = await busy_vm(rig, tmp_path)

    async def seen() -> bool:
        rate = await rig.hypervisor(0).dirty_rate(vm.uid)
        assert rate is not None, "it could not be measured"
        return rate > 16 << 20

    await until(rig, seen, "the guest is through its BIOS and seen to be busy", 30)
