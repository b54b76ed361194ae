"""The generator against the code that its authors released (karpathy/neuraltalk), written anew in numpy, in float64.

The release loops over image-sentence pairs, has words of its own numbering (0 is START as an input and END as an
output), and derives its gradients by hand.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from capbench.data.batches import padded
from capbench.data.scenes import scenes
from capbench.data.vocabulary import END, PAD, START, UNKNOWN, Vocabulary
from capbench.runs.paper import paper
from capbench.training.experiment import Inputs
from capbench.training.loop import make_optimizer
from capbench.vision.encoders import Encoder
from capbench.vision.features import features
from reproductions.karpathy.generator import MultimodalRNN
from reproductions.karpathy.objective import cost_per_sentence, cost_per_word
from reproductions.karpathy.recipe import WRITING, presets

WORDS, DIM, HIDDEN, ENCODED = 30, 7, 6, 5
PRESETS: dict[str, Any] = dict(presets("flickr8k"))
FED = ("rnn", "rnn-released")  # once, at every step
CAPTIONS = [[START, 5, 6, 7, END], [START, 9, 8, 7, 6, 5, 9, END], [START, END], [START, 29, 5, END]]
OURS = {
    "We": "W_hi.weight", "be": "W_hi.bias", "Ws": "words.weight", "Wxh": "W_hx.weight", "bxh": "W_hx.bias",
    "Whh": "W_hh.weight", "bhh": "W_hh.bias", "Wd": "W_oh.weight", "bd": "W_oh.bias",
}  # fmt: skip
READ, WRITTEN = [START, *range(4, WORDS)], [END, *range(4, WORDS)]  # our numbers of the release's inputs and outputs


def generator(preset: str, **changes: Any) -> MultimodalRNN:
    """A small model of a preset; the words that the release does not write cannot be written."""
    torch.manual_seed(0)
    small = {"hidden_dim": HIDDEN, "word_dim": ENCODED, "dropout": 0.0, **changes}
    model = MultimodalRNN(replace(PRESETS[preset], **small), WORDS, DIM).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        model.W_oh.bias[[PAD, START, UNKNOWN]] = -1e4
    return model


def released(values: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Our parameters, or their gradients, under the release's names and in its layout (row vectors times matrices)."""
    found = {name: values[ours].detach().numpy().copy() for name, ours in OURS.items()}
    found |= {"Ws": found["Ws"][READ], "Wd": found["Wd"][WRITTEN], "bd": found["bd"][WRITTEN]}
    return {name: value.T if name in ("We", "Wxh", "Whh", "Wd") else value for name, value in found.items()}


