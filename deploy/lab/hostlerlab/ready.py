"""A lab that has what VMs are made from: a Linux guest in a pool of its hosts, as image `guest`."""

from pathlib import Path

from hostlerlab.guest.build import build
from hostlerlab.hosts import SHARED_POOL
from hostlerlab.lab import Lab, default_specs

HOSTS = 3
"""A source, a destination, and one more that has nothing to do with it."""


def ready_lab(folder: Path, hosts: int = HOSTS, pool: Path = SHARED_POOL) -> Lab:
    """Up, with nothing left of an earlier one; what it needs is built in `folder`. Takes seconds, the first time a minute."""
    lab = Lab(folder / "lab", default_specs(hosts))
    lab.up(fresh=True)
    put_image(lab, folder, pool)
    return lab


def put_image(lab: Lab, folder: Path, pool: Path = SHARED_POOL) -> None:
    """Once for a pool that all hosts share."""
    linux = build(folder / "guest").linux.resolve()
    for host in list(lab.hosts.values())[: 1 if pool == SHARED_POOL else None]:
        host.run(["mkdir", "-p", str(pool / "images")])
        host.run(["cp", str(linux), str(pool / "images" / "guest.qcow2")])
