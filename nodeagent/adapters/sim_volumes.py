"""The `Volumes` port of a simulated host: pools are file systems of the world, so a shared pool's files are the same ones on every host."""

from hostler.model.domain import VolumeSpec
from nodeagent.adapters.sim_storage import SimFile, SimFileSystem
from nodeagent.adapters.sim_world import SimWorld, pool_root
from nodeagent.ports import PoolFull, PoolMissing, PoolView, ProbeOutcome, VolumeRemoved, VolumeSize

IMAGES = "images/"
VOLUMES = "volumes/"
DEFAULT_SIZE_MIB = 1
"""A volume that asks for no size and has no image."""


class SimVolumes:
    """Volumes of `world.hosts[node_id]`."""

    def __init__(self, world: SimWorld, node_id: str) -> None:
        self._world = world
        self._node_id = node_id

    async def pools(self) -> tuple[PoolView, ...]:
        return tuple(_view(pool_id, file_system) for pool_id, file_system in sorted(self._host_pools().items()))

    async def ensure(self, volume: VolumeSpec) -> int:
        file_system = self._pool(volume.pool_id)
        name = _file(volume.volume_uid, volume.format)
        there = file_system.files.get(name)
        if there is not None:
            return there.size_mib
        if name in file_system.removed:
            raise VolumeRemoved(volume.volume_uid)
        size_mib = self._size_mib(file_system, volume)
        if size_mib > file_system.free_mib:
            raise PoolFull(f"Pool {volume.pool_id} has no room for {size_mib} MiB.")
        return file_system.create(name, size_mib).size_mib

    async def remove(self, volume: VolumeSpec) -> None:
        file_system, name = self._pool(volume.pool_id), _file(volume.volume_uid, volume.format)
        file_system.removed.add(name)
        file_system.files.pop(name, None)

    async def readmit(self, volume: VolumeSpec) -> None:
        self._pool(volume.pool_id).removed.discard(_file(volume.volume_uid, volume.format))

    async def uids(self, pool_id: str) -> tuple[str, ...]:
        names = sorted(name.removeprefix(VOLUMES) for name in self._pool(pool_id).files if name.startswith(VOLUMES))
        return tuple(name.rpartition(".")[0] for name in names)

    def path(self, pool_id: str, volume_uid: str, image_format: str) -> str:
        self._pool(pool_id)
        return f"{pool_root(self._node_id, pool_id)}/{_file(volume_uid, image_format)}"

    async def identity(self, pool_id: str, volume_uid: str, image_format: str) -> str:
        file_system = self._pool(pool_id)
        file = file_system.files.get(_file(volume_uid, image_format))
        if file is None:
            raise PoolMissing(f"Pool {pool_id} has no file of volume {volume_uid}.")
        return f"{file_system.fingerprint}:{file.inode}"

    async def size(self, pool_id: str, volume_uid: str, image_format: str) -> VolumeSize:
        file = self._pool(pool_id).files.get(_file(volume_uid, image_format))
        if file is None:
            raise PoolMissing(f"Pool {pool_id} has no file of volume {volume_uid}.")
        return VolumeSize(file.size_mib << 20, file.size_mib << 20)

    async def hold_probe(self, pool_id: str, probe_id: str) -> ProbeOutcome:
        self._pool(pool_id).probes[probe_id] = self._node_id
        return ProbeOutcome.HELD

    async def try_probe(self, pool_id: str, probe_id: str) -> ProbeOutcome:
        file_system = self._pool(pool_id)
        holder = file_system.probes.get(probe_id)
        if holder is None:
            return ProbeOutcome.MISSING
        reaches = holder == self._node_id or not {holder, self._node_id} & file_system.own_locks
        excluded = holder and file_system.locks and reaches
        return ProbeOutcome.REFUSED if excluded else ProbeOutcome.TAKEN

    async def end_probe(self, pool_id: str, probe_id: str, *, remove: bool) -> None:
        file_system = self._pool(pool_id)
        if file_system.probes.get(probe_id) == self._node_id and not file_system.keeps_dead_locks:
            file_system.probes[probe_id] = ""
        if remove:
            file_system.probes.pop(probe_id, None)

    def _size_mib(self, file_system: SimFileSystem, volume: VolumeSpec) -> int:
        if not volume.image:
            return volume.size_mib or DEFAULT_SIZE_MIB
        image: SimFile | None = file_system.files.get(f"{IMAGES}{volume.image}.qcow2")
        if image is None:
            raise PoolMissing(f"Pool {volume.pool_id} has no image {volume.image}.")
        if 0 < volume.size_mib < image.size_mib:
            raise PoolFull(f"Image {volume.image} needs {image.size_mib} MiB, the volume has {volume.size_mib}.")
        return volume.size_mib or image.size_mib

    def _host_pools(self) -> dict[str, SimFileSystem]:
        return self._world.hosts[self._node_id].pools

    def _pool(self, pool_id: str) -> SimFileSystem:
        file_system = self._host_pools().get(pool_id)
        if file_system is None:
            raise PoolMissing(f"This host has no pool {pool_id}.")
        return file_system


def _file(volume_uid: str, image_format: str) -> str:
    return f"{VOLUMES}{volume_uid}.{image_format}"


def _view(pool_id: str, file_system: SimFileSystem) -> PoolView:
    images = {
        name.removeprefix(IMAGES).removesuffix(".qcow2"): file.size_mib
        for name, file in sorted(file_system.files.items())
        if name.startswith(IMAGES)
    }
    return PoolView(
        pool_id,
        file_system.shared,
        file_system.fingerprint,
        file_system.capacity_mib,
        file_system.free_mib,
        file_system.locks,
        images,
        sum(file.size_mib for name, file in file_system.files.items() if not name.startswith(VOLUMES)),
        "simulated",
    )
