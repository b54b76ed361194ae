"""`pytest --faults FILE`: which faults the tests caused and how they ended, as a record for leaderboards/reliability.

A test that causes a fault says so: `@pytest.mark.fault("kill -9 while saving")`. One that counts what it did adds rows
to a section of the record: `counted("kills", rows)`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest

from capbench.evidence.reliability import FAULTS, Row, fault_rows, save_reliability


def pytest_addoption(parser: pytest.Parser) -> None:
    where = "write which faults the tests caused, and how they ended, to this file"
    parser.getgroup("capbench").addoption("--faults", type=Path, metavar="FILE", help=where)


def pytest_configure(config: pytest.Config) -> None:
    file = config.getoption("--faults")
    if file and not hasattr(config, "workerinput"):  # of several processes, the one that hears of all outcomes
        config.pluginmanager.register(Outcomes(file), "faults")


def pytest_itemcollected(item: pytest.Item) -> None:
    """What a report says of its test crosses from one process to another; a marker does not."""
    item.user_properties += [("fault", mark.args[0]) for mark in item.iter_markers("fault")]


@pytest.fixture
def counted(request: pytest.FixtureRequest) -> Callable[[str, Sequence[Row]], None]:
    """A function that adds rows to a section of the record."""
    return lambda section, rows: request.node.user_properties.append(("counted", [section, list(rows)]))


class Outcomes:
    """The outcome of each test that causes a fault, and what the tests counted."""

    def __init__(self, file: Path) -> None:
        self.file, self.started = file, datetime.now(UTC)
        self.faults: dict[str, dict[str, str]] = {}  # by words, then by test
        self.counted: dict[str, list[Row]] = {}  # by section

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, words in report.user_properties:
            if name == "counted" and report.when == "call":
                section, rows = cast(tuple[str, list[Row]], words)
                self.counted.setdefault(section, []).extend(rows)
            if name == "fault" and (report.when == "call" or report.outcome != "passed"):
                tests = self.faults.setdefault(str(words), {})
                if tests.get(report.nodeid) != "failed":
                    tests[report.nodeid] = report.outcome

    def pytest_sessionfinish(self) -> None:
        rows = fault_rows({words: list(tests.values()) for words, tests in self.faults.items()})
        command = " ".join(["pytest", *sys.argv[1:]])
        save_reliability({FAULTS: rows, **self.counted}, self.file, command, self.started)
