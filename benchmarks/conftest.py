"""What every benchmark needs: captions to work on, the machine beside each number, and the record of the session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bench import DEVICE, ON_GPU, Bench, Case, plain_entry
from capbench.data.captions import CaptionDataset
from capbench.data.datasets import load_dataset
from capbench.records import provenance
from capbench.timing import ROUNDS
from capbench.timings import save_timings
from capbench.training import cpu_has_bf16

BENCH = pytest.StashKey[Bench]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("capbench")
    where = "where the timing record is written; empty for none, as befits a run of some benchmarks only"
    group.addoption("--timings", default="leaderboards/timings", metavar="FOLDER", help=where)
    group.addoption("--rounds", type=int, default=ROUNDS, help="how often each variant is timed, where time allows")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[BENCH] = Bench(config.getoption("--rounds"))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Write the record of what was timed."""
    bench, folder = config.stash[BENCH], config.getoption("--timings")
    if bench.entries and folder:
        terminalreporter.write_line(f"timing record: {save_timings(bench.record(), Path(folder))}")
    for reason in bench.left_out:
        terminalreporter.write_line(f"left out: {reason}")


@pytest.fixture
def show(request: pytest.FixtureRequest, benchmark: Any) -> Any:
    """Check and time a case with all its ways, once, and show one of them."""

    def show(case: Case, way: str) -> None:
        request.config.stash[BENCH].show(benchmark, case, way)

    return show


@pytest.fixture(scope="session")
def dataset() -> CaptionDataset:
    """Flickr8K where CAPBENCH_DATA holds it, else the embedded scenes."""
    try:
        return load_dataset("flickr8k")
    except Exception:
        return load_dataset("scenes")


@pytest.fixture(autouse=True)
def machine(request: pytest.FixtureRequest) -> Iterator[None]:
    """Device, threads and versions go into each result. What pytest-benchmark timed itself goes into the record, where
    the test has said in `extra_info` whether it is ours."""
    if "benchmark" not in request.fixturenames:
        yield
        return
    benchmark, origin = request.getfixturevalue("benchmark"), provenance(DEVICE)
    info = {name: origin[name] for name in ("device", "threads", "versions")}
    benchmark.extra_info.update(info | {"bf16": cpu_has_bf16(), "load": os.getloadavg()[0]})
    yield
    extra = benchmark.extra_info
    if benchmark.stats is not None and "ours" in extra and "recorded" not in extra and not ON_GPU:  # it ran on the CPU
        times, variant = benchmark.stats.stats.data, str(extra.get("variant", benchmark.param))
        made = plain_entry(str(benchmark.group), variant, bool(extra["ours"]), float(extra.get("scale", 1)), times)
        request.config.stash[BENCH].entries.append(made)
