"""How a peer that is a program is found and run: by the path that was given, else by its name; and one that is not there is told, never left out.

A comparison that silently loses a peer reads like one that was won.
"""

import resource
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from os import environ, pathsep
from pathlib import Path


class PeerMissing(Exception):
    """One sentence: what is not there, and how it is installed."""


class PeerFailed(Exception):
    """It ran, and gave no answer: what it said last."""


@dataclass(frozen=True, slots=True)
class Ran:
    """A program that ended well. `cpu_s`: user and system time of its own."""

    stdout: str
    took_s: float
    cpu_s: float


def found(name: str, given: Path | None, install: str, folders: Sequence[str] = ()) -> Path:
    """`given` if it is a file, else `name` in PATH and `folders`. Raises PeerMissing."""
    if given is not None:
        if not given.is_file():
            raise PeerMissing(f"{given} is no file, but was given as {name}: {install}.")
        return given
    where = shutil.which(name, path=pathsep.join([environ.get("PATH", ""), *folders]))
    if where is None:
        raise PeerMissing(f"{name} is not installed: {install}.")
    return Path(where)


def run(argv: Sequence[str], timeout_s: float) -> Ran:
    """From its start to its end. Raises TimeoutError when it was ended because it took too long, PeerFailed when it failed.

    `cpu_s` is that of all children that ended meanwhile, so run one at a time.
    """
    before, began_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"{Path(argv[0]).name} did not end within {timeout_s:.0f} s") from error
    took_s, after = time.perf_counter() - began_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise PeerFailed(f"{Path(argv[0]).name} ended with {done.returncode}: {last_line(done.stderr or done.stdout)}")
    return Ran(done.stdout, took_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]
