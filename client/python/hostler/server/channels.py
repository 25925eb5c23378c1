"""Channels to other daemons: verified by the name of the one that is meant, whatever address is dialled."""

import grpc
import grpc.aio

from hostler import channel_options
from hostler.server.identity import SCHEDULER_DNS_NAME, Principal, PrincipalKind
from hostler.server.server import MAX_RESPONSE_BYTES
from hostler.server.tls import TlsMaterial, channel_credentials, server_name_options

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
    *channel_options.OPTIONS,
    ("grpc.use_local_subchannel_pool", 1),
)


def to_node(material: TlsMaterial, node_id: str, endpoint: str) -> grpc.aio.Channel:
    """To one node's agent; nobody else's certificate is accepted."""
    name = Principal(material.principal.cluster, PrincipalKind.NODE, node_id).dns_name
    return _channel(material, name or "", endpoint)


def to_scheduler(material: TlsMaterial, endpoint: str) -> grpc.aio.Channel:
    """To one scheduler replica."""
    return _channel(material, SCHEDULER_DNS_NAME, endpoint)


def _channel(material: TlsMaterial, dns_name: str, endpoint: str) -> grpc.aio.Channel:
    return grpc.aio.secure_channel(endpoint, channel_credentials(material), options=[*OPTIONS, *server_name_options(dns_name)])
