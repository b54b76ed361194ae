"""The probe of encoders: its regression, its areas and their errors against oracles; its records and its page."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from capbench import leaderboard
from capbench.base.errors import CapbenchError
from capbench.cli import tools as cli
from capbench.data import datasets
from capbench.data.scenes import scenes
from capbench.evidence.probes import ProbeEntry, ProbeRecord, load_probes, save_probe
from capbench.leaderboard.encoders import render
from capbench.metrics.probe import (
    PENALTIES,
    STOP_WORDS,
    Seen,
    content_words,
    influence,
    probe,
    ridge,
    roc_areas,
    standard_error,
)
from capbench.tools.probe import probe_encoder, words_of_images
from capbench.vision.encoders import Encoder
from tests.test_leaderboard import NASTY, fake

RANDOM = np.random.default_rng(7)
SCORES = RANDOM.integers(0, 12, (60, 4)) / 4.0 + RANDOM.random((60, 1))  # with ties within each word
SCORES[30:] = SCORES[:30]
PRESENT = RANDOM.random((60, 4)) < (0.1, 0.3, 0.5, 0.8)
PRESENT[0], PRESENT[1] = True, False


def weighted_areas(scores: np.ndarray, present: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Each pair of an image with the word and one without it, by the product of their weights."""
    areas = []
    for of_word, here in zip(scores.T, present.T, strict=True):
        gap = of_word[here][:, None] - of_word[~here][None]
        pairs = weight[here][:, None] * weight[~here][None]
        areas.append(((gap > 0) + 0.5 * (gap == 0)) * pairs)
    return np.array([area.sum() for area in areas]) / [weight[here].sum() * weight[~here].sum() for here in present.T]


def test_the_regression_is_least_squares_with_a_penalty():
    x, y = RANDOM.normal(size=(40, 6)), RANDOM.random((40, 3)) < 0.4
    x -= x.mean(0)
    for penalty, found in zip((0.01, 3.0), ridge(x, y, (0.01, 3.0)), strict=True):
        rows = np.concatenate([x / np.sqrt(40), np.sqrt(penalty) * np.eye(6)])
        target = np.concatenate([(y - y.mean(0)) / np.sqrt(40), np.zeros((6, 3))])
        assert np.allclose(found, np.linalg.lstsq(rows, target, rcond=None)[0], atol=1e-12)


def test_an_area_is_the_share_of_pairs_in_order_with_ties_as_halves():
    areas = roc_areas(SCORES, PRESENT)
    assert np.allclose(areas, weighted_areas(SCORES, PRESENT, np.ones(60)), atol=1e-12)
    for word in range(4):
        here = PRESENT[:, word]
        found = mannwhitneyu(SCORES[here, word], SCORES[~here, word]).statistic
        assert areas[word] == pytest.approx(found / here.sum() / (~here).sum())


def test_the_influence_of_an_image_is_the_derivative_by_its_weight():
    found, step = influence(SCORES, PRESENT), 1e-6
    for image in range(60):
        nudge = step * np.eye(60)[image]
        up, down = (weighted_areas(SCORES, PRESENT, 1 + sign * nudge).mean() for sign in (1, -1))
        assert found[image] == pytest.approx(60 * (up - down) / (2 * step), abs=1e-7)
    assert found.sum() == pytest.approx(0, abs=1e-9)


def test_standard_errors_are_those_of_a_bootstrap_over_images():
    images = 400
    present = RANDOM.random((images, 5)) < 0.3
    strong = present * 1.5 + RANDOM.normal(size=present.shape)
    weak = strong + RANDOM.normal(size=present.shape)
    draws = [RANDOM.integers(0, images, images) for _ in range(600)]
    means = np.array([[roc_areas(s[rows], present[rows]).mean() for s in (strong, weak)] for rows in draws])
    of_strong, of_weak = influence(strong, present), influence(weak, present)
    assert standard_error(of_strong) == pytest.approx(means[:, 0].std(), rel=0.1)
    assert standard_error(of_strong - of_weak) == pytest.approx((means[:, 0] - means[:, 1]).std(), rel=0.1)


def seen(images: int, informative: bool) -> Seen:
    present = RANDOM.random((images, 3)) < 0.4
    noise = RANDOM.normal(size=(images, 20))
    noise[:, 19] = 5.0  # a feature that never varies
    if informative:
        noise[:, :3] += 40 * present
    return Seen(noise.astype(np.float32), present)


def test_words_that_the_features_spell_out_are_told_and_others_are_not():
    spelt = probe(seen(200, True), seen(100, True), seen(300, True))
    blind = probe(seen(200, False), seen(100, False), seen(300, False))
    assert spelt.area > 0.99
    assert abs(blind.area - 0.5) < 4 * standard_error(blind.influence)
    assert spelt.penalty in PENALTIES


def test_the_penalty_is_the_best_on_the_validation_images():
    train, val, test = seen(60, True), seen(80, True), seen(80, True)
    mean, deviation = train.features.mean(0, dtype=float), train.features.std(0, dtype=float)
    deviation[19] = 1

    def areas(split: Seen) -> list[float]:
        x = (train.features - mean) / deviation
        standard = (split.features - mean) / deviation
        return [roc_areas(standard @ w, split.present).mean() for w in ridge(x, train.present, PENALTIES)]

    best = int(np.argmax(areas(val)))
    found = probe(train, val, test)
    assert found.penalty == PENALTIES[best]
    assert found.area == pytest.approx(areas(test)[best], abs=1e-12)


