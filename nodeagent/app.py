"""The composition root of the node agent: joins adapters, engine and services of one node, and says in which order they start and stop.

Stopping or restarting it never touches a guest: QEMU belongs to libvirt, definitions and handoffs are on disk, and a new process takes up what
it finds.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

import grpc.aio
import structlog

from hostler.api.node.v1 import host_pb2_grpc
from hostler.server import channels
from hostler.server.clock import Clock, IdSource, SystemClock, SystemIds
from hostler.server.notify import Notifier
from hostler.server.server import RpcServer, build_server
from hostler.server.startup import Shutdown
from hostler.server.tasks import start
from hostler.server.tls import ServerTls, TlsFiles, valid_until
from nodeagent.access import ACCESS
from nodeagent.adapters.grpc_peer import GrpcPeer
from nodeagent.adapters.grpc_scheduler import GrpcScheduler
from nodeagent.adapters.local_authority import LocalAuthority
from nodeagent.core.ledger import CapacityCap
from nodeagent.engine.drift import DriftWatch
from nodeagent.engine.host_state import HostState
from nodeagent.engine.incoming import IncomingHandoffs
from nodeagent.engine.inventory import Inventory
from nodeagent.engine.journal import Journal
from nodeagent.engine.laying_down import LayingDown
from nodeagent.engine.link import Link
from nodeagent.engine.migration_check import MigrationChecks
from nodeagent.engine.observer import Observer
from nodeagent.engine.outgoing import OutgoingHandoffs
from nodeagent.engine.standalone import StandaloneHost
from nodeagent.engine.views import HeldVMs, VMViews
from nodeagent.engine.vms import HostVMs, Offer
from nodeagent.ports import HostFacts, Hypervisor, OwnerAuthority, StateFiles, Tunnel, Volumes
from nodeagent.rpc import serving
from nodeagent.rpc.agent import AgentService
from nodeagent.rpc.host import HostService
from nodeagent.rpc.peer import PeerService
from nodeagent.settings import Mode, Settings

STOP_GRACE_S = 5.0
"""Steps that are being served when the agent stops; the scheduler repeats them."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Parts:
    """The outside of one node."""

    hypervisor: Hypervisor
    volumes: Volumes
    facts: HostFacts
    tunnel: Tunnel
    files: StateFiles


OpenParts = Callable[[Settings, ServerTls, Clock], AbstractAsyncContextManager[Parts]]
"""Makes the real adapters, and puts them away at the end."""


@dataclass(frozen=True, slots=True)
class Node:
    """What makes one agent: who it is, where it listens and is reached, which schedulers it asks (none: standalone), and what it offers."""

    node_id: str
    tls: ServerTls
    listen: str
    advertise: str
    schedulers: Sequence[str]
    offer: Offer
    insecure_listen: str = ""
    clock: Clock = field(default_factory=SystemClock)
    ids: IdSource = field(default_factory=SystemIds)
    notifier: Notifier | None = None


async def main(
    settings: Settings,
    shutdown: Shutdown,
    notifier: Notifier,
    open_parts: OpenParts,
) -> None:
    """One agent as a daemon, until `shutdown`."""
    clock = SystemClock()
    tls = ServerTls(TlsFiles(settings.tls.cert, settings.tls.key, settings.tls.ca), clock=clock)
    capacity = settings.capacity
    node = Node(
        tls.material.principal.id,
        tls,
        settings.listen,
        settings.advertise or settings.listen,
        settings.schedulers if settings.mode is Mode.CLUSTER else (),
        Offer(CapacityCap(capacity.cpu_milli, capacity.memory_mib), capacity.reserve_mib),
        settings.insecure_listen,
        clock=clock,
        notifier=notifier,
    )
    async with open_parts(settings, tls, clock) as parts:
        await run(node, parts, shutdown, ready=lambda port: None)


