"""The public SDK. `hostler.connect()` gives a `Cluster`; everything else is what its methods take, return and raise.

    async with hostler.connect("10.0.0.1:7400,10.0.0.2:7400", cert="tls.crt", key="tls.key", ca="ca.crt") as cluster:
        creating = await cluster.create_vm("web-1", flavor="small", image="debian-12", pool="shared", networks=["br0"])
        print((await creating.wait()).vm.node)

`hostler.connect_node("h1@10.0.0.11:7500", ...)` gives a `Host`: the same for one host that runs without a scheduler.

Names are looked up on first use: `hostler.errors` and `hostler.model` are imported by code that must not pay for gRPC.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hostler.api.type.v1.node_pb2 import Node
    from hostler.api.type.v1.operation_pb2 import Operation
    from hostler.api.type.v1.vm_pb2 import VM, Flavor
    from hostler.api.type.v1.volume_pb2 import Volume
    from hostler.cluster import Cluster, connect
    from hostler.errors import (
        AlreadyExists,
        Conflict,
        DeadlineExceeded,
        FailedPrecondition,
        HostlerError,
        Internal,
        InvalidRequest,
        NoCapacity,
        NotFound,
        OutOfRange,
        PermissionDenied,
        Reason,
        Unauthenticated,
        Unavailable,
        Violation,
    )
    from hostler.machines import left_alone
    from hostler.node import Host, connect_node
    from hostler.operations import OperationFailed, OperationHandle
    from hostler.watch import Bookmark, Deleted, Resync, Updated

_ERRORS = (
    "AlreadyExists", "Conflict", "DeadlineExceeded", "FailedPrecondition", "HostlerError", "Internal", "InvalidRequest", "NoCapacity",
    "NotFound", "OutOfRange", "PermissionDenied", "Reason", "Unauthenticated", "Unavailable", "Violation",
)  # fmt: skip
_HOME: dict[str, str] = {
    "connect": "hostler.cluster",
    "Cluster": "hostler.cluster",
    "connect_node": "hostler.node",
    "Host": "hostler.node",
    "left_alone": "hostler.machines",
    "OperationHandle": "hostler.operations",
    "OperationFailed": "hostler.operations",
    "Updated": "hostler.watch",
    "Deleted": "hostler.watch",
    "Bookmark": "hostler.watch",
    "Resync": "hostler.watch",
    "VM": "hostler.api.type.v1.vm_pb2",
    "Flavor": "hostler.api.type.v1.vm_pb2",
    "Node": "hostler.api.type.v1.node_pb2",
    "Volume": "hostler.api.type.v1.volume_pb2",
    "Operation": "hostler.api.type.v1.operation_pb2",
    **dict.fromkeys(_ERRORS, "hostler.errors"),
}

__all__ = [
    "VM",
    "AlreadyExists",
    "Bookmark",
    "Cluster",
    "Conflict",
    "DeadlineExceeded",
    "Deleted",
    "FailedPrecondition",
    "Flavor",
    "Host",
    "HostlerError",
    "Internal",
    "InvalidRequest",
    "NoCapacity",
    "Node",
    "NotFound",
    "Operation",
    "OperationFailed",
    "OperationHandle",
    "OutOfRange",
    "PermissionDenied",
    "Reason",
    "Resync",
    "Unauthenticated",
    "Unavailable",
    "Updated",
    "Violation",
    "Volume",
    "connect",
    "connect_node",
    "left_alone",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
