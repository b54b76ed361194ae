"""The measurements of a session, and their record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.bench import Case, Steps
from benchmarks.session import Bench
from capbench.base.errors import CapbenchError
from capbench.base.files import check_writable
from capbench.timing.measure import ROUNDS
from capbench.timing.records import save_timings

BENCH = pytest.StashKey[Bench]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("capbench")
    where = "where to write the timing record; empty for none"
    group.addoption("--timings", default="leaderboards/timings", metavar="FOLDER", help=where)
    group.addoption("--rounds", type=int, default=ROUNDS, help="how often to time each variant, if time allows")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[BENCH] = Bench(config.getoption("--rounds"))
    folder = config.getoption("--timings")
    if folder and not config.getoption("collectonly"):
        try:
            check_writable(Path(folder))
        except CapbenchError as error:
            raise pytest.UsageError(f"--timings: {error}") from error


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Write the record of the timings."""
    bench, folder = config.stash[BENCH], config.getoption("--timings")
    if bench.entries and folder:
        terminalreporter.write_line(f"timing record: {save_timings(bench.record(), Path(folder))}")
    for reason in bench.left_out:
        terminalreporter.write_line(f"left out: {reason}")


@pytest.fixture
def show(request: pytest.FixtureRequest, benchmark: Any) -> Any:
    """Check and time a case with all its variants, once, and report one of them."""

    def show(case: Case | Steps, variant: str) -> None:
        request.config.stash[BENCH].show(benchmark, case, variant)

    return show
