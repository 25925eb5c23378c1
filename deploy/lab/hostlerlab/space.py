"""One namespaced machine: network, mount, UTS and cgroup namespace, and how to start things in it.

Decision: a holder process (`sleep`) keeps the namespaces alive and everybody enters through it with `nsenter --target`.
`ip netns exec` is not used: it remounts /sys and hides the cgroup tree. There is no PID namespace: pids are the same
inside and outside, so a test can use a pidfd on any process of any host. A process enters the host's cgroups before it
enters the namespaces, so from its first instruction it is counted, capped and found again by `down`.
"""

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hostlerlab import network
from hostlerlab.cgroups import Cgroup
from hostlerlab.journal import Journal, Record
from hostlerlab.processes import Process, identify
from hostlerlab.shell import COMMAND_TIMEOUT_S, CommandError, run, wait_for

START_TIMEOUT_S = 20.0
CGROUP_DIR = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Bind:
    """A directory or file of the lab that a host sees at another path."""

    source: Path
    target: Path


def holding(ready: Path) -> list[str]:
    """Shell lines that end the setup: say that it is done, then only hold the namespaces.

    The shell says it by itself: a program that did it would still be ending while its process is moved to another cgroup.
    """
    return [f": >{shlex.quote(str(ready))}", "exec sleep infinity"]


class Space:
    """A namespaced machine named `name`, keeping its files under `folder`."""

    def __init__(self, name: str, folder: Path, cgroup: Cgroup, journal: Journal) -> None:
        self.name = name
        self.folder = folder
        self.cgroup = cgroup
        self._journal = journal
        self._holder_file = folder / "holder.pid"

    def create(self, binds: Sequence[Bind], commands: Sequence[str] = ()) -> None:
        """Make the mount, UTS and cgroup namespaces (cgroup and netns exist already), then run `commands` in them."""
        for bind in binds:
            self._mount_point(bind.target)
        script = self.folder / "setup.sh"
        ready = self.folder / "ready"
        ready.unlink(missing_ok=True)
        script.write_text("\n".join([*self._setup_lines(binds), *commands, *holding(ready), ""]))
        argv = [
            *self.cgroup.founding(),
            *("nsenter", f"--net={network.NETNS_DIR / network.netns_name(self.name)}"),
            *("unshare", "--mount", "--uts", "--cgroup", "--propagation", "private"),
            *("sh", str(script)),
        ]
        holder = self._detach("holder", argv, self._holder_file)
        wait_for(
            f"namespaces of {self.name} (see {self.folder / 'log/holder.log'})",
            lambda: ready.exists() or not holder.alive(),
            START_TIMEOUT_S,
        )
        if not ready.exists():
            raise RuntimeError(f"{self.name}: {(self.folder / 'log/holder.log').read_text().strip()}")
        self.cgroup.settle()

    def _mount_point(self, target: Path) -> None:
        """Make the directories of a bind target that the machine does not have, recorded outermost first."""
        missing = [p for p in (target, *target.parents) if not p.exists()]
        for path in reversed(missing):
            self._journal.add(Record("dir", str(path)))
            path.mkdir(mode=0o755, exist_ok=True)  # hosts start side by side

    def _setup_lines(self, binds: Sequence[Bind]) -> list[str]:
        """Shell lines that turn the fresh copy of the machine's mounts into this host's view."""
        lines = ["set -e", "umask 022", f"hostname {shlex.quote(self.name)}"]
        aside = self.folder / "cgroup"
        groups = sorted(self.cgroup.groups, key=lambda g: g.tree.root)
        for number, group in enumerate(groups):
            place = aside / str(number)
            place.mkdir(parents=True, exist_ok=True)
            lines.append(f"mount --bind {group.path} {place}")
        # A fresh sysfs shows this namespace's network devices; the old one is unmounted, not covered, because libvirt
        # would still find the covered cgroup mounts in /proc/mounts.
        lines += [
            "umount --recursive /sys",
            "mount -t sysfs sysfs /sys",
        ]
        if all(group.tree.root != CGROUP_DIR for group in groups):
            lines.append(f"mount -t tmpfs -o mode=755 tmpfs {CGROUP_DIR}")
        for number, group in enumerate(groups):
            lines += [f"mkdir -p {group.tree.root}", f"mount --move {aside / str(number)} {group.tree.root}"]
        lines += [f"mount --bind {bind.source} {bind.target}" for bind in binds]
        return lines

    def holder(self) -> Process:
        """The process that holds the namespaces. Raises `RuntimeError` when the host is not up."""
        found = self._recorded(self._holder_file)
        if found is None or not found.alive():
            raise RuntimeError(f"host {self.name} is not up (no holder process)")
        return found

    def argv(self, command: Sequence[str], cwd: Path | None = None) -> list[str]:
        """The command line that runs `command` inside this host from outside; `cwd` is a path inside (default /)."""
        return [
            *self.cgroup.entering(),
            *("nsenter", f"--target={self.holder().pid}", "--mount", "--uts", "--net", "--cgroup"),
            *(("--wdns=/",) if cwd is None else (f"--wdns={cwd}",)),
            *("--", *command),
        ]

    def run(
        self,
        command: Sequence[str],
        *,
        timeout_s: float = COMMAND_TIMEOUT_S,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end; as `shell.run`."""
        try:
            return run(self.argv(command), timeout_s=timeout_s, stdin=stdin, env=env, check=check)
        except CommandError as failed:
            # Without the wrappers, which are the same for every command.
            raise CommandError((f"{self.name}:", *command), failed.code, failed.output) from failed.__cause__

    def popen(
        self,
        command: Sequence[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a command inside; its pid is the pid of the command (the wrappers exec)."""
        return subprocess.Popen(
            self.argv(command, cwd),
            env=env,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )

    def daemon(self, name: str, command: Sequence[str]) -> Process:
        """Start a long-living process inside that outlives this one; output to `log/<name>.log`, pid to `<name>.pid`."""
        return self._detach(name, self.argv(command), self.folder / f"{name}.pid")

    def daemon_process(self, name: str) -> Process | None:
        """The daemon started under `name` in this life of the lab; None when it never was."""
        return self._recorded(self.folder / f"{name}.pid")

    def _recorded(self, pid_file: Path) -> Process | None:
        if not pid_file.exists():
            return None
        pid = int(pid_file.read_text())
        known = [r for r in self._journal.read() if r.kind == "process" and r.pid == pid]
        return Process(pid, known[-1].start_ticks) if known else None

    def _detach(self, name: str, argv: Sequence[str], pid_file: Path) -> Process:
        return detach(f"{self.name}/{name}", argv, pid_file, self.folder / "log" / f"{name}.log", self._journal)


def detach(label: str, argv: Sequence[str], pid_file: Path, log: Path, journal: Journal) -> Process:
    """Start `argv` as a child of PID 1 in its own session and record it. `argv` must exec, not fork, to keep its pid.

    The caller has put it under a recorded cgroup, so it is found even if this process dies before recording the pid.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    pid_file.unlink(missing_ok=True)
    script = 'pid="$1" log="$2"; shift 2; echo $$ > "$pid.new"; mv "$pid.new" "$pid"; exec "$@" >> "$log" 2>&1 < /dev/null'
    run(["setsid", "--fork", "sh", "-c", script, "sh", str(pid_file), str(log), *argv])
    wait_for(f"pid of {label}", pid_file.exists, START_TIMEOUT_S)
    process = identify(int(pid_file.read_text()))
    if process is None:
        raise RuntimeError(f"{label} died at once: {log.read_text().strip()}")
    journal.add(Record("process", label, process.pid, process.start_ticks))
    return process
