"""The kernels' page: which record counts, what is compared with what, and that the same records give the same bytes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from capbench import leaderboard
from capbench.leaderboard.kernels import _exponent, by_device, render
from capbench.leaderboard.targets import TARGETS, Target, Verdict, duration, factor, judge, memory
from capbench.timing.measure import Ceilings, Timing
from capbench.timing.records import TimingEntry, TimingRecord, comparisons, load_timings, save_timings, timing_entry
from tests.test_leaderboard import NASTY, fake
from tests.test_plots import words

ROOT = Path(__file__).resolve().parents[1]
CEILINGS = Ceilings(copy=4300.0, product={"float32": 50.0, "bfloat16": 790.0})
LARGE = {"images": 1000, "captions": 5000}


def row(variant: str, milliseconds: float, ours: bool = False, images: int = 1000, **changes) -> TimingEntry:
    """maxsim of that many images and five captions each, in bfloat16; by default 3.28 TFLOP and a GB. `rounds` are the
    times of each round as parts of the given one."""
    scale, rounds = changes.pop("scale", 1.0), changes.pop("rounds", (0.9, 1.0, 1.1))
    times = Timing(tuple(milliseconds / 1e3 / scale * part for part in rounds), 10**6 * images)
    what = {
        "operation": "maxsim, forward", "size": f"{images:,} images x {5 * images:,} captions", "dtype": "bfloat16",
        "numbers": {"images": images, "captions": 5 * images}, "flop": 3.28e12 * (images / 1000) ** 2, "bytes": 2e8,
    }  # fmt: skip
    return timing_entry(times, scale, **(what | {"variant": variant, "ours": ours} | changes))


def record(*entries: TimingEntry, **changes) -> TimingRecord:
    rows = entries or (row("ours", 5.0, True), row("dense", 20.0), row("chunks", 8.0))
    fields = {
        "device": "NVIDIA H200", "threads": 16, "versions": {"torch": "2.11.0"}, "commit": "0123456789abcdef",
        "started": "2024-05-01T12:00:00+00:00", "ceilings": CEILINGS, "entries": rows, "file": "a.json",
    }  # fmt: skip
    return TimingRecord.model_validate(fields | changes)


def text(*records: TimingRecord) -> str:
    return render(records)["kernels.md"].decode()


def verdict(target: Target, *records: TimingRecord) -> Verdict:
    judged = judge(target, comparisons(records))
    assert judged is not None
    return judged


def told(target: Target, *records: TimingRecord) -> str:
    """The outcome and the measured value; "" for a target that no record is about."""
    judged = judge(target, comparisons(records))
    return f"{judged.status}: {judged.measured}".replace("\u00a0", " ") if judged is not None else ""


def line(shown: str, beginning: str) -> str:
    (found,) = (each for each in shown.splitlines() if beginning in each)
    return found.replace("\u00a0", " ")


def test_a_line_gives_time_share_memory_and_the_ratio_of_the_strongest_baseline():
    shown = text(record())
    assert line(shown, "| **ours** |").endswith("bfloat16 | **ours** | 5 ms | 83 % | 1 GB | 1.60 |")
    assert line(shown, "| chunks |").endswith("| strongest |")
    assert line(shown, "| dense |").replace(" ", "").endswith("||")


def test_a_ratio_of_many_rounds_has_its_interval_and_says_whether_it_is_a_tie():
    rounds = (0.98, 0.99, 1.0, 1.0, 1.01, 1.02)
    ours = row("ours", 5.0, True, rounds=[1.0] * 6)
    clear, close = row("dense", 8.0, rounds=rounds), row("dense", 5.0, rounds=rounds)
    assert line(text(record(ours, clear)), "| **ours** |").endswith("| 1.60 (1.57–1.63) |")
    assert line(text(record(ours, close)), "| **ours** |").endswith("| 1.00 (0.98–1.02), tie |")
    old = record(ours.model_copy(update={"seconds": ()}), close)
    assert line(text(old), "| **ours** |").endswith("| 1.00 |")


def test_the_share_of_the_roofline_of_an_operation_bound_by_memory_is_that_of_the_copy():
    shown = text(record(row("ours", 0.01, True, flop=1e6, bytes=2.15e7)))  # 2,150 of 4,300 GB/s
    assert "| 50 % |" in line(shown, "| **ours** |")


def test_cold_and_warm_entries_and_types_are_not_compared():
    shown = text(record(row("ours", 5.0, True, cold=True), row("dense", 9.0), row("dense", 1.0, dtype="float32")))
    ours = line(shown, "| **ours** |")
    assert "captions, bfloat16, cold |" in ours
    assert ours.endswith("| – |")


def test_a_part_that_was_multiplied_up_says_so_and_does_not_count_for_a_target():
    part = record(row("ours, a slice", 4.0, True, scale=100.0))
    assert "**ours, a slice** (×100)" in text(part)
    assert told(Target("H200", "maxsim, forward", "large", 5.3e-3, LARGE), part) == ""


def test_a_replay_in_a_cuda_graph_is_marked():
    graphed = row("ours", 5.0, True).model_copy(update={"graphed": True})
    assert "| **ours**, graph |" in text(record(graphed))


def test_what_is_not_known_is_a_dash():
    unknown = row("ours", 5.0, True, flop=0.0, bytes=0.0, size="").model_copy(update={"peak_bytes": None})
    assert "| – | – | – |" in line(text(record(unknown)), "| **ours** |")
    assert "| 5 ms | – | 1 GB |" in line(text(record(row("ours", 5.0, True, dtype="float8"))), "| **ours** |")


def test_a_target_in_seconds_is_reached_or_short_beside_the_roofline_s_bound():
    target = Target("H200", "maxsim, forward", "large", 5.3e-3, LARGE)
    assert told(target, record()) == "reached: 5 ms"
    late = record(row("ours", 10.6, True), row("dense", 1.0), row("ours", 1.0, True, cold=True))
    assert told(target, late) == "short: 10.6 ms; bound 4.15 ms"
    assert verdict(target, late).ratio == "0.09, *dense*"
    unknown = record(row("ours", 10.6, True, dtype="float8"))
    assert told(target, unknown) == "short: 10.6 ms"
    assert verdict(target, unknown).ratio == "–"
    assert told(target, record(row("ours", 1.0, True, 100))) == ""
    assert told(target, record(row("ours", 1.0, True, operation="chain labels"))) == ""


def test_the_variant_named_ours_stands_for_all_that_are_ours():
    target = Target("H200", "maxsim, forward", "large", 5.3e-3, LARGE)
    assert told(target, record(row("ours, less work", 1.0, True), row("ours", 5.0, True))) == "reached: 5 ms"
    assert told(target, record(row("batched", 1.0, True), row("one by one", 5.0, True))) == "reached: 1 ms"


def test_a_target_in_bytes_is_at_most_so_many():
    target = Target("H200", "maxsim, forward", "large", 0.8e9, LARGE, "memory")
    assert told(target, record()) == "short: 1 GB"
    small = row("ours", 9.0, True).model_copy(update={"peak_bytes": 3 * 10**8})
    assert told(target, record(small)) == "reached: 300 MB"
    assert told(target, record(small.model_copy(update={"peak_bytes": None}))) == ""


def test_a_target_of_memory_against_a_baseline_is_how_many_times_less():
    target = Target("H200", "maxsim, forward", "large", 4.0, LARGE, "memory", baseline="dense")
    fifth, third = (row("ours", 9.0, True).model_copy(update={"peak_bytes": 10**9 // n}) for n in (5, 3))
    assert target.wanted == "≥ 4 times less memory than *dense*"
    assert told(target, record(fifth, row("dense", 1.0))) == "reached: 5.00"
    assert told(target, record(third, row("dense", 1.0))) == "short: 3.00"
    assert told(target, record(third, row("chunks", 1.0))) == ""


def test_a_target_of_many_times_is_set_against_the_baseline_it_names_even_if_that_was_multiplied_up():
    target = Target("H200", "maxsim, forward", "large", 60.0, LARGE, baseline="loops")
    baselines = row("loops, a part", 300.0, scale=10.0), row("dense", 5.0)
    assert target.wanted == "≥ 60 times as fast as *loops*"
    assert told(target, record(row("ours", 4.5, True), *baselines)) == "reached: 66.7"
    short = record(row("ours", 10.0, True), *baselines)
    assert told(target, short) == "short: 30.0; bound 72.3"  # 300 ms / 4.15 ms
    assert verdict(target, short).ratio == "0.50, *dense*"


def test_to_be_as_fast_as_the_strongest_the_worst_size_counts_and_a_tie_is_enough():
    target = Target("H200", "maxsim, forward", "all", 1.0, baseline="")
    steady, wide = [1.0] * 6, (0.96, 0.97, 0.97, 0.99, 1.1, 1.2)
    easy = row("ours", 5.0, True, rounds=steady), row("dense", 6.0, rounds=steady), row("slow", 60.0, rounds=steady)
    tie = row("ours", 5.0, True, 100, rounds=steady), row("chunks", 5.0, images=100, rounds=wide)
    behind = row("ours", 5.0, True, 200, rounds=steady), row("dense", 4.95, images=200, rounds=steady)
    assert target.wanted == "ratio ≥ 1"
    one = verdict(target, record(*easy))
    assert (one.status, one.size, one.ratio) == (
        "reached",
        "1,000 images x 5,000 captions",
        "1.20 (1.20–1.20), *dense*",
    )
    two = verdict(target, record(*easy, *tie))
    assert (two.status, two.size) == ("tie", "100 images x 500 captions (worst of 2)")
    assert two.ratio == "0.98 (0.96–1.20), *chunks*"
    noisy = row("ours", 5.0, True, 100, rounds=steady), row("chunks", 5.0, images=100, rounds=(0.8, *wide[1:]))
    unsure = verdict(target, record(*easy, *noisy))
    assert (unsure.status, unsure.ratio) == ("undecided", "0.98 (0.80–1.20), *chunks*")
    short = verdict(target, record(*easy, *tie, *behind))  # 0.98 is less than 0.99, but that is no tie
    assert (short.status, short.sizes, short.ratio) == ("short", "at 1 of 3 sizes", "0.99 (0.99–0.99), *dense*")
    assert short.size == "200 images x 1,000 captions (worst of 3)"
    assert told(target, record(row("ours", 5.0, True))) == ""


def test_within_three_percent_of_a_baseline_is_a_ratio_of_0_97():
    target = Target("H200", "maxsim, forward", "all", 1 / 1.03, baseline="cuDNN", note="within 3 %")
    assert target.wanted == "≥ 0.97 times as fast as *cuDNN* (within 3 %)"
    steady = [1.0] * 6
    baselines = row("cuDNN, packed", 5.0, rounds=steady), row("cuDNN, padded", 6.0), row("eager", 1.0)
    assert told(target, record(row("ours", 5.1, True, rounds=steady), *baselines)) == "reached: 0.98 (0.98–0.98)"
    assert told(target, record(row("ours", 6.25, True), *baselines)) == "short: 0.80; bound 1.20"


def test_a_ratio_near_its_target_reaches_it_only_with_an_interval():
    target = Target("H200", "maxsim, forward", "all", 1.0, baseline="")
    assert told(target, record(row("ours", 5.0, True), row("dense", 5.1))) == "undecided: 5 ms"
    assert told(target, record(row("ours", 5.0, True), row("dense", 6.0))) == "reached: 5 ms"


def test_a_kind_of_device_without_a_record_is_one_line_and_a_target_not_timed_is_listed():
    assert text().count("no record yet") == len({target.kind for target in TARGETS})
    assert "|" not in text()
    shown = text(record(row("ours", 9.0, True), device="CPU, test", threads=2))
    assert f"H200: no record yet; {sum(target.kind == 'H200' for target in TARGETS)} targets." in shown
    assert "CPU: no record yet" not in shown
    assert "Targets not timed yet: ranks both ways (5,000 images x 25,000 captions); " in shown
    assert "targets reached" not in shown


def test_the_page_opens_with_the_targets_and_everything_else_is_folded():
    shown = text(record())
    opened = shown.split("<details>", 1)[0]
    assert line(opened, "| ≤ 5.3").endswith("| ≤ 5.3 ms | 5 ms | reached | 1.60, *chunks* |")
    total = sum(target.kind == "H200" for target in TARGETS)
    assert f"**1 of {total} targets reached.**" in opened
    assert len(opened.splitlines()) < 20
    outside = re.sub(r"<details>.*?</details>", "", shown, flags=re.S)
    assert outside.replace(opened, "").strip() == ""


def test_a_record_that_a_newer_one_replaces_whole_is_listed():
    old = record(row("ours", 50.0, True), file="old.json", started="2023-05-01T12:00:00+00:00", dirty=True)
    marked = old.model_copy(update={"marks": ("schema 0: no load", "dirty tree")})
    shown = text(marked, record(file="new.json"))
    assert shown == text(record(file="new.json"), marked)
    assert "50\u00a0ms" not in shown
    assert "| [1](timings/new.json) | 2024-05-01T12:00:00+00:00 |" in shown
    assert "| ratio | record |" not in shown
    older = line(shown, "timings/old.json")
    assert older == "- [record](timings/old.json), 2023-05-01T12:00:00+00:00 (Caution: schema 0: no load; dirty tree)"


def test_a_run_of_some_benchmarks_hides_none_of_the_others():
    whole = record(
        row("ours", 5.0, True), row("ours", 6.0, True, 200), row("ours", 7.0, True, operation="chain labels"),
        left_out=["maxsim, forward, 1,000 images x 5,000 captions: torch.compile failed", "chain labels: no memory"],
        file="whole.json", started="2023-05-01T12:00:00+00:00", commit="a" * 40,
    )  # fmt: skip
    halved = Ceilings(copy=2150.0, product={"bfloat16": 1580.0})
    files = render([record(row("ours", 4.0, True), file="part.json", ceilings=halved), whole])
    shown = files["kernels.md"].decode().replace("\u00a0", " ")
    assert "| threads | load | copy, GB/s | bfloat16, TFLOP/s | float32, TFLOP/s |" in shown
    assert line(shown, "timings/part.json").startswith("| [1](timings/part.json) | 2024-05-01")
    assert line(shown, "timings/part.json").endswith("| 2150 | 1580 | – |")
    assert line(shown, "timings/whole.json").startswith("| [2](timings/whole.json) | 2023-05-01")
    assert line(shown, "timings/whole.json").endswith("| `aaaaaaaaaa` | 16 | – | 4300 | 790 | 50 |")
    assert "Record 1, 2: torch 2.11.0." in shown
    assert line(shown, "| 200 images x 1,000 captions, bfloat16 | **ours** |").endswith("| 200 MB | – | 2 |")
    assert "| 4 ms | 51.9 % | 1 GB | – | 1 |" in shown  # of its own record's ceiling
    assert "| 7 ms | 59.3 % | 1 GB | – | 2 |" in shown
    assert "| 5 ms |" not in shown
    assert "- chain labels: no memory" in shown
    assert "torch.compile failed" not in shown
    assert "Replaced by newer records" not in shown
    drawn = {word for name, content in files.items() if "roofline" in name for word in words(content)}
    assert {f"Roofline of NVIDIA H200, record {number}" for number in (1, 2)} <= drawn


def test_a_series_goes_on_over_several_records():
    first = record(row("ours", 1.0, True, 100), row("ours", 4.0, True, 200), started="2023-05-01T12:00:00+00:00")
    shown = text(first, record(row("ours", 16.0, True, 400), file="b.json"))
    assert "| maxsim, forward, bfloat16 | ours | 3 | 400 images x 2,000 captions | 1.0 | 0.5 |" in shown


def test_devices_stand_side_by_side_and_a_cpu_once_for_each_number_of_threads():
    cpu = [record(device="CPU, test", threads=threads, file=f"{threads}.json") for threads in (1, 2)]
    names = ["CPU, test, 1 thread", "CPU, test, 2 threads", "NVIDIA H200"]
    assert list(by_device([record(), *cpu])) == names
    shown = text(record(), *cpu)
    assert re.findall(r"^## (.*)", shown, re.M) == names


def test_a_series_of_sizes_is_drawn_and_its_laws_are_told():
    sizes = (100, 200, 400, 800)
    series = [row("ours", images**2 / 1e4, True, images) for images in sizes]
    series.append(row("ours", 1e6, True, 1600, scale=4.0))  # multiplied up: no part of a law
    files = render([record(*series, row("dense", 9.0), left_out=["torch.compile failed"])])
    shown = files["kernels.md"].decode()
    law = "| maxsim, forward, bfloat16 | ours | 4 | 800 images x 4,000 captions | 1.0 | 0.5 |"
    assert law in shown
    assert "- torch.compile failed" in shown
    roof, scale = (files[name] for name in sorted(files) if name.endswith(".svg"))
    roof, scale = (roof, scale) if "Roofline of NVIDIA H200" in words(roof) else (scale, roof)
    assert "ceiling, bfloat16: 790 TFLOP/s, 4.3e+03 GB/s" in words(roof)
    assert {"time (log scale)", "peak memory beyond the inputs (log scale)", "ours"} <= set(words(scale))
    assert {"images x captions (log scale)", "10\u00a0ms", "100\u00a0MB", "1\u00a0M"} <= set(words(scale))
    assert "dense" not in words(scale)
    assert not any("$" in word for word in (*words(roof), *words(scale)))
    assert all(f"({name})" in shown for name in files if name.endswith(".svg"))


def test_an_exponent_is_the_slope_on_log_scales():
    assert abs(_exponent({10: 3.0, 100: 30.0, 1000: 300.0}) - 1) < 1e-9
    assert abs(_exponent({1: 5.0, 4: 10.0, 16: 20.0}) - 0.5) < 1e-9


def test_durations_have_three_digits_and_a_unit():
    found = [duration(seconds).replace("\u00a0", " ") for seconds in (8e-6, 0.00123456, 0.5, 12.34, 5000.0, 2e6)]
    assert found == ["8 µs", "1.23 ms", "500 ms", "12.3 s", "5,000 s", "555.6 h"]


def test_ratios_and_memory_have_three_digits():
    assert [factor(value) for value in (0.976, 9.994, 14.68, 123.4, 1234.5)] == ["0.98", "9.99", "14.7", "123", "1,234"]
    assert [memory(size).replace("\u00a0", " ") for size in (232e3, 567e6, 999.7e6)] == ["0.232 MB", "567 MB", "1 GB"]


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


def test_the_page_is_written_checked_and_linked_and_without_a_record_has_no_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = leaderboard.FOLDER
    papers = {"fake": fake(tmp_path / "p")}
    leaderboard.write(papers, folder)
    assert (folder / "kernels.md").read_text() == text()
    assert "[kernels](kernels.md), not yet timed." in (folder / "README.md").read_text()
    assert leaderboard.check(papers, folder) == []
    path = save_timings(record(), folder / "timings")
    assert leaderboard.check(papers, folder) != []
    assert folder / "kernels.md" in leaderboard.write(papers, folder)
    assert leaderboard.check(papers, folder) == []
    assert "[kernels](kernels.md), on NVIDIA H200." in (folder / "README.md").read_text()
    save_timings(record(started="2025-01-01T00:00:00+00:00"), folder / "timings")
    assert folder / "kernels.md" in leaderboard.check(papers, folder)
    for each in (folder / "timings").iterdir():
        each.unlink()
    assert not path.exists()
    leaderboard.write(papers, folder)
    assert (folder / "kernels.md").read_text() == text()
    assert list((folder / "plots").glob("kernels-*")) == []


def test_the_same_records_give_the_same_bytes_in_another_process_with_another_hash_seed(tmp_path):
    series = [row("ours", images**2 / 1e4, True, images) for images in (100, 200, 400)]
    save_timings(record(*series, row("dense", 9.0)), tmp_path)
    here = render(load_timings(tmp_path))
    assert render(load_timings(tmp_path)) == here
    program = "import sys; from pathlib import Path; from capbench.leaderboard.kernels import render; "
    program += "from capbench.timing.records import load_timings; files = render(load_timings(Path(sys.argv[1]))); "
    program += "[sys.stdout.buffer.write(name.encode() + files[name]) for name in sorted(files)]"
    environment = {**os.environ, "PYTHONHASHSEED": "4242", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, str(tmp_path)]
    there = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=250, cwd=tmp_path)
    assert there.stdout == b"".join(name.encode() + here[name] for name in sorted(here))
    assert len(here) == 3
