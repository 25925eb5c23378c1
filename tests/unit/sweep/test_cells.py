"""The sweep's table and its results."""

import json
from dataclasses import asdict
from pathlib import Path

from scheduler.ports import Put
from tests.sweep import results
from tests.sweep.cells import (
    BY_NAME,
    LINKS,
    LOST_FINISH,
    LOST_FINISH_RUNS,
    RISKIEST,
    RISKIEST_LOCAL,
    STEPS,
    Blow,
    Pool,
    Victim,
    all_cells,
    chosen,
    possible,
)
from tests.sweep.pause import HYPERVISOR, PEER, SCHEDULER, TUNNEL
from tests.sweep.scheduler import name_of

STATE = "/hostler/state/"


def test_the_riskiest_are_forty_and_each_is_possible() -> None:
    """A cell that could never be hit, or one that is counted and not played."""
    assert sum(bool(cell.why) for cell in chosen(everything=False)) == len(RISKIEST) == 40
    assert all(step == LOST_FINISH or possible(victim, blow, step) for victim, blow, step in (*RISKIEST, *RISKIEST_LOCAL))


def test_every_victim_is_struck_in_every_way_at_every_step_that_has_it() -> None:
    """A hole in the table."""
    played = {(cell.victim, cell.blow, cell.step) for cell in all_cells()}
    processes = [victim for victim in Victim if victim not in LINKS and "QEMU" not in victim.value]
    assert all((victim, blow, step.name) in played for victim in processes for blow in Blow if blow is not Blow.CUT for step in STEPS)
    assert all(any(victim is struck for struck, _, _ in played) for victim in Victim)
    assert sum(cell.pool is Pool.LOCKLESS and cell.step == LOST_FINISH for cell in chosen(everything=False)) == LOST_FINISH_RUNS


def test_no_two_cells_have_one_name() -> None:
    """A cell that is taken for played because another one was."""
    names = [cell.name for cell in all_cells()]
    assert len(set(names)) == len(names)


def test_a_red_cell_is_played_again_and_a_green_one_is_not(tmp_path: Path) -> None:
    """A sweep that begins anew each time, or that forgets what was red."""
    cells = chosen(everything=False)[:3]
    path = tmp_path / "results.jsonl"
    rows = [results.Row(cells[0].name, "green"), results.Row(cells[1].name, "green"), results.Row(cells[1].name, "red", why="limbo")]
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    assert results.todo(cells, results.results(path)) == [cells[1], cells[2]]
    assert results.table(cells, results.results(path)) == 2


def test_transactions_are_named_by_what_they_write_of_a_migration() -> None:
    """A gate that never holds, or that holds somebody else's transaction."""

    def put(key: str, **record: object) -> Put:
        return Put(STATE + key, json.dumps(record).encode())

    committed = put("vm/a", owner={"state": "COMMITTED"})
    assert name_of([committed, Put(f"{STATE}tick", b"")]) == "txn owner COMMITTED"
    assert name_of([put("op/1", verb="MigrateVM", state="RUNNING", phase="COMMITTED"), committed]) == "txn COMMITTED"
    assert name_of([put("op/1", verb="MigrateVM", state="SUCCEEDED", phase="DONE")]) == "txn SUCCEEDED"
    assert name_of([put("op/1", verb="CreateVM", state="RUNNING", phase="STARTING")]) == ""
    assert name_of([put("vm/a", owner={"state": "RUNNING"})]) == ""
    assert name_of([Put("/hostler/leader", b"s1@not JSON")]) == ""


def test_every_gate_of_a_step_is_one_that_a_launcher_has() -> None:
    """A step whose gate nobody ever comes to."""
    calls = {f"{when} {name}" for when in ("before", "after") for name in (*HYPERVISOR, *TUNNEL, *SCHEDULER, *PEER)}
    for step in BY_NAME.values():
        words = step.point.split()
        assert not step.point or step.point in calls or words[1] in ("save", "txn"), step.name
