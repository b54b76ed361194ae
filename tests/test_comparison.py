"""Comparisons: intervals against a plain loop and scipy, p-values against them, Holm by hand, and what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap

from capbench.base.errors import CapbenchError
from capbench.cli.app import app
from capbench.data.scenes import scenes
from capbench.evidence.comparison import Side, compare, side
from capbench.evidence.records import load_arrays, save_result
from capbench.evidence.results import Results
from capbench.evidence.verdicts import difference
from capbench.metrics.captioning import bleu_statistics
from capbench.metrics.significance import holm, paired_bootstrap, two_sided_p
from tests.made_up import made_up_record

ROOT = Path(__file__).resolve().parents[1]
DATA = {"dataset": "flickr8k", "dataset_fingerprint": "d", "split": "test", "protocol": "whole"}
KEY = "image_to_caption_r1"


def ranked(name: str, *ranks: np.ndarray, **data: str) -> Side:
    """A side with the ranks of its images, one array a seed."""
    metrics = tuple({KEY: 100.0 * float((each < 1).mean())} for each in ranks)
    return Side(name, {**DATA, **data}, metrics, tuple({"image_to_caption": each} for each in ranks))


def with_captions(name: str, random: np.random.Generator, better: float) -> Side:
    """A side with ranks both ways over 30 images of one to five captions each."""
    image_of_caption = np.repeat(np.arange(30), 1 + np.arange(30) % 5)
    of_images, of_captions = (
        (random.exponential(8 / better, count)).astype(int) for count in (30, len(image_of_caption))
    )
    arrays = {
        "image_to_caption": of_images,
        "caption_to_image": of_captions,
        "image_of_caption": image_of_caption,
    }
    recalls = [100.0 * float((ranks < k).mean()) for ranks in (of_images, of_captions) for k in (1, 5, 10)]
    metrics = {"caption_to_image_r1": recalls[3], "caption_to_image_mean_rank": float(of_captions.mean() + 1)}
    return Side(name, DATA, ({**metrics, "rsum": sum(recalls)},), (arrays,))


def test_the_interval_of_recalls_is_that_of_scipy_s_percentile_bootstrap():
    random = np.random.default_rng(1)
    a, b = random.integers(0, 3, 200), random.integers(0, 2, 200)
    (found,) = compare(ranked("a", a), ranked("b", b)).differences
    hits = 100.0 * (b < 1) - 100.0 * (a < 1)
    expected = scipy_bootstrap((hits,), np.mean, n_resamples=5000, method="percentile", rng=3).confidence_interval
    assert found.difference == pytest.approx(hits.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.8)


def rsum_of(arrays: dict[str, np.ndarray], drawn: list[int]) -> float:
    """rsum of some images, each with its captions, counted one by one."""
    images = [int(arrays["image_to_caption"][image]) for image in drawn]
    captions = [
        int(rank)
        for image in drawn
        for rank, own in zip(arrays["caption_to_image"], arrays["image_of_caption"], strict=True)
        if own == image
    ]
    return sum(100 * sum(rank < k for rank in ranks) / len(ranks) for ranks in (images, captions) for k in (1, 5, 10))


def test_images_are_drawn_with_all_of_their_queries_for_rsum_as_in_a_plain_loop():
    random = np.random.default_rng(4)
    a, b = with_captions("a", random, 1.0), with_captions("b", random, 1.6)
    (found,) = compare(a, b, ["rsum"]).differences
    draws = []
    for _ in range(1000):
        drawn = random.integers(0, 30, 30).tolist()
        draws.append(rsum_of(dict(b.arrays[0]), drawn) - rsum_of(dict(a.arrays[0]), drawn))
    assert found.difference == pytest.approx(b.metrics[0]["rsum"] - a.metrics[0]["rsum"])
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, (0.025, 0.975))), abs=10)
    assert found.p == pytest.approx(2 * min(np.mean(np.array(draws) <= 0), np.mean(np.array(draws) >= 0)), abs=0.03)
    assert (found.queries, found.images) == (30 + 90, 30)


def test_captions_of_one_image_are_drawn_together():
    random = np.random.default_rng(5)
    a, b = with_captions("a", random, 1.0), with_captions("b", random, 1.0)
    (found,) = compare(a, b, ["caption_to_image_r1"]).differences
    assert (found.queries, found.images) == (90, 30)
    draws = []
    for _ in range(2000):
        chosen = np.concatenate(
            [np.flatnonzero(a.arrays[0]["image_of_caption"] == image) for image in random.integers(0, 30, 30)]
        )
        hits = [100.0 * (each.arrays[0]["caption_to_image"][chosen] < 1) for each in (a, b)]
        draws.append(hits[1].mean() - hits[0].mean())
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, (0.025, 0.975))), abs=2.5)


@pytest.mark.parametrize("better", [0.6, 1.0, 1.2, 1.5])
def test_p_is_below_a_level_where_the_interval_of_that_level_leaves_out_0(better):
    random = np.random.default_rng(int(10 * better))
    a, b = random.random((2, 60)), better * random.random((3, 60))
    interval = paired_bootstrap(a, b)
    assert interval.p is not None
    assert (interval.p < 0.05) == (interval.low > 0 or interval.high < 0)
    assert interval.p == paired_bootstrap(b, a).p or interval.p == pytest.approx(paired_bootstrap(b, a).p, abs=0.02)


def test_p_counts_draws_on_either_side_of_0_and_is_neither_0_nor_above_1():
    assert two_sided_p(np.array([1.0] * 97 + [-1.0] * 2)) == pytest.approx(2 * 3 / 100)
    assert two_sided_p(np.ones(99)) == pytest.approx(0.02)
    assert two_sided_p(np.zeros(99)) == 1.0
    assert two_sided_p(np.full(99, 1e-14)) == 1.0  # what is left of a difference of 0 by rounding


def test_holm_adjusts_as_worked_out_by_hand_in_any_order():
    # Sorted: 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.04 x 1; each at least the one before.
    assert holm([0.01, 0.02, 0.03, 0.04]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.005, 0.7]) == pytest.approx([1.0, 0.015, 1.0])
    assert holm([]) == []


def test_the_verdict_is_that_of_the_adjusted_p():
    ranks = np.arange(100) % 10
    shifted = np.where(np.arange(100) < 12, 0, ranks)  # a few more hits
    alone = compare(ranked("a", ranks), ranked("b", shifted), [KEY]).differences[0]
    assert (alone.verdict, alone.p_holm) == ("better", alone.p)
    several = compare(ranked("a", ranks), ranked("b", shifted), [KEY])
    assert several.worse == ()
    assert compare(ranked("b", shifted), ranked("a", ranks), [KEY]).worse == (KEY,)


def test_equal_sides_show_no_difference():
    ranks = np.arange(50) % 3
    (found,) = compare(ranked("a", ranks, ranks), ranked("b", ranks)).differences
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert found.verdict == "no difference shown"


def test_a_lower_rank_is_better_and_the_difference_keeps_its_sign():
    random = np.random.default_rng(6)
    a, b = with_captions("a", random, 1.0), with_captions("b", random, 4.0)
    (found,) = compare(a, b, ["caption_to_image_mean_rank"]).differences
    assert found.verdict == "better"
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.difference < found.high < 0


def test_bleu_is_drawn_from_its_counts():
    words = ["a dog runs on the grass", "two men talk near a car", "a red ball", "a child on a swing"] * 10
    poor = ["a cat sits on a mat", "two men talk", "a blue ball there", "a child"] * 10
    counts = [bleu_statistics(each, [[word] for word in words]) for each in (poor, words)]
    a, b = (
        Side(name, DATA, ({"bleu1": value},), ({"bleu_statistics": each},))
        for name, value, each in zip("ab", (50.0, 100.0), counts, strict=True)
    )
    (found,) = compare(a, b).differences
    assert (found.verdict, found.queries, found.images) == ("better", 40, 40)
    assert "40 images and 1 against 1 seeds" in found.test


def test_a_metric_that_cannot_be_drawn_anew_has_a_difference_alone_and_its_reason():
    a, b = (Side(name, DATA, ({"perplexity": value, KEY: 1.0},), ({},)) for name, value in (("a", 9.0), ("b", 8.0)))
    by_key = {each.metric: each for each in compare(a, b).differences}
    assert by_key["perplexity"].difference == -1.0
    assert by_key["perplexity"].test == "it is not made of queries or counts that could be drawn anew"
    assert by_key[KEY].test == "the record has no array 'image_to_caption'; run it again"
    assert {(each.verdict, each.low, each.p, each.p_holm) for each in by_key.values()} == {
        ("not tested", None, None, None)
    }


RANKS = np.arange(10)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"dataset": "flickr30k"},
            "a and b cannot be compared, for they differ in dataset: 'flickr8k' and 'flickr30k'",
        ),
        ({"protocol": "1K", "split": "val"}, "differ in split: 'test' and 'val'; protocol: 'whole' and '1K'"),
        ({"dataset_fingerprint": "e"}, "differ in dataset_fingerprint: 'd' and 'e'"),
        ({"tokeniser": "simple_tokenize"}, "differ in tokeniser: None and 'simple_tokenize'"),
    ],
)
def test_sides_of_other_data_are_refused_with_every_field_that_differs(changes, said):
    with pytest.raises(CapbenchError, match=said):
        compare(ranked("a", RANKS), ranked("b", RANKS, **changes))


def test_sides_that_do_not_name_their_data_are_refused():
    with pytest.raises(CapbenchError, match="do not say on what they were scored: no dataset_fingerprint"):
        compare(ranked("a", RANKS, dataset_fingerprint=""), ranked("b", RANKS, dataset_fingerprint=""))


def test_other_queries_are_refused_whatever_the_data_are_called():
    with pytest.raises(CapbenchError, match=r"a and b cannot be compared in image_to_caption_r1.* 10 of 10 images"):
        compare(ranked("a", RANKS), ranked("b", np.arange(12)))
    random = np.random.default_rng(7)
    a, b = with_captions("a", random, 1.0), with_captions("b", random, 1.0)
    moved = {**b.arrays[0], "image_of_caption": np.sort(b.arrays[0]["image_of_caption"] % 29)}
    with pytest.raises(CapbenchError, match="in caption_to_image_r1: they have other queries"):
        compare(a, replace(b, arrays=(moved,)), ["caption_to_image_r1"])


def test_a_metric_that_one_side_lacks_is_refused_by_name():
    with pytest.raises(CapbenchError, match=r"no metric of both a and b 'rsun'.*there are image_to_caption_r1"):
        compare(ranked("a", RANKS), ranked("b", RANKS), ["rsun"])


def test_records_of_several_settings_or_twice_the_same_seed_are_no_side():
    records = [made_up_record(metrics={KEY: 1.0}, seed=seed) for seed in (0, 1)]
    assert side("ours", records, [{}, {}]).metrics == ({KEY: 1.0}, {KEY: 1.0})
    with pytest.raises(CapbenchError, match="ours has two records of one seed"):
        side("ours", [records[0], records[0]], [{}, {}])
    scored = [
        made_up_record(paper="systems", seed=seed, notes=[f"signature: a|similarity:{name}|version:{seed}"])
        for seed, name in enumerate(("dot", "dot", "order"))
    ]
    assert len(side("theirs", scored[:2], [{}, {}]).metrics) == 2
    with pytest.raises(CapbenchError, match=r"its records differ in scoring: a\|similarity:dot, a\|similarity:order"):
        side("theirs", scored, [{}, {}, {}])
    with pytest.raises(
        CapbenchError, match="ours is not one setting: its records differ in encoder: mobilenet_v2, vgg"
    ):
        side("ours", [records[0], made_up_record(seed=1, encoder="vgg19")], [{}, {}])


def test_a_claim_and_a_comparison_have_the_same_interval():
    committed = Results.load(ROOT / "leaderboards" / "results", "vsepp").select(dataset="scenes")
    claimed = difference(committed, "vsepp", "vse0", KEY).interval
    of = {name: committed.select(preset=name).latest for name in ("vsepp", "vse0")}
    better, worse = (side(name, each.records, each.arrays()) for name, each in of.items())
    (found,) = compare(worse, better, [KEY], samples=2000).differences
    assert claimed is not None
    assert (found.low, found.high, found.test) == (claimed.low, claimed.high, claimed.test)


def command(*words: object) -> None:
    app(["compare", *map(str, words)], exit_on_error=False, print_error=False, result_action="return_value")


@pytest.fixture
def here(monkeypatch, tmp_path) -> Path:
    """Committed records of two presets on Flickr8K with three seeds, one of them with two encoders; an own run."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(8)
    committed = tmp_path / "leaderboards" / "results"

    def save(folder: Path, high: int, **changes) -> None:
        ranks = random.integers(0, high, 300)
        metrics = {KEY: 100.0 * float((ranks < 1).mean()), "image_to_caption_median_rank": 2.0}
        save_result(made_up_record(metrics=metrics, **changes), {"image_to_caption": ranks}, folder)

    for seed in range(3):
        save(committed, 4, seed=seed, preset="vse0")
        save(committed, 2, seed=seed)
    save(committed, 2, encoder="vgg19")
    save(committed, 3, paper="karpathy", preset="brnn")
    save(committed, 3, paper="vsepp", preset="brnn")
    save(tmp_path / "runs" / "records", 2, overrides={"margin": 0.1})
    return tmp_path