async def run(node: Node, parts: Parts, shutdown: Shutdown, ready: Callable[[int], None]) -> None:
    """Serve until `shutdown`; `ready(port)` is called once the agent answers (and, in a cluster, has registered)."""
    clock, connections = node.clock, [channels.to_scheduler(node.tls.material, endpoint) for endpoint in node.schedulers]
    scheduler = GrpcScheduler(node.node_id, connections) if connections else None
    local = LocalAuthority(node.node_id)
    authority: OwnerAuthority = scheduler or local
    state, observer = HostState(parts.files), Observer(parts.hypervisor)
    state.on_definition = observer.nudge
    state.heard = scheduler is None

    vms = HostVMs(node.node_id, parts.hypervisor, parts.volumes, parts.facts, authority, state, observer, node.offer, node.clock)
    incoming = IncomingHandoffs(
        node.node_id, parts.hypervisor, parts.volumes, parts.facts, authority, parts.tunnel, state, observer, vms, clock
    )
    outgoing = OutgoingHandoffs(
        node.node_id, parts.hypervisor, parts.volumes, authority, parts.tunnel, GrpcPeer(_connect(node.tls)), state, observer, clock
    )
    inventory = Inventory(node.node_id, _version(), parts.hypervisor, parts.volumes, parts.facts, state, vms, node.offer)
    drift = DriftWatch(parts.hypervisor, vms, state, observer, clock)
    server = build_server(
        cluster=node.tls.material.principal.cluster, access=ACCESS, clock=clock, ids=node.ids, insecure=bool(node.insecure_listen)
    )
    standalone: StandaloneHost | None = None
    if scheduler is not None:
        views = VMViews(HeldVMs(node.node_id, state), vms, observer, node.ids.uuid())
        checks = MigrationChecks(
            node.node_id,
            parts.hypervisor,
            parts.volumes,
            parts.facts,
            state,
            outgoing,
            lambda: int((valid_until(node.tls.material) - clock.now()).total_seconds()),
        )
        agent_service = AgentService(node.node_id, vms, incoming, outgoing, checks, state, parts.volumes)
        serving.in_cluster(server.grpc_server, views, agent_service, PeerService(incoming, state), node.schedulers)
    else:
        journal = Journal(parts.files, clock)
        await journal.recover()
        standalone = StandaloneHost(
            node.node_id, journal, vms, parts.volumes, parts.facts, state, observer, local.epochs, clock, node.ids.uuid()
        )
        views = standalone.views
        serving.standalone(server.grpc_server, standalone, clock, node.ids)
    host_pb2_grpc.add_HostServiceServicer_to_server(HostService(inventory, node.advertise, clock), server.grpc_server)
    port = _listen(server, node)
    endpoint = f"{node.advertise.rpartition(':')[0]}:{port}" if node.advertise.endswith(":0") else node.advertise
    try:
        async with asyncio.TaskGroup() as group:
            loops = [
                start(group, "observer", observer.run, clock=clock),
                start(group, "incoming handoffs", incoming.run, clock=clock),
                start(group, "outgoing handoffs", outgoing.run, clock=clock),
                start(group, "views", views.run, clock=clock),
                start(group, "drift", drift.run, clock=clock),
            ]
            if standalone is not None:
                loops.append(start(group, "journal", standalone.journal.run, clock=clock))
                loops.append(start(group, "operations", standalone.run, clock=clock))
            await server.start()
            await server.set_serving(True)
            if scheduler is not None:
                laying_down = LayingDown(node.node_id, parts.hypervisor, authority, state, incoming)
                link = Link(endpoint, scheduler, inventory, parts.facts, observer, laying_down, state.registered, clock)
                loops.append(start(group, "link", link.run, clock=clock))
            log.info("serving", node=node.node_id, port=port, mode="cluster" if scheduler else "standalone")
            if node.notifier is not None:
                node.notifier.ready(f"serving on port {port}")
                loops.append(group.create_task(node.notifier.watchdog(clock, lambda: True), name="watchdog"))
            ready(port)
            await shutdown.requested.wait()
            if node.notifier is not None:
                node.notifier.stopping()
            await server.stop(STOP_GRACE_S)
            for loop in loops:
                loop.cancel()
    finally:
        await server.stop(0)
        if scheduler is not None:
            await scheduler.close()
        for connection in connections:
            await connection.close()


def _listen(server: RpcServer, node: Node) -> int:
    port = server.listen(node.listen, node.tls)
    if node.insecure_listen:
        server.listen_insecure(node.insecure_listen)
    return port


def _connect(tls: ServerTls) -> Callable[[str, str], grpc.aio.Channel]:
    return lambda node_id, endpoint: channels.to_node(tls.material, node_id, endpoint)


def _version() -> str:
    try:
        return version("hostler-daemons")
    except PackageNotFoundError:
        return "source"
