"""What the hypervisor suite needs of an implementation under test: hosts, fresh VMs, a witness, and ways to make trouble.

The suite is written against the port. Whatever only one implementation can do (stop time, hang a daemon, ask a guest for its counter) is a
method here and is named by a `Capability`; a case that needs one is generated only for rigs that have it, so nothing is ever skipped.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol, TypeVar

import pytest

from hostler.model.domain import DomainSpec
from hostler.server.clock import Clock
from nodeagent.ports import DomainEvent, EventKind, Hypervisor, MigrationSockets

F = TypeVar("F", bound=Callable[..., Any])

POLL_S = 0.02
"""Between two looks while waiting for a condition, on the rig's clock."""


class Capability(Enum):
    """What a rig can do beyond the port."""

    GUEST = auto()
    """Its guests execute for real: `ticks` moves, and they obey the power button."""
    SIGNALS = auto()
    """There are processes to stop and to kill."""
    LOCKS = auto()
    """The VMs' disks have locks that can be asked."""
    MIGRATION = auto()
    """Two hosts, joined by `connect`."""
    HANG = auto()
    """`hang` and `unhang`."""
    UNMANAGED = auto()
    """`add_unmanaged`."""
    HANDS = auto()
    """`by_hand` and `undo_by_hand`."""
    OWNERS = auto()
    """`take_images`."""


class HandEdit(Enum):
    """What somebody does to a running domain past Hostler, and undoes."""

    MEMORY = "MiB of memory, expected"
    SUSPEND = "is suspended"
    ATTACH_DISK = "has a disk"
    LINK_DOWN = "link"
    DEFINE = "virsh undefine"
    AUTOSTART = "virsh autostart"
    SECOND_USER = "A second domain"

    @property
    def told(self) -> str:
        """Part of the finding."""
        return self.value


@dataclass(frozen=True, slots=True)
class ContractVM:
    """A VM that no host has yet; `disk_paths[i]` are its disks on host i, made and empty."""

    spec: DomainSpec
    disk_paths: tuple[Mapping[str, str], ...]

    @property
    def uid(self) -> str:
        return self.spec.vm_uid


class Rig(Protocol):
    """One implementation, set up for one case; what it made is gone when its context ends."""

    @property
    def clock(self) -> Clock: ...

    call_deadline_s: float
    """The deadline of the hypervisors' calls."""
    queue_events: int
    """How many events a reader of theirs can be behind: small, so that a case can exceed it."""

    def hypervisor(self, host: int) -> Hypervisor:
        """The hypervisor of host 0 (or 1, with MIGRATION)."""

    async def new_vm(self, *, local: bool = False, small: bool = False) -> ContractVM:
        """One vCPU, one disk, one network card. `local`: each host has a file of its own for the disk, host 1 an empty one of the same size.
        `small`: its guest counts at once, and does nothing else; by default it is a whole system, which takes its time to come up."""

    async def ticks(self, vm: ContractVM, host: int = 0) -> int:
        """GUEST: the guest's own sequence counter, as that host's disk has it."""

    async def same_disks(self, vm: ContractVM) -> bool:
        """Whether the guest would read the same from both hosts' files of a `local` VM."""

    async def take_images(self, host: int, vm: ContractVM) -> None:
        """OWNERS: make the VM's images root's alone."""

    async def add_unmanaged(self, host: int) -> str:
        """UNMANAGED: a domain that Hostler did not make; its uuid."""

    async def by_hand(self, host: int, vm: ContractVM, edit: HandEdit) -> None:
        """HANDS: change the VM's running domain, or what is around it, past Hostler."""

    async def undo_by_hand(self, host: int, vm: ContractVM, edit: HandEdit) -> None: ...

    async def destroy_by_hand(self, host: int, vm: ContractVM) -> None:
        """HANDS: take its power past Hostler."""

    async def hang(self, host: int, vm: ContractVM | None) -> None:
        """HANG: the daemon (None), or one domain, gets stuck."""

    async def unhang(self, host: int, vm: ContractVM | None) -> None: ...

    async def connect(self, operation_id: str) -> MigrationSockets:
        """MIGRATION: from host 0 to host 1."""

    async def disconnect(self, operation_id: str) -> None:
        """MIGRATION: nothing is at the other end any more; the sockets may still be there."""


@dataclass(frozen=True, slots=True)
class RigKind:
    """How a rig is made. `open` is entered once for each case; what is dear may be kept between cases by the module."""

    name: str
    capabilities: frozenset[Capability]
    open: Callable[[], AbstractAsyncContextManager[Rig]]
    marks: tuple[pytest.MarkDecorator, ...] = ()


def needs(*capabilities: Capability) -> Callable[[F], F]:
    """The case exists only for rigs that have all of these."""

    def mark(case: F) -> F:
        case.needs = frozenset(capabilities)  # type: ignore[attr-defined]
        return case

    return mark


async def until(rig: Rig, condition: Callable[[], Awaitable[bool]], what: str, timeout_s: float = 60.0) -> None:
    """Wait for a condition on the rig's clock; fails by name."""
    end_s = rig.clock.monotonic_s() + timeout_s
    while not await condition():
        assert rig.clock.monotonic_s() < end_s, f"{what}: not within {timeout_s:g} s"
        await rig.clock.sleep(POLL_S)


async def hear(events: AsyncIterator[DomainEvent], vm_uid: str, *kinds: EventKind) -> list[EventKind]:
    """The kinds of this VM's events up to and including the first of `kinds`."""
    heard: list[EventKind] = []
    async for event in events:
        if event.vm_uid == vm_uid:
            heard.append(event.kind)
            if event.kind in kinds:
                break
    return heard
