"""What the lab has created, written down before it is created.

Decision: an append-only file of JSON lines is the only memory of the lab. Each namespace, link, cgroup, directory and
process is recorded *before* (or, for a process, inside an already recorded cgroup) it comes to exist, so `down` removes
exactly what `up` made, also after `up` was killed half-way. Records are not fsynced: they must survive the death of a
process, not of the machine, which takes namespaces and processes with it.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

Kind = Literal["cgroup", "netns", "link", "dir", "mount", "process", "ready"]


@dataclass(frozen=True, slots=True)
class Record:
    """One created thing. `name` is its path or kernel name; `pid` and `start_ticks` are set for processes only."""

    kind: Kind
    name: str
    pid: int = 0
    start_ticks: int = 0


class Journal:
    """Append-only list of `Record`s in one file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def exists(self) -> bool:
        return self.path.exists()

    def add(self, record: Record) -> None:
        """Append one record; it is in the kernel's hands when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(fd, (json.dumps(asdict(record)) + "\n").encode())
        finally:
            os.close(fd)

    def read(self) -> list[Record]:
        """All records in the order of creation. A torn last line (writer killed) is left out: nothing followed it."""
        return list(self._parse()) if self.exists() else []

    def _parse(self) -> Iterator[Record]:
        lines = self.path.read_text().split("\n")
        for number, line in enumerate(lines):
            if not line:
                continue
            try:
                raw = json.loads(line)
            except json.JSONDecodeError:
                if number == len(lines) - 1:
                    return
                raise
            if raw["kind"] not in get_args(Kind):
                raise ValueError(f"{self.path}: unknown record kind {raw['kind']!r}")
            yield Record(**raw)

    def remove(self) -> None:
        """Forget everything; called when everything recorded is gone."""
        self.path.unlink(missing_ok=True)
