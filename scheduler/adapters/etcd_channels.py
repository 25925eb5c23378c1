"""Where etcd is and how it is reached: one channel per member, so that what is known of one member is not blamed on another.

Each member's certificate is checked by itself: against `server_name` where there is one, else against the name or address it is reached by.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import grpc

from hostler.channel_options import RECONNECT

MAX_RECEIVE_BYTES = 32 << 20
"""A refused transaction answers up to 128 values of 64 KiB (8 MiB); gRPC's default is 4 MiB."""

KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS = 10_000, 5_000
"""While there are calls or streams. etcd answers pings more often than every 5 s (--grpc-keepalive-min-time) with GOAWAY, and those on a connection
without calls too; such a connection is found dead when it is used."""

OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.lb_policy_name", "round_robin"),  # where one name stands for several addresses
    *RECONNECT,
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
    ("grpc.max_send_message_length", MAX_RECEIVE_BYTES),
    ("grpc.enable_http_proxy", 0),  # the store is never behind the environment's web proxy
    ("grpc.use_local_subchannel_pool", 1),  # two stores in one process share no connection and no backoff
)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files for mutual TLS. `server_name`: a name that every member's certificate carries; empty: each carries its own endpoint's host."""

    ca: Path
    cert: Path
    key: Path
    server_name: str = ""


@dataclass(frozen=True, slots=True)
class EtcdConfig:
    """Where etcd is: `host:port` per member; the first is turned to first. No `tls`: plain text.

    A name with several addresses counts as one member: a hung one behind it is not told from the others, so name each member.
    """

    endpoints: tuple[str, ...]
    tls: TlsFiles | None = None


def targets(config: EtcdConfig) -> tuple[str, ...]:
    """The gRPC target of each member. Raises ValueError for endpoints that are none."""
    if not config.endpoints:
        raise ValueError("etcd needs at least one endpoint, as host:port")
    if len(set(config.endpoints)) < len(config.endpoints):
        raise ValueError("an etcd endpoint is named twice")
    return tuple(f"{_scheme(_host(endpoint))}{endpoint}" for endpoint in config.endpoints)


def _host(endpoint: str) -> str:
    host, colon, port = endpoint.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not bare or not colon or not port.isdecimal() or "/" in host or (":" in bare) != (host != bare):
        raise ValueError(f"etcd endpoint {endpoint!r} is not host:port (an IPv6 address in brackets, no scheme)")
    return bare


def _scheme(host: str) -> str:
    try:
        return "ipv4:" if isinstance(ip_address(host), IPv4Address) else "ipv6:"
    except ValueError:
        return "dns:///"


def open_channels(config: EtcdConfig) -> tuple[grpc.aio.Channel, ...]:
    """One per endpoint. Reads the certificates; connects later. Raises ValueError, OSError (a certificate that cannot be read)."""
    wheres = targets(config)
    tls = config.tls
    if tls is None:
        return tuple(grpc.aio.insecure_channel(where, options=OPTIONS) for where in wheres)
    credentials = grpc.ssl_channel_credentials(tls.ca.read_bytes(), tls.key.read_bytes(), tls.cert.read_bytes())
    names = (tls.server_name or _host(endpoint) for endpoint in config.endpoints)
    return tuple(
        grpc.aio.secure_channel(where, credentials, options=(*OPTIONS, ("grpc.ssl_target_name_override", name)))
        for where, name in zip(wheres, names, strict=True)
    )
