"""Running the system's own tools, and waiting for things.

Decision: every command has a deadline, and its failure says the command, the exit code and the output. Waits poll a
condition with a deadline and a reason, because none of the things waited for here (a socket file, a cgroup becoming
empty, a kernel link) can be awaited through one file descriptor.
"""

import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

COMMAND_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.02


class CommandError(RuntimeError):
    """A command ended with a non-zero code, or did not end. `output` is stdout and stderr together."""

    def __init__(self, argv: Sequence[str], code: int | None, output: str) -> None:
        self.argv = tuple(argv)
        self.code = code
        self.output = output
        how = "did not end in time" if code is None else f"exited with {code}"
        super().__init__(f"{' '.join(argv)} {how}: {output.strip()}")


class WaitTimeout(TimeoutError):
    """A condition did not come true before its deadline."""


def run(
    argv: Sequence[str],
    *,
    timeout_s: float = COMMAND_TIMEOUT_S,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run `argv` to its end with captured text output. Raises `CommandError` on a non-zero code unless `check` is off."""
    feed: dict[str, object] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    try:
        done = subprocess.run(  # type: ignore[call-overload]
            list(argv), capture_output=True, text=True, timeout=timeout_s, env=env, check=False, **feed
        )
    except subprocess.TimeoutExpired as late:
        raise CommandError(argv, None, _text(late.stdout) + _text(late.stderr)) from late
    if check and done.returncode != 0:
        raise CommandError(argv, done.returncode, done.stdout + done.stderr)
    result: subprocess.CompletedProcess[str] = done
    return result


def _text(output: str | bytes | None) -> str:
    """What a command said before its deadline; subprocess hands it over undecoded."""
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def wait_for(what: str, condition: Callable[[], bool], timeout_s: float) -> None:
    """Poll `condition` until it is true; raise `WaitTimeout` naming `what` after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            raise WaitTimeout(f"waited {timeout_s:g} s for {what}")
        time.sleep(POLL_INTERVAL_S)  # noqa: TID251 - the poll itself, bounded by the deadline above


def remove_path(path: Path) -> None:
    """Remove a file, a link, a socket or a whole directory."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
