"""What the other mode serves is refused with the mode as the reason, by every method of the service, so that a user learns where to go."""

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import TypeVar, cast

from google.protobuf.descriptor import ServiceDescriptor

from hostler.errors import FailedPrecondition, HostlerError, Reason

S = TypeVar("S")


def only_in_cluster() -> HostlerError:
    return FailedPrecondition(
        Reason.MODE_STANDALONE, "This host runs standalone: no scheduler commands it.", "Use the host's own API, hostler.api.node.v1."
    )


def only_standalone(schedulers: Sequence[str]) -> HostlerError:
    return FailedPrecondition(
        Reason.MODE_CLUSTER,
        "This host belongs to a cluster, whose scheduler alone may change it.",
        f"Ask the scheduler: the cluster's API, hostler.api.cluster.v1, at {', '.join(schedulers)}.",
    )


def refusing(
    base: Callable[..., S], service: ServiceDescriptor, refusal: Callable[[], HostlerError], but: Collection[str] = ()
) -> Callable[..., S]:
    """The service with every method refused, but those named; methods that are added to it later are refused as well."""

    async def one(self: object, request: object, context: object) -> None:
        raise refusal()

    async def many(self: object, request: object, context: object) -> AsyncIterator[object]:
        raise refusal()
        yield  # What makes it a stream.

    methods = {method.name: many if method.server_streaming else one for method in service.methods if method.name not in but}
    made: Callable[..., S] = type(f"Refusing{service.name}", (cast(type, base),), methods)
    return made
