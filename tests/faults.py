"""`pytest --faults FILE`: which faults the tests caused and how they ended, as a record for leaderboards/reliability.

A test that causes a fault says so: `@pytest.mark.fault("kill -9 while saving")`.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from capbench.evidence.reliability import FAULTS, fault_rows, save_reliability


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


class Outcomes:
    """The outcome of each test that causes a fault."""

    def __init__(self, file: Path) -> None:
        self.file, self.started = file, datetime.now(UTC)
        self.faults: dict[str, dict[str, str]] = {}  # by words, then by test

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, words in report.user_properties:
            if name == "fault" and (report.when == "call" or report.outcome != "passed"):
                tests = self.faults.setdefault(str(words), {})
                if tests.get(report.nodeid) != "failed":
                    tests[report.nodeid] = report.outcome

    def pytest_sessionfinish(self) -> None:
        rows = fault_rows({words: list(tests.values()) for words, tests in self.faults.items()})
        command = " ".join(["pytest", *sys.argv[1:]])
        save_reliability({FAULTS: rows}, self.file, command, self.started)
