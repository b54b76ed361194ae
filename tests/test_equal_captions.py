"""Captions of equal words are one to a model: whatever batch they would fall into, their scores are equal, and tie.

Each experiment is asked for what it ranks by, with captions of other images repeated far apart.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from capbench.captioners.experiment import CaptioningExperiment
from capbench.data.batches import distinct, padded
from capbench.data.datasets import load_dataset
from capbench.data.scenes import scenes
from capbench.data.vocabulary import Vocabulary
from capbench.metrics.retrieval import embedding_ranks
from capbench.runs.paper import paper
from capbench.training.experiment import Evaluation, Inputs
from capbench.vision.encoders import Encoder, Output
from capbench.vision.features import features
from reproductions.vsepp.model import VSE
from reproductions.vsepp.recipe import VSEPP

CPU = torch.device("cpu")
VSEPP_MODULE, KARPATHY, SHOW_AND_TELL = (
    import_module(f"reproductions.{name}.experiment") for name in ("vsepp", "karpathy", "show_and_tell")
)
IMAGES = 30
REPEATED = 60  # captions at the end of the split that have the words of those at its beginning


def experiment(name: str, preset: str, output: Output, folder: Path, **changes: Any) -> Any:
    """Of a few scenes, untrained, ready for evaluation on the test split."""
    dataset = scenes(train=30, val=5, test=IMAGES)
    encoder = Encoder("scenes", output)
    stored = features(dataset, encoder, region_provider="objects" if output == "regions" else None, store=folder)
    inputs = Inputs(replace(dataset, phrases=None), encoder, stored, Vocabulary.build(dataset.split("train").tokens, 2))
    encoded = inputs.encoded("test")
    encoded[-REPEATED:] = [list(caption) for caption in encoded[:REPEATED]]
    recipe = replace(paper(name).recipe(preset, "scenes"), **changes)
    made: Any = paper(name).prepare(recipe, inputs, 0, CPU)
    made.model.eval()
    return made


def watched(monkeypatch: pytest.MonkeyPatch, place: Any, name: str) -> list[tuple[Any, ...]]:
    """The arguments of the calls of a function from now on."""
    calls: list[tuple[Any, ...]] = []
    function = getattr(place, name)

    def noting(*arguments: Any) -> Any:
        calls.append(arguments)
        return function(*arguments)

    monkeypatch.setattr(place, name, noting)
    return calls


def assert_repeated(columns: torch.Tensor) -> None:
    """[..., caption]: equal for equal captions, and not for all."""
    assert torch.equal(columns[..., -REPEATED:], columns[..., :REPEATED])
    assert not torch.equal(columns[..., :1], columns[..., 1:2])


def test_distinct_captions_come_in_their_order_and_lead_back_to_all():
    captions = [[3, 1], [2], [3, 1], [], [2], [1, 3]]
    first, which = distinct(captions)
    assert first.tolist() == [0, 1, 3, 5]
    assert [captions[first[k]] for k in which] == captions
    assert all(len(actual) == 0 for actual in distinct([]))


@torch.no_grad()
def test_vsepp_embeds_equal_captions_once(tmp_path, monkeypatch):
    made = experiment("vsepp", "vsepp", "vector", tmp_path, embedding_dim=96, word_dim=30)
    monkeypatch.setattr(VSEPP_MODULE, "CHUNK", 7)
    embedded = watched(monkeypatch, made.model, "embed_captions")
    ranked = watched(monkeypatch, VSEPP_MODULE, "evaluate_protocol")
    made.test("whole")
    (_, captions, *_), *_ = ranked
    assert_repeated(captions.T)
    assert sum(len(ids) for ids, _ in embedded) == len(captions) - REPEATED
    ids, lengths = padded(made.inputs.encoded("test"))
    assert torch.allclose(captions, made.model.embed_captions(ids, lengths), atol=1e-5)


@pytest.mark.parametrize(("preset", "similarity"), [("vse0", "dot"), ("vsepp", "cosine"), ("order0", "order")])
@torch.no_grad()
def test_vsepp_ranks_by_the_cosine_where_images_are_normalised_and_vse0_by_the_inner_product(
    preset, similarity, tmp_path, monkeypatch
):
    made = experiment("vsepp", preset, "vector", tmp_path, embedding_dim=96, word_dim=30, view="1C")
    ranked = watched(monkeypatch, VSEPP_MODULE, "evaluate_protocol")
    made.test("whole")
    ((images, _, _, _, chosen),) = ranked
    assert chosen == similarity
    assert torch.allclose(images.norm(dim=1), torch.ones(IMAGES)) == (similarity != "dot")


@torch.no_grad()
def test_karpathy_scores_equal_captions_once(tmp_path, monkeypatch):
    made = experiment("karpathy", "brnn-ours", "regions", tmp_path)
    monkeypatch.setattr(KARPATHY, "AT_ONCE", 7)
    scored = watched(monkeypatch, KARPATHY, "maxsim")
    ranked = watched(monkeypatch, KARPATHY, "evaluate_protocol")
    made.test("whole")
    ((images, captions, _, _, similarity, _),) = ranked
    assert sum(len(words) for _, words, *_ in scored) == len(captions) - REPEATED
    together = similarity(images, captions)
    assert_repeated(together)
    each = torch.cat([similarity(images, caption[None]) for caption in captions], 1)
    assert torch.allclose(together, each, atol=1e-4)


@torch.no_grad()
def test_show_and_tell_scores_equal_captions_once(tmp_path, monkeypatch):
    made = experiment("show_and_tell", "nic-ours", "vector", tmp_path, embedding_dim=96, hidden_dim=96)
    scored = watched(monkeypatch, SHOW_AND_TELL, "likelihoods")
    ranked = watched(monkeypatch, SHOW_AND_TELL, "match_ranks")
    made.ranks(made.inputs.dataset.split("test"))
    ((log_p, _),) = ranked
    ((_, _, captions, _),) = scored
    assert len(captions) == log_p.shape[1] - REPEATED
    assert_repeated(log_p)


def test_show_and_tell_says_that_too_many_pairs_are_not_ranked(tmp_path, monkeypatch):
    made = experiment("show_and_tell", "nic-ours", "vector", tmp_path, embedding_dim=96, hidden_dim=96)
    monkeypatch.setattr(CaptioningExperiment, "score", lambda self, split, likelihood: Evaluation({"bleu4": 7.0}, {}))
    split = made.inputs.dataset.split("test")
    monkeypatch.setattr(SHOW_AND_TELL, "PAIRS", len(split.image_index) * len(split.caption_index) - 1)
    scores = made.score(split, {})
    assert scores.metrics == {"bleu4": 7.0}
    assert [note.partition(":")[0] for note in scores.notes] == ["image_to_caption", "caption_to_image"]


@pytest.mark.skipif("CAPBENCH_DATA" not in os.environ, reason="CAPBENCH_DATA is not set")
@torch.no_grad()
def test_the_captions_of_flickr8k_that_are_not_unique_tie():
    """14 of the 5,000 test captions have the words of a caption of another image, 2 those of one of their own image."""
    if not (Path(os.environ["CAPBENCH_DATA"]) / "flickr8k").is_dir():
        pytest.skip("there is no flickr8k under CAPBENCH_DATA")
    dataset = load_dataset("flickr8k")
    part, vocabulary = dataset.split("test"), Vocabulary.build(dataset.split("train").tokens, 1)
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, words in enumerate(part.tokens):
        groups[tuple(words)].append(number)
    equal = [group for group in groups.values() if len(group) > 1]
    owner = part.image_of_caption
    assert sum(len(group) for group in equal) == 16
    assert sum(len(group) for group in equal if len(set(owner[group])) > 1) == 14

    torch.manual_seed(0)
    model = VSE(replace(VSEPP, embedding_dim=64, word_dim=30), len(vocabulary), 64).eval()
    encoded = [vocabulary.encode(words) for words in part.tokens]
    first, which = distinct(encoded)
    parts = np.split(first, range(512, len(first), 512))
    captions = torch.cat([model.embed_captions(*padded([encoded[i] for i in some])) for some in parts])[which]
    images = torch.zeros(len(part.image_index), 64).index_copy_(0, torch.from_numpy(owner), captions)
    for group in equal:
        images[owner[group]] = captions[group]  # the model is sure of them, and nothing else is as high
    sure = [group for group in equal if torch.equal(images[owner[group]], captions[group])]
    assert len(sure) == len(equal) - 1  # one image has captions of two groups
    for similarity in ("cosine", "order"):
        ranks = embedding_ranks(images, captions, torch.from_numpy(owner), similarity)
        for group in sure:
            others = len(set(owner[group])) - 1
            assert ranks.image_to_caption[owner[group]].tolist() == [others] * len(group)
            assert ranks.caption_to_image[group].tolist() == [others] * len(group)