def test_the_command_prints_both_means_the_interval_and_the_verdict(here, capsys):
    command("vse0", "vsepp")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "A: vsepp/vse0 with mobilenet_v2, 3 seeds"
    assert lines[1] == "B: vsepp/vsepp with mobilenet_v2, 3 seeds"
    assert lines[2] == "on flickr8k, test split, protocol whole"
    (line,) = (line for line in lines if line.startswith(KEY))
    assert "better" in line
    assert "image_to_caption_median_rank is not tested: it is not made of queries" in "\n".join(lines)


def test_the_json_is_the_comparison(here, capsys):
    command("vse0", "vsepp/vsepp", "--json", "--metrics", KEY)
    told = json.loads(capsys.readouterr().out)
    results = Results.load(here / "leaderboards" / "results").select(paper="vsepp", encoder="mobilenet_v2")
    a, b = (results.select(preset=name).latest for name in ("vse0", "vsepp"))
    made = compare(side("a", a.records, a.arrays()), side("b", b.records, b.arrays()), [KEY])
    assert told["differences"] == [asdict(each) for each in made.differences]
    assert told["seeds"] == [3, 3]


def test_a_metric_that_is_worse_fails_the_command_where_that_is_asked(here):
    command("vsepp", "vse0")
    command("vse0", "vsepp", "--fail-if-worse")
    for words in (["--fail-if-worse"], ["--fail-if-worse", KEY]):
        with pytest.raises(SystemExit) as ended:
            command("vsepp", "vse0", *words)
        assert ended.value.code == 1
    with pytest.raises(CapbenchError, match="no metric that was tested 'image_to_caption_median_rank'"):
        command("vsepp", "vse0", "--fail-if-worse", "image_to_caption_median_rank")


