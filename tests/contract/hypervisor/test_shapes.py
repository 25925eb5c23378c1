"""What the hypervisor says that a domain is made of, and what somebody changed of it past Hostler."""

import pytest

from nodeagent.core.definitions import Definition
from nodeagent.core.drift import findings
from nodeagent.core.observed import CopyTag
from nodeagent.ports import EventKind
from tests.contract.hypervisor.rig import Capability, ContractVM, HandEdit, Rig, hear, needs, until
from tests.contract.hypervisor.test_domains import started

ASKED_OF_THE_GUEST = frozenset({HandEdit.MEMORY, HandEdit.ATTACH_DISK})
"""It gives memory back, and lets go of the disk."""
NOTICED_S = 60.0
"""Balloon and hot-unplug need a guest that has booted, emulated."""


async def drift(rig: Rig, vm: ContractVM) -> tuple[str, ...]:
    shapes = await rig.hypervisor(0).shapes()
    assert shapes[vm.uid] is not None
    definition = Definition(vm.spec, 1, "op-start")
    return findings(definition, vm.disk_paths[0], [shape for shape in shapes.values() if shape is not None], power_taken=False)


async def test_a_domain_as_it_was_made_is_no_drift(rig: Rig) -> None:
    """libvirt writes more into a domain than it was given: taken for an edit, every VM would be marked."""
    vm = await started(rig)
    assert await drift(rig, vm) == ()
    shape = (await rig.hypervisor(0).shapes())[vm.uid]
    assert shape is not None
    assert (shape.tag, shape.active, shape.suspended) == (CopyTag(vm.uid, 1, "op-start"), True, False)


@needs(Capability.HANDS)
@pytest.mark.parametrize("edit", HandEdit)
async def test_a_hand_edit_is_found_and_its_undoing_too(rig: Rig, edit: HandEdit) -> None:
    """A change past Hostler that is not seen, or that is still told when it is undone."""
    vm = await started(rig, small=edit not in ASKED_OF_THE_GUEST)

    async def told() -> bool:
        return any(edit.told in finding for finding in await drift(rig, vm))

    async def clear() -> bool:
        return await drift(rig, vm) == ()

    await advances_far(rig, vm)
    await rig.by_hand(0, vm, edit)
    await until(rig, told, f"{edit.name} is found", NOTICED_S)
    await rig.undo_by_hand(0, vm, edit)
    await until(rig, clear, f"{edit.name} is gone again", NOTICED_S)


async def advances_far(rig: Rig, vm: ContractVM) -> None:
    """Until the guest's system has come up and writes."""

    async def up() -> bool:
        return await rig.ticks(vm) > 0

    await until(rig, up, "the guest is up")


@needs(Capability.HANDS)
async def test_power_taken_by_somebody_else_is_told_apart(rig: Rig) -> None:
    """A VM that somebody destroyed looks like one whose guest powered off; or one that Hostler stopped like one that somebody destroyed."""
    ours, theirs = await started(rig), await started(rig)
    events = rig.hypervisor(0).events()
    await rig.hypervisor(0).destroy(ours.uid)
    assert (await hear(events, ours.uid, EventKind.STOPPED, EventKind.DESTROYED))[-1] is EventKind.STOPPED
    await rig.destroy_by_hand(0, theirs)
    assert (await hear(events, theirs.uid, EventKind.STOPPED, EventKind.DESTROYED))[-1] is EventKind.DESTROYED
    assert theirs.uid not in await rig.hypervisor(0).shapes()


@needs(Capability.UNMANAGED)
async def test_domains_of_others_are_among_them(rig: Rig) -> None:
    """A second user of a disk that is never looked at."""
    stranger = await rig.add_unmanaged(0)
    shape = (await rig.hypervisor(0).shapes())[stranger]
    assert shape is not None
    assert (shape.tag, shape.active) == (None, True)


@needs(Capability.HANG)
async def test_a_stuck_domain_delays_no_other(rig: Rig) -> None:
    """One guest whose process hangs, and nobody is told of hand edits of the others any more."""
    stuck, free = await started(rig), await started(rig)
    await rig.hang(0, stuck)
    begin_s = rig.clock.monotonic_s()
    shapes = await rig.hypervisor(0).shapes()
    assert rig.clock.monotonic_s() - begin_s < rig.call_deadline_s
    assert shapes[free.uid] is not None
    assert stuck.uid in shapes
    await rig.unhang(0, stuck)
