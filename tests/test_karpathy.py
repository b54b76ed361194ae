"""The alignment, its snippets and the generator of Karpathy & Fei-Fei, against their equations one word at a time."""

from __future__ import annotations

import signal
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import relu

from capbench.base.errors import CapbenchError, StoppedError
from capbench.captioners.experiment import Captioner, caption_images, word_log_probs
from capbench.data.scenes import scenes
from capbench.data.vocabulary import END, START, Vocabulary
from capbench.evidence.records import load_arrays, load_results
from capbench.runs import harness
from capbench.runs.harness import Places, run
from capbench.runs.job import Job
from capbench.runs.materials import Materials
from capbench.runs.paper import metric_of, paper
from capbench.tools.align import Aligner
from capbench.training.experiment import Inputs
from capbench.vision.encoders import Encoder
from capbench.vision.features import features
from reproductions.karpathy.alignment import AlignmentModel
from reproductions.karpathy.generator import MultimodalRNN
from reproductions.karpathy.objective import structured_margin
from reproductions.karpathy.recipe import VECTORS, AlignmentRecipe, GeneratorRecipe, presets, protocols
from reproductions.karpathy.snippets import snippets

VOCABULARY = Vocabulary(tuple(f"w{i}" for i in range(20)), (9,) * 20)
WORDS, DIM = len(VOCABULARY), 8
CAPTIONS, LENGTHS = torch.tensor([[5, 6, 7, 8], [9, 8, 0, 0], [4, 0, 0, 0]]), torch.tensor([4, 2, 1])
CPU = torch.device("cpu")
SCENES: dict[str, Any] = dict(presets("scenes"))


def alignment(**changes) -> AlignmentModel:
    torch.manual_seed(0)
    recipe = AlignmentRecipe(**{"embedding_dim": 11, "hidden_dim": 6, "word_dim": 5, "recurrent_init": 0.5, **changes})
    model = AlignmentModel(recipe, WORDS, DIM)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval().double().requires_grad_(False)


def generator(**changes) -> MultimodalRNN:
    torch.manual_seed(0)
    model = MultimodalRNN(GeneratorRecipe(**{"hidden_dim": 12, "word_dim": 10, **changes}), WORDS, DIM)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval().requires_grad_(False)


def words_by_the_equations(model: AlignmentModel, words: torch.Tensor) -> torch.Tensor:
    """Equations 2 to 6 for one caption, a word at a time."""
    x = [model.W_w.weight[word] for word in words]
    e = [relu(model.W_e.weight @ x_t + model.W_e.bias) for x_t in x]
    (w_f, w_b), (b_f, b_b) = model.W_fb, model.b_fb[:, 0]
    forward, backward = [torch.zeros(6).double()], [torch.zeros(6).double()]
    for e_t in e:
        forward.append(relu(e_t + w_f @ forward[-1] + b_f))
    for e_t in reversed(e):
        backward.append(relu(e_t + w_b @ backward[-1] + b_b))
    h = [f + b for f, b in zip(forward[1:], backward[:0:-1], strict=True)]
    return torch.stack([relu(model.W_d.weight @ h_t + model.W_d.bias) for h_t in h])


def test_words_are_embedded_as_the_equations_say():
    model = alignment()
    s = model.embed_words(CAPTIONS, LENGTHS)
    for caption, length, found in zip(CAPTIONS, LENGTHS, s, strict=True):
        assert torch.allclose(found[:length], words_by_the_equations(model, caption[:length]))


def test_the_score_is_the_sum_over_words_of_the_best_region():
    model, regions = alignment(), torch.randn(2, 3, DIM).double()
    v = torch.stack([model.W_m(own) for own in regions])
    scores = model(regions, CAPTIONS, LENGTHS)
    for image in range(2):
        for caption, length in enumerate(LENGTHS.tolist()):
            s = words_by_the_equations(model, CAPTIONS[caption, :length])
            best = sum(max(float(v_i @ s_t) for v_i in v[image]) for s_t in s)
            assert float(scores[image, caption]) == pytest.approx(best)