def test_a_check_that_tests_nothing_is_refused(here, capsys):
    with pytest.raises(CapbenchError, match="nothing could be tested: image_to_caption_median_rank: it is not made of"):
        command("vse0", "vsepp", "--metrics", "image_to_caption_median_rank", "--fail-if-worse")
    assert capsys.readouterr().out == ""
    command("vse0", "vsepp", "--metrics", "image_to_caption_median_rank")


def test_sides_are_files_patterns_changed_presets_and_encoders(here, capsys):
    results = here / "leaderboards" / "results"
    pattern = f"{results}/vsepp-vsepp-flickr8k-mobilenet_v2-*.json"
    one, two, _ = sorted(results.glob("vsepp-vse0-*.json"))
    command(f"{one},{two}", pattern)
    assert "vsepp/vse0 with mobilenet_v2, 2 seeds" in capsys.readouterr().out
    command("vsepp", "vsepp, margin=0.1")
    assert "B: vsepp/vsepp, margin=0.1 with mobilenet_v2, 1 seed" in capsys.readouterr().out
    command("vsepp", "vsepp", "--encoder", "mobilenet_v2", "vgg19")
    assert "B: vsepp/vsepp with vgg19, 1 seed\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["vse0", "vsep"], "no preset with a record 'vsep'; did you mean 'vsepp'"),
        (["vse0", "brnn"], "several papers have a preset brnn: say karpathy/brnn or vsepp/brnn"),
        (["vsepp", "vsepp"], "vsepp and vsepp have runs on 2 settings, choose one with --dataset, --encoder"),
        (["vse0", "vse0"], "vse0 and vse0 are the same records"),
        (["vse0", "vsepp", "--encoder", "vgg16"], "vse0 has no record with encoder vgg16; there are .*mobilenet_v2"),
        (["vse0", "missing.json"], r"missing\.json is not a record: .*No such file"),
    ],
)
def test_names_that_stand_for_nothing_or_too_much_are_refused(here, words, said):
    with pytest.raises(CapbenchError, match=said):
        command(*words)


