"""A domain's QEMU process, straight from the kernel: stop, continue, kill, wait, without asking libvirt, which may hang or be the problem.

The pid comes from libvirt's pid file (in /run/libvirt/qemu, of this host even where several hosts share one machine's process table: during a
migration two processes carry the same UUID), is checked against the process's own `-uuid`, and every signal goes through a pidfd that was
opened before that check, so a reused number is never hit. Pausing is not fencing: SIGSTOP can be undone, SIGKILL cannot.
"""

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nodeagent.ports import HypervisorUnavailable

QEMU_RUN_DIR = Path("/run/libvirt/qemu")
FREEZE_WAIT_S = 0.01
"""SIGSTOP is taken within 1 ms by a QEMU that gets a CPU; whoever freezes looks at `is_frozen` afterwards in any case."""
FREEZE_LOOK_S = 0.0002
"""Between two looks, asleep: each of its threads needs a CPU for a moment to stop, and whoever waits must not be what holds it."""
FILE_SYSTEM_ID = 3
"""Of the four ids that /proc/PID/status tells of user and group: real, effective, saved, and this one."""
DEATH_DEADLINE_S = 5.0
"""SIGKILL takes 4-12 ms; longer means that the kernel waits for storage."""


class QemuProcesses:
    """The QEMU processes of one libvirtd. Methods without `async` read a few files in memory and never wait."""

    def __init__(self, run_dir: Path = QEMU_RUN_DIR) -> None:
        self._run_dir = run_dir

    def pid(self, vm_uid: str) -> int:
        """The pid of the VM's living QEMU, or 0."""
        with self._opened(vm_uid) as found:
            return 0 if found is None else found[0]

    def signal(self, vm_uid: str, number: signal.Signals) -> bool:
        """Send a signal; False: there is no process."""
        with self._opened(vm_uid) as found:
            if found is None:
                return False
            return _send(found[1], number)

    def freeze(self, vm_uid: str) -> bool:
        """SIGSTOP, and as long as FREEZE_WAIT_S for its threads to take it, which is longer than they need unless the host is overloaded."""
        if not self.signal(vm_uid, signal.SIGSTOP):
            return False
        end_s = time.monotonic() + FREEZE_WAIT_S
        while not self.is_frozen(vm_uid) and time.monotonic() < end_s:
            time.sleep(FREEZE_LOOK_S)  # noqa: TID251 the guest stands still meanwhile: nothing else is to be done first
        return True

    def is_frozen(self, vm_uid: str) -> bool:
        """Whether every one of its threads is stopped by a signal: one that still finishes a write in the kernel is not."""
        pid = self.pid(vm_uid)
        return pid != 0 and all(state in ("T", "t") for state in _thread_states(pid))

    def own(self, vm_uid: str, paths: Iterable[str]) -> bool:
        """Give these files to the user that the VM's QEMU runs as; whether one was somebody else's. Raises OSError; blocks with the file system."""
        with self._opened(vm_uid) as found:
            user = None if found is None else _user(found[0])
            return user is not None and any([_owned(path, user) for path in paths])

    async def kill(self, vm_uid: str) -> None:
        """SIGKILL and wait for its death; no error if there is no process. Raises HypervisorUnavailable if it does not die in time."""
        with self._opened(vm_uid) as found:
            if found is None or not _send(found[1], signal.SIGKILL):
                return
            try:
                async with asyncio.timeout(DEATH_DEADLINE_S):
                    await _readable(found[1])
            except TimeoutError as err:
                raise HypervisorUnavailable(f"QEMU did not die within {DEATH_DEADLINE_S:g} s of SIGKILL") from err

    @contextmanager
    def _opened(self, vm_uid: str) -> Iterator[tuple[int, int] | None]:
        """(pid, pidfd) of the VM's living QEMU, or None."""
        pid = self._recorded_pid(vm_uid)
        pidfd = None if pid is None else _pidfd(pid)
        if pid is None or pidfd is None:
            yield None
            return
        try:
            yield (pid, pidfd) if _is_qemu_of(pid, vm_uid) else None
        finally:
            os.close(pidfd)

    def _recorded_pid(self, name: str) -> int | None:
        if "/" in name:
            return None
        try:
            return int((self._run_dir / f"{name}.pid").read_bytes())
        except (FileNotFoundError, ValueError):  # not written yet, or removed by libvirt
            return None


def _user(pid: int) -> tuple[int, int] | None:
    """The user and group that its file accesses are judged by."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    ids = {name: values.split() for name, _, values in (line.partition(":") for line in lines)}
    return int(ids["Uid"][FILE_SYSTEM_ID]), int(ids["Gid"][FILE_SYSTEM_ID])


def _owned(path: str, user: tuple[int, int]) -> bool:
    """Make it theirs; False: it was."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if (found.st_uid, found.st_gid) == user:
            return False
        os.fchown(descriptor, *user)
        return True
    finally:
        os.close(descriptor)


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _send(pidfd: int, number: signal.Signals) -> bool:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True


def _is_qemu_of(pid: int, uuid: str) -> bool:
    """A zombie has no command line, so it is nobody's QEMU any more."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return any(flag == b"-uuid" and value == uuid.encode() for flag, value in itertools.pairwise(arguments))


def _thread_states(pid: int) -> list[str]:
    states = []
    for task in _tasks(pid):
        try:
            text = Path(f"/proc/{pid}/task/{task}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # that thread ended meanwhile
        states.append(text[text.rindex(")") + 2])  # the name before it may hold anything
    return states or ["gone"]


def _tasks(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return []


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(fd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(fd)
