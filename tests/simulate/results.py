"""What each seed came to, kept in a file, so that a run of hours can be ended and gone on with; of one
state of the code, and one way of running it, alone."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tests.simulate.seed import Run

ROOTS = ("nodeagent", "scheduler", "client/python/hostler", "tests/simulate")
"""What a seed's outcome depends on, of this project,"""
OUTSIDE = (
    "acceleration",
    "directory_volumes",
    "image_locks",
    "libvirt_*",
    "linux_host_facts",
    "lock_holder*",
    "pool_directory",
    "qemu_*",
    "tls_*",
)
"""The agent's adapters to a real host,"""
OF_OUTSIDE = ("domain_shape", "memory_cells", "qcow2_header")
"""and what only these reckon with,"""
BUT = (
    "client/python/hostler/cli/*.py",
    *(f"nodeagent/adapters/{name}.py" for name in OUTSIDE),
    *(f"nodeagent/core/{name}.py" for name in OF_OUTSIDE),
)
"""but for these files, which no seed can import (`worker.prepare`)."""


def code_digest(root: Path) -> str:
    """Of every Python file that a seed may run."""
    digest = hashlib.blake2b(digest_size=16)
    without = set(never_run(root))
    for part in ROOTS:
        for file in sorted({*(root / part).rglob("*.py")} - without):
            digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return digest.hexdigest()


def never_run(root: Path) -> list[Path]:
    return [file for pattern in BUT for file in sorted(root.glob(pattern))]


def modules_never_run(root: Path) -> list[str]:
    """By the names under which they would be imported."""
    parts = [file.relative_to(root).with_suffix("").parts for file in never_run(root)]
    return [".".join(part[2:] if part[0] == "client" else part).removesuffix(".__init__") for part in parts]


class Results:
    """`path`: a line of JSON for each seed, after one that is `of`. What is of something else is begun anew."""

    def __init__(self, path: Path, of: Mapping[str, object]) -> None:
        self.path = path
        self.runs: dict[int, Run] = {}
        lines = path.read_text().splitlines() if path.exists() else []
        if not lines or json.loads(lines[0]) != of:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(of) + "\n")
            return
        for line in lines[1:]:
            try:
                said = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line that was being written when the run was ended
            self.runs[said["seed"]] = Run(**{**said, "hit": Counter(said["hit"]), "story": ()})

    def add(self, run: Run) -> None:
        fields = ("seed", "violation", "digest", "hit", "operations", "faults", "virtual_s")
        with self.path.open("a") as file:
            file.write(json.dumps({name: getattr(run, name) for name in fields}) + "\n")
