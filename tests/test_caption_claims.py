"""The captioners' claims and verdicts on made-up records whose outcome is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from capbench.data.datasets import SOURCES
from capbench.evidence.records import save_result
from capbench.evidence.results import Results
from capbench.evidence.verdicts import advantage
from capbench.metrics.captioning import bleu, bleu_statistics, bootstrap_corpus
from capbench.runs.paper import papers
from reproductions.karpathy import PAPER as DVSA
from reproductions.show_and_tell import PAPER as NIC
from reproductions.show_attend_tell import PAPER as SAT
from tests.made_up import made_up_record
from tests.test_verdicts import judge, number

FLICKR8K = SOURCES["flickr8k"].fingerprint
REFERENCES = [[f"a dog {i} runs over the green grass with a ball"] for i in range(60)]
GOOD = [f"a dog {i} runs over the green grass" for i in range(60)]
BAD = [f"a dog {i} sits on the green grass" for i in range(60)]


def counts(sentences: list[str]) -> np.ndarray:
    return bleu_statistics(sentences, REFERENCES)


def run(folder: Path, paper: str, preset: str, arrays: dict[str, np.ndarray], seed: int = 0, **metrics: float) -> None:
    for name, values in arrays.items():
        if name == "bleu_as_written_statistics":
            metrics["bleu4_as_written_no_bp"] = float(bleu(values.sum(0), brevity_penalty=False)[3])
        elif name.startswith("bleu_"):
            key = "bleu4" if name == "bleu_statistics" else f"bleu4_{name[5:]}"
            metrics[key] = float(bleu(values.sum(0))[3])
    record = made_up_record(
        paper=paper, preset=preset, view="whole", seed=seed, metrics=metrics, dataset_fingerprint=FLICKR8K
    )
    save_result(record, arrays, folder)


def claim(paper, name: str, folder: Path):
    (found,) = [claim for claim in paper.claims if claim.name == name]
    return found.test(Results.load(folder, paper.name))


def test_every_claim_is_pending_without_records(tmp_path):
    for paper in papers().values():
        for one in paper.claims:
            assert one.test(Results(tmp_path, ())).status == "pending", one.name


def test_a_wide_beam_that_writes_better_captions_holds_and_the_curve_is_shown(tmp_path):
    beams = {f"bleu_beam{n}": counts(BAD if n < 4 else GOOD) for n in (*range(1, 10), 20)}
    for seed in range(2):
        run(tmp_path, "show_and_tell", "nic-ours", {"bleu_statistics": counts(GOOD), **beams}, seed)
    assert claim(NIC, "beam", tmp_path).status == "holds"
    curve = claim(NIC, "width of the beam", tmp_path)
    assert curve.status == "holds"
    assert "best at 4" in curve.statement


def test_the_beam_of_20_is_pending_without_one_and_the_curve_goes_as_far_as_it_was_searched(tmp_path):
    beams = {f"bleu_beam{n}": counts(BAD if n < 4 else GOOD) for n in range(1, 10)}
    run(tmp_path, "show_and_tell", "nic-ours", {"bleu_statistics": counts(GOOD), **beams})
    found = claim(NIC, "beam", tmp_path)
    assert found.status == "pending"
    assert "a beam of 20" in found.statement
    assert "20:" not in claim(NIC, "width of the beam", tmp_path).detail


def test_an_ensemble_that_is_no_better_is_undecided(tmp_path):
    run(tmp_path, "show_and_tell", "nic-ours", {"bleu_statistics": counts(GOOD)})
    run(tmp_path, "show_and_tell", "nic-ensemble-ours", {"bleu_statistics": counts(GOOD)})
    assert claim(NIC, "ensemble", tmp_path).status == "undecided"


@pytest.mark.parametrize(("soft", "none", "status"), [(GOOD, BAD, "holds"), (BAD, GOOD, "fails")])
def test_attention_against_none(tmp_path, soft, none, status):
    run(tmp_path, "show_attend_tell", "soft-ours", {"bleu_as_written_statistics": counts(soft)})
    run(tmp_path, "show_attend_tell", "none-ours", {"bleu_as_written_statistics": counts(none)})
    assert claim(SAT, "attention", tmp_path).status == status


def test_a_claim_is_pending_on_records_that_are_not_scored_by_its_rule(tmp_path):
    for preset in ("soft-ours", "none-ours"):
        run(tmp_path, "show_attend_tell", preset, {"bleu_statistics": counts(GOOD)})
    assert claim(SAT, "attention", tmp_path).status == "pending"


def test_the_advantage_in_bleu_is_the_difference_of_corpus_values(tmp_path):
    run(tmp_path, "show_attend_tell", "soft-ours", {"bleu_statistics": counts(GOOD)})
    run(tmp_path, "show_attend_tell", "none-ours", {"bleu_statistics": counts(BAD)})
    both = Results.load(tmp_path)
    found = advantage(both.select(preset="soft-ours"), both.select(preset="none-ours"), "bleu4")
    expected = float(bleu(counts(GOOD).sum(0))[3] - bleu(counts(BAD).sum(0))[3])
    assert found.mean == pytest.approx(expected)
    assert found.low <= expected <= found.high


def test_one_run_is_judged_in_bleu_by_the_bootstrap_over_its_images(tmp_path):
    run(tmp_path, "vsepp", "vsepp", {"bleu_statistics": counts(GOOD)})
    found = judge(number("1.0", "bleu4", dataset="flickr8k"), Results.load(tmp_path), "vsepp")
    expected = bootstrap_corpus(counts(GOOD), lambda sums: bleu(sums)[..., 3])
    assert found.interval == expected
    assert found.status == "exceeds"


def test_a_fraction_of_a_paper_is_compared_on_our_scale(tmp_path):
    assert number("0.943", "cider", unit="fraction").number == pytest.approx(94.3)
    assert number("23.7", "meteor", unit="x100").number == 23.7


def test_the_tables_of_the_captioners_keep_the_digits_of_the_papers():
    def of(preset: str) -> dict[str, str]:
        rows = (row for row in SAT.reported if row.preset == preset and row.dataset == "flickr8k")
        return {row.metric.removesuffix("_no_bp").removesuffix("_as_written"): row.value for row in rows}

    assert of("soft") == {"bleu1": "67", "bleu2": "44.8", "bleu3": "29.9", "bleu4": "19.5", "meteor": "18.93"}
    assert of("hard") == {"bleu1": "67", "bleu2": "45.7", "bleu3": "31.4", "bleu4": "21.3", "meteor": "20.30"}
    targets = [row for row in SAT.reported if row.role == "target"]
    assert {row.metric for row in targets} == {*(f"bleu{n}_as_written_no_bp" for n in "1234"), "meteor_as_written"}
    nic = [row for row in NIC.reported if row.role == "target" and row.dataset == "flickr8k" and row.metric == "bleu1"]
    assert [row.value for row in nic] == ["63"]


def scene_run(
    folder: Path, preset: str, arrays: dict[str, np.ndarray], seed: int, curve: tuple[float, ...] = ()
) -> None:
    """A record on scenes whose validation pointing went along `curve`."""
    metrics = {name: float(values.mean()) for name, values in arrays.items() if name.startswith("pointing")}
    if "region_bleu_statistics" in arrays:
        metrics |= {f"region_bleu{n}": float(bleu(arrays["region_bleu_statistics"].sum(0))[n - 1]) for n in (1, 2)}
    epochs = [
        {"epoch": n, "loss": 1.0, "learning_rate": 1.0, "seconds": 1.0, "validation": {"pointing": value}}
        for n, value in enumerate(curve)
    ]
    seen = {"encoder": "scenes", "view": "whole", "region_provider": "objects"}
    run = {"paper": "karpathy", "preset": preset, "dataset": "scenes", "seed": seed, "metrics": metrics, **seen}
    save_result(made_up_record(**run, best_epoch=max(0, len(curve) - 1), curve=epochs), arrays, folder)


@pytest.mark.parametrize(("ours", "theirs", "status"), [(GOOD, BAD, "holds"), (BAD, GOOD, "fails")])
def test_what_is_written_about_regions_is_compared_over_the_same_images(tmp_path, ours, theirs, status):
    for preset, sentences in (("rnn-regions-ours", ours), ("rnn-ours", theirs)):
        scene_run(tmp_path, preset, {"region_bleu_statistics": counts(sentences)}, 0)
    assert claim(DVSA, "regions", tmp_path).status == status


@pytest.mark.parametrize(("hits", "status"), [(80.0, "holds"), (10.0, "fails")])
def test_pointing_is_set_against_the_chance_of_the_same_phrases(tmp_path, hits, status):
    random = np.random.default_rng(0)
    hit = 100.0 * (random.random(400) < hits / 100)
    arrays = {"pointing": hit, "pointing_chance": np.full(400, 30.0), "image_of_phrase": np.arange(400) // 4}
    scene_run(tmp_path, "brnn-ours", arrays, 0)
    assert claim(DVSA, "alignment", tmp_path).status == status


@pytest.mark.parametrize(
    ("curves", "status"),
    [
        ([(50.0, 70.0), (52.0, 71.0), (51.0, 73.0)], "holds"),
        ([(70.0, 50.0), (71.0, 52.0), (73.0, 51.0)], "fails"),
        ([(50.0, 55.0), (55.0, 50.0), (50.0, 50.0)], "undecided"),
        ([(50.0, 70.0)], "pending"),
        ([(50.0,), (51.0,)], "pending"),
    ],
)
def test_pointing_grows_where_the_kept_snapshot_is_better_than_the_first_in_all_seeds(tmp_path, curves, status):
    for seed, curve in enumerate(curves):
        scene_run(tmp_path, "brnn-ours", {"pointing": np.array([100.0, 0.0])}, seed, curve)
    assert claim(DVSA, "learning to point", tmp_path).status == status
