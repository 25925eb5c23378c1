"""The scheduler's settings: a TOML file, overridden by HOSTLER_SCHEDULER_* variables. Paths are absolute or relative to the working directory."""

from dataclasses import dataclass
from pathlib import Path

from scheduler.core.turns import LINK_AT_ONCE, RECEIVES_AT_ONCE, SENDS_AT_ONCE


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """This replica's certificate (spiffe://<cluster>/scheduler/<id>), its key, and the cluster's CA."""

    cert: Path
    key: Path
    ca: Path


@dataclass(frozen=True, slots=True)
class EtcdSettings:
    """The cluster's store. Client certificate files: all three or none; `server_name` is a name every member's certificate
    carries (empty: each carries its own endpoint's)."""

    endpoints: tuple[str, ...]
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str = ""

    def __post_init__(self) -> None:
        if len({path is None for path in (self.ca, self.cert, self.key)}) > 1:
            raise ValueError("etcd wants all of ca, cert and key, or none of them")


@dataclass(frozen=True, slots=True)
class Settings:
    """One replica. `listen` is host:port; `insecure_listen`, if set, is a loopback host:port or unix:/path where users need no certificate.

    `migrations_out`, `migrations_in`, `migrations_link`: live migrations at once that a node sends, that it receives, and from one node to one
    other; the same on every replica.
    """

    tls: TlsSettings
    etcd: EtcdSettings
    listen: str = "0.0.0.0:7400"
    insecure_listen: str = ""
    log_level: str = "info"
    operation_retention_h: int = 24
    migrations_out: int = SENDS_AT_ONCE
    migrations_in: int = RECEIVES_AT_ONCE
    migrations_link: int = LINK_AT_ONCE

    def __post_init__(self) -> None:
        if self.operation_retention_h < 1:
            raise ValueError("operation_retention_h must be 1 or more: a repeated request must find its operation")
        if min(self.migrations_out, self.migrations_in, self.migrations_link) < 1:
            raise ValueError("migrations_out, migrations_in and migrations_link must be 1 or more: a move that waits must have its turn")
