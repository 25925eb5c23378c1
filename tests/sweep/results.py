"""The results: a row for each time that a cell was played, in a file that is only appended to, and the table that is made of them."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.sweep.cells import Cell

ROOT = Path(__file__).resolve().parents[2]


@dataclass(slots=True)
class Row:
    """One line of the results. Seconds; `still_s`: the guest's longest standstill; `recovery_s`: from the victim's return until it counts."""

    cell: str
    verdict: str = "red"
    phase: str = ""
    proof: str = ""
    outcome: str = ""
    why: str = ""
    still_s: float = 0.0
    recovery_s: float = 0.0
    ended_s: float = 0.0
    took_s: float = 0.0
    samples: int = 0
    breaches: list[str] = field(default_factory=list)
    commit: str = ""


def commit() -> str:
    return subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def results(path: Path) -> dict[str, list[Row]]:
    """Every row so far, by cell."""
    rows: dict[str, list[Row]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        row = Row(**json.loads(line))
        rows.setdefault(row.cell, []).append(row)
    return rows


def todo(cells: Sequence[Cell], rows: dict[str, list[Row]]) -> list[Cell]:
    return [cell for cell in cells if cell.name not in rows or rows[cell.name][-1].verdict != "green"]


def line_of(row: Row) -> str:
    times = f"still {row.still_s:5.1f} s, back +{row.recovery_s:4.1f} s, ended +{row.ended_s:4.1f} s"
    text = f"{row.verdict:5} {row.cell:58} {row.phase:17} {row.proof:34} {times}  {row.outcome}"
    return "\n".join([text, *([f"      {row.why}"] if row.why else []), *(f"      {breach}" for breach in row.breaches)])


def table(cells: Sequence[Cell], rows: dict[str, list[Row]]) -> int:
    """Print it; how many are not green."""
    columns = f"{'':5} {'victim, blow, step':58} {'journal':17} {'proof':34}"
    print(f"\n{columns} the guest's longest standstill; after the victim's return: it counts, the operation ended")
    reds = 0
    for cell in cells:
        tries = rows.get(cell.name, [])
        reds += not tries or tries[-1].verdict != "green"
        print(line_of(tries[-1]) if tries else f"{'none':5} {cell.name}")
        if len(tries) > 1 and any(row.verdict != "green" for row in tries[:-1]):
            print(f"      red in {sum(row.verdict != 'green' for row in tries[:-1])} of {len(tries)} runs")
    print(f"\n{len(cells)} cells, {reds} not green")
    return reds
