"""What the tests say of the faults that they cause: the record, and the page made of it."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from capbench import leaderboard
from capbench.base.errors import CapbenchError
from capbench.evidence.reliability import FAULTS, Row, fault_rows, load_reliability, save_reliability
from capbench.leaderboard.reliability import render, survived
from tests.made_up import made_up_leaderboards

ROOT = Path(__file__).parents[1]
STARTED = datetime(2024, 5, 1, tzinfo=UTC)
TESTS = """
import pytest

@pytest.mark.fault("disk full")
@pytest.mark.parametrize("place", [1, 2])
def test_passes(place): pass

@pytest.mark.fault("disk full")
@pytest.mark.skip(reason="no disk")
def test_is_skipped(): pass

@pytest.fixture
def broken():
    yield
    raise OSError("after the test")

@pytest.mark.fault("kill -9")
@pytest.mark.fault("power cut")
def test_fails_at_its_end(broken): pass

def test_causes_none(): raise OSError
"""


@pytest.mark.parametrize("processes", [0, 2])
def test_the_outcome_of_each_test_that_causes_a_fault_is_recorded(tmp_path, processes):
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = fault(words): a fault\n")
    words = ["-p", "tests.faults", f"-n{processes}", "--faults=record.json", "-p", "no:cacheprovider", "test_some.py"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    command = [sys.executable, "-m", "pytest", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1, done.stdout
    (record,) = load_reliability(tmp_path)
    assert record.sections == {
        FAULTS: [
            {"fault": "disk full", "tests": 3, "passed": 2, "failed": 0, "skipped": 1},
            {"fault": "kill -9", "tests": 1, "passed": 0, "failed": 1, "skipped": 0},
            {"fault": "power cut", "tests": 1, "passed": 0, "failed": 1, "skipped": 0},
        ]
    }
    assert record.command.endswith("--faults=record.json -p no:cacheprovider test_some.py")
    assert record.device.startswith("CPU")
    assert {"capbench", "torch", "python"} <= record.versions.keys()


def test_a_record_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "reliability").write_text("a file")
    with pytest.raises(CapbenchError, match=r"cannot write .*faults\.json"):
        save_reliability({}, tmp_path / "reliability" / "faults.json", "pytest", STARTED)


def page(folder: Path) -> str:
    return render(load_reliability(folder))["reliability.md"].decode()


def test_the_page_counts_the_faults_that_were_caused_and_survived(tmp_path):
    outcomes = {"disk full": ["passed", "passed"], "no network": ["skipped"]}
    save_reliability({FAULTS: fault_rows(outcomes)}, tmp_path / "faults.json", "pytest", STARTED)
    shown = page(tmp_path)
    assert "**Faults caused: 1, all survived.** Tests that cause them: 3. Skipped on this machine: 1." in shown
    assert "| disk full | 2 | 2 | 0 | 0 |" in shown
    assert "[faults.json](reliability/faults.json)" in shown
    assert survived(load_reliability(tmp_path)) == "1 of 1 faults"
    outcomes["kill -9"] = ["passed", "failed"]
    save_reliability({FAULTS: fault_rows(outcomes)}, tmp_path / "faults.json", "pytest", STARTED)
    assert "**Faults caused: 2, 1 not survived.**" in page(tmp_path)
    assert survived(load_reliability(tmp_path)) == "1 of 2 faults"


def test_figures_of_other_records_have_sections_of_their_own(tmp_path):
    soak: list[Row] = [{"what": "runs", "count": 1200, "hours": 1.25}, {"what": "kills", "count": 96, "hours": 1.25}]
    save_reliability({"soak": soak, "fuzzing": []}, tmp_path / "soak.json", "soak", STARTED)
    shown = page(tmp_path)
    assert (
        "## Soak\n\n| what | count | hours |\n|:---|---:|---:|\n| runs | 1,200 | 1.25 |\n| kills | 96 | 1.25 |" in shown
    )
    assert "## Fuzzing\n\nNone." in shown


def test_a_record_that_is_broken_is_left_out_and_named(tmp_path):
    save_reliability({FAULTS: []}, tmp_path / "good.json", "pytest", STARTED)
    good = json.loads((tmp_path / "good.json").read_text())
    (tmp_path / "cut.json").write_bytes((tmp_path / "good.json").read_bytes()[:40])
    (tmp_path / "uneven.json").write_text(json.dumps(good | {"sections": {"soak": [{"a": 1}, {"b": 1}]}}))
    with pytest.warns(UserWarning, match="left out") as warned:
        assert [record.file for record in load_reliability(tmp_path)] == ["good.json"]
    messages = " ".join(str(each.message) for each in warned)
    assert "cut.json is not a reliability record" in messages
    assert "uneven.json" in messages
    assert "soak, row 2: its headings are not those of row 1" in messages


def test_without_a_record_there_is_no_page_and_no_link(tmp_path):
    folder = made_up_leaderboards(tmp_path)
    with_it = leaderboard.render_all(leaderboard.contents({}, folder))
    assert "reliability.md" in with_it
    assert b"[reliability](reliability.md), 1 of 1 faults survived." in with_it["README.md"]
    (folder / "reliability" / "faults.json").unlink()
    without = leaderboard.render_all(leaderboard.contents({}, folder))
    assert "reliability.md" not in without
    assert b"reliability" not in without["README.md"]


def test_text_in_a_record_is_no_markup(tmp_path):
    shown = page(made_up_leaderboards(tmp_path) / "reliability")
    assert "alert&#" in shown or "alert(1)" in shown
    assert "<script" not in shown
    assert "<img" not in shown
    assert "\u202e" not in shown