@pytest.mark.parametrize("changes", [{}, {"recurrent": False}, {"recurrent": False, "window": 1}, {"form": "sum"}])
def test_what_follows_a_caption_changes_nothing(changes):
    model, regions = alignment(**changes), torch.randn(2, 3, DIM).double()
    other = CAPTIONS.masked_fill(CAPTIONS == 0, 7)
    assert torch.equal(model(regions, CAPTIONS, LENGTHS), model(regions, other, LENGTHS))
    longer = torch.cat([CAPTIONS, CAPTIONS], 1)
    assert torch.allclose(model(regions, CAPTIONS, LENGTHS), model(regions, longer, LENGTHS))


@pytest.mark.parametrize(("changes", "reach"), [({"recurrent": False}, 0), ({"recurrent": False, "window": 1}, 1)])
def test_without_recurrence_a_word_knows_its_window_alone(changes, reach):
    model = alignment(**changes)
    other = CAPTIONS.clone()
    other[0, 0] = 12
    moved = (model.embed_words(CAPTIONS, LENGTHS) != model.embed_words(other, LENGTHS)).any(2)[0]
    assert moved.tolist() == [place <= reach for place in range(4)]


def test_with_recurrence_every_word_knows_the_whole_caption():
    model = alignment()
    other = CAPTIONS.clone()
    other[0, 0] = 12
    assert (model.embed_words(CAPTIONS, LENGTHS) != model.embed_words(other, LENGTHS)).any(2)[0].all()


def test_the_margin_loss_by_hand():
    scores = torch.tensor([[3.0, 2.5, 0.0], [1.0, 2.0, 1.5], [0.0, 1.2, 1.0]])
    # pair 0: caption 1 by 0.5; pair 1: captions 0 and 2 by 0 and 0.5, images 0 and 2 by 1.5 and 0.2;
    # pair 2: captions 0 and 1 by 0 and 1.2, images 0 and 1 by 0 and 1.5
    assert float(structured_margin(scores, torch.tensor([0, 1, 2]), 1.0)) == pytest.approx(0.5 + 2.2 + 2.7)
    # of one image, pairs 1 and 2 are no negatives of each other
    assert float(structured_margin(scores, torch.tensor([0, 1, 1]), 1.0)) == pytest.approx(0.5 + 1.5 + 0.0)


def test_the_gradient_of_the_cost_is_that_of_equations_1_to_9():
    model, regions = alignment().requires_grad_(True), torch.randn(3, 4, DIM).double()

    def by_the_equations() -> torch.Tensor:
        v = [own @ model.W_m.weight.T + model.W_m.bias for own in regions]  # equation 1
        s = [words_by_the_equations(model, c[:n]) for c, n in zip(CAPTIONS, LENGTHS, strict=True)]  # 2 to 6
        S = torch.stack([torch.stack([(s_l @ v_k.T).max(1).values.sum() for s_l in s]) for v_k in v])  # noqa: N806 (8)
        k = range(3)
        captions = sum(relu(S[i, j] - S[i, i] + 1) for i in k for j in k if i != j)
        images = sum(relu(S[j, i] - S[i, i] + 1) for i in k for j in k if i != j)
        return torch.as_tensor(captions + images)  # equation 9

    expected = by_the_equations()
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(expected, list(parameters.values()))
    cost = structured_margin(model(regions, CAPTIONS, LENGTHS), torch.arange(3), 1.0)
    cost.backward()
    assert torch.allclose(cost, expected, rtol=1e-12)
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        assert gradient.abs().max() > 0, name
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, gradient, atol=1e-10), name


@pytest.mark.parametrize("shared", [False, True])
def test_dropout_takes_features_from_each_region_or_the_same_from_all_regions_of_an_image(shared):
    model = alignment(dropout=0.5, shared_mask=shared).train()
    model.register_module("W_m", torch.nn.Identity())
    kept = model.embed_regions(torch.ones(5, 6, DIM).double()) != 0
    assert 0 < float(kept.double().mean()) < 1
    assert torch.equal(kept, kept[:, :1].expand_as(kept)) == shared
    assert not torch.equal(kept, kept[:1].expand_as(kept))


