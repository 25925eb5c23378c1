"""Following VMs or nodes without a gap: what is told to a program, and how it goes on when a replica is lost.

A watch resumes from the token of the last event on any replica. Where that is not possible (the token is too old, the first listing was cut
off, or the events are a replica's own judgement, as the health of nodes is) it says `Resync` and tells everything again: the reader forgets what
it knew, and what comes until the next `Bookmark` is all there is.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import grpc.aio

from hostler.api.cluster.v1 import nodes_pb2, vms_pb2
from hostler.api.type.v1.node_pb2 import Node
from hostler.api.type.v1.vm_pb2 import VM
from hostler.cancellation import cancellation_kept
from hostler.connection import RECONNECT_S, Attempts, Connection, Replica
from hostler.errors import HostlerError, OutOfRange, Reason, Unavailable
from hostler.rpc_status import from_rpc_error

QUIET_S = 30.0
"""Servers send a bookmark every 10 s; a replica that is silent for three of them hangs."""

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Updated(Generic[R]):
    """The resource is new or changed. `resume_token` is empty within the first listing."""

    resource: R
    resume_token: str


@dataclass(frozen=True, slots=True)
class Deleted:
    """The resource of that full name is gone."""

    name: str
    resume_token: str


@dataclass(frozen=True, slots=True)
class Bookmark:
    """Everything up to the token has been told; the first one after a listing says that the listing is complete."""

    resume_token: str


@dataclass(frozen=True, slots=True)
class Resync:
    """Forget what you know: everything there is follows, up to the next Bookmark."""


VMEvent = Updated[VM] | Deleted | Bookmark | Resync
NodeEvent = Updated[Node] | Deleted | Bookmark | Resync


def watch_vms(connection: Connection, resume_token: str) -> AsyncGenerator[VMEvent]:
    """See Cluster.watch_vms."""
    return _follow(
        connection, lambda replica, token: replica.vms.WatchVMs(vms_pb2.WatchVMsRequest(resume_token=token)), resume_token, resumable=True
    )


def watch_nodes(connection: Connection) -> AsyncGenerator[NodeEvent]:
    """See Cluster.watch_nodes."""
    return _follow(
        connection, lambda replica, token: replica.nodes.WatchNodes(nodes_pb2.WatchNodesRequest(resume_token=token)), "", resumable=False
    )


if TYPE_CHECKING:
    Call = grpc.aio.UnaryStreamCall[Any, Any]


async def _follow(
    connection: Connection, begin: "Callable[[Replica, str], Call]", token: str, *, resumable: bool
) -> AsyncGenerator[Updated[Any] | Deleted | Bookmark | Resync]:
    """Events for ever. Raises InvalidRequest (another cluster's token), Unavailable after RECONNECT_S without any replica."""
    attempts, told = Attempts(connection, RECONNECT_S), bool(token)
    while True:
        replica = connection.replica
        call = begin(replica, token)
        try:
            while True:
                async with asyncio.timeout(QUIET_S):
                    with cancellation_kept():
                        answer = await call.read()
                if not isinstance(answer, vms_pb2.WatchVMsResponse | nodes_pb2.WatchNodesResponse):
                    raise Unavailable(Reason.SCHEDULER_UNAVAILABLE, "The replica ended the watch.")
                attempts.succeeded()
                told, token = True, answer.resume_token or token
                yield _event(answer)
        except TimeoutError:
            lost: HostlerError = Unavailable(Reason.SCHEDULER_UNAVAILABLE, f"The replica was silent for {QUIET_S:g} s.")
        except Unavailable as error:
            lost = error
        except grpc.aio.AioRpcError as error:
            lost = from_rpc_error(error)
        finally:
            call.cancel()
        if isinstance(lost, OutOfRange) and token:
            token = ""
        else:
            await attempts.failed(replica, lost)
            token = token if resumable else ""
        if told and not token:
            told = False
            yield Resync()


def _event(answer: vms_pb2.WatchVMsResponse | nodes_pb2.WatchNodesResponse) -> Updated[Any] | Deleted | Bookmark:
    match answer.WhichOneof("event"):
        case "updated":
            return Updated(answer.updated, answer.resume_token)
        case "deleted":
            return Deleted(answer.deleted, answer.resume_token)
    return Bookmark(answer.resume_token)
