"""Does harm to a simulated cluster at the k-th thing that counts, before it is done, or after it is done and nobody was told.

What counts: of a replica, each transaction that writes an operation's journal or a VM's record; of an agent, each change of its state files and
each command to its hypervisor. So k from 1 to the number of such things is every moment at which a kill, or a lost answer, can make a difference.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from devcluster.cluster import DevCluster, DevOptions
from hostler.server.clock import Clock
from nodeagent.adapters.sim_hypervisor import SimHypervisor
from nodeagent.adapters.sim_world import SimWorld
from nodeagent.adapters.state_directory import StateDirectory
from nodeagent.app import Parts
from nodeagent.ports import HypervisorUnavailable
from scheduler.adapters.memory_store import MemoryStore
from scheduler.ports import Compare, OutcomeUnknown, Put, Store, TxnResult, Write

T = TypeVar("T")
JOURNALED = ("/hostler/state/op/", "/hostler/state/vm/")
COMMANDS = ("create_paused", "resume", "press_power_button", "destroy", "kill", "migrate", "abort_migration")


class Blow(StrEnum):
    """What is done to whom."""

    REPLICA_KILLED = "replica killed"
    """It stays dead; the other one takes over."""
    STORE_SILENT = "store silent"
    """A write of a replica gets no answer."""
    AGENT_KILLED = "agent killed"
    """Its supervisor starts it again."""
    HYPERVISOR_SILENT = "hypervisor silent"
    """A command of an agent gets no answer."""
    HYPERVISOR_KILLED = "hypervisor killed"
    """The daemon ends and is started again; the guests' processes go on."""
    HOST_DOWN = "host down"
    """Power is lost and comes back: no process is left on that host."""


OF_REPLICAS = frozenset({Blow.REPLICA_KILLED, Blow.STORE_SILENT})
SILENCE = frozenset({Blow.STORE_SILENT, Blow.HYPERVISOR_SILENT})


@dataclass(slots=True)
class Harm:
    """The blow falls `at` the k-th counted thing of those that it is for (0: never), before or after it is done.

    `victim` is who did it, `what` it was.
    """

    blow: Blow
    at: int = 0
    after: bool = False
    armed: bool = False
    count: int = 0
    what: str = ""
    struck: asyncio.Event = field(default_factory=asyncio.Event)
    victim: "asyncio.Future[str]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    async def unless_now(self, daemon: str, what: str, act: Callable[[], Awaitable[T]], lost: Exception | None = None) -> T:
        """Do it, unless this is the moment: then the caller never hears of it. `lost` is what it hears when the answer is lost."""
        silent = self.blow in SILENCE
        if not self.armed or (self.blow in OF_REPLICAS) is daemon.startswith("n") or (silent and lost is None):
            return await act()
        self.count += 1
        if self.count != self.at:
            return await act()
        self.what = f"{daemon}: {what}"
        done = await act() if self.after else None
        if silent and lost is not None:
            raise lost
        self.victim.set_result(daemon)
        if self.blow is not Blow.HYPERVISOR_KILLED:
            await asyncio.Event().wait()
        await self.struck.wait()
        if self.after:
            return done  # type: ignore[return-value]
        return await act()


class WatchedStore:
    """One replica's client of the store."""

    def __init__(self, store: MemoryStore, harm: Harm, replica_id: str) -> None:
        self._store, self._harm, self._replica_id = store, harm, replica_id

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._store, name)

    async def txn(self, compares: Sequence[Compare], writes: Sequence[Write]) -> TxnResult:
        keys = [write.key for write in writes if isinstance(write, Put) and write.key.startswith(JOURNALED)]
        if not keys:
            return await self._store.txn(compares, writes)
        what, lost = f"writes {', '.join(keys)}", OutcomeUnknown("the reply was lost")
        return await self._harm.unless_now(self._replica_id, what, lambda: self._store.txn(compares, writes), lost)


class WatchedHypervisor(SimHypervisor):
    """One host's."""

    def __init__(self, world: SimWorld, node_id: str, harm: Harm) -> None:
        super().__init__(world, node_id)
        for name in COMMANDS:
            setattr(self, name, self._watched(harm, node_id, name, getattr(self, name)))

    @staticmethod
    def _watched(harm: Harm, node_id: str, name: str, command: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def watched(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401
            lost = HypervisorUnavailable("the reply was lost")
            return await harm.unless_now(node_id, name, lambda: command(*arguments, **named), lost)

        return watched


class WatchedFiles(StateDirectory):
    """One agent's state files, in a directory of its node's name."""

    def __init__(self, directory: Path, harm: Harm) -> None:
        super().__init__(directory)
        self._harm, self._node_id = harm, directory.name

    async def save(self, kind: str, key: str, value: bytes) -> None:
        await self._harm.unless_now(self._node_id, f"saves {kind}", lambda: super(WatchedFiles, self).save(kind, key, value))

    async def remove(self, kind: str, key: str) -> None:
        await self._harm.unless_now(self._node_id, f"removes {kind}", lambda: super(WatchedFiles, self).remove(kind, key))


class WatchedCluster(DevCluster):
    """Everything that counts goes by `harm`."""

    def __init__(self, directory: Path, options: DevOptions, group: asyncio.TaskGroup, world: SimWorld, clock: Clock, harm: Harm) -> None:
        super().__init__(directory, options, group, world, clock)
        self.harm = harm

    def store_of(self, replica_id: str) -> Store:
        return WatchedStore(self.store.connect(), self.harm, replica_id)

    def parts_of(self, node_id: str) -> Parts:
        files = WatchedFiles(self.directory / "state" / node_id, self.harm)
        return replace(super().parts_of(node_id), hypervisor=WatchedHypervisor(self.world, node_id, self.harm), files=files)

    async def execute(self) -> None:
        """Wait for the victim, and let the blow fall."""
        victim = await self.harm.victim
        match self.harm.blow:
            case Blow.REPLICA_KILLED:
                await self.schedulers[victim].kill()
            case Blow.AGENT_KILLED:
                await self._restart_agent(victim)
            case Blow.HYPERVISOR_KILLED:
                self.world.hosts[victim].crash_daemon()
                self.world.hosts[victim].restart_daemon()
                self.harm.struck.set()
            case Blow.HOST_DOWN:
                self.world.hosts[victim].crash_host()
                self.world.hosts[victim].boot_host()
                await self._restart_agent(victim)

    async def _restart_agent(self, node_id: str) -> None:
        port = self.agents[node_id].port
        await self.agents[node_id].kill()
        await self.start_agent(node_id, port)
