"""The processes of this host that hold locks for probes: started, killed, and few at once.

What a probe has to find out is whether a lock ends with its process when that is killed, so it must be a process of its own: a thread of the agent
cannot be killed. A holder that hangs in the file system cannot be killed either; it is left to the kernel, and counts as one of the few.
"""

import asyncio
import sys
from pathlib import Path

import structlog

from nodeagent.ports import StorageUnavailable

PROGRAM = Path(__file__).with_name("lock_holder.py")
HOLDERS_MAX = 4
"""The cluster's leader makes one probe at a time; a second leader may think that it leads still."""
START_S = 5.0
"""Python starts in 20 ms; a file system that takes longer hangs."""
END_S = 5.0
"""A killed process is gone within milliseconds, or is held by its file system."""

log = structlog.get_logger(__name__)


class LockHolders:
    """Holders by the name of the file that they hold."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.subprocess.Process] = {}

    async def hold(self, folder: int, name: str) -> bool:
        """Whether the byte is locked by a holder now; one that is there already is left alone. Raises StorageUnavailable."""
        self._running = {held: process for held, process in self._running.items() if process.returncode is None}
        if name in self._running:
            return True
        if len(self._running) >= HOLDERS_MAX:
            raise StorageUnavailable(f"{HOLDERS_MAX} lock probes run already")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", str(PROGRAM), str(folder), name,
            pass_fds=(folder,), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self._running[name] = process
        assert process.stdout is not None
        try:
            async with asyncio.timeout(START_S):
                held = await process.stdout.readline() == b"held\n"
        except TimeoutError as error:
            await self.kill(name)
            raise StorageUnavailable("a lock for a probe is neither held nor refused") from error
        if not held:
            await self.kill(name)
        return held

    async def kill(self, name: str) -> None:
        """SIGKILL, and wait for its end; no error if there is none."""
        process = self._running.get(name)
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        try:
            async with asyncio.timeout(END_S):
                await process.wait()
        except TimeoutError as error:
            log.warning("the holder of a lock probe does not end", pid=process.pid)
            raise StorageUnavailable("the holder of a lock probe does not end") from error
        self._running.pop(name, None)