def test_damaged_arrays_are_named(here):
    (bundle,) = (here / "runs" / "records").glob("*.npz")
    bundle.write_bytes(b"changed")
    with pytest.raises(CapbenchError, match=f"{bundle.name} has changed since its record was written"):
        command("vse0", "vsepp, margin=0.1")


def test_the_arrays_of_results_are_those_of_their_latest_records(here):
    results = Results.load(here / "leaderboards" / "results").select(preset="vse0")
    expected = [load_arrays(record, results.folder) for record in results.latest.records]
    assert [each["image_to_caption"].tolist() for each in results.arrays()] == [
        each["image_to_caption"].tolist() for each in expected
    ]


def test_files_of_outputs_are_sides_and_are_scored_on_the_data_set_that_is_asked_for(tmp_path, capsys, monkeypatch):
    few = scenes(seed=5, train=6, val=3, test=20)
    monkeypatch.setattr("capbench.cli.sides.load_dataset", lambda name: few)
    split, random = few.split("test"), np.random.default_rng(0)
    images = random.normal(size=(20, 8)).astype(np.float32)
    right = images[split.image_of_caption]
    for name, captions in {"right": right, "wrong": np.roll(right, 5, axis=0)}.items():
        np.save(tmp_path / f"{name}.npy", images @ captions.T)
    long = (tmp_path / "wrong.npy").rename(tmp_path / f"{'long ' * 30}wrong.npy")  # a record's name is shorter
    words = [str(long), str(tmp_path / "right.npy")]
    app(["compare", *words, "--dataset", "scenes", "--json"], result_action="return_value")
    found = {each["metric"]: each for each in json.loads(capsys.readouterr().out)["differences"]}
    assert found["caption_to_image_r1"]["b"] > found["caption_to_image_r1"]["a"]
    assert found["caption_to_image_r1"]["verdict"] == "better"
    with pytest.raises(CapbenchError, match=r"wrong.npy holds outputs.*give --dataset"):
        app(["compare", *words], exit_on_error=False, print_error=False)
