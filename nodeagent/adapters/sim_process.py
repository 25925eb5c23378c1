"""One simulated QEMU process and the guest memory in it.

The guest counts: `TICK_HZ` steps for each second in which its CPUs run, like the lab's boot-sector guest. A counter that does not move is a
guest that does not execute, and one that goes back is stale RAM.
"""

from dataclasses import dataclass

from nodeagent.adapters.sim_storage import SimFile

TICK_HZ = 18


@dataclass(slots=True, eq=False)
class SimProcess:
    """`paused`: its CPUs are stopped. `stopped`: the process is, by SIGSTOP, so that it answers nobody. The guest's memory is `boot_id`,
    `ran_s` (how long it executed) and `booted` (whether it ever did)."""

    pid: int
    node_id: str
    vm_uid: str
    memory_mib: int
    disks: tuple[SimFile, ...]
    boot_id: str
    ran_s: float = 0.0
    booted: bool = False
    since_s: float = 0.0
    paused: bool = True
    stopped: bool = False
    dead: bool = False

    @property
    def executing(self) -> bool:
        return not (self.paused or self.stopped or self.dead)

    @property
    def holds_locks(self) -> bool:
        return any(file.holder_pid == self.pid for file in self.disks)

    def take_memory_of(self, source: "SimProcess") -> None:
        """The copy of a migration."""
        self.boot_id, self.ran_s, self.booted = source.boot_id, source.ran_s, source.booted

    @staticmethod
    def ticks_after(ran_s: float) -> int:
        """The guest's counter after that many seconds of execution."""
        return int(ran_s * TICK_HZ)