@pytest.mark.parametrize(
    "changes", [{}, {"cell": "lstm"}, {"feed_image": "always"}, {"cell": "lstm", "feed_image": "always"}]
)
def test_steps_of_the_generator_give_what_its_forward_gives(changes):
    model, images = generator(**changes), torch.randn(2, DIM)
    captions = torch.tensor([[START, 5, 6, 7, END, 0], [START, 9, 8, 7, 6, END]])
    scores = model(images, captions).log_softmax(-1)
    state, step = model.start(images), model.step(images)
    for t in range(5):
        log_probs, state = step(captions[:, t, None], state)
        present = captions[:, t] != 0
        assert torch.allclose(log_probs[present, 0], scores[present, t], atol=1e-5)
    found = caption_images(model, images, 4)
    written = torch.cat([torch.full((2, 1), START), found.words[:, 0]], 1)
    log_probs, _ = word_log_probs(model(images, written), written)
    assert torch.allclose(log_probs.sum(1), found.log_probs[:, 0], atol=1e-4)


def test_the_rnn_is_that_of_the_equations():
    model, image = generator(), torch.randn(1, DIM)
    captions = torch.tensor([[START, 5, 6, END]])
    h, b_v = torch.zeros(12), model.W_hi.weight @ image[0]
    for t, word in enumerate(captions[0, :-1]):
        x = model.W_hx.weight @ model.words.weight[word] + model.W_hx.bias
        h = relu(x + model.W_hh.weight @ h + (b_v if t == 0 else 0))
        y = model.W_oh.weight @ h + model.W_oh.bias
        assert torch.allclose(model(image, captions)[0, t], y, atol=1e-5)


def test_the_lstm_has_gates_in_the_order_input_forget_output_candidate_and_the_image_at_the_first_step():
    model, image = generator(cell="lstm"), torch.randn(1, DIM)
    captions = torch.tensor([[START, 5, 6, END]])
    h, c, b_v = torch.zeros(12), torch.zeros(12), model.W_hi.weight @ image[0]
    for t, word in enumerate(captions[0, :-1]):
        x = model.W_hx.weight @ model.words.weight[word] + model.W_hx.bias
        i, f, o, g = (x + model.W_hh.weight @ h + (b_v if t == 0 else 0)).split(12)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        y = model.W_oh.weight @ h + model.W_oh.bias
        assert torch.allclose(model(image, captions)[0, t], y, atol=1e-5)


@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_the_image_is_seen_at_the_first_step_and_remembered(cell):
    model = generator(cell=cell)
    captions = torch.tensor([[START, 5, 6, END]])
    one, other = (model(torch.randn(1, DIM), captions) for _ in range(2))
    assert (one != other).any(2).all()  # through the state at the later steps
    state, step = model.start(torch.randn(1, DIM)), model.step(torch.randn(1, DIM))
    assert state["bias"].any()
    _, state = step(torch.tensor([[START]]), state)
    assert not state["bias"].any()


def test_of_the_regions_of_a_picture_the_generator_takes_the_whole_image():
    model, regions = generator(), torch.randn(2, 20, DIM)
    whole = caption_images(model, regions[:, 0], 3)
    assert torch.equal(caption_images(model, regions, 3).words, whole.words)


def test_before_training_words_are_as_likely_as_they_are_frequent():
    model = generator()
    counts = torch.arange(WORDS)
    model.expect(counts)
    torch.nn.init.zeros_(model.W_oh.weight)
    y = model(torch.randn(1, DIM), torch.tensor([[START, END]]))[0, 0].softmax(0)
    assert torch.allclose(y[1:], counts[1:] / counts.sum(), atol=2e-3)


