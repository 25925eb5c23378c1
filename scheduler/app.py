"""The composition root of the scheduler: joins store, engine and services of one replica, and says in which order they start and stop."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc.aio
import structlog

from hostler.api.cluster.v1 import flavors_pb2_grpc, nodes_pb2_grpc, operations_pb2_grpc, pools_pb2_grpc, vms_pb2_grpc, volumes_pb2_grpc
from hostler.internal.v1 import cluster_link_pb2_grpc
from hostler.server import channels
from hostler.server.clock import Clock, IdSource, SystemClock, SystemIds
from hostler.server.notify import Notifier
from hostler.server.server import RpcServer, build_server
from hostler.server.startup import Shutdown, StartupError
from hostler.server.tasks import start
from hostler.server.tls import ServerTls, TlsFiles
from scheduler.access import ACCESS
from scheduler.adapters import etcd_channels
from scheduler.adapters.etcd_channels import EtcdConfig
from scheduler.adapters.etcd_store import EtcdStore
from scheduler.adapters.grpc_nodes import GrpcNodes, Registered
from scheduler.core.placement.policy import SPREAD
from scheduler.core.records import Verb
from scheduler.core.turns import Limits
from scheduler.engine.deadlines import Deadlines
from scheduler.engine.driving import Driver, Verbs
from scheduler.engine.election import LEASE_TTL_S, Election, Term
from scheduler.engine.fenced_nodes import FencedNodes
from scheduler.engine.flows import drain, migration, nodes, vms, volumes
from scheduler.engine.liveness import WRITE_PAUSE_S, Liveness
from scheduler.engine.mirror import Mirror
from scheduler.engine.owed_removals import OwedRemovals
from scheduler.engine.pool_probes import PoolProbes
from scheduler.engine.progress import ProgressReader
from scheduler.engine.retention import Retention
from scheduler.engine.turns import Turns
from scheduler.engine.writer import Writer
from scheduler.ports import Store, StoreStatus, StoreUnavailable
from scheduler.rpc.api import Api
from scheduler.rpc.cluster_link import ClusterLinkService
from scheduler.rpc.nodes import NodeService
from scheduler.rpc.operations import OperationService
from scheduler.rpc.pools import PoolService
from scheduler.rpc.vms import VMService
from scheduler.rpc.volumes import FlavorService, VolumeService
from scheduler.settings import EtcdSettings, Settings

STOP_GRACE_S = 5.0
"""Unary calls that are being served when the replica stops; waiting calls are repeated by their clients elsewhere."""

STORE_WAIT_S = 30.0
"""How long a starting replica waits for its store before it says why it does not start; the service manager starts it again."""

FLOWS: dict[Verb, Verbs] = {
    Verb.CREATE_VM: vms.CREATE,
    Verb.START_VM: vms.START,
    Verb.STOP_VM: vms.STOP,
    Verb.REBOOT_VM: vms.REBOOT,
    Verb.DELETE_VM: vms.DELETE,
    Verb.MIGRATE_VM: migration.MIGRATE,
    Verb.CREATE_VOLUME: volumes.CREATE,
    Verb.DELETE_VOLUME: volumes.DELETE,
    Verb.FENCE_NODE: nodes.FENCE,
    Verb.DRAIN_NODE: drain.DRAIN,
}

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Replica:
    """What makes one replica: who it is, where it listens, its store, and how it reaches a node's agent."""

    replica_id: str
    tls: ServerTls
    store: Store
    listen: str
    insecure_listen: str = ""
    operation_retention_h: int = 24
    lease_ttl_s: int = LEASE_TTL_S
    beat_write_pause_s: float = WRITE_PAUSE_S
    migration_limits: Limits = field(default_factory=Limits)
    clock: Clock = field(default_factory=SystemClock)
    ids: IdSource = field(default_factory=SystemIds)
    notifier: Notifier | None = None


async def main(settings: Settings, shutdown: Shutdown, notifier: Notifier) -> None:
    """One replica as a daemon, until `shutdown`."""
    clock = SystemClock()
    tls = ServerTls(TlsFiles(settings.tls.cert, settings.tls.key, settings.tls.ca), clock=clock)
    store = EtcdStore(_etcd(settings.etcd), clock=clock)
    replica = Replica(
        tls.material.principal.id,
        tls,
        store,
        settings.listen,
        settings.insecure_listen,
        settings.operation_retention_h,
        migration_limits=Limits(settings.migrations_out, settings.migrations_in, settings.migrations_link),
        clock=clock,
        notifier=notifier,
    )
    try:
        await run(replica, shutdown, ready=lambda port: None)
    finally:
        await store.close()


