"""VSE++ against its released code (fartashf/vsepp), whose equations are written anew here in float64.

A step is compared whole: both encoders, the loss, and the gradient of every parameter.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from capbench.data.batches import padded
from capbench.data.captions import protocol_line
from capbench.data.karpathy_split import read_karpathy_split
from capbench.data.vocabulary import Vocabulary
from capbench.metrics import retrieval
from capbench.training.experiment import Inputs
from capbench.vision.encoders import Encoder
from capbench.vision.features import Features
from reproductions.vsepp import experiment
from reproductions.vsepp.experiment import VSEExperiment
from reproductions.vsepp.model import VSE
from reproductions.vsepp.objective import objective
from reproductions.vsepp.recipe import VSERecipe, presets

FEATURE, WORDS = 11, 20
# The arguments of the release's README for each preset, and those that train.py has by default.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "vse0": {"no_imgnorm": True},
    "vsepp": {"max_violation": True},
    "order0": {"order": True, "use_abs": True, "margin": 0.05, "learning_rate": 1e-3},
    "orderpp": {"order": True, "max_violation": True},
}
DEFAULTS: dict[str, Any] = {
    "no_imgnorm": False, "max_violation": False, "order": False, "use_abs": False, "margin": 0.2, "learning_rate": 2e-4,
}  # fmt: skip
published = pytest.mark.parametrize("preset", ARGUMENTS)


def arguments(preset: str) -> dict[str, Any]:
    return DEFAULTS | ARGUMENTS[preset]


def small(preset: str) -> VSERecipe:
    recipe = presets("flickr8k")[preset]
    return replace(recipe, embedding_dim=7, word_dim=5, training=replace(recipe.training, batch_size=6))


def unit(rows: Tensor) -> Tensor:
    return rows / rows.pow(2).sum(1, keepdim=True).sqrt()


def gru(weights: dict[str, Tensor], words: Tensor) -> Tensor:
    """The last state over the words of one caption, by torch's equations of nn.GRU."""
    state = torch.zeros(weights["psi.weight_hh_l0"].shape[1], dtype=torch.float64)
    for word in words:
        x = weights["psi.weight_ih_l0"] @ word + weights["psi.bias_ih_l0"]
        h = weights["psi.weight_hh_l0"] @ state + weights["psi.bias_hh_l0"]
        (x_r, x_z, x_n), (h_r, h_z, h_n) = x.chunk(3), h.chunk(3)
        r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
        state = (1 - z) * (x_n + r * h_n).tanh() + z * state
    return state


def released(preset: str, weights: dict[str, Tensor], features: Tensor, captions: list[list[int]]) -> Tensor:
    """The loss of a step of the release. Only the pair itself is no negative."""
    options = arguments(preset)
    images = unit(features) @ weights["W_f.weight"].T + weights["W_f.bias"]
    images = images if options["no_imgnorm"] else unit(images)
    texts = unit(torch.stack([gru(weights, weights["words.weight"][caption]) for caption in captions]))
    if options["use_abs"]:
        images, texts = images.abs(), texts.abs()
    if options["order"]:
        scores = torch.stack([-(texts - image).clamp(min=0).pow(2).sum(1).sqrt() for image in images])
    else:
        scores = images @ texts.T
    pair = torch.eye(len(scores), dtype=torch.bool)
    over_captions = (options["margin"] + scores - scores.diag()[:, None]).clamp(min=0).masked_fill(pair, 0)
    over_images = (options["margin"] + scores - scores.diag()[None, :]).clamp(min=0).masked_fill(pair, 0)
    if options["max_violation"]:
        return over_captions.max(1)[0].sum() + over_images.max(0)[0].sum()
    return over_captions.sum() + over_images.sum()


def step() -> tuple[Tensor, list[list[int]], Tensor]:
    """Features, captions of different lengths and their images, of which two have two captions."""
    random = np.random.default_rng(3)
    images = torch.tensor([0, 1, 2, 1, 3, 0, 4, 5, 6])
    features = 28 * torch.from_numpy(random.random((7, FEATURE)))[images]
    captions = [[1, *random.integers(4, WORDS, length).tolist(), 2] for length in (3, 9, 1, 5, 5, 2, 7, 4, 12)]
    return features, captions, images