def cost_and_gradients(
    model: dict[str, np.ndarray], pairs: list[tuple[np.ndarray, list[int]]], always: bool
) -> tuple[float, dict[str, np.ndarray]]:
    """driver.py, RNNGenCost, with generic_batch_generator.py and rnn_generator.py, without dropout."""
    cost, grads = 0.0, {name: np.zeros_like(value) for name, value in model.items()}
    for feature, words in pairs:
        read, to_write = [0, *words], [*words, 0]
        image, vectors = feature @ model["We"] + model["be"], model["Ws"][read]
        h = np.zeros((len(read) + 1, HIDDEN))  # h[-1] is the state before the first word
        for t, x in enumerate(vectors):
            seen = image if always or t == 0 else 0
            h[t] = np.maximum(seen + x @ model["Wxh"] + model["bxh"] + h[t - 1] @ model["Whh"] + model["bhh"], 0)
        y = h[:-1] @ model["Wd"] + model["bd"]
        p = np.exp(y - y.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        cost -= np.log(1e-20 + p[range(len(read)), to_write]).sum()
        p[range(len(read)), to_write] -= 1
        grads["Wd"] += h[:-1].T @ p
        grads["bd"] += p.sum(0)
        d_h, d_x, d_image = p @ model["Wd"].T, np.zeros((len(read), HIDDEN)), np.zeros(HIDDEN)
        for t in reversed(range(len(read))):
            d_x[t] = (h[t] > 0) * d_h[t]
            d_image += d_x[t] if always or t == 0 else 0
            grads["bhh"] += d_x[t]
            if t > 0:
                d_h[t - 1] += d_x[t] @ model["Whh"].T
                grads["Whh"] += np.outer(h[t - 1], d_x[t])
        grads["Wxh"] += vectors.T @ d_x
        grads["bxh"] += d_x.sum(0)
        grads["We"] += np.outer(feature, d_image)
        grads["be"] += d_image
        np.add.at(grads["Ws"], read, d_x @ model["Wxh"].T)
    return cost / len(pairs), {name: value / len(pairs) for name, value in grads.items()}


def pairs(images: torch.Tensor) -> list[tuple[np.ndarray, list[int]]]:
    """The captions as the release numbers them: word 4 of ours is its word 1."""
    return [(image.numpy(), [word - 3 for word in c[1:-1]]) for image, c in zip(images, CAPTIONS, strict=True)]


@pytest.mark.parametrize("preset", FED)
def test_the_cost_of_a_batch_and_its_gradients_are_those_of_the_release(preset):
    model, images = generator(preset), torch.randn(4, DIM).double()
    expected, gradients = cost_and_gradients(
        released(model.state_dict()), pairs(images), always=preset == "rnn-released"
    )
    cost = cost_per_sentence(model, images, padded(CAPTIONS)[0])
    cost.backward()
    assert float(cost.detach()) == pytest.approx(expected, rel=1e-12)
    ours = released(
        {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    )
    for name, expected_gradient in gradients.items():
        assert np.abs(ours[name] - expected_gradient).max() < 1e-12, name


@pytest.mark.parametrize("preset", FED)
def test_steps_of_training_are_those_of_the_release(preset):
    """imagernn/solver.py: elementwise clipping, then RMSProp with its epsilon under the root."""
    model, images = generator(preset), 40 * torch.rand(4, DIM).double()  # so large that some gradients are clipped
    theirs = released(model.state_dict())
    square, clipped = {name: np.zeros_like(value) for name, value in theirs.items()}, 0
    assert WRITING.rms_epsilon == 1e-8
    assert PRESETS[preset].training == WRITING
    optimizer = make_optimizer(replace(WRITING, weight_decay=0.0), list(model.parameters()))
    for _ in range(5):
        _, gradients = cost_and_gradients(theirs, pairs(images), always=preset == "rnn-released")
        for name, gradient in gradients.items():
            clipped += int((np.abs(gradient) > 5).sum())
            g = np.clip(gradient, -5, 5)
            square[name] = 0.999 * square[name] + (1 - 0.999) * g**2
            theirs[name] = theirs[name] - 1e-3 * g / np.sqrt(square[name] + 1e-8)
        optimizer.zero_grad()
        cost_per_sentence(model, images, padded(CAPTIONS)[0]).backward()
        torch.nn.utils.clip_grad_value_(model.parameters(), 5.0)
        optimizer.step()
    assert clipped > 0
    ours = released(model.state_dict())
    assert all(np.abs(ours[name] - theirs[name]).max() < 1e-10 for name in theirs)


@pytest.mark.parametrize("preset", FED)
def test_dropout_takes_word_vectors_the_encoded_image_and_states_on_their_way_to_the_output(preset):
    model, images = generator(preset, dropout=0.5).train(), torch.randn(4, DIM).double()
    captions, masks = padded(CAPTIONS)[0], []

    class Fixed(torch.nn.Module):
        """Dropout that keeps its masks."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            masks.append(2.0 * (torch.rand_like(x) < 0.5))
            return x * masks[-1]

    model.register_module("dropout", Fixed())
    y = model(images, captions).detach()
    of_words, of_images, of_states = masks
    theirs = {name: torch.from_numpy(value) for name, value in released(model.state_dict()).items()}
    for i, caption in enumerate(CAPTIONS):
        image = (images[i] @ theirs["We"] + theirs["be"]) * of_images[i]  # one mask for all steps
        h = torch.zeros(HIDDEN).double()
        for t, word in enumerate(caption[:-1]):
            x = theirs["Ws"][0 if word == START else word - 3] * of_words[i, t]
            seen = image if preset == "rnn-released" or t == 0 else 0
            h = (seen + x @ theirs["Wxh"] + theirs["bxh"] + h @ theirs["Whh"] + theirs["bhh"]).relu()
            expected = (h * of_states[i, t]) @ theirs["Wd"] + theirs["bd"]  # the next state sees all of h
            assert torch.allclose(y[i, t, WRITTEN], expected)


def test_the_initial_weights_are_those_of_the_release():
    torch.manual_seed(0)
    model = MultimodalRNN(PRESETS["rnn"], 500, 100)
    for name, value in released(model.state_dict() | {"words.weight": model.words.weight}).items():
        if name.startswith("b"):
            assert not value.any()
        else:
            bound = 0.01 if name == "Wd" else 0.1
            assert bound * 0.99 < np.abs(value).max() <= bound, name
            assert abs(value.std() - bound / 3**0.5) < 0.02 * bound, name


def test_a_cost_per_sentence_is_the_cost_per_word_times_the_words_of_a_sentence():
    model, images = generator("rnn"), torch.randn(4, DIM).double()
    captions = padded(CAPTIONS)[0]
    words = int((captions[:, 1:] != PAD).sum()) / len(captions)
    per_sentence, per_word = (float(c(model, images, captions).detach()) for c in (cost_per_sentence, cost_per_word))
    assert per_sentence == pytest.approx(words * per_word, rel=1e-12)


def test_captions_lose_their_rare_words_where_the_recipe_skips_them(tmp_path):
    dataset = scenes(train=60, val=10, test=10)
    stored = features(dataset, Encoder("scenes", "regions"), region_provider="objects", store=tmp_path)
    tokens = dataset.split("train").tokens
    vocabulary = Vocabulary.build(tokens, 30)
    assert vocabulary.unknown_count > 0
    inputs = Inputs(dataset, Encoder("scenes", "regions"), stored, vocabulary)
    recipes: Any = presets("scenes")
    skipping, predicting = (
        paper("karpathy").prepare(recipes[name], inputs, 0, torch.device("cpu")) for name in ("rnn", "rnn-ours")
    )
    known = [[vocabulary.numbers[w] for w in words if w in vocabulary.numbers] for words in tokens]
    ours: Any = skipping
    assert ours.inputs.encoded("train") == [[START, *words, END] for words in known]
    assert ours.word_counts()[UNKNOWN] == 0
    assert ours.word_counts().sum() == sum(map(len, known)) + len(known)
    other: Any = predicting
    assert other.word_counts()[UNKNOWN] == vocabulary.unknown_count
    lengths = [{len(other.inputs.encoded("train")[i]) for i in batch} for batch in ours.batches(0)]
    assert sorted(np.concatenate(ours.batches(0)).tolist()) == list(range(len(known)))
    assert max(map(len, lengths)) > 2  # captions of all lengths together
