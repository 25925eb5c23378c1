"""Who may call what: one table from method to roles. A method that is not in it is refused to everybody."""

from hostler.api.cluster.v1 import flavors_pb2, nodes_pb2, operations_pb2, pools_pb2, vms_pb2, volumes_pb2
from hostler.internal.v1 import cluster_link_pb2
from hostler.server.interceptors import Access

USERS = frozenset({"user"})
NODES = frozenset({"node"})

SERVICES = {
    vms_pb2.DESCRIPTOR.services_by_name["VMService"]: USERS,
    nodes_pb2.DESCRIPTOR.services_by_name["NodeService"]: USERS,
    pools_pb2.DESCRIPTOR.services_by_name["PoolService"]: USERS,
    volumes_pb2.DESCRIPTOR.services_by_name["VolumeService"]: USERS,
    flavors_pb2.DESCRIPTOR.services_by_name["FlavorService"]: USERS,
    operations_pb2.DESCRIPTOR.services_by_name["OperationService"]: USERS,
    cluster_link_pb2.DESCRIPTOR.services_by_name["ClusterLinkService"]: NODES,
}

ACCESS: Access = {f"/{service.full_name}/{method.name}": roles for service, roles in SERVICES.items() for method in service.methods}
