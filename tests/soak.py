"""`nox -s soak`: small runs for an hour, two at a time, on one cache and one folder of results, with faults all along.

Each run is also made undisturbed, all of them in this one process, whose memory must stay flat. At the end each run has
one record, equal to its twin's, every file is whole, and no file is left over.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, Queue

import numpy as np

from capbench.evidence.reliability import Row, save_reliability
from tests.soaking import (
    DISK_FULL,
    SIGNALS,
    Counts,
    Fault,
    age,
    attempt,
    outcome,
    random_faults,
    remains,
    run_here,
    survive,
)

AT_ONCE = 2
KINDS = ("SIGKILL", "SIGKILL", *SIGNALS, DISK_FULL)
MOMENTS, SECONDS = 150, 2.0  # of a whole run
FAULTS_A_RUN = 6
WARM = 10  # runs after which the memory of the process should be flat
GROWTH = 32.0  # MB that it may grow by from then on


class Soak:
    """The disturbed runs of one session."""

    def __init__(self, folder: Path, minutes: float, seed: int) -> None:
        self.shared, self.alone, self.seed = folder / "shared", folder / "alone", seed
        self.end = time.monotonic() + 60 * minutes
        self.counts, self.numbers = Counts(), itertools.count()
        self.ended: Queue[int] = Queue()

    def disturb(self) -> None:
        """One run after the other until the time is over."""
        while time.monotonic() < self.end:
            number = next(self.numbers)
            survive(self.shared, self._faults(number), self.counts, number)
            self.ended.put(number)

    def _faults(self, number: int) -> Iterator[Fault]:
        return itertools.islice(random_faults(self.seed + number, KINDS, MOMENTS, SECONDS), FAULTS_A_RUN)

    def differs(self, number: int) -> bool:
        """Whether a run that met faults left anything else than one that is made here and now."""
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            run_here(self.alone, number)
        try:
            return outcome(self.shared, number) != outcome(self.alone, number)
        finally:
            shutil.rmtree(self.alone / "runs")


def soak(folder: Path, minutes: float, seed: int) -> tuple[list[Row], bool]:
    """The rows of a record, and whether all is well. Raises AssertionError for a run that ends as none may."""
    made = Soak(folder, minutes, seed)
    made.alone.mkdir(parents=True)
    memory: list[float] = []
    different = []
    with ThreadPoolExecutor(AT_ONCE) as workers:
        working = [workers.submit(made.disturb) for _ in range(AT_ONCE)]
        while not (all(each.done() for each in working) and made.ended.empty()):
            try:
                number = made.ended.get(timeout=1.0)
            except Empty:
                continue
            if made.differs(number):
                different.append(number)
            memory.append(_megabytes())
        for each in working:
            each.result()
    age(made.shared)
    attempt(made.shared, 0)  # removes what killed ones have left
    left = remains(made.shared)
    growth = max(0.0, float(np.median(memory[-WARM:]) - memory[WARM - 1])) if len(memory) > 2 * WARM else 0.0
    by_kind = {kind: sum(n for (each, _), n in made.counts.of.items() if each == kind) for kind in dict.fromkeys(KINDS)}
    figures = {
        "minutes": round(minutes, 1),
        "runs, two at a time": len(memory),
        **{f"starts that met {kind}": count for kind, count in by_kind.items()},
        "runs whose record, arrays or model differ from those of one left alone": len(different),
        "files left over": len(left),
        f"growth of a process that makes all the runs, after {WARM} of them (MB)": round(growth, 1),
    }
    print(f"different: {different}; left over: {left}; memory: {memory[:1]} to {memory[-1:]} MB")
    return [{"what": what, "figure": figure} for what, figure in figures.items()], not (
        different or left or growth > GROWTH
    )


def _megabytes() -> float:
    """The memory of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def main() -> None:
    words = argparse.ArgumentParser(description="Disturb small runs and compare them with undisturbed ones.")
    words.add_argument("--minutes", type=float, default=60.0, help="how long")
    words.add_argument("--seed", type=int, default=int(time.time()), help="of the faults; the time by default")
    words.add_argument("--record", type=Path, help="write the figures to this file")
    given, started = words.parse_args(), datetime.now(UTC)
    record = given.record and given.record.resolve()
    folder, here = Path(tempfile.mkdtemp()), Path.cwd()
    rows, well = soak(folder, given.minutes, given.seed)
    for row in rows:
        print(f"{row['what']}: {row['figure']}")
    os.chdir(here)
    if record:
        command = f"python -m tests.soak --minutes {given.minutes:g} --seed {given.seed}"
        save_reliability({"soak": rows}, record, command, started)
    if well:
        shutil.rmtree(folder)
    else:
        print(f"see {folder}")
    sys.exit(not well)


if __name__ == "__main__":
    main()
