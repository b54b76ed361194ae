"""The captioners and what they share: steps equal forwards, runs resume, files and refusals."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from capbench.base.errors import CapbenchError, StoppedError
from capbench.captioners.experiment import (
    CaptioningExperiment,
    Ensemble,
    caption_images,
    cross_entropy,
    with_ensembles,
    word_log_probs,
)
from capbench.captioners.layers import AdditiveAttention, context
from capbench.data.scenes import scenes
from capbench.data.vocabulary import END, START, UNKNOWN, Vocabulary
from capbench.evidence.records import load_arrays, load_results
from capbench.metrics import captioning, jars
from capbench.metrics.jars import find_java
from capbench.runs import harness, loaded
from capbench.runs.harness import Places, run
from capbench.runs.job import Job, description
from capbench.runs.materials import Materials
from capbench.runs.paper import paper
from capbench.scoring.coco_results import read_results
from capbench.tools.caption import PANEL, Captioned, beam_of, captioner, captions_of, draw_attention, save_captions
from capbench.tools.drawing import font
from capbench.tools.pictures import look_at
from capbench.training.experiment import Evaluation
from reproductions.show_and_tell import make_model as show_and_tell
from reproductions.show_and_tell.recipe import presets as nic_presets
from reproductions.show_attend_tell.model import ShowAttendTell
from reproductions.show_attend_tell.recipe import AttentionRecipe
from reproductions.translational.model import Translator
from reproductions.translational.recipe import TranslatorRecipe

JAVA = find_java  # before a fixture hides it
VOCABULARY = Vocabulary(tuple(f"w{i}" for i in range(20)), (9,) * 20)
CAPTIONS = torch.tensor([[START, 5, 6, 7, END, 0], [START, 9, 8, 7, 6, END]])
DIM, LOCATIONS = 8, 9


def models():
    torch.manual_seed(0)
    nic = replace(nic_presets("flickr8k")["nic-ours"], embedding_dim=10, hidden_dim=12)
    yield "show and tell", show_and_tell(nic, VOCABULARY, DIM), (DIM,)
    for kind in ("soft", "hard", "none"):
        attend = AttentionRecipe(attention=kind, embedding_dim=10, hidden_dim=12, attention_dim=7)
        yield kind, ShowAttendTell(attend, len(VOCABULARY), DIM), (LOCATIONS, DIM)
    for decoder in ("lstm", "gru"):
        for attention, shape in ((True, (LOCATIONS, DIM)), (False, (DIM,))):
            translate = TranslatorRecipe(decoder=decoder, attention=attention, embedding_dim=10, hidden_dim=12)
            yield f"{decoder} {attention}", Translator(translate, VOCABULARY, DIM), shape


ALL = {name: (model.eval(), shape) for name, model, shape in models()}


@pytest.mark.parametrize("name", ALL)
def test_steps_give_what_the_forward_gives(name):
    model, shape = ALL[name]
    images = torch.randn(2, *shape)
    scores = model(images, CAPTIONS).log_softmax(-1)
    assert scores.shape == (2, 5, len(VOCABULARY))
    state, step = model.start(images), model.step(images)
    for t in range(5):
        log_probs, state = step(CAPTIONS[:, t, None], state)
        present = CAPTIONS[:, t] != 0
        assert torch.allclose(log_probs[present, 0], scores[present, t], atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_a_caption_does_not_depend_on_its_neighbours(name):
    model, shape = ALL[name]
    images = torch.randn(3, *shape)
    together = caption_images(model, images, 3, 2)
    alone = caption_images(model, images[1:2], 3, 2)
    assert torch.equal(together.words[1], alone.words[0])
    assert torch.allclose(together.log_probs[1], alone.log_probs[0], atol=1e-5)
    assert not (together.words == UNKNOWN).any()


@pytest.mark.parametrize("name", ALL)
def test_the_log_probability_of_a_caption_is_that_of_its_forward(name):
    model, shape = ALL[name]
    images = torch.randn(2, *shape)
    found = caption_images(model, images, 4)
    captions = torch.cat([torch.full((2, 1), START), found.words[:, 0]], 1)
    log_probs, _ = word_log_probs(model(images, captions), captions)
    assert torch.allclose(log_probs.sum(1), found.log_probs[:, 0], atol=1e-4)


def test_masked_cross_entropy_is_the_mean_over_words_by_hand():
    scores = torch.randn(2, 5, 12)
    captions = torch.tensor([[1, 4, 5, 2, 0, 0], [1, 7, 8, 9, 10, 2]])
    words = [
        -float(scores[row, t].double().log_softmax(0)[captions[row, t + 1]])
        for row, length in ((0, 3), (1, 5))
        for t in range(length)
    ]
    assert float(cross_entropy(scores, captions)) == pytest.approx(np.mean(words), rel=1e-5)


def test_attention_is_the_softmax_of_its_equation():
    torch.manual_seed(1)
    layer = AdditiveAttention(DIM, 5, 6)
    a, h = torch.randn(2, LOCATIONS, DIM), torch.randn(2, 3, 5)
    contexts, weights = layer.step(layer.keys(a), a, h)
    for image in range(2):
        for beam in range(3):
            e = torch.stack(
                [
                    layer.v.weight[0] @ torch.tanh(layer.W_a(a[image, i]) + layer.W_h.weight @ h[image, beam])
                    for i in range(LOCATIONS)
                ]
            )
            assert torch.allclose(weights[image, beam], e.softmax(0), atol=1e-6)
            by_hand = torch.stack([weights[image, beam, i] * a[image, i] for i in range(LOCATIONS)]).sum(0)
            assert torch.allclose(contexts[image, beam], by_hand, atol=1e-6)
            assert torch.allclose(context(weights, a)[image, beam], by_hand, atol=1e-6)


def test_an_ensemble_averages_probabilities():
    recipe = replace(nic_presets("flickr8k")["nic-ensemble-ours"], embedding_dim=10, hidden_dim=12, ensemble_size=2)
    model = with_ensembles(show_and_tell)(replace(recipe, ensemble_size=1), VOCABULARY, DIM).eval()
    both = show_and_tell(recipe, VOCABULARY, DIM).eval()
    assert isinstance(both, Ensemble)
    images = torch.randn(2, DIM)
    mean = torch.stack([member(images, CAPTIONS).softmax(-1) for member in both.members]).mean(0)
    assert torch.allclose(both(images, CAPTIONS).exp(), mean, atol=1e-6)
    for member in both.members:
        member.load_state_dict(model.state_dict())
    assert torch.equal(caption_images(both, images, 3).words, caption_images(model, images, 3).words)


# runs on a few scenes


@pytest.fixture(scope="module")
def few():
    return scenes(seed=5, train=60, val=15, test=20)


@pytest.fixture
def places(monkeypatch, tmp_path, few) -> Places:
    def tiny(name):
        original = paper(name)

        def presets(dataset):
            found = original.presets("scenes")
            return {key: small(recipe) for key, recipe in found.items()}

        def small(recipe):
            training = replace(recipe.training, epochs=min(2, recipe.training.epochs), batch_size=32)
            embedding_dim = None if getattr(recipe, "glove", False) else 16
            return replace(recipe, embedding_dim=embedding_dim, hidden_dim=16, training=training)

        return replace(original, presets=presets)

    for module in (harness, loaded):
        monkeypatch.setattr(module, "paper", tiny)
    for module in (jars, captioning):  # Java starts cost more than the runs; one test below has it
        monkeypatch.setattr(module, "find_java", lambda: None)
    monkeypatch.setattr("capbench.runs.materials.load_dataset", lambda name: few)
    monkeypatch.setenv("CAPBENCH_CACHE", str(tmp_path / "cache"))
    vectors = tmp_path / "glove.txt"
    vectors.write_text("circle" + " 0.25" * 50 + "\n")
    monkeypatch.setenv("CAPBENCH_GLOVE", str(vectors))
    return Places(tmp_path / "runs")


def record(name: str, preset: str, places: Places):
    job = Job(name, preset, "scenes", "scenes", 0)
    run(job, places, Materials(), lambda *_: None)
    return next(r for r in load_results(places.records) if r.preset == preset and r.paper == name)


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        *(("show_and_tell", preset) for preset in ("nic", "nic-ours", "nic-ensemble-ours")),
        *(("show_attend_tell", preset) for preset in ("soft-ours", "hard-ours", "none-ours", "soft", "hard")),
        *(("translational", preset) for preset in ("lstm", "gru", "lstm-released", "gru-released", "gru-augmented")),
    ],
)
def test_every_preset_trains_and_is_scored(name, preset, places, few):
    found = record(name, preset, places)
    assert 0 <= found.metrics["bleu4"] <= found.metrics["bleu1"] <= 100
    assert found.metrics["perplexity"] > 1
    assert "meteor" not in found.metrics
    assert any("no Java" in note for note in found.notes)
    arrays = load_arrays(found, places.records)
    assert arrays["captions"].shape[0] == len(few.split("test").image_index)
    assert arrays["bleu_beam1"].shape == (20, 10)
    if name == "show_attend_tell":
        assert 0 < found.metrics["pointing_chance"] < 50
    if name == "show_and_tell":
        recalls = [value for key, value in found.metrics.items() if key.endswith(("_r1", "_r5", "_r10"))]
        assert len(recalls) == 6
        assert found.metrics["rsum"] == pytest.approx(sum(recalls))
        assert arrays["caption_to_image"].shape == (len(few.split("test").caption_index),)
        assert not list(places.runs.rglob("scratch")), "unfinished work of a run that is recorded"
    if name == "translational":
        assert 0 <= found.metrics["article_accuracy"] <= 100


@pytest.mark.skipif(find_java() is None, reason="needs Java")
def test_with_java_a_record_has_meteor(places, monkeypatch):
    for module in (jars, captioning):
        monkeypatch.setattr(module, "find_java", JAVA)
    found = record("show_and_tell", "nic-ours", places)
    assert 0 <= found.metrics["meteor"] < 100  # a model of two epochs may write nothing that matches
    assert load_arrays(found, places.records)["meteor_statistics"].shape[0] == 20


@pytest.mark.parametrize(("name", "preset"), [("show_and_tell", "nic-ours"), ("show_attend_tell", "hard-ours")])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(name, preset, places, tmp_path, monkeypatch):
    whole = record(name, preset, places)
    other = Places(tmp_path / "again")
    job, steps = Job(name, preset, "scenes", "scenes", 0), iter(range(100))

    def stop_at_seven(*_: object) -> None:
        if next(steps) == 7:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StoppedError):
        run(job, other, Materials(), stop_at_seven)
    run(job, other, Materials(), lambda *_: None)
    (again,) = load_results(other.records)
    assert again.metrics == whole.metrics
    assert [e.loss for e in again.curve] == [e.loss for e in whole.curve]


def test_a_trained_run_captions_pictures_and_shows_where_it_looked(places, few, tmp_path):
    record("show_attend_tell", "soft-ours", places)
    folder = tmp_path / "album"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(few.images[i]).save(folder / f"{i}.png")
    (folder / "bad.png").write_bytes(b"<html>")
    model = captioner(None, places.runs)
    seen = look_at(model, folder)
    captioned = captions_of(model, seen, 4, 2)
    assert [entry.picture.name for entry in captioned] == ["0.png", "1.png", "2.png"]
    assert [path.name for path in seen.passed_over] == ["bad.png"]
    for entry in captioned:
        assert len(entry.captions) == 2
        assert entry.log_probs[0] >= entry.log_probs[1]
        for words, attention in zip(entry.captions, entry.attention, strict=True):
            assert len(words.split()) <= len(attention) <= len(words.split()) + 1
            assert attention.sum(1) == pytest.approx(1.0, abs=1e-4)
    draw_attention(captioned[0], tmp_path / "attention.png")
    with Image.open(tmp_path / "attention.png") as drawn:
        assert min(drawn.size) > 200
    save_captions(captioned, tmp_path / "results.json")
    names, captions = zip(*read_results(tmp_path / "results.json"), strict=True)
    assert list(captions) == [entry.captions[0] for entry in captioned]
    assert [Path(name).name for name, *_ in names] == ["0.png", "1.png", "2.png"]


def captioned_as(name, *attention):
    return Captioned(Path(name), "whole", ("a w1", "a w2"), (-1.0, -2.0), attention)


def test_results_have_the_numbers_of_coco_where_the_names_do_and_else_the_names(tmp_path):
    names = ("COCO_val2014_000000391895.jpg", os.fsdecode(b"caf\xe9_000000000042.jpg"), "000000000009.jpg")
    save_captions([captioned_as(name) for name in names], tmp_path / "r.json")
    assert [names[0] for names, _ in read_results(tmp_path / "r.json")] == [391895, 42, 9]
    rows = json.loads((tmp_path / "r.json").read_bytes())
    assert rows[1]["file_name"] == names[1]
    assert rows[1]["log_probs"] == [-1.0, -2.0]
    for other in ("1000268201_693b08cb0e.jpg", "val_000000000009.jpg"):  # no number of COCO's; a number twice
        save_captions([captioned_as(name) for name in (*names, other)], tmp_path / "r.json")
        entries = read_results(tmp_path / "r.json")
        assert [names[0] for names, _ in entries] == ["COCO_val2014_000000391895.jpg", *(n[0] for n, _ in entries[1:])]
        assert entries[-1] == ((other, other), "a w1")


def test_the_maps_of_attention_of_all_words_have_one_scale(tmp_path):
    """The first word looks at one corner alone, the second everywhere: its panel is dark, not bright."""
    Image.new("RGB", (64, 64), (100, 100, 100)).save(tmp_path / "grey.png")
    attention = np.array([[1.0, 0, 0, 0], [0.25] * 4, [0, 0, 0, 1.0]], np.float32)
    draw_attention(captioned_as(tmp_path / "grey.png", attention), tmp_path / "drawn.png")
    pixels = np.array(Image.open(tmp_path / "drawn.png")).astype(int)[..., 0]
    top = 12 + sum(font(17).getmetrics()) + 6
    panels = [pixels[top : top + PANEL, 12 + n * (PANEL + 12) :][:, :PANEL] for n in range(4)]
    lit, unlit, quarter = 0.35 * 100 + 0.65 * 255, 0.35 * 100, 0.35 * 100 + 0.65 * 255 / 4
    assert np.abs(panels[0] - 100).max() <= 1
    assert [panels[1][5, 5], panels[1][-5, -5]] == pytest.approx([lit, unlit], abs=2)
    assert np.abs(panels[2] - quarter).max() <= 2
    assert [panels[3][5, 5], panels[3][-5, -5]] == pytest.approx([unlit, lit], abs=2)
    assert (pixels[top + PANEL + 12 :] < 50).sum() > 500, "the scale and its name"


def test_there_is_no_attention_to_draw_for_a_model_without_it(tmp_path):
    with pytest.raises(CapbenchError, match="no attention to draw"):
        draw_attention(captioned_as("a.png"), tmp_path / "drawn.png")


def test_without_a_captioner_it_says_how_to_make_one(tmp_path):
    with pytest.raises(CapbenchError, match="capbench run show-attend-tell"):
        captioner(None, tmp_path)


def test_an_ensemble_joins_the_runs_of_consecutive_seeds(places):
    record("show_and_tell", "nic-ensemble-ours", places)
    folders = places.runs.glob("show_and_tell/nic-ours-scenes-*")
    seeds = {description(folder).job.seed for folder in folders}
    assert seeds == {0, 1, 2}
    assert paper("show_and_tell").recipe("nic-ensemble-ours", "scenes").ensemble_size == 3


def test_a_part_of_a_split_is_scored_on_its_own_captions(few, places):
    part = few.split("test").first(3)
    recipe = paper("show_and_tell").recipe("nic-ours", "scenes")
    inputs = Materials().inputs(Job("show_and_tell", "nic-ours", "scenes", "scenes", 0), recipe)
    made: Any = paper("show_and_tell").prepare(recipe, inputs, 0, torch.device("cpu"))
    numbers = np.concatenate([chunk for chunk, _, _ in made.teacher_forced(part)])
    assert sorted(numbers) == list(range(15))


def test_the_glove_preset_keeps_the_vectors_of_its_file(places, monkeypatch):
    found = record("translational", "lstm-glove", places)
    assert any(note.startswith("word vectors of 1 words from glove.txt, SHA-256") for note in found.notes)
    trained_run = captioner(places.runs / "translational" / "lstm-glove-scenes-scenes-s0", places.runs)
    vectors = trained_run.model.get_parameter("embed.weight")
    assert vectors.shape[1] == 50
    assert (vectors[trained_run.vocabulary.numbers["circle"]] == 0.25).all()
    monkeypatch.delenv("CAPBENCH_GLOVE")
    with pytest.raises(CapbenchError, match="set CAPBENCH_GLOVE"):
        record("translational", "gru-glove", places)


def test_a_finished_run_on_word_vectors_needs_their_file_no_more_and_another_file_is_another_run(places, monkeypatch):
    first = record("translational", "lstm-glove", places)
    assert first.recipe["embedding_dim"] == 50
    folder = places.runs / "translational" / "lstm-glove-scenes-scenes-s0"
    vectors = Path(os.environ["CAPBENCH_GLOVE"])
    with monkeypatch.context() as without:
        without.delenv("CAPBENCH_GLOVE")
        assert captioner(folder, places.runs).recipe.embedding_dim == 50
    vectors.write_text("circle" + " 0.5" * 20 + "\n")
    job = Job("translational", "lstm-glove", "scenes", "scenes", 0)
    assert captioner(folder, places.runs).recipe.embedding_dim == 50
    assert run(job, places, Materials(), lambda *_: None).trained
    assert captioner(folder, places.runs).recipe.embedding_dim == 20


def chooser(beam_size: int, choose_beam: bool, bleu4: dict[int, float]) -> CaptioningExperiment:
    """An experiment that finds these scores on validation, and 0 at other widths."""
    experiment = CaptioningExperiment.__new__(CaptioningExperiment)
    experiment.recipe = AttentionRecipe(attention="soft", beam_size=beam_size, choose_beam=choose_beam)
    scores = lambda beam_size: np.array([0, 0, 0, bleu4.get(beam_size, 0.0)])  # noqa: E731
    experiment.validation_bleu = scores  # type: ignore[method-assign]
    return experiment


def test_validation_chooses_the_narrowest_of_the_best_widths():
    beam, said = chooser(12, True, {2: 18.0, 4: 19.0, 7: 19.0}).chosen_beam()
    assert beam == said.metrics["beam"] == 4
    assert {key for key in said.metrics if key != "beam"} == {f"validation_bleu4_beam{n}" for n in (*range(1, 10), 12)}
    assert said.metrics["validation_bleu4_beam7"] == 19
    assert said.notes == ("beam: 4, the best of [1, 2, 3, 4, 5, 6, 7, 8, 9, 12] by BLEU-4 on validation",)
    assert chooser(12, True, {9: 18.0, 12: 18.1}).chosen_beam()[0] == 12


def test_a_recipe_may_fix_its_width():
    beam, said = chooser(3, False, {4: 19.0}).chosen_beam()
    assert beam == 3
    assert (said.metrics, said.notes) == ({"beam": 3.0}, ("beam: 3, of the recipe",))


def test_the_chosen_width_writes_the_captions_of_the_record_and_of_the_tool(places, monkeypatch):
    monkeypatch.setattr(CaptioningExperiment, "chosen_beam", lambda self: (2, Evaluation({"beam": 2.0}, {})))
    found = record("show_attend_tell", "soft-ours", places)
    arrays = load_arrays(found, places.records)
    assert arrays["captions"].shape[1] == 2  # as many as the beam has hypotheses
    assert np.array_equal(arrays["bleu_statistics"], arrays["bleu_beam2"])
    assert [found.metrics[f"bleu{n}_beam2"] for n in (1, 4)] == [found.metrics["bleu1"], found.metrics["bleu4"]]
    trained = captioner(None, places.runs)
    assert beam_of(trained) == 2
    for path in places.records.glob("*.json"):
        path.unlink()
    assert beam_of(captioner(None, places.runs)) == trained.recipe.beam_size == 5
