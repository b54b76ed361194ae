"""Timing: what is counted, in which order, and that a record is kept whole beside all others."""

from __future__ import annotations

import json
import time
from datetime import datetime
from functools import partial
from itertools import count, product
from typing import Any

import numpy as np
import pytest
import torch

import capbench.timing.measure as timing
from capbench.base.errors import CapbenchError
from capbench.timing.measure import (
    Ceilings,
    Timing,
    ceilings,
    measure,
    peak_bytes,
    roofline_bound,
    roofline_share,
    through,
)
from capbench.timing.records import (
    TimingEntry,
    TimingRecord,
    comparisons,
    load_timings,
    median_interval,
    ratio,
    save_timings,
    timing_entry,
    timing_provenance,
)

CEILINGS = Ceilings(copy=100.0, product={"float32": 2.0, "bfloat16": 8.0})
ONE_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def record(**changes) -> TimingRecord:
    made = timing_entry(Timing((1e-3, 3e-3, 2e-3), 4096), operation="maxsim", size="2 x 3", variant="ours", ours=True)
    fields = {"device": "CPU, test", "started": "2024-05-01T12:00:00+00:00", "ceilings": CEILINGS, "entries": [made]}
    return TimingRecord.model_validate(fields | changes)


def test_variants_take_turns_and_each_round_begins_with_the_next():
    calls: list[str] = []
    found = measure({name: partial(calls.append, name) for name in "abc"}, "cpu", rounds=4)
    assert "".join(calls)[-12:] == "abc" + "bca" + "cab" + "abc"
    assert {name: times.rounds for name, times in found.items()} == {"a": 4, "b": 4, "c": 4}


def test_a_sleep_is_timed_as_long_as_it_is():
    found = measure({"short": lambda: time.sleep(0.002), "long": lambda: time.sleep(0.02)}, "cpu", rounds=5)
    assert 0.002 <= found["short"].median < 0.015
    assert 0.02 <= found["long"].p10 <= found["long"].median <= found["long"].p90
    assert not found["long"].graphed


def test_time_ends_a_measurement_but_not_before_three_rounds():
    assert measure({"slow": lambda: time.sleep(0.02)}, "cpu", rounds=100, seconds=0.0)["slow"].rounds == 3
    assert measure({"slow": lambda: time.sleep(0.02)}, "cpu", rounds=2, seconds=0.0)["slow"].rounds == 2


def test_a_cold_measurement_empties_the_cache_before_each_call(monkeypatch):
    happened: list[str] = []
    monkeypatch.setattr(timing, "_flush", lambda device: lambda: happened.append("flush"))
    measure({name: partial(happened.append, name) for name in "ab"}, "cpu", rounds=2, cold=True)
    assert happened[-8:] == ["flush", "a", "flush", "b", "flush", "b", "flush", "a"]


def test_quantiles_are_those_of_the_rounds():
    times = Timing(tuple(float(number) for number in range(1, 12)), 0)
    assert (times.p10, times.median, times.p90, times.rounds) == (2.0, 6.0, 10.0, 11)


def test_nothing_to_time_is_refused():
    with pytest.raises(CapbenchError, match="0 variants and 5 rounds"):
        measure({}, "cpu", rounds=5)
    with pytest.raises(CapbenchError, match="0 rounds"):
        measure({"a": lambda: None}, "cpu", rounds=0)


def test_rotating_inputs_are_taken_in_turn():
    taken: list[int] = []
    call = through(taken.append, [(1,), (2,), (3,)])
    for _ in range(4):
        call()
    assert taken == [1, 2, 3, 1]


def test_the_peak_counts_what_lived_at_once_and_no_more():
    def freed_before_the_next() -> None:
        for _ in range(3):
            torch.ones(250_000)

    def all_at_once() -> object:
        return [torch.ones(250_000) for _ in range(3)]

    kept = torch.ones(10**6)
    assert peak_bytes(freed_before_the_next, "cpu") == pytest.approx(10**6, rel=0.01)
    assert peak_bytes(all_at_once, "cpu") == pytest.approx(3 * 10**6, rel=0.01)
    assert peak_bytes(lambda: kept.sum(), "cpu") < 1000


