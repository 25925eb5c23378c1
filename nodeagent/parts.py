"""Opens the real outside of one node: libvirt, the directory pools, the kernel, the tunnels, the state directory."""

import grp
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

from hostler.server.clock import Clock
from hostler.server.startup import StartupError
from hostler.server.tls import ServerTls, TlsFiles
from nodeagent.adapters.directory_volumes import DirectoryPool, DirectoryVolumes
from nodeagent.adapters.libvirt_hypervisor import LibvirtHypervisor, LibvirtSettings
from nodeagent.adapters.linux_host_facts import LinuxHostFacts
from nodeagent.adapters.state_directory import StateDirectory, StateInUse, alone_in
from nodeagent.adapters.tls_tunnel import TlsTunnel
from nodeagent.app import Parts
from nodeagent.settings import PoolLocks, Settings


@asynccontextmanager
async def open_parts(settings: Settings, tls: ServerTls, clock: Clock) -> AsyncIterator[Parts]:
    """The parts, for as long as the block runs. Raises StartupError for what a person can mend."""
    hypervisor = LibvirtHypervisor(LibvirtSettings(uri=settings.libvirt_uri, socket=settings.libvirt_socket), clock)
    volumes = DirectoryVolumes(
        {
            pool_id: DirectoryPool(pool.path, pool.shared, relies_on_locks=pool.locks is not PoolLocks.NONE)
            for pool_id, pool in settings.pools.items()
        }
    )
    tunnel = TlsTunnel(
        tls.material.principal,
        TlsFiles(settings.tls.cert, settings.tls.key, settings.tls.ca),
        listen_host=settings.tunnel_host or settings.listen.rpartition(":")[0],
        directory=settings.tunnel_dir,
        libvirt_socket=hypervisor.libvirt_socket,
        qemu_gid=_group(settings.qemu_group),
    )
    with _state(settings.state_dir) as state:
        async with hypervisor.connected(), tunnel:
            yield Parts(hypervisor, volumes, LinuxHostFacts(), tunnel, state)


@contextmanager
def _state(directory: Path) -> Iterator[StateDirectory]:
    """Of this process alone."""
    with ExitStack() as stack:
        try:
            stack.enter_context(alone_in(directory))
            state = StateDirectory(directory)
            state.load("vms")
        except StateInUse as error:
            whose = f"process {error.pid}" if error.pid else "another process"
            raise StartupError(f"state_dir {directory} is in use by {whose}: an agent that has not ended yet; end it first") from error
        except OSError as error:
            raise StartupError(f"state_dir {directory}: {error.strerror}") from error
        yield state


def _group(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise StartupError(f"qemu_group: there is no group {name}; name the group that QEMU runs as") from error
