"""``pytest --reliability FILE``: a table of the faults in tests/faults.py and the tests that show them mended.

Written only when every fault has a test that passed and none that failed; otherwise the run names those and fails.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import FAULTS

PROPERTY = "fault"
RANK = ("skipped", "passed", "failed")  # of a test with several cases the last of these counts
HEAD = """# Reliability

Faults that the parts of this program have when they are put together as usual (up to 63) and that it once had itself
(from 64 on), what holds now, and the tests that show it. The numbers are those of the mark
`@pytest.mark.fault(number)`. This page is printed from the run of those tests: `make reliability`.

| | once | now | tests |
|---|---|---|---|
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reliability", type=Path, metavar="FILE", help="write the table of faults and tests into FILE")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("reliability") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Reliability(config.getoption("reliability")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A process of pytest-xdist sends what a test carries as properties to the process that writes the table."""
    for item in items:
        for mark in item.iter_markers("fault"):
            item.user_properties += [(PROPERTY, number) for number in mark.args]


class Reliability:
    """Collects what tests with the mark said, and writes it when all have run."""

    def __init__(self, path: Path):
        self.path = path
        self.tests: dict[int, dict[str, str]] = {number: {} for number in FAULTS}  # {fault: {test: its outcome}}
        self.wrong: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for number in (value for name, value in report.user_properties if name == PROPERTY):
            if report.when == "call" or report.outcome != "passed":
                outcomes = self.tests.setdefault(number, {})
                test = report.nodeid.split("[")[0]
                outcomes[test] = max(report.outcome, outcomes.get(test, report.outcome), key=RANK.index)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        for number, outcomes in sorted(self.tests.items()):
            failed = [test for test, outcome in outcomes.items() if outcome == "failed"]
            if number not in FAULTS:
                self.wrong.append(f"fault {number} is not in tests/faults.py: {', '.join(outcomes)}")
            elif failed:
                self.wrong.append(f"fault {number}: failed {', '.join(failed)}")
            elif "passed" not in outcomes.values():
                self.wrong.append(f"fault {number} ({FAULTS[number].seen}): no test passed")
        if self.wrong:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        else:
            self.path.write_text(HEAD + "".join(map(self.row, sorted(self.tests))), encoding="utf-8")

    def row(self, number: int) -> str:
        passed = sorted(test for test, outcome in self.tests[number].items() if outcome == "passed")
        seen, holds = FAULTS[number]
        return f"| {number} | {seen} | {holds} | {', '.join(f'`{short(test)}`' for test in passed)} |\n"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.wrong:
            terminalreporter.section(f"{self.path} was not written")
        for line in self.wrong or [f"{self.path}: {len(self.tests)} faults, each with tests that passed"]:
            terminalreporter.line(line)


def short(nodeid: str) -> str:
    """``tests/test_reading.py::test_x`` as ``test_reading::test_x``."""
    file, _, name = nodeid.partition("::")
    return f"{Path(file).stem}::{name}"
