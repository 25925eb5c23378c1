"""What the engine takes for granted of any tunnel: one way for one source and one operation, there only while both ends have it open."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import pytest

from hostler.server.manual_clock import ManualClock
from nodeagent.adapters.sim_migration import SOCKET_PREFIX
from nodeagent.adapters.sim_tunnel import SimTunnel
from nodeagent.adapters.sim_world import SimWorld
from nodeagent.ports import MigrationSockets, Tunnel
from tests.contract.tunnel.rig import open_rig

OP, OTHER_OP = "4f0c1d2e-0000-4000-8000-000000000001", "4f0c1d2e-0000-4000-8000-000000000002"


class Subject(Protocol):
    """Tunnels of three hosts: n1, n2, n3."""

    def tunnel(self, node_id: str) -> Tunnel: ...

    async def leads_through(self, sockets: MigrationSockets, node_id: str) -> bool:
        """Whether the sockets on `node_id` lead to n2's libvirt now."""


@dataclass
class SimSubject:
    world: SimWorld
    tunnels: dict[str, SimTunnel]

    def tunnel(self, node_id: str) -> Tunnel:
        return self.tunnels[node_id]

    async def leads_through(self, sockets: MigrationSockets, node_id: str) -> bool:
        return self.world.fabric.leads_to(sockets.libvirt.removeprefix(SOCKET_PREFIX).partition("/")[0], node_id) == "n2"


@dataclass
class TlsSubject:
    tunnels: dict[str, Tunnel]

    def tunnel(self, node_id: str) -> Tunnel:
        return self.tunnels[node_id]

    async def leads_through(self, sockets: MigrationSockets, node_id: str) -> bool:
        try:
            reader, writer = await asyncio.open_unix_connection(sockets.libvirt)
        except OSError:
            return False
        try:
            return await reader.readline() == b"libvirt of n2\n"
        except OSError:
            return False
        finally:
            writer.close()


@asynccontextmanager
async def sim_subject() -> AsyncIterator[Subject]:
    async with SimWorld(ManualClock()) as world:
        for node_id in ("n1", "n2", "n3"):
            world.add_host(node_id)
        yield SimSubject(world, {node_id: SimTunnel(world, node_id) for node_id in world.hosts})


@asynccontextmanager
async def tls_subject() -> AsyncIterator[Subject]:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"libvirt of n2\n")
        await writer.drain()

    async with open_rig() as rig, rig.serving(rig.libvirt_path, greet):
        yield TlsSubject({"n1": rig.source, "n2": rig.destination, "n3": rig.stranger})


@pytest.fixture(params=[sim_subject, tls_subject], ids=["sim", "tls"])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    async with request.param() as opened, asyncio.timeout(60):
        yield opened


async def test_it_leads_from_the_source_to_the_destination(subject: Subject) -> None:
    """The one thing it is for."""
    endpoint = await subject.tunnel("n2").open_incoming(OP, "n1")
    sockets = await subject.tunnel("n1").open_outgoing(OP, endpoint, "n2")
    assert await subject.leads_through(sockets, "n1")


async def test_opening_again_gives_the_same(subject: Subject) -> None:
    """A repeated command must not open a second listener, nor lose the first."""
    endpoint = await subject.tunnel("n2").open_incoming(OP, "n1")
    sockets = await subject.tunnel("n1").open_outgoing(OP, endpoint, "n2")
    assert await subject.tunnel("n2").open_incoming(OP, "n1") == endpoint
    assert await subject.tunnel("n1").open_outgoing(OP, endpoint, "n2") == sockets
    assert await subject.leads_through(sockets, "n1")


async def test_operations_do_not_share_a_way(subject: Subject) -> None:
    """The end of one must not be the end of the other, and neither may stand in for the other."""
    first = await subject.tunnel("n2").open_incoming(OP, "n1")
    second = await subject.tunnel("n2").open_incoming(OTHER_OP, "n1")
    assert first != second
    sockets = await subject.tunnel("n1").open_outgoing(OP, first, "n2")
    others = await subject.tunnel("n1").open_outgoing(OTHER_OP, second, "n2")
    assert {sockets.libvirt, sockets.qemu}.isdisjoint({others.libvirt, others.qemu})
    await subject.tunnel("n2").close_incoming(OP)
    assert not await subject.leads_through(sockets, "n1")
    assert await subject.leads_through(others, "n1")


async def test_another_node_does_not_get_through(subject: Subject) -> None:
    """Any node of the cluster has a good certificate; only the one named may come."""
    endpoint = await subject.tunnel("n2").open_incoming(OP, "n1")
    sockets = await subject.tunnel("n3").open_outgoing(OP, endpoint, "n2")
    assert not await subject.leads_through(sockets, "n3")


async def test_another_destination_is_not_reached(subject: Subject) -> None:
    """The source must not hand the guest's memory to whoever listens at that address."""
    endpoint = await subject.tunnel("n2").open_incoming(OP, "n1")
    sockets = await subject.tunnel("n1").open_outgoing(OP, endpoint, "n3")
    assert not await subject.leads_through(sockets, "n1")


@pytest.mark.parametrize("end", ["incoming", "outgoing"])
async def test_closed_at_one_end_it_leads_nowhere_and_closing_may_be_repeated(subject: Subject, end: str) -> None:
    """After the operation the hosts do not trust each other any more."""
    endpoint = await subject.tunnel("n2").open_incoming(OP, "n1")
    sockets = await subject.tunnel("n1").open_outgoing(OP, endpoint, "n2")
    for _ in range(2):
        await (subject.tunnel("n2").close_incoming(OP) if end == "incoming" else subject.tunnel("n1").close_outgoing(OP))
    assert not await subject.leads_through(sockets, "n1")


async def test_it_can_be_opened_again_after_it_was_closed(subject: Subject) -> None:
    """A destination that prepares anew must not be stuck with what it closed."""
    await subject.tunnel("n2").open_incoming(OP, "n1")
    await subject.tunnel("n2").close_incoming(OP)
    endpoint = await subject.tunnel("n2").open_incoming(OP, "n1")
    sockets = await subject.tunnel("n1").open_outgoing(OP, endpoint, "n2")
    assert await subject.leads_through(sockets, "n1")
