"""Who may call what, by mode: one table from method to roles. A method that is not in it is refused to everybody.

In a cluster the public mutations are refused with the mode as the reason (by the services), not with a missing role: the user learns where to go.
"""

from hostler.api.node.v1 import host_pb2, operations_pb2, vms_pb2, volumes_pb2
from hostler.internal.v1 import agent_pb2, peer_pb2
from hostler.server.interceptors import Access

USERS = frozenset({"user"})
READERS = frozenset({"user", "scheduler"})
SCHEDULERS = frozenset({"scheduler"})
NODES = frozenset({"node"})

SERVICES = {
    vms_pb2.DESCRIPTOR.services_by_name["VMService"]: USERS,
    volumes_pb2.DESCRIPTOR.services_by_name["VolumeService"]: USERS,
    operations_pb2.DESCRIPTOR.services_by_name["OperationService"]: USERS,
    host_pb2.DESCRIPTOR.services_by_name["HostService"]: READERS,
    agent_pb2.DESCRIPTOR.services_by_name["AgentService"]: SCHEDULERS,
    peer_pb2.DESCRIPTOR.services_by_name["PeerService"]: NODES,
}

ACCESS: Access = {f"/{service.full_name}/{method.name}": roles for service, roles in SERVICES.items() for method in service.methods}
