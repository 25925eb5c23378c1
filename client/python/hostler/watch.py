"""Following VMs or nodes without a gap: what is told to a program, and how it goes on when a replica is lost.

A watch resumes from the token of the last event, on any replica of a cluster. Where that is not possible (the token is too old, the first listing was
cut off, or the events are a replica's own judgement, as the health of nodes is) it says `Resync` and tells everything again: the reader forgets what
it knew, and what comes until the next `Bookmark` is all there is.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc.aio

from hostler.api.type.v1.node_pb2 import Node
from hostler.api.type.v1.vm_pb2 import VM
from hostler.connection import RECONNECT_S, Attempts, Connection
from hostler.errors import HostlerError, OutOfRange

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


async def follow(
    connection: Connection[Any],
    begin: "Callable[[str], Callable[[Any], grpc.aio.UnaryStreamCall[Any, Any]]]",
    token: str,
    *,
    resumable: bool,
) -> AsyncGenerator[Updated[Any] | Deleted | Bookmark | Resync]:
    """Events for ever; `begin` makes of a resume token what calls the stub.

    Raises InvalidRequest (another cluster's token), Unavailable after RECONNECT_S without any replica.
    """
    attempts, told = Attempts(connection, RECONNECT_S), bool(token)
    while True:
        replica = connection.replica
        try:
            stream = connection.stream(replica, begin(token), QUIET_S)
            async with aclosing(stream) as answers:
                async for answer in answers:
                    attempts.succeeded()
                    told, token = True, answer.resume_token or token
                    yield _event(answer)
        except HostlerError as lost:
            if isinstance(lost, OutOfRange) and token:
                token = ""
            else:
                await attempts.failed(replica, lost)
                token = token if resumable else ""
        if told and not token:
            told = False
            yield Resync()


def _event(answer: Any) -> Updated[Any] | Deleted | Bookmark:  # noqa: ANN401 a Watch...Response; they all have these fields
    match answer.WhichOneof("event"):
        case "updated":
            return Updated(answer.updated, answer.resume_token)
        case "deleted":
            return Deleted(answer.deleted, answer.resume_token)
    return Bookmark(answer.resume_token)
