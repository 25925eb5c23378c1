"""The agent's settings: a TOML file, overridden by HOSTLER_AGENT_* variables."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


class Mode(StrEnum):
    """Fixed at start: in a cluster only the scheduler may change anything, standalone users may."""

    CLUSTER = "cluster"
    STANDALONE = "standalone"


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """This node's certificate (spiffe://<cluster>/node/<id>), its key, and the cluster's CA."""

    cert: Path
    key: Path
    ca: Path


@dataclass(frozen=True, slots=True)
class CapacitySettings:
    """What of the host is offered at most; 0: no cap. `reserve_mib` is kept for the host itself, with a floor of 256."""

    cpu_milli: int = 0
    memory_mib: int = 0
    reserve_mib: int = 512


class PoolLocks(StrEnum):
    """Whether a pool's locks are found out by probing, or are declared not to be there: a way to test what happens then."""

    PROBED = "probed"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """A directory pool. `shared`: every node that has this pool sees the same file system."""

    path: Path
    shared: bool = False
    locks: PoolLocks = PoolLocks.PROBED


@dataclass(frozen=True, slots=True)
class Settings:
    """One node. `listen` is host:port of the API; `advertise` what others dial (default: `listen`); `tunnel_host` is where migrations arrive."""

    tls: TlsSettings
    mode: Mode = Mode.CLUSTER
    listen: str = "0.0.0.0:7500"
    insecure_listen: str = ""
    advertise: str = ""
    tunnel_host: str = ""
    schedulers: tuple[str, ...] = ()
    state_dir: Path = Path("/var/lib/hostler/agent")
    tunnel_dir: Path = Path("/run/hostler/tunnel")
    libvirt_uri: str = "qemu:///system"
    libvirt_socket: str = "/run/libvirt/libvirt-sock"
    qemu_group: str = "libvirt-qemu"
    log_level: str = "info"
    capacity: CapacitySettings = CapacitySettings()
    pools: Mapping[str, PoolSettings] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mode is Mode.CLUSTER and not self.schedulers:
            raise ValueError("schedulers must name at least one replica (host:port), or mode must be standalone")