def test_the_models_can_be_used_where_aligners_and_captioners_are_asked_for():
    assert isinstance(alignment(), Aligner)
    assert isinstance(generator(), Captioner)
    assert not isinstance(generator(), Aligner)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Inputs:
    dataset = scenes(train=60, val=10, test=10)
    store = tmp_path_factory.mktemp("store")
    stored = features(dataset, Encoder("scenes", "regions"), region_provider="objects", store=store)
    vocabulary = Vocabulary.build(dataset.split("train").tokens, 2)
    return Inputs(dataset, Encoder("scenes", "regions"), stored, vocabulary)


@torch.no_grad()
def test_snippets_are_the_runs_of_words_with_one_region(inputs):
    recipe = SCENES["brnn-ours"]
    experiment: Any = paper("karpathy").prepare(recipe, inputs, 0, CPU)
    part = inputs.dataset.split("val")
    encoded = inputs.encoded("val")
    for beta in (0.0, 1e6):
        found = list(snippets(experiment, part, beta))
        assert [word for snippet in found for word in snippet.words[1:-1]] == [w for c in encoded for w in c[1:-1]]
        assert all(snippet.words[0] == START and snippet.words[-1] == END for snippet in found)
        if beta:
            assert len(found) == len(encoded)  # all of a caption's words share one region
    by_word = [region for s in snippets(experiment, part, 0.0) for region in [s.region] * (len(s.words) - 2)]
    best = [
        int(own.argmax())
        for _, scores, lengths in experiment.word_scores(part)
        for row, length in zip(scores, lengths, strict=True)
        for own in row[:length]
    ]
    assert by_word == best


@torch.no_grad()
def test_scores_of_words_are_products_with_the_regions_of_their_own_image(inputs):
    experiment: Any = paper("karpathy").prepare(SCENES["brnn-ours"], inputs, 0, CPU)
    experiment.model.eval()
    part = inputs.dataset.split("test")
    for numbers, scores, lengths in experiment.word_scores(part):
        for row, caption in enumerate(numbers[:20]):
            image = part.image_index[part.image_of_caption[caption]]
            v = experiment.model.embed_regions(torch.tensor(inputs.features.array[image])[None])[0]
            words = torch.tensor([inputs.encoded("test")[caption][1:-1]])
            s = experiment.model.embed_words(words, torch.tensor([words.shape[1]]))[0]
            assert torch.allclose(scores[row, : int(lengths[row])], s @ v.T, atol=1e-4)


@torch.no_grad()
def test_a_caption_without_a_word_is_scored_and_counted(inputs):
    plain = replace(inputs, dataset=replace(inputs.dataset, phrases=None))
    experiment: Any = paper("karpathy").prepare(SCENES["brnn-ours"], plain, 0, CPU)
    plain.encoded("val")[3] = [START, END]
    evaluation = experiment.validate()
    assert len(evaluation.arrays["caption_to_image"]) == len(plain.encoded("val"))
    assert evaluation.metrics.keys().isdisjoint({"pointing"})


def test_what_is_written_about_true_boxes_is_set_against_the_phrases_that_name_them_and_summed_by_image(
    inputs, monkeypatch
):
    experiment: Any = paper("karpathy").prepare(SCENES["rnn-ours"], inputs, 0, CPU)
    part = inputs.dataset.split("test")
    found = experiment.on_regions(part)
    assert {"region_bleu1", "region_bleu2", "region_bleu3", "region_bleu4"} == found.metrics.keys()
    assert inputs.dataset.phrases is not None
    named = Counter(
        image
        for image, _ in {
            (int(image), phrase.boxes[0])
            for caption, image in zip(part.caption_index, part.image_of_caption, strict=True)
            for phrase in inputs.dataset.phrases[caption]
            if len(phrase.boxes) == 1
        }
    )
    one_each = lambda written, _: np.ones((len(written), 10), np.int64)  # noqa: E731
    monkeypatch.setattr("reproductions.karpathy.generation.bleu_statistics", one_each)
    by_image = experiment.on_regions(part).arrays["region_bleu_statistics"]
    assert by_image[:, 0].tolist() == [named[image] for image in range(len(part.image_index))]


