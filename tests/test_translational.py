"""The translational grid against the released code's equations, written anew here in float64 (Source_Code.py)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from nltk.translate.bleu_score import sentence_bleu
from torch import Tensor

from capbench.data.scenes import scenes
from capbench.data.vocabulary import END, PAD, START, Vocabulary
from capbench.runs.job import Job
from capbench.runs.materials import Materials
from capbench.runs.paper import paper
from capbench.training.loop import learning_rate
from reproductions.translational.experiment import WIDTH, TranslationalExperiment, objective, sentence
from reproductions.translational.model import Translator
from reproductions.translational.recipe import ADAM, TranslatorRecipe

VOCABULARY = Vocabulary(tuple(f"w{i}" for i in range(8)), (9,) * 8)
DIM, LOCATIONS, HIDDEN = 6, 5, 7
WORDS = [[START, 4, 5, 6, END], [START, 7, END], [START, 8, 9, 10, 11, 4, END]]


def padded(width: int) -> Tensor:
    return torch.tensor([words + [PAD] * (width - len(words)) for words in WORDS])


def model(decoder: Literal["lstm", "gru"], attention: bool) -> Translator:
    torch.manual_seed(3)
    recipe = TranslatorRecipe(decoder=decoder, attention=attention, embedding_dim=4, hidden_dim=HIDDEN)
    return Translator(recipe, VOCABULARY, DIM).double().train()


def images(attention: bool) -> Tensor:
    shape = (len(WORDS), LOCATIONS, DIM) if attention else (len(WORDS), DIM)
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def encoded(net: Translator, seen: Tensor) -> Tensor:
    """The linear layer and the batch normalisation of EncoderCNN, over all vectors of a batch."""
    rows = seen.reshape(-1, DIM) @ net.encode.weight.T + net.encode.bias
    centred = rows - rows.mean(0)
    normal = centred / (centred.square().mean(0) + 1e-5).sqrt()
    return (normal * net.normalise.weight + net.normalise.bias).reshape(*seen.shape[:-1], -1)


def next_state(net: Translator, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step of torch's LSTM or GRU cell; c is unused by the latter."""
    of_x = x @ net.cell.weight_ih.T + net.cell.bias_ih
    of_h = h @ net.cell.weight_hh.T + net.cell.bias_hh
    if net.recipe.decoder == "lstm":
        i, f, g, o = (of_x + of_h).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    (r_x, z_x, n_x), (r_h, z_h, n_h) = of_x.chunk(3, 1), of_h.chunk(3, 1)
    z = (z_x + z_h).sigmoid()
    return (1 - z) * (n_x + (r_x + r_h).sigmoid() * n_h).tanh() + z * h, c


def log_probs(net: Translator, seen: Tensor, captions: Tensor) -> Tensor:
    """The decoders' forward on `captions_train`: the image at the first step, a word at each other.

    With attention, which the text describes and the release lacks, the input is joined by the context of the state.
    """
    v = encoded(net, seen)
    h = c = v.new_zeros(len(captions), HIDDEN)
    outputs = []
    for t in range(captions.shape[1]):
        image = v if v.ndim == 2 else v.sum(1) / v.shape[1]
        x = image if t == 0 else net.embed.weight[captions[:, t]]
        if net.attention is not None:
            of_image, of_state = v @ net.attention.W_a.weight.T + net.attention.W_a.bias, h @ net.attention.W_h.weight.T
            e = ((of_image + of_state[:, None]).tanh() * net.attention.v.weight).sum(2)
            alpha = e.exp() / e.exp().sum(1, keepdim=True)
            x = torch.cat([x, (alpha[:, :, None] * v).sum(1)], 1)
        h, c = next_state(net, x, h, c)
        outputs.append(h @ net.word.weight.T + net.word.bias)
    scores = torch.stack(outputs, 1)
    return scores - scores.exp().sum(2, keepdim=True).log()


def compute_loss(log_p: Tensor, target: Tensor, length: Tensor) -> Tensor:
    """As the release: `length` counts START, which `target` is without, so that a step of padding is counted."""
    losses = -log_p.gather(2, target[:, :, None])[:, :, 0]
    mask = torch.arange(target.shape[1]) < length[:, None]
    return (losses * mask).sum() / length.sum()


@pytest.mark.parametrize("decoder", ["lstm", "gru"])
@pytest.mark.parametrize("attention", [False, True])
def test_loss_and_gradients_are_those_of_the_released_code(decoder, attention):
    net, seen, wide = model(decoder, attention), images(attention), padded(WIDTH)
    released = compute_loss(log_probs(net, seen, wide[:, :-1]), wide[:, 1:], (wide != PAD).sum(1))
    parameters = dict(net.named_parameters())
    theirs = torch.autograd.grad(released, list(parameters.values()))
    loss = objective(net, seen, padded(7))
    assert float(loss.detach()) == pytest.approx(float(released.detach()), abs=1e-12)
    loss.backward()
    for (name, parameter), gradient in zip(parameters.items(), theirs, strict=True):
        assert parameter.grad is not None, name
        assert torch.allclose(parameter.grad, gradient, rtol=0, atol=1e-10), name


