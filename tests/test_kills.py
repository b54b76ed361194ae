"""A small run that is killed, signalled or out of disk at any moment ends as one that was left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capbench.evidence.reliability import Row
from tests.soaking import (
    DISK_FULL,
    SIGNALS,
    Counts,
    Ended,
    Fault,
    age,
    attempt,
    outcome,
    random_faults,
    remains,
    survive,
)

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs the signals and files of Linux")
EACH = 4  # faults that one run meets at most
SECONDS = 1.0  # within which faults come that come at no moment


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Ended]:
    """What a run leaves that nothing disturbs, and how it ended."""
    folder = tmp_path_factory.mktemp("alone")
    ended = attempt(folder)
    assert ended.code == 0, (folder / "output").read_text()
    return outcome(folder), ended


def at_each_place(kind: str, moments: Sequence[str]) -> Iterator[Fault]:
    """A fault at a random moment of each place."""
    random = np.random.default_rng(1)
    for place in sorted(set(moments)):
        yield Fault(kind, moment=int(random.choice([n for n, each in enumerate(moments, 1) if each == place])))


@pytest.mark.parametrize(
    ("kinds", "least"),
    [
        pytest.param(("SIGKILL",), 30, marks=pytest.mark.fault("kill -9 of a run at random moments")),
        pytest.param(SIGNALS, 9, marks=pytest.mark.fault("SIGTERM, SIGUSR1 or SIGUSR2 at random moments of a run")),
        pytest.param((DISK_FULL,), 5, marks=pytest.mark.fault("disk full from a random moment of a run on")),
    ],
)
def test_a_run_that_meets_faults_at_random_moments_ends_as_one_left_alone(
    alone: tuple[dict[str, Any], Ended],
    tmp_path: Path,
    counted: Callable[[str, Sequence[Row]], None],
    kinds: tuple[str, ...],
    least: int,
):
    expected, undisturbed = alone
    certain = at_each_place(kinds[0], undisturbed.moments) if kinds == ("SIGKILL",) else iter(())
    others = random_faults(2, kinds, len(undisturbed.moments), SECONDS)
    counts = Counts()
    while (first := next(certain, None)) or counts.total < least:
        folder = tmp_path / f"after {counts.total}"
        survive(folder, chain([first] if first else [], islice(others, EACH - 1)), counts, after_each=age)
        assert outcome(folder) == expected
        assert remains(folder) == []
    counted("kills", counts.rows())


@pytest.mark.fault("damaged newest checkpoint of a killed run")
def test_a_damaged_newest_checkpoint_of_a_killed_run_is_noted_and_changes_nothing_else(
    alone: tuple[dict[str, Any], Ended], tmp_path: Path
):
    expected, undisturbed = alone
    last_step = len(undisturbed.moments) - undisturbed.moments[::-1].index("a training step")
    assert attempt(tmp_path, fault=Fault("SIGKILL", moment=last_step)).code < 0
    newest = max(tmp_path.glob("runs/vsepp/*/checkpoint-*"))
    newest.write_bytes(newest.read_bytes()[:-7])
    assert attempt(tmp_path).code == 0
    found = outcome(tmp_path)
    (note,) = [note for note in found["notes"] if note not in expected["notes"]]
    assert note == f"resumed past a damaged checkpoint: {newest.name}"
    assert found | {"notes": expected["notes"]} == expected
