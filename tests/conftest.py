"""What every run of the tests ends with: what ran, what cannot run here, and what failed, by name.

A test that skips itself must be on the committed list `tests/cannot_run_here.txt` (a line each: node id prefix, and why); one that is not there makes
the run fail. So a check cannot disappear silently because a tool is missing.
"""

from collections import Counter, defaultdict
from hashlib import md5
from pathlib import Path

import pytest

from tests import examples  # noqa: F401 the profiles, before one is asked for

LIST = Path(__file__).parent / "cannot_run_here.txt"


def _allowed() -> dict[str, str]:
    lines = [line.strip() for line in LIST.read_text().splitlines() if line.strip() and not line.startswith("#")]
    return dict(line.partition("  ")[::2] for line in lines)


def _unlisted(reporter: pytest.TerminalReporter) -> list[pytest.TestReport]:
    allowed = tuple(_allowed())
    return [report for report in reporter.stats.get("skipped", []) if not (allowed and report.nodeid.startswith(allowed))]


def _area(report: pytest.TestReport) -> str:
    """Its directory below `tests`."""
    return "/".join(report.nodeid.split("::")[0].split("/")[1:-1])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Side by side, modules run in an order that mixes those that wait with those that reckon, the longest tests first: in the directories' order the
    waiting was left for the end. Within a module, and in a run that is not side by side, the order is kept."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: ("/simulate/" not in item.nodeid, md5(item.nodeid.partition("::")[0].encode()).digest()))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if isinstance(reporter, pytest.TerminalReporter) and exitstatus == pytest.ExitCode.OK and _unlisted(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    stats = terminalreporter.stats
    reports = [report for group in stats.values() for report in group if isinstance(report, pytest.TestReport)]
    ran = Counter(_area(report) for report in stats.get("passed", []) if report.when == "call")
    took_s: defaultdict[str, float] = defaultdict(float)
    for report in reports:
        took_s[_area(report)] += report.duration
    terminalreporter.section("what ran, and how long (set-ups too, one after the other)")
    for area, count in sorted(ran.items()):
        terminalreporter.write_line(f"  {count:5d}  {took_s[area]:7.1f} s  {area}")
    skipped = stats.get("skipped", [])
    if skipped:
        terminalreporter.section("what cannot run here")
        for report in skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            terminalreporter.write_line(f"  {report.nodeid}: {reason}")
    for report in _unlisted(terminalreporter):
        terminalreporter.write_line(f"NOT ALLOWED TO BE SKIPPED: {report.nodeid} (see tests/cannot_run_here.txt)", red=True)
    broken = [*stats.get("failed", []), *stats.get("error", [])]
    if broken:
        terminalreporter.section("what failed")
        for report in broken:
            terminalreporter.write_line(f"  {report.nodeid}", red=True)