def test_the_peak_sees_the_backward_pass():
    x = torch.ones(250_000, requires_grad=True)
    forward = peak_bytes(lambda: x.exp(), "cpu")
    both = peak_bytes(lambda: torch.autograd.grad(x.exp().sum(), x), "cpu")
    assert forward == pytest.approx(10**6, rel=0.01)
    assert both == pytest.approx(2 * 10**6, rel=0.01)


def test_ceilings_are_measured_in_each_type(monkeypatch):
    monkeypatch.setattr(timing, "_COPY_BYTES", {"cpu": (2**16, 2**20)})
    monkeypatch.setattr(timing, "_PRODUCTS", {"cpu": (16, 64)})
    found = ceilings("cpu")
    assert set(found.product) == {"float32", "bfloat16"}
    assert all(rate > 0 for rate in (found.copy, *found.product.values()))
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_roofline_is_the_slower_of_arithmetic_and_traffic():
    assert roofline_bound(2e12, 50e9, CEILINGS, "float32") == pytest.approx(1.0)  # 1 s of products, 0.5 s of traffic
    assert roofline_bound(2e12, 200e9, CEILINGS, "float32") == pytest.approx(2.0)
    assert roofline_share(2e12, 50e9, 4.0, CEILINGS, "float32") == pytest.approx(0.25)
    assert roofline_share(2e12, 50e9, 4.0, CEILINGS, "bfloat16") == pytest.approx(0.125)
    assert roofline_share(0.0, 50e9, 1.0, CEILINGS, "int8") == pytest.approx(0.5)


def test_a_type_without_a_ceiling_and_a_time_of_zero_are_refused():
    with pytest.raises(CapbenchError, match=r"'float8'.*float32, bfloat16"):
        roofline_share(1e9, 0.0, 1.0, CEILINGS, "float8")
    with pytest.raises(CapbenchError, match="more than 0 s"):
        roofline_share(1e9, 0.0, 0.0, CEILINGS, "float32")


def test_an_entry_holds_the_quantiles_multiplied_by_its_scale():
    made = timing_entry(Timing((1.0, 2.0, 3.0), 7), 10.0, operation="o", size="s", variant="v", ours=False)
    assert (made.median, made.rounds, made.peak_bytes, made.scale) == (20.0, 3, 7, 10.0)
    assert made.p90 == pytest.approx(10 * np.quantile([1.0, 2.0, 3.0], 0.9))


def test_an_entry_keeps_every_round_to_four_digits_and_its_quantiles_in_full():
    made = timing_entry(Timing((1.23456, 2.34567, 3.0), 7), 10.0, operation="o", size="s", variant="v", ours=False)
    assert made.seconds == (12.35, 23.46, 30.0)
    assert made.median == pytest.approx(23.4567)


def test_a_row_of_many_rounds_takes_one_line_of_the_file_and_is_read_back(tmp_path):
    times = tuple(1e-6 * number for number in range(1, 101))
    made = timing_entry(Timing(times, 0), operation="[\n 1,\n 2 ]", size="s", variant="v", ours=True)
    path = save_timings(record(entries=[made]), tmp_path)
    (line,) = (each for each in path.read_text().splitlines() if '"seconds"' in each)
    assert line.strip().startswith('"seconds": [1e-06, 2e-06, 3e-06, ')
    (read,) = load_timings(tmp_path)
    assert read.entries == [made]


def variant(name: str, *seconds: float, **changes) -> TimingEntry:
    what: dict[str, Any] = {"operation": "o", "size": "s", "variant": name, "ours": name.startswith("ours")}
    return timing_entry(Timing(seconds, 0), **(what | changes))