async def run(replica: Replica, shutdown: Shutdown, ready: Callable[[int], None]) -> None:
    """Serve until `shutdown`; `ready(port)` is called once the replica answers. Raises StartupError."""
    status = await _store_status(replica)
    log.info("store found", version=status.version, cluster=status.cluster_id)
    clock = replica.clock
    mirror = Mirror(replica.store)
    writer = Writer(replica.store, mirror)
    liveness = Liveness(replica.replica_id, replica.store, clock, replica.beat_write_pause_s)
    agents = GrpcNodes(_registered(mirror), _connect(replica.tls))
    gateway = FencedNodes(agents, mirror)
    turns = Turns(replica.migration_limits, clock, liveness.health)
    driver = Driver(mirror, writer, agents, clock, FLOWS, turns, liveness.health, SPREAD)
    retention = Retention(writer, clock, replica.operation_retention_h)
    removals = OwedRemovals(mirror, writer, gateway, clock)
    probes = PoolProbes(mirror, writer, gateway, liveness, clock, replica.ids)
    api = Api(
        status.cluster_id,
        replica.store,
        gateway,
        mirror,
        writer,
        liveness,
        ProgressReader(gateway, mirror, clock),
        SPREAD,
        clock,
        replica.ids,
        driver.waiting_for,
        turns,
    )
    server = build_server(
        cluster=replica.tls.material.principal.cluster, access=ACCESS, clock=clock, ids=replica.ids, insecure=bool(replica.insecure_listen)
    )
    _add_services(server, api)
    port = server.listen(replica.listen, replica.tls)
    if replica.insecure_listen:
        server.listen_insecure(replica.insecure_listen)
    election = Election(replica.replica_id, replica.store, replica.lease_ttl_s)

    async def lead(term: Term) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(driver.lead(term), name="driver")
            group.create_task(retention.lead(term), name="retention")
            group.create_task(removals.lead(term), name="owed removals")
            group.create_task(Deadlines(mirror, writer, clock).lead(term), name="deadlines")
            group.create_task(probes.lead(term), name="pool probes")

    try:
        async with asyncio.TaskGroup() as group:
            loops = [
                start(group, "mirror", mirror.run, clock=clock),
                start(group, "heartbeat writer", liveness.write, clock=clock),
                start(group, "heartbeat watch", liveness.watch, clock=clock),
            ]
            await server.start()
            await mirror.ready.wait()
            await liveness.ready.wait()
            loops.append(start(group, "election", lambda: election.run(lead), clock=clock))
            await server.set_serving(True)
            log.info("serving", replica=replica.replica_id, port=port)
            if replica.notifier is not None:
                replica.notifier.ready(f"serving on port {port}")
                loops.append(group.create_task(replica.notifier.watchdog(clock, lambda: True), name="watchdog"))
            ready(port)
            await shutdown.requested.wait()
            if replica.notifier is not None:
                replica.notifier.stopping()
            await server.stop(STOP_GRACE_S)
            for loop in loops:
                loop.cancel()
    finally:
        await server.stop(0)
        await agents.close()


def _add_services(server: RpcServer, api: Api) -> None:
    vms_pb2_grpc.add_VMServiceServicer_to_server(VMService(api), server.grpc_server)
    nodes_pb2_grpc.add_NodeServiceServicer_to_server(NodeService(api), server.grpc_server)
    pools_pb2_grpc.add_PoolServiceServicer_to_server(PoolService(api), server.grpc_server)
    volumes_pb2_grpc.add_VolumeServiceServicer_to_server(VolumeService(api), server.grpc_server)
    flavors_pb2_grpc.add_FlavorServiceServicer_to_server(FlavorService(api), server.grpc_server)
    operations_pb2_grpc.add_OperationServiceServicer_to_server(OperationService(api), server.grpc_server)
    cluster_link_pb2_grpc.add_ClusterLinkServiceServicer_to_server(ClusterLinkService(api), server.grpc_server)


async def _store_status(replica: Replica) -> StoreStatus:
    try:
        async with asyncio.timeout(STORE_WAIT_S):
            while True:
                try:
                    return await replica.store.status()
                except StoreUnavailable as error:
                    log.info("waiting for the store", error=str(error))
                    await replica.clock.sleep(1.0)
    except TimeoutError as error:
        raise StartupError(f"the store does not answer after {STORE_WAIT_S:.0f} s; check etcd.endpoints and its certificates") from error


def _etcd(settings: EtcdSettings) -> EtcdConfig:
    if settings.ca is None or settings.cert is None or settings.key is None:
        return EtcdConfig(settings.endpoints)
    return EtcdConfig(settings.endpoints, etcd_channels.TlsFiles(settings.ca, settings.cert, settings.key, settings.server_name))


def _registered(mirror: Mirror) -> Callable[[str], Registered]:
    def registered(node_id: str) -> Registered:
        record = mirror.state.nodes[node_id].record
        return Registered(record.endpoint, record.incarnation)

    return registered


def _connect(tls: ServerTls) -> Callable[[str, str], grpc.aio.Channel]:
    return lambda node_id, endpoint: channels.to_node(tls.material, node_id, endpoint)
