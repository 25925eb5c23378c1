"""The shared storage: a one-brick GlusterFS volume served by a namespaced machine of its own.

Decision: GlusterFS over FUSE, because libvirt itself accepts it as shared (no UNSAFE flag) and image locks exclude
across hosts. The server has its own namespace and address, so the fault "host cut off from storage" is one drop rule.
O_DIRECT is passed through to the brick, or `cache=none` would still meet a cache in the client.
"""

from pathlib import Path

from hostlerlab.shell import wait_for
from hostlerlab.space import Bind, Space

VOLUME = "shared"
ADDRESS = "10.91.7.10"
NAME = "store"
GLUSTER_TIMEOUT_S = 60.0
VOLUME_OPTIONS = {
    "performance.strict-o-direct": "on",
    "network.remote-dio": "disable",
    "performance.quick-read": "off",
    "performance.read-ahead": "off",
    "performance.io-cache": "off",
    "performance.stat-prefetch": "off",
    # Seconds until a client gives up a silent server: shorter than 42, which outlasts every test's patience.
    "network.ping-timeout": "10",
}
_VOLFILE = """volume management
    type mgmt/glusterd
    option working-directory /var/lib/glusterd
    option transport-type socket
    option transport.socket.listen-port 24007
    option transport.socket.bind-address {address}
    option transport.socket.read-fail-log off
    option ping-timeout 0
    option event-threads 1
    option max-port 60999
end-volume
"""


def start_server(space: Space) -> None:
    """Create the namespaces, start glusterd, create and start the volume."""
    folder = space.folder
    binds = [
        _bind(space, "run", "/run"),
        _bind(space, "glusterd", "/var/lib/glusterd"),
        _bind(space, "log", "/var/log/glusterfs"),
    ]
    (folder / "run" / "gluster").mkdir()
    brick = folder / "brick"
    brick.mkdir()
    volfile = folder / "glusterd.vol"
    volfile.write_text(_VOLFILE.format(address=ADDRESS))
    space.create(binds)
    space.daemon("glusterd", ["glusterd", "-N", "-f", str(volfile), "-p", "/run/glusterd.pid"])
    _gluster_when_ready(space)
    _gluster(space, "volume", "create", VOLUME, f"{ADDRESS}:{brick}", "force")
    for option, value in VOLUME_OPTIONS.items():
        _gluster(space, "volume", "set", VOLUME, option, value)
    _gluster(space, "volume", "start", VOLUME)


def mount(space: Space, target: str) -> None:
    """Mount the volume at `target` inside a host."""
    log = space.folder / "log" / "glusterfs-client.log"
    space.run(["mount", "-t", "glusterfs", "-o", f"log-file={log}", f"{ADDRESS}:/{VOLUME}", target])


def _bind(space: Space, name: str, target: str) -> Bind:
    source = space.folder / name
    source.mkdir(parents=True, exist_ok=True)
    return Bind(source, Path(target))


def _gluster(space: Space, *args: str) -> None:
    space.run(["gluster", "--mode=script", *args], timeout_s=GLUSTER_TIMEOUT_S)


def _gluster_when_ready(space: Space) -> None:
    def answers() -> bool:
        return space.run(["gluster", "--mode=script", "pool", "list"], check=False).returncode == 0

    wait_for(f"glusterd of {space.name} to answer", answers, GLUSTER_TIMEOUT_S)
