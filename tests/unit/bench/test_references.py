"""What is known of the replays, and the program that looks whether it is still so: if it says yes to everything, no figure means anything."""

import sys

import pytest

from tests.bench.placement import known, references, spane
from tests.bench.placement.traces import VARIABLE


def test_the_program_says_what_it_could_not_measure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An exit status of success without a single figure."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(sys, "argv", ["references"])
    assert references.main() == 2
    assert "not measured: HOSTLER_TRACES" in capsys.readouterr().err


def test_the_published_tables_are_typed_right() -> None:
    """A digit that was typed wrong and makes an engine pass, or a replay fail: the sums are the published table's."""
    rules = known.SPANE_RULES[known.TEST_EPISODES]
    sums = [sum(rules[name].values()) for name in ("first-fit", "balance-fit", "imbalance-and-pack")]
    assert [*sums, sum(known.SPANE_LEARNED.values())] == [820_643, 739_764, 652_607, 699_704]
    assert all(set(sizes) == set(spane.SERVERS) for name, sizes in rules.items() if name != "best-fit")


@pytest.mark.parametrize(
    ("measured", "expected", "wrong"), [(100.4, 100, False), (100.6, 100, True), (99.4, 100, True), (1.0, None, False)]
)
def test_a_figure_that_rounding_does_not_explain_is_another(measured: float, expected: float | None, wrong: bool) -> None:
    """A replay that has drifted from its protocol, and says that all is as known."""
    assert references.differs(measured, expected, known.ROUNDED_S) is wrong