def test_the_padding_after_end_is_counted_and_no_other():
    net, seen = model("gru", False), images(False)
    log_p = log_probs(net, seen, padded(9)[:, :-1])
    counted = [log_p[i, t, word] for i, words in enumerate(WORDS) for t, word in enumerate([*words[1:], PAD])]
    assert len(counted) == sum(map(len, WORDS))
    loss = objective(net, seen, padded(7))
    assert float(loss.detach()) == pytest.approx(float(-torch.stack(counted).mean().detach()), abs=1e-12)


def test_the_rate_of_an_epoch_is_that_of_the_released_loop():
    """469 batches of training and 79 of validation, as on Flickr8K; the first batch keeps another schedule's rate."""
    state_lr, rate, used = 1e-3, 1e-3, []
    for _ in range(4):
        for phase, batches in (("train", 469), ("val", 79)):
            for i in range(batches):
                if phase == "train" and i == 1:
                    used.append(rate)
                if i % 1000 == 0:
                    rate, state_lr = state_lr, 0.99 * state_lr
    assert [learning_rate(ADAM, epoch, [], "log_likelihood") for epoch in range(4)] == pytest.approx(used, rel=1e-12)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ([5, 6, END, 7, PAD, END], ["5", "6"]),
        ([5, PAD, 6], ["5"]),
        ([5, 6], ["5", "6"]),
        ([END, 5], []),
    ],
)
def test_a_forced_caption_ends_at_the_first_end_or_else_at_the_first_padding(written, expected):
    assert sentence(written) == expected


@pytest.fixture
def experiments(monkeypatch, tmp_path):
    monkeypatch.setenv("CAPBENCH_CACHE", str(tmp_path / "cache"))
    few = scenes(seed=5, train=60, val=15, test=20)
    monkeypatch.setattr("capbench.runs.materials.load_dataset", lambda name: few)
    vectors = tmp_path / "glove.txt"
    vectors.write_text("circle" + " 0.25" * 5 + "\n")
    monkeypatch.setenv("CAPBENCH_GLOVE", str(vectors))
    owner, materials = paper("translational"), Materials()

    def make(preset: str) -> TranslationalExperiment:
        preset_of_scenes: Any = owner.recipe(preset, "scenes")
        recipe: TranslatorRecipe = replace(preset_of_scenes, hidden_dim=16)
        inputs = materials.inputs(Job("translational", preset, "scenes", "scenes", 0), recipe)
        made = owner.prepare(recipe, inputs, 0, torch.device("cpu"))
        assert isinstance(made, TranslationalExperiment)
        return made

    return make


@pytest.mark.parametrize("preset", ["gru", "lstm-released"])
def test_the_article_s_metrics_are_those_of_captions_scored_one_by_one(preset, experiments):
    made = experiments(preset)
    made.model.eval()
    split = made.inputs.dataset.split("test")
    captions = made.inputs.encoded("test")
    total, words, right, bleu = 0.0, 0, 0, []
    with torch.no_grad():
        found = made.as_the_article(split)
        for caption, image in zip(captions, split.images_of(np.arange(len(captions))), strict=True):
            row = torch.tensor([caption + [PAD] * max(1, WIDTH - len(caption))])  # some are longer than the article's
            log_p = made.model(made.source.testing(np.array([image])), row).log_softmax(-1)
            length = (row != PAD).sum(1)
            total += float(compute_loss(log_p, row[:, 1:], length)) * int(length)
            words += int(length)
            guess = log_p.argmax(-1)
            right += int((guess == row[:, 1:])[:, :16].sum())
            reference, candidate = sentence(caption[1:]), sentence(guess[0].tolist())
            bleu.append(sentence_bleu([reference], candidate, weights=(1,)) if candidate else 0.0)
    assert found["article_cross_entropy"] == pytest.approx(total / words, rel=1e-5)
    assert found["article_accuracy"] == pytest.approx(100 * right / (16 * len(captions)))
    assert found["article_bleu1"] == pytest.approx(100 * np.mean(bleu), rel=1e-6)


def test_released_decoders_see_shuffled_captions_of_any_lengths_and_the_others_those_of_one(experiments):
    for preset, spread in (("lstm-released", True), ("lstm", False)):
        made = experiments(preset)
        lengths = np.array([len(caption) for caption in made.inputs.encoded("train")])
        batches = made.batches(0)
        assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(len(lengths)))
        assert (np.mean([np.ptp(lengths[batch]) for batch in batches]) > 3) == spread


def test_released_decoders_see_one_vector_and_keep_the_dimension_and_the_vectors_of_the_file(experiments):
    made = experiments("gru-released")
    assert made.inputs.features.array.ndim == 2
    assert made.model.embed.embedding_dim == made.model.encode.out_features == 5
    assert not made.model.embed.weight.requires_grad
    assert (made.model.embed.weight[made.inputs.vocabulary.numbers["circle"]] == 0.25).all()