def test_a_ratio_is_the_median_of_the_paired_rounds_and_not_the_ratio_of_the_medians():
    ours, baseline = variant("ours", 1.0, 2.0, 3.0), variant("baseline", 3.0, 2.0, 3.0)
    assert ratio(baseline, ours).value == 1.0  # of 3, 1 and 1
    assert ratio(baseline, ours).interval is None
    assert ratio(baseline, ours.model_copy(update={"seconds": ()})).value == 1.5
    assert ratio(variant("baseline", 3.0, 3.0), ours).value == 1.5


def test_a_machine_that_slows_down_changes_no_ratio():
    drift = [1 + number / 10 for number in range(10)]
    found = ratio(variant("baseline", *(1.5 * time for time in drift)), variant("ours", *drift))
    assert found.interval is not None
    assert found.interval == pytest.approx((1.5, 1.5))
    assert not found.tie


def test_a_tie_is_an_interval_that_holds_one():
    ours = variant("ours", *[1.0] * 6)
    assert ratio(variant("baseline", 0.9, 0.95, 0.97, 0.99, 1.0, 1.1), ours).tie
    assert ratio(variant("baseline", 0.9, 0.95, 0.97, 0.99, 1.0, 1.1), ours).interval == (0.9, 1.1)
    assert not ratio(variant("baseline", 0.9, 0.95, 0.97, 0.99, 0.99, 0.99), ours).tie
    assert ratio(variant("baseline", 0.9, 0.95, 0.97, 0.99, 0.99, 0.996), ours).tie  # it is shown as 1.00
    assert not ratio(variant("baseline", 1.0, 1.0), variant("ours", 1.0, 1.0)).tie  # too few rounds to say so