def test_fixed_word_vectors_come_from_a_file_and_stay_as_they_are(inputs, tmp_path, monkeypatch):
    recipe = SCENES["brnn-vectors-ours"]
    for variable in VECTORS:
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(CapbenchError, match=VECTORS[0]):
        paper("karpathy").prepare(recipe, inputs, 0, CPU)
    word = next(iter(inputs.vocabulary.words))
    file = tmp_path / "vectors.txt"
    file.write_text(f"{word} 0.25 0.25 0.25\n")
    monkeypatch.setenv(VECTORS[0], str(file))
    experiment: Any = paper("karpathy").prepare(recipe, inputs, 0, CPU)
    assert experiment.model.W_w.weight.shape == (len(inputs.vocabulary), 3)
    assert (experiment.model.W_w.weight[inputs.vocabulary.numbers[word]] == 0.25).all()
    before = experiment.model.W_w.weight.clone()
    optimizer = torch.optim.SGD(experiment.model.parameters(), 0.1)
    experiment.loss(np.arange(20), 0).backward()
    optimizer.step()
    assert torch.equal(experiment.model.W_w.weight, before)
    assert "vectors.txt" in experiment.notes[0]


def test_alignments_and_generators_are_chosen_and_scored_by_metrics_of_their_own():
    owner = paper("karpathy")
    assert metric_of(owner, {}) == "rsum"
    assert metric_of(owner, vars(presets("coco")["rnn-ours"])) == "log_likelihood"
    assert protocols("coco", presets("coco")["brnn-ours"]) == ("1K", "5K")
    assert protocols("coco", presets("coco")["rnn-ours"]) == ("1K",)
    assert protocols("flickr8k", presets("flickr8k")["brnn-ours"]) == ("whole",)


@pytest.fixture
def short(tmp_path, monkeypatch) -> None:
    """Two epochs on few scenes."""
    monkeypatch.setenv("CAPBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("capbench.runs.materials.load_dataset", lambda name: scenes(train=60, val=10, test=10))
    shorter = {
        name: replace(recipe, training=replace(recipe.training, epochs=2, batch_size=50))
        for name, recipe in presets("scenes").items()
    }
    monkeypatch.setattr("reproductions.karpathy.generation.presets", lambda dataset: shorter)
    owner = replace(paper("karpathy"), presets=lambda dataset: shorter)
    monkeypatch.setattr(harness, "paper", lambda name: owner)
    monkeypatch.setattr("capbench.runs.loaded.paper", lambda name: owner)


@pytest.mark.parametrize("preset", ["brnn-ours", "rnn-regions-ours", "rnn-released"])
@pytest.mark.usefixtures("short")
def test_a_run_that_was_stopped_and_resumed_has_the_bits_of_one_that_was_not(preset, tmp_path):
    def stop(job, state, batches):
        if job.preset == preset and state.steps == 4:
            signal.raise_signal(signal.SIGTERM)

    job, found = Job("karpathy", preset, "scenes", "scenes", 3), []
    for place in ("whole", "stopped"):
        places = Places(tmp_path / place / "runs")
        if place == "stopped":
            with pytest.raises(StoppedError):
                run(job, places, Materials(), stop)
        run(job, places, Materials(), lambda *_: None)
        record = next(r for r in load_results(places.records) if r.preset == preset)
        found.append((record.metrics, load_arrays(record, places.records)))
        assert record.peak_memory_bytes is None or record.peak_memory_bytes > 0
    assert found[0][0] == found[1][0]
    assert all(np.array_equal(found[0][1][name], found[1][1][name]) for name in found[0][1])
    expected = {"brnn-ours": "pointing", "rnn-regions-ours": "region_bleu1", "rnn-released": "bleu4"}[preset]
    assert expected in found[0][0]
