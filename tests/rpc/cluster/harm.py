"""Does harm to a simulated cluster at the k-th thing that counts, before it is done, or after it is done and nobody was told.

What counts: of a replica, each transaction that writes an operation's journal or a VM's record; of an agent, each change of its state files and
each command to its hypervisor. So k from 1 to the number of such things is every moment at which a kill, or a lost answer, can make a difference.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from devcluster.cluster import Daemon, DevCluster, DevOptions
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


@dataclass(slots=True)
class Harm:
    """`at` the k-th counted thing of the agents, or of the replicas (0: never): who does it is killed, or gets no answer (`loss`).

    `victim` is who did it, `what` it was.
    """

    at: int = 0
    after: bool = False
    agents: bool = False
    loss: bool = False
    armed: bool = False
    count: int = 0
    what: str = ""
    victim: "asyncio.Future[str]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    async def unless_now(self, daemon: str, what: str, act: Callable[[], Awaitable[T]], lost: Exception | None = None) -> T:
        """Do it, unless this is the moment: then the caller never hears of it. `lost` is what it hears when the answer is lost."""
        if not self.armed or self.agents is not daemon.startswith("n") or (self.loss and lost is None):
            return await act()
        self.count += 1
        if self.count != self.at:
            return await act()
        self.what = f"{daemon}: {what}"
        if self.after:
            await act()
        if self.loss and lost is not None:
            raise lost
        self.victim.set_result(daemon)
        await asyncio.Event().wait()
        raise AssertionError("who is dead does not go on")


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

    async def execute(self) -> Daemon | None:
        """Wait for the victim and kill it. A replica stays dead, the other one takes over; an agent is started again, as its supervisor does."""
        victim = await self.harm.victim
        if victim in self.schedulers:
            await self.schedulers[victim].kill()
            return None
        port = self.agents[victim].port
        await self.agents[victim].kill()
        return await self.start_agent(victim, port)