def test_the_interval_of_a_median_is_the_narrowest_that_holds_it_with_95_percent():
    for count_ in range(1, 13):
        below = [sum(sides) for sides in product((0, 1), repeat=count_)]  # values below the median, all cases
        inside = {cut: sum(cut <= n <= count_ - cut for n in below) / len(below) for cut in range(1, count_ // 2 + 1)}
        cut = max((cut for cut, share in inside.items() if share >= 0.95), default=0)
        values = [float(number) for number in range(count_, 0, -1)]
        assert median_interval(values) == ((float(cut), float(count_ + 1 - cut)) if cut else None)
    assert median_interval([float(number) for number in range(1, 101)]) == (40.0, 61.0)  # as in printed tables
    assert median_interval([]) is None


def test_each_size_of_an_operation_is_that_of_the_newest_record_that_has_it():
    old, new = (f"202{year}-01-01T00:00:00+00:00" for year in (3, 4))
    sizes = {"numbers": {"images": 9}, "size": "9"}, {"numbers": {"images": 10}, "size": "10"}
    cold = [variant("old", 1.0, cold=cold, **sizes[0]) for cold in (False, True)]
    first = record(started=old, entries=[*cold, variant("old", 1.0, **sizes[1]), variant("x", 1.0, operation="A")])
    second = record(started=new, entries=[variant("new", 1.0, **sizes[1]), variant("ours", 1.0, **sizes[1])])
    found = comparisons([first, second])
    assert [(one.operation, one.size, one.cold) for one in found] == [
        ("A", "s", False), ("o", "9", False), ("o", "9", True), ("o", "10", False),
    ]  # fmt: skip
    assert [one.record.started for one in found] == [old, old, old, new]
    assert [row.variant for row in found[-1].entries] == ["new", "ours"]
    assert comparisons([second, first]) == found


def test_the_strongest_baseline_is_the_fastest_whose_name_begins_so():
    rows = [variant("ours", 1.0), variant("cuDNN b", 3.0), variant("cuDNN a", 2.0), variant("eager", 1.5)]
    (one,) = comparisons([record(entries=rows)])
    found = [one.baseline(), one.baseline("cuDNN"), one.baseline("torch.compile")]
    assert [row and row.variant for row in found] == ["eager", "cuDNN a", None]


def test_records_are_read_back_and_none_replaces_another(tmp_path):
    paths = [save_timings(record(threads=threads), tmp_path) for threads in range(20)]
    assert len(set(paths)) == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
    assert paths[0].name.startswith("cpu-test-20240501T120000Z-")
    read = load_timings(tmp_path)
    assert sorted(each.threads for each in read) == list(range(20))
    (same,) = (each for each in read if each.file == paths[3].name)
    assert same.model_dump() == record(threads=3).model_dump()
    assert same.marks == ()


def test_a_taken_name_is_left_alone(tmp_path, monkeypatch):
    tokens = count()
    monkeypatch.setattr("secrets.token_hex", lambda _: f"{next(tokens) // 2:06x}")
    first, second = save_timings(record(threads=1), tmp_path), save_timings(record(threads=2), tmp_path)
    assert first != second
    assert sorted(each.threads for each in load_timings(tmp_path)) == [1, 2]


def test_what_is_no_record_is_left_out_with_a_warning_that_names_it(tmp_path):
    save_timings(record(), tmp_path)
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    document = record().model_dump(mode="json")
    document["entries"][0]["median"] = 0
    (tmp_path / "zero.json").write_text(json.dumps(document))
    with pytest.warns(UserWarning, match="not a timing record") as caught:
        assert len(load_timings(tmp_path)) == 1
    said = " ".join(str(each.message) for each in caught)
    assert all(name in said for name in ("broken.json", "list.json", "zero.json"))
    assert "entries.0.median" in said


def test_an_older_or_newer_record_is_kept_and_marked(tmp_path):
    document = record(dirty=True).model_dump(mode="json")
    older = {name: value for name, value in document.items() if name not in ("schema_version", "load", "dirty")}
    (tmp_path / "a.json").write_text(json.dumps(older))
    (tmp_path / "b.json").write_text(json.dumps({**document, "mood": "calm", "file": "x", "marks": ["y"]}))
    first, second = load_timings(tmp_path)
    assert first.marks == ("schema 0: no dirty, load",)
    assert second.marks == ("unknown fields: file, marks, mood", "dirty tree")
    assert second.file == "b.json"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CapbenchError, match=r"cannot write to .*file"):
        save_timings(record(), tmp_path / "file")


def test_a_start_without_a_time_zone_is_refused():
    with pytest.raises(ValueError, match="no time zone"):
        record(started=datetime(2024, 5, 1).isoformat())


def test_ceilings_that_are_not_positive_are_refused():
    with pytest.raises(ValueError, match="positive"):
        record(ceilings=Ceilings(copy=0.0, product={}))


def test_the_versions_that_matter_to_a_kernel_are_known():
    assert {"torch", "triton", "python", "cuda"} <= timing_provenance("cpu")["versions"].keys()


@ONE_GPU
@pytest.mark.parametrize("cold", [False, True])
def test_a_short_kernel_is_replayed_in_a_graph_and_a_waiting_one_is_not(cold):
    x = torch.randn(1000, device="cuda")
    found = measure({"short": lambda: x + 1, "waits": lambda: float(x.sum())}, "cuda", rounds=5, cold=cold)
    assert found["short"].graphed
    assert not found["waits"].graphed
    assert 0 < found["short"].median < 50e-6
    assert found["short"].peak_bytes >= 4000


@ONE_GPU
def test_events_time_what_the_device_does():
    x = torch.randn(4096, 4096, device="cuda")
    found = measure({"once": lambda: x @ x, "twice": lambda: x @ x @ x}, "cuda", rounds=20, graph=False)
    assert found["twice"].median > 1.5 * found["once"].median


@ONE_GPU
def test_a_graph_walks_through_all_rotating_inputs():
    inputs = [torch.zeros(1000, device="cuda") for _ in range(4)]
    found = measure({"add": through(lambda x: x.add_(1), [(x,) for x in inputs])}, "cuda", rounds=10, graph=True)
    calls = [int(x[0]) for x in inputs]
    assert found["add"].graphed
    assert max(calls) - min(calls) <= 1  # each graph takes every input five times
    assert sum(calls) >= 10 * timing.CALLS_IN_A_GRAPH