def test_a_word_without_a_curve_is_refused():
    val, test = seen(50, True), seen(50, True)
    val.present[:, 1] = True
    with pytest.raises(CapbenchError, match="1 words are in all or in none of the validation images"):
        probe(seen(50, True), val, test)


def test_content_words_are_by_number_of_images_and_none_is_a_stop_word():
    images = [{"a", "dog", "red"}, {"the", "dog"}, {"cat", "is", "red", "dog"}]
    assert content_words(images) == ["dog", "red", "cat"]
    assert {"the", "is", "in", "under", "both"} <= STOP_WORDS
    assert not {"man", "two", "red", "standing", "top"} & STOP_WORDS


@pytest.fixture(scope="module")
def few():
    return scenes(seed=5, train=80, val=30, test=40)


def test_a_probe_of_scenes_is_recorded_read_back_and_shown(few, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAPBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "load_dataset", lambda name: few)
    folder = leaderboard.FOLDER
    papers = {"fake": fake(tmp_path / "p")}
    leaderboard.write(papers, folder)
    assert "No record yet." in (folder / "encoders.md").read_text()
    assert "[encoders](encoders.md), not yet measured." in (folder / "README.md").read_text()
    cli.probe(["scenes"], dataset="scenes", images=[40, 80])
    (record,) = load_probes(folder / "probes")
    assert [entry.images for entry in record.entries] == [40, 80]
    assert record.entries[-1].area == pytest.approx(np.mean(record.entries[-1].areas), abs=1e-4)
    assert record.entries[-1].area > 0.6
    assert len(record.entries[-1].influence) == 40
    assert record.dim == 512
    assert record.command == "capbench probe scenes --dataset scenes --view whole --images 40 80"
    assert f"scenes, 80 training images: {record.entries[-1].area:.4f}" in capsys.readouterr().out
    for words in (words_of_images(few.split(name)) for name in ("val", "test")):
        assert all(0 < sum(word in own for own in words) < len(words) for word in record.words)
    assert folder / "encoders.md" in leaderboard.check(papers, folder)
    leaderboard.write(papers, folder)
    assert leaderboard.check(papers, folder) == []
    assert f"| scenes | 512 | {record.entries[0].area:.4f}" in (folder / "encoders.md").read_text()
    assert "[encoders](encoders.md), on scenes." in (folder / "README.md").read_text()


def test_more_training_images_than_there_are_are_refused(few):
    with pytest.raises(CapbenchError, match="scenes has 80 training images, not 90; give --images"):
        probe_encoder(few, Encoder("scenes"), "whole", (10, 90))


def entry(area: float, shift: float) -> ProbeEntry:
    return ProbeEntry(
        images=1000, penalty=1.0, area=area, areas=(area,), influence=tuple(shift + np.array([0.1, -0.1, 0.2, -0.2]))
    )


def record(encoder: str, area: float, **changes) -> ProbeRecord:
    fields = {
        "dataset": "flickr8k", "dataset_fingerprint": "f", "encoder": encoder, "encoder_fingerprint": "e",
        "features_fingerprint": "v", "view": "whole", "dim": 1280, "words": ("dog",), "seed": 0,
        "entries": (entry(area, 0.0),), "commit": "0123456789abcdef", "dirty": False, "versions": {},
        "device": "CPU", "threads": 1, "started": "2026-01-01T00:00:00+00:00", "command": "capbench probe x",
    }  # fmt: skip
    return ProbeRecord.model_validate(fields | changes)


def text(*records: ProbeRecord) -> str:
    return render(records)["encoders.md"].decode().replace("\u00a0", " ")


def test_encoders_are_shown_best_first_with_their_paired_difference():
    shown = text(record("weak", 0.75), record("strong", 0.8))
    assert re.search(r"\| strong \| 1,280 \| 0\.8000 ± 0\.17\d+ \| – \|\n\| weak .* \| -0\.0500 ± 0\.0000 \|", shown)


def test_only_the_newest_record_of_an_encoder_counts_and_other_words_make_another_table():
    older = record("one", 0.7)
    newer = record("one", 0.8, started="2026-02-01T00:00:00+00:00")
    assert "0.7000" not in text(older, newer)
    other = record("two", 0.9, words=("cat",))
    assert text(newer, other).count("## flickr8k, view whole, 1 words") == 2


def test_a_record_of_a_dirty_tree_is_marked_and_nothing_in_it_is_markup(tmp_path):
    save_probe(record("one", 0.7, dirty=True), tmp_path)
    assert "(Caution: dirty tree)" in text(*load_probes(tmp_path))
    hostile = text(record(NASTY, 0.7, dataset=NASTY, view=NASTY, words=(NASTY,), command=NASTY, file="a).json"))
    assert "<script" not in hostile
    assert "a).json" not in hostile


def test_the_difference_of_two_encoders_is_of_the_same_images():
    area, error = entry(0.8, 0.0).ahead_of(entry(0.75, 0.3))
    assert area == pytest.approx(0.05)
    assert error == pytest.approx(0, abs=1e-12)
    assert entry(0.8, 0.0).standard_error == pytest.approx(np.std([0.1, -0.1, 0.2, -0.2], ddof=1) / 2)
