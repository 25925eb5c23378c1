"""`python -m tests.sweep.run`: plays the cells on one warm lab, one after the other, and prints the table; 1 if any of them is not green.

Results are appended to a file; what is green there is not played again (`--fresh` forgets it). A red cell leaves its evidence (samples, logs) beside
them, and the lab is built anew after it: the next cell shall not inherit it. A signal ends the sweep after the cell that is being played.
"""

import argparse
import asyncio
import json
import re
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.sweep.cells import Cell, all_cells, chosen
from tests.sweep.play import lab_of
from tests.sweep.results import line_of, results, table, todo

BUILD = Path("build/sweep").resolve()
EVIDENCE = ("cluster/units/log", "cluster/units/units.jsonl", "lab/n1/log-libvirt", "lab/n2/log-libvirt", "lab/n1/log", "lab/n2/log")


async def sweep(cells: Sequence[Cell], path: Path, until_s: float) -> None:
    """Play until all are played, or no more may be begun (a signal says that too). A red cell ends its lab."""
    left, stop = list(cells), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    while left and time.monotonic() < until_s and not stop.is_set():
        async with lab_of(BUILD) as warm:
            while left and time.monotonic() < until_s and not stop.is_set():
                cell = left.pop(0)
                folder = BUILD / "cells" / re.sub(r"[^a-z0-9]+", "-", cell.name.lower())
                row = await warm.play(cell, folder)
                with path.open("a") as out:
                    out.write(json.dumps(asdict(row)) + "\n")
                print(line_of(row), flush=True)
                if row.verdict != "green":
                    _keep_evidence(folder)
                    break
                await warm.ready()


def _keep_evidence(folder: Path) -> None:
    for name in EVIDENCE:
        source = BUILD / name
        target = folder / name.replace("/", "-")
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        elif source.exists():
            shutil.copy(source, target)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tests.sweep.run", description="faults at every step of a handoff, on real libvirt, QEMU and etcd"
    )
    parser.add_argument("--all", action="store_true", help="every cell, not only the riskiest")
    parser.add_argument("--only", default="", help="cells whose name matches this expression")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--minutes", type=float, default=600.0, help="begin no cell after so long")
    parser.add_argument("--list", action="store_true", help="only list the cells")
    options = parser.parse_args()
    cells = [cell for cell in (all_cells() if options.only else chosen(options.all)) if re.search(options.only, cell.name)]
    if options.list:
        print(*(f"{cell.name}{f': {cell.why}' if cell.why else ''}" for cell in cells), f"{len(cells)} cells", sep="\n")
        return 0
    path = BUILD / "results.jsonl"
    BUILD.mkdir(parents=True, exist_ok=True)
    if options.fresh:
        path.unlink(missing_ok=True)
    asyncio.run(sweep(todo(cells, results(path)), path, time.monotonic() + 60 * options.minutes))
    return 1 if table(cells, results(path)) else 0


if __name__ == "__main__":
    sys.exit(main())
