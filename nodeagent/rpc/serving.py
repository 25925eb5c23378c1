"""Which services a host has in which mode; each mode also has the other's, which say so."""

from collections.abc import Sequence

import grpc.aio

from hostler.api.node.v1 import operations_pb2, operations_pb2_grpc, vms_pb2, vms_pb2_grpc, volumes_pb2, volumes_pb2_grpc
from hostler.errors import HostlerError
from hostler.internal.v1 import agent_pb2, agent_pb2_grpc, peer_pb2, peer_pb2_grpc
from hostler.server.clock import Clock, IdSource
from nodeagent.engine.standalone import StandaloneHost
from nodeagent.engine.views import VMViews
from nodeagent.rpc.agent import AgentService
from nodeagent.rpc.modes import only_in_cluster, only_standalone, refusing
from nodeagent.rpc.operations import OperationService
from nodeagent.rpc.peer import PeerService
from nodeagent.rpc.vms import READS, VMReads, VMService
from nodeagent.rpc.volumes import VolumeService

VMS = vms_pb2.DESCRIPTOR.services_by_name["VMService"]
VOLUMES = volumes_pb2.DESCRIPTOR.services_by_name["VolumeService"]
OPERATIONS = operations_pb2.DESCRIPTOR.services_by_name["OperationService"]
AGENT = agent_pb2.DESCRIPTOR.services_by_name["AgentService"]
PEER = peer_pb2.DESCRIPTOR.services_by_name["PeerService"]


def standalone(server: grpc.aio.Server, host: StandaloneHost, clock: Clock, ids: IdSource) -> None:
    """Users may do everything; nobody commands the host."""
    vms_pb2_grpc.add_VMServiceServicer_to_server(VMService(host, clock, ids), server)
    volumes_pb2_grpc.add_VolumeServiceServicer_to_server(VolumeService(host, clock, ids), server)
    operations_pb2_grpc.add_OperationServiceServicer_to_server(OperationService(host, clock), server)
    agent_pb2_grpc.add_AgentServiceServicer_to_server(refusing(agent_pb2_grpc.AgentServiceServicer, AGENT, only_in_cluster)(), server)
    peer_pb2_grpc.add_PeerServiceServicer_to_server(refusing(peer_pb2_grpc.PeerServiceServicer, PEER, only_in_cluster)(), server)


def in_cluster(
    server: grpc.aio.Server, views: VMViews, agent_service: AgentService, peer_service: PeerService, schedulers: Sequence[str]
) -> None:
    """The scheduler commands; users may look at the VMs. Volumes and operations are the cluster's."""

    def refusal() -> HostlerError:
        return only_standalone(schedulers)

    vms_pb2_grpc.add_VMServiceServicer_to_server(refusing(VMReads, VMS, refusal, but=READS)(views), server)
    volumes_pb2_grpc.add_VolumeServiceServicer_to_server(refusing(volumes_pb2_grpc.VolumeServiceServicer, VOLUMES, refusal)(), server)
    operations_pb2_grpc.add_OperationServiceServicer_to_server(
        refusing(operations_pb2_grpc.OperationServiceServicer, OPERATIONS, refusal)(), server
    )
    agent_pb2_grpc.add_AgentServiceServicer_to_server(agent_service, server)
    peer_pb2_grpc.add_PeerServiceServicer_to_server(peer_service, server)