@published
def test_a_step_has_the_loss_and_the_gradients_of_the_release(preset):
    torch.manual_seed(0)
    model = VSE(small(preset), WORDS, FEATURE).double()
    features, captions, image_ids = step()
    loss = objective(model.recipe, model.embed_images(features), model.embed_captions(*padded(captions)), image_ids, 0)
    loss.backward()
    weights = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    expected = released(preset, weights, features, captions)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[name].grad, rtol=1e-9, atol=1e-9)


@published
def test_a_new_model_has_the_release_s_first_weights(preset):
    """fc: uniform within sqrt(6 / (in + out)), bias 0; words: within 0.1; the GRU: as nn.GRU leaves it."""
    torch.manual_seed(0)
    model = VSE(replace(small(preset), embedding_dim=64, word_dim=50), 400, 100)
    bounds = {"W_f.weight": (6 / 164) ** 0.5, "words.weight": 0.1}
    bounds |= {f"psi.{name}_l0": 64**-0.5 for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    assert not parameters.pop("W_f.bias").any()
    assert parameters.keys() == bounds.keys()
    for name, value in parameters.items():
        assert 0.95 * bounds[name] < float(value.abs().max()) <= bounds[name]
        assert float(value.std()) == pytest.approx(bounds[name] / 3**0.5, rel=0.1)


@published
def test_the_schedule_is_that_of_train_py_in_single_precision(preset):
    training = presets("flickr8k")[preset].training
    assert (training.optimizer, training.learning_rate) == ("adam", arguments(preset)["learning_rate"])
    assert (training.epochs, training.batch_size, training.clip_norm) == (30, 128, 2.0)
    assert (training.lr_step_epochs, training.lr_decay) == (15, 0.1)
    assert training.precision == "full"


# Captions of each image of a split file in COCO's format.
SENTENCES = {"train": (5, 7, 6), "val": (6, 5, 5), "test": (5, 6, 5, 7, 5, 6, 6, 5, 5, 7)}


def coco(folder: Path) -> Path:
    images, number, sentid = [], 0, 770000
    for split, counts in SENTENCES.items():
        for count in counts:
            sentences = []
            for place in range(count):
                tokens = ["a", *("small",) * ((number + 3 * place) % 7), f"word{place}", f"thing{number}"]
                raw = " ".join(tokens).capitalize() + "."
                sentences.append({"tokens": tokens, "raw": raw, "imgid": number, "sentid": sentid})
                sentid += 1
            name = f"COCO_val2014_{number:012d}.jpg"
            images.append(
                {"filepath": "val2014", "sentids": [s["sentid"] for s in sentences], "filename": name, "imgid": number}
                | {"split": split, "sentences": sentences, "cocoid": 9000 + number}
            )
            number += 1
    path = folder / "dataset_coco.json"
    path.write_text(json.dumps({"images": images, "dataset": "coco"}))
    return path


@pytest.fixture
def made(tmp_path, request) -> VSEExperiment:
    """A preset on the small COCO, untrained, with random features."""
    dataset = read_karpathy_split(coco(tmp_path), tmp_path, "coco", "error")
    array = np.random.default_rng(0).random((len(dataset.images), FEATURE), np.float32)
    stored = Features(array, tmp_path, "random")
    vocabulary = Vocabulary.build(dataset.split("train").tokens + dataset.split("test").tokens, 1)
    torch.manual_seed(0)
    recipe = small(getattr(request, "param", "vsepp"))
    model = VSE(recipe, len(vocabulary), FEATURE)
    return VSEExperiment(recipe, Inputs(dataset, Encoder("scenes"), stored, vocabulary), model, 0, torch.device("cpu"))


@pytest.mark.parametrize("made", ARGUMENTS, indirect=True)
def test_a_published_batch_mixes_lengths_and_has_captions_of_one_image_as_negatives(made):
    batches, encoded = made.batches(0), made.inputs.encoded("train")
    assert [len(batch) for batch in batches] == [6, 6, 3]  # the last one is kept
    assert all(np.ptp([len(encoded[i]) for i in batch]) > 2 for batch in batches[:2])
    assert not np.array_equal(batches[0], made.batches(1)[0])
    of_one_image = np.flatnonzero(made.train.image_of_caption == 0)
    assert float(made.loss(of_one_image, 0).detach()) > 0
    made.recipe = replace(made.recipe, same_image_negatives=False)
    assert float(made.loss(of_one_image, 0).detach()) == 0


def test_training_takes_the_first_five_captions_of_an_image(made):
    taken = np.sort(np.concatenate(made.batches(0)))
    assert taken.tolist() == [*range(5), *range(5, 10), *range(12, 17)]


def scores(made: VSEExperiment, name: str, images: range) -> np.ndarray:
    """Similarities [image, caption] of some images of a split and the first five captions of each."""
    split, encoded = made.inputs.dataset.split(name), made.inputs.encoded(name)
    first = [i for image in images for i in np.flatnonzero(split.image_of_caption == image)[:5]]
    features = torch.from_numpy(made.inputs.features.array[split.image_index[images.start : images.stop]])
    captions = made.model.embed_captions(*padded([encoded[i] for i in first]))
    return (made.model.embed_images(features) @ captions.T).numpy()


def recalls(similarity: np.ndarray) -> dict[str, float]:
    """R@1 of evaluation.py: i2t takes the best of five captions, caption 5 k + j being of image k."""
    images = [np.argsort(-row)[0] // 5 == k for k, row in enumerate(similarity)]
    captions = [np.argsort(-column)[0] == c // 5 for c, column in enumerate(similarity.T)]
    return {"image_to_caption_r1": 100 * np.mean(images), "caption_to_image_r1": 100 * np.mean(captions)}


@pytest.mark.parametrize(
    ("protocol", "folds"),
    [("5K", [range(10)]), ("1K", [range(2)]), ("5-fold 1K", [range(i, i + 2) for i in range(0, 10, 2)])],
)
@torch.no_grad()
def test_coco_is_scored_on_the_first_five_captions_of_each_image(made, monkeypatch, protocol, folds):
    monkeypatch.setattr(retrieval, "FOLD", 2)
    made.model.eval()
    found = made.test(protocol)
    each = [recalls(scores(made, "test", fold)) for fold in folds]
    for name in each[0]:
        assert found.metrics[name] == pytest.approx(np.mean([fold[name] for fold in each]))
    assert len(found.arrays["caption_to_image"]) == 5 * len(found.arrays["image_to_caption"])


@torch.no_grad()
def test_the_record_of_coco_says_which_captions_and_which_validation_images_count(made, monkeypatch):
    monkeypatch.setattr(experiment, "VALIDATED", 2)
    assert protocol_line(made.inputs.dataset.split("test")) == "10 images, 57 captions (5 to 7 each, mean 5.7)"
    assert made.test("whole").notes == (
        "scored: the first 5 captions of each image, 50 of 57",
        "the snapshot is chosen on the first 2 of 3 validation images",
    )
    monkeypatch.setattr(retrieval, "FOLD", 2)
    kept = protocol_line(made.inputs.dataset.split("test").first(2)).split()[2]
    assert made.test("1K").notes[0] == f"scored: the first 5 captions of each image, 10 of {kept}"
    expected = recalls(scores(made, "val", range(2)))
    found = made.validate()
    assert {name: found.metrics[name] for name in expected} == pytest.approx(expected)
    assert found.arrays["image_of_caption"].tolist() == [0] * 5 + [1] * 5


@torch.no_grad()
def test_where_every_image_has_five_captions_nothing_is_left_out(made):
    dataset, few = made.inputs.dataset, np.isin(np.arange(len(made.inputs.dataset.captions)), made.train.caption_index)
    for name in ("val", "test"):
        split = dataset.split(name)
        few[split.caption_index[split.first_captions(5)]] = True
    kept = np.flatnonzero(few)
    fields = {name: tuple(getattr(dataset, name)[i] for i in kept) for name in ("captions", "tokens", "caption_ids")}
    five = replace(dataset, image_of_caption=dataset.image_of_caption[kept], **fields)
    before = made.test("whole")
    made.inputs = replace(made.inputs, dataset=five)
    found = made.test("whole")
    assert found.notes == ()
    assert found.metrics == before.metrics
