"""A pool without locks, for the lab alone: what a network file system mounted without locking is to QEMU and to Hostler.

No file system of that kind can be mounted here, so it is made of the shared one: its volumes are raw and their disks `<shareable/>`, whereupon QEMU
takes no exclusive lock and a second writer is stopped by nobody; and the pool is declared `locks = "none"`, which is what Hostler's probe would
find. Only the launcher of the sweep's agents knows it.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lxml import etree

from hostler.model.domain import VolumeSpec
from nodeagent.ports import Volumes
from nodeagent.settings import PoolLocks, PoolSettings

POOL = "lockless"
PATH = Path("/var/lib/hostler/pools/shared/lockless")
RAW = "raw"


def pools() -> Mapping[str, PoolSettings]:
    """What the settings of every agent of the sweep have besides."""
    return {POOL: PoolSettings(PATH, shared=True, locks=PoolLocks.NONE)}


class LocklessVolumes:
    """The host's volumes; those of `lockless` are raw, whatever the cluster calls them."""

    def __init__(self, volumes: Volumes) -> None:
        self._volumes = volumes

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 whatever the volumes have
        return getattr(self._volumes, name)

    async def ensure(self, volume: VolumeSpec) -> int:
        return await self._volumes.ensure(_raw(volume))

    async def remove(self, volume: VolumeSpec) -> None:
        await self._volumes.remove(_raw(volume))

    def path(self, pool_id: str, volume_uid: str, image_format: str) -> str:
        return self._volumes.path(pool_id, volume_uid, RAW if pool_id == POOL else image_format)

    async def identity(self, pool_id: str, volume_uid: str, image_format: str) -> str:
        return await self._volumes.identity(pool_id, volume_uid, RAW if pool_id == POOL else image_format)


def _raw(volume: VolumeSpec) -> VolumeSpec:
    return replace(volume, format=RAW) if volume.pool_id == POOL else volume


def shareable(domain_xml: Callable[..., str]) -> Callable[..., str]:
    """The same document, but disks in the pool are raw and take no exclusive lock."""

    def changed(*arguments: object) -> str:
        domain = etree.fromstring(domain_xml(*arguments).encode())
        for disk in domain.iterfind("devices/disk"):
            source, driver = disk.find("source"), disk.find("driver")
            if source is not None and driver is not None and source.get("file", "").startswith(f"{PATH}/"):
                driver.set("type", RAW)
                source.addnext(etree.Element("shareable"))
        return etree.tostring(domain, encoding="unicode")

    return changed
