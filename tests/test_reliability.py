"""The table of faults says what the tests said, and nothing when one of them failed or is missing."""

import ast
import re
import types
from pathlib import Path

import pytest
from _reliability import PROPERTY, Reliability
from faults import FAULTS

HERE = Path(__file__).parent
LAST = max(FAULTS)
PAGE = HERE.parent / "docs" / "reliability.md"


def marked() -> dict[int, list[str]]:
    """{fault: the tests that carry its mark}."""
    found: dict[int, list[str]] = {}
    for file in sorted(HERE.rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for mark in getattr(node, "decorator_list", []):
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                    for number in map(ast.literal_eval, mark.args):
                        found.setdefault(number, []).append(f"{file.stem}::{node.name}")
    return found


def report(number: int, outcome: str = "passed", case: str = "", when: str = "call"):
    return types.SimpleNamespace(
        user_properties=[(PROPERTY, number)], when=when, outcome=outcome, nodeid=f"tests/test_x.py::test_{number}{case}"
    )


def table(path: Path, *reports) -> tuple[Reliability, types.SimpleNamespace]:
    plugin, session = Reliability(path), types.SimpleNamespace(exitstatus=0)
    for each in reports:
        plugin.pytest_runtest_logreport(each)
    plugin.pytest_sessionfinish(session)
    return plugin, session


def test_a_table_is_written_when_every_fault_has_a_test_that_passed(tmp_path):
    file = tmp_path / "table.md"
    skipped = report(64, "skipped", "[gpu]", when="setup")
    _, session = table(file, *map(report, FAULTS), skipped)
    assert session.exitstatus == 0
    rows = re.findall(r"^\| (\d+) \|.*\| `test_x::test_(\d+)` \|$", file.read_text(), re.MULTILINE)
    assert rows == [(str(number), str(number)) for number in FAULTS]


@pytest.mark.parametrize(
    "last", [report(LAST, "failed"), report(LAST, "failed", when="setup"), report(LAST, "skipped"), report(999)]
)
def test_no_table_is_written_when_one_failed_was_skipped_or_is_unknown(tmp_path, last):
    file = tmp_path / "table.md"
    plugin, session = table(file, *map(report, list(FAULTS)[:-1]), last)
    assert session.exitstatus and not file.exists()
    assert any(str(LAST) in line for line in plugin.wrong)


def test_a_failed_case_counts_before_those_that_passed(tmp_path):
    cases = [report(LAST, "failed", "[a]"), report(LAST, "passed", "[b]")]
    plugin, _ = table(tmp_path / "table.md", *map(report, list(FAULTS)[:-1]), *cases)
    assert plugin.wrong == [f"fault {LAST}: failed tests/test_x.py::test_{LAST}"]


def test_every_known_fault_has_a_test_and_no_test_an_unknown_one():
    assert set(marked()) == set(FAULTS)


def test_the_page_names_tests_that_exist():
    if PAGE.exists():
        named = set(re.findall(r"`(test_\w+::test_\w+)`", PAGE.read_text(encoding="utf-8")))
        assert named <= {test for tests in marked().values() for test in tests}
