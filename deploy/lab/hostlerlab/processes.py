"""Naming a process so that its number cannot lie.

Decision: a process is (pid, start time in clock ticks since boot); signals go through a pidfd opened first and checked
against the start time after, so a reused pid is never hit.
"""

import os
import select
import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """One life of one pid. `start_ticks` is field 22 of /proc/PID/stat."""

    pid: int
    start_ticks: int

    def alive(self) -> bool:
        """True while this very process exists and is not a zombie."""
        found = _stat(self.pid)
        return found is not None and found[1] == self.start_ticks and found[0] not in "ZX"

    def state(self) -> str:
        """One letter as in proc(5) (R, S, D, T ...), or "gone"."""
        found = _stat(self.pid)
        return found[0] if found is not None and found[1] == self.start_ticks else "gone"

    def stopped(self) -> bool:
        """Whether none of its threads runs any more: after SIGSTOP each stops by itself, and the first one's state says nothing of the others."""
        try:
            threads = [int(name) for name in os.listdir(f"/proc/{self.pid}/task")]
        except FileNotFoundError:
            return True
        states = [found[0] for thread in threads if (found := _stat(thread)) is not None]
        return not self.alive() or all(state in "Tt" for state in states)

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal to this very process; False when it is already gone."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if not self.alive():
                return False
            signal.pidfd_send_signal(fd, number)
            return True
        except ProcessLookupError:
            return False
        finally:
            os.close(fd)

    def wait(self, timeout_s: float) -> bool:
        """Wait until it has exited; False when it still runs after `timeout_s`. Works for any process, not only children."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            if not self.alive():
                return True
            poller = select.poll()
            poller.register(fd, select.POLLIN)
            return bool(poller.poll(timeout_s * 1000))
        finally:
            os.close(fd)


def identify(pid: int) -> Process | None:
    """The process that has this pid now, or None."""
    found = _stat(pid)
    return None if found is None else Process(pid, found[1])


def command_line(pid: int) -> str:
    """The command line, "" when gone or a kernel thread."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _stat(pid: int) -> tuple[str, int] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the command name may hold spaces and parentheses
    return fields[0], int(fields[19])
