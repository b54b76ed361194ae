"""The kernels' page: which record counts, what is compared with what, and that the same records give the same bytes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from capbench import leaderboard
from capbench.leaderboard.kernels import TARGETS, _exponent, by_device, duration, render
from capbench.timing import Ceilings, Timing
from capbench.timings import TimingEntry, TimingRecord, entry, load_timings, save_timings
from tests.test_leaderboard import NASTY, fake
from tests.test_plots import words

ROOT = Path(__file__).resolve().parents[1]
CEILINGS = Ceilings(copy=4300.0, product={"float32": 50.0, "bfloat16": 790.0})


def row(variant: str, milliseconds: float, ours: bool = False, images: int = 1000, **changes) -> TimingEntry:
    """maxsim of that many images and five captions each, in bfloat16; by default 3.28 TFLOP."""
    scale = changes.pop("scale", 1.0)
    times = Timing(tuple(milliseconds / 1e3 / scale * factor for factor in (0.9, 1.0, 1.1)), 10**6 * images)
    what = {
        "operation": "maxsim, forward", "size": f"{images:,} images x {5 * images:,} captions", "dtype": "bfloat16",
        "numbers": {"images": images, "captions": 5 * images}, "flop": 3.28e12 * (images / 1000) ** 2, "bytes": 2e8,
    }  # fmt: skip
    return entry(times, scale, **(what | {"variant": variant, "ours": ours} | changes))


def record(*entries: TimingEntry, **changes) -> TimingRecord:
    rows = entries or (row("ours", 5.0, True), row("dense", 20.0), row("chunks", 8.0))
    fields = {
        "device": "NVIDIA H200", "threads": 16, "versions": {"torch": "2.11.0"}, "commit": "0123456789abcdef",
        "started": "2024-05-01T12:00:00+00:00", "ceilings": CEILINGS, "entries": rows, "file": "a.json",
    }  # fmt: skip
    return TimingRecord.model_validate(fields | changes)


def text(*records: TimingRecord) -> str:
    return render(records)["kernels.md"].decode()


def line(shown: str, beginning: str) -> str:
    (found,) = (each for each in shown.splitlines() if beginning in each)
    return found.replace("\u00a0", " ")


def test_a_row_gives_time_rate_share_memory_and_the_ratio_to_the_strongest_rival():
    shown = text(record())
    ours = line(shown, "| **ours** |")
    assert "| `bfloat16` | 5 ms (4.6 ms–5.4 ms) | 656 TFLOP/s | 83 % | 1 GB | **1.60** |" in ours
    assert line(shown, "| chunks |").endswith("| the strongest |")
    assert line(shown, "| dense |").endswith("| – |")


def test_a_row_that_is_bound_by_memory_is_told_in_gigabytes():
    shown = text(record(row("ours", 0.01, True, flop=1e6, bytes=2.15e7)))
    assert "| 2.15e+03 GB/s | 50 % |" in line(shown, "| **ours** |")


def test_cold_and_warm_rows_and_types_are_not_compared():
    shown = text(record(row("ours", 5.0, True, cold=True), row("dense", 9.0), row("dense", 1.0, dtype="float32")))
    ours = line(shown, "| **ours** |")
    assert "`bfloat16`, cold" in ours
    assert ours.endswith("| – |")


def test_a_part_that_was_multiplied_up_says_so_and_does_not_count_for_a_target():
    shown = text(record(row("ours, a slice", 4.0, True, scale=100.0)))
    assert "**ours, a slice** (×100)" in shown
    assert "pending: the newest record has no such row" in line(shown, "| H200 | maxsim, forward | 1,000 images")


def test_what_is_not_known_is_a_dash():
    unknown = row("ours", 5.0, True, flop=0.0, bytes=0.0, size="").model_copy(update={"peak_bytes": None})
    assert "| – | – | – | – |" in line(text(record(unknown)), "| **ours** |")
    assert "| – | – |" in line(text(record(row("ours", 5.0, True, dtype="float8"))), "| **ours** |")


def test_targets_are_reached_short_or_pending():
    target = "| H200 | maxsim, forward | 1,000 images"
    assert line(text(), target).endswith("| 5.3 ms | pending: no record of such a device |")
    assert line(text(record()), target).endswith("| **reached**: 5 ms |")
    late = text(record(row("ours", 10.6, True), row("dense", 1.0)))
    assert line(late, target).endswith("| short: 10.6 ms, 2 times the target |")
    assert line(late, "| H200 | chain labels").endswith("| pending: the newest record has no such row |")
    assert line(late, "| CPU |").endswith("| pending: no record of such a device |")
    assert text().count("pending") == len(TARGETS)
    assert "There is no timing record yet." in text()


def test_the_newest_record_of_a_device_counts_and_older_ones_are_listed():
    old = record(row("ours", 50.0, True), file="old.json", started="2023-05-01T12:00:00+00:00", dirty=True)
    marked = old.model_copy(update={"marks": ("schema 0: no load", "dirty tree")})
    shown = text(marked, record(file="new.json"))
    assert shown == text(record(file="new.json"), marked)
    assert "50\u00a0ms" not in shown
    assert "[record](timings/new.json), started 2024-05-01T12:00:00+00:00" in shown
    older = line(shown, "timings/old.json")
    assert older == "- [record](timings/old.json), 2023-05-01T12:00:00+00:00 (Caution: schema 0: no load; dirty tree)"


def test_devices_stand_side_by_side_and_a_cpu_once_for_each_number_of_threads():
    cpu = [record(device="CPU, test", threads=threads, file=f"{threads}.json") for threads in (1, 2)]
    names = ["CPU, test, 1 thread", "CPU, test, 2 threads", "NVIDIA H200"]
    assert list(by_device([record(), *cpu])) == names
    shown = text(record(), *cpu)
    assert [heading for heading in re.findall(r"^## (.*)", shown, re.M) if heading != "Targets"] == names


def test_a_series_of_sizes_is_drawn_and_its_laws_are_told():
    sizes = (100, 200, 400, 800)
    series = [row("ours", images**2 / 1e4, True, images) for images in sizes]
    files = render([record(*series, row("dense", 9.0), left_out=["torch.compile failed"])])
    shown = files["kernels.md"].decode()
    assert "| maxsim, forward, bfloat16 | ours | 4 | 1.0 | 0.5 | 800\u00a0MB |" in shown
    assert "- torch.compile failed" in shown
    roof, scale = (files[name] for name in sorted(files) if name.endswith(".svg"))
    roof, scale = (roof, scale) if "Roofline of NVIDIA H200" in words(roof) else (scale, roof)
    assert "ceiling, bfloat16: 790 TFLOP/s, 4.3e+03 GB/s" in words(roof)
    assert {"time", "peak memory", "seconds (log scale)", "ours", "images x captions (log scale)"} <= set(words(scale))
    assert "dense" not in words(scale)
    assert not any("$" in word for word in (*words(roof), *words(scale)))
    assert all(f"({name})" in shown for name in files if name.endswith(".svg"))


def test_an_exponent_is_the_slope_on_log_scales():
    assert abs(_exponent({10: 3.0, 100: 30.0, 1000: 300.0}) - 1) < 1e-9
    assert abs(_exponent({1: 5.0, 4: 10.0, 16: 20.0}) - 0.5) < 1e-9


def test_durations_have_three_digits_and_a_unit():
    found = [duration(seconds).replace("\u00a0", " ") for seconds in (8e-6, 0.00123456, 0.5, 12.34, 5000.0, 2e6)]
    assert found == ["8 µs", "1.23 ms", "500 ms", "12.3 s", "5,000 s", "555.6 h"]


def test_nothing_in_a_record_is_read_as_markdown_or_html():
    hostile = row(NASTY, 5.0, True, operation=NASTY, size=NASTY, dtype=NASTY)
    fields = {"device": NASTY, "commit": NASTY, "versions": {NASTY: NASTY}, "left_out": [NASTY], "file": "a).json"}
    files = render([record(hostile, **fields).model_copy(update={"marks": (NASTY,)})])
    shown = files["kernels.md"].decode()
    assert "alert(1)" in shown
    assert "<script" not in shown
    assert "\x00" not in shown
    assert "a).json" not in shown
    for block in re.findall(r"(?:^\|.*\n)+", shown, re.M):
        assert len({each.count("|") for each in block.splitlines()}) == 1
    assert all(re.fullmatch(r"kernels\.md|plots/[A-Za-z0-9_.-]+\.svg", name) for name in files)
    assert all(b"<script" not in content for content in files.values())


def test_the_page_is_written_checked_and_linked_and_without_a_record_all_is_pending(tmp_path):
    papers = {"fake": fake(tmp_path / "p")}
    leaderboard.write(papers, tmp_path)
    assert (tmp_path / "kernels.md").read_text() == text()
    assert "[kernels](kernels.md), not yet timed." in (tmp_path / "README.md").read_text()
    assert leaderboard.check(papers, tmp_path) == []
    path = save_timings(record(), tmp_path / "timings")
    assert leaderboard.check(papers, tmp_path) != []
    assert tmp_path / "kernels.md" in leaderboard.write(papers, tmp_path)
    assert leaderboard.check(papers, tmp_path) == []
    assert "[kernels](kernels.md), on NVIDIA H200." in (tmp_path / "README.md").read_text()
    save_timings(record(started="2025-01-01T00:00:00+00:00"), tmp_path / "timings")
    assert tmp_path / "kernels.md" in leaderboard.check(papers, tmp_path)
    for each in (tmp_path / "timings").iterdir():
        each.unlink()
    assert not path.exists()
    leaderboard.write(papers, tmp_path)
    assert (tmp_path / "kernels.md").read_text() == text()
    assert list((tmp_path / "plots").glob("kernels-*")) == []


def test_the_same_records_give_the_same_bytes_in_another_process_with_another_hash_seed(tmp_path):
    series = [row("ours", images**2 / 1e4, True, images) for images in (100, 200, 400)]
    save_timings(record(*series, row("dense", 9.0)), tmp_path)
    here = render(load_timings(tmp_path))
    assert render(load_timings(tmp_path)) == here
    program = "import sys; from pathlib import Path; from capbench.leaderboard.kernels import render; "
    program += "from capbench.timings import load_timings; files = render(load_timings(Path(sys.argv[1]))); "
    program += "[sys.stdout.buffer.write(name.encode() + files[name]) for name in sorted(files)]"
    environment = {**os.environ, "PYTHONHASHSEED": "4242", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, str(tmp_path)]
    there = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=250, cwd=tmp_path)
    assert there.stdout == b"".join(name.encode() + here[name] for name in sorted(here))
    assert len(here) == 3
