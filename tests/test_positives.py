"""ECCV Caption and CxC: against a count by hand, and against the package's own evaluation where it is installed."""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from capbench.base.errors import CapbenchError
from capbench.metrics import places
from capbench.metrics import positives as module
from capbench.metrics.positives import (
    Positives,
    evaluate_positives,
    list_positives,
    load_positives,
    matrix_positives,
)
from capbench.metrics.registry import METRICS, metric

IMAGES, EACH = 14, 5
IMAGE_IDS = 100 + 3 * np.arange(IMAGES)
CAPTION_IDS = 7000 + 2 * np.arange(IMAGES * EACH)
installed = pytest.mark.skipif(find_spec("eccv_caption") is None, reason="needs the extra eccv")


@pytest.fixture(params=["eccv", "cxc"])
def known(request, monkeypatch):
    """Positives that are drawn: an image's own captions and some others; not each image and caption is a query."""
    draw = np.random.default_rng(0)
    own = {int(caption): int(IMAGE_IDS[i // EACH]) for i, caption in enumerate(CAPTION_IDS)}
    fits = draw.random((IMAGES, IMAGES * EACH)) < 0.1
    fits[np.arange(IMAGES * EACH) // EACH, np.arange(IMAGES * EACH)] = True
    captions_of = {int(IMAGE_IDS[i]): CAPTION_IDS[fits[i]].tolist() for i in draw.permutation(IMAGES)[:11]}
    images_of = {int(CAPTION_IDS[c]): IMAGE_IDS[fits[:, c]].tolist() for c in draw.permutation(IMAGES * EACH)[:60]}
    captions_of[int(IMAGE_IDS[2])] = [*CAPTION_IDS[fits[2]].tolist(), 1]  # 1 is no candidate
    found = Positives(request.param, captions_of, images_of, own)
    monkeypatch.setattr(module, "load_positives", lambda protocol: found)
    return found


def by_hand(known, similarity, image_ids, caption_ids):
    """Each query's candidates are sorted by score, the wrong ones of equal score first."""
    values: dict[str, list[float]] = {}
    for way, fitting, asking, candidates, scores in (
        ("image_to_caption", known.captions_of, image_ids, caption_ids, similarity),
        ("caption_to_image", known.images_of, caption_ids, image_ids, similarity.T),
    ):
        for row, name in enumerate(asking):
            if name not in fitting:
                continue
            right = set(fitting[name])
            order = sorted(range(len(candidates)), key=lambda c: (-scores[row, c], candidates[c] in right))
            hits = [candidates[c] in right for c in order]
            precision = [sum(hits[: k + 1]) / (k + 1) for k in range(len(hits))]
            count = len(right)
            one = {f"r{k}": float(any(hits[:k])) for k in (1, 5, 10)}
            one["r_precision"] = sum(hits[:count]) / count
            one["map_at_r"] = sum(p for p, hit in zip(precision[:count], hits[:count], strict=True) if hit) / count
            for measure, value in one.items():
                values.setdefault(f"{known.protocol}_{way}_{measure}", []).append(100 * value)
    return values


def drawn(seed, dim=4):
    """Few values, so that many scores are equal."""
    draw = np.random.default_rng(seed)
    return (draw.integers(-1, 2, (n, dim)).astype(np.float32) for n in (IMAGES, IMAGES * EACH))


def agree(evaluated, expected):
    metrics, arrays = evaluated
    assert metrics
    for key, value in metrics.items():
        assert np.allclose(np.sort(arrays[key]), np.sort(expected[key]), atol=1e-9), key
        assert value == pytest.approx(np.mean(expected[key]), abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("similarity", ["dot", "order", "function", "matrix"])
def test_each_measure_is_that_of_a_sorted_list_with_ties_against_the_model(known, seed, similarity, monkeypatch):
    images, captions = drawn(seed)
    shuffle = np.random.default_rng(seed).permutation(IMAGES * EACH)
    captions, caption_ids = captions[shuffle], CAPTION_IDS[shuffle]
    scores = images.astype(np.float64) @ captions.T.astype(np.float64)
    if similarity == "order":
        scores = -(np.maximum(0, captions[None] - images[:, None]) ** 2).sum(-1)
    expected = by_hand(known, scores, IMAGE_IDS, caption_ids)
    monkeypatch.setattr(places, "TILE", 300)  # blocks of four queries
    if similarity == "matrix":
        agree(matrix_positives(scores, IMAGE_IDS, caption_ids, known.protocol), expected)
        return
    given = (lambda v, c: v @ c.T) if similarity == "function" else similarity
    agree(evaluate_positives(images, captions, IMAGE_IDS, caption_ids, known.protocol, given), expected)


def test_lists_of_ids_give_what_the_matrix_gives_that_they_were_sorted_by(known):
    scores = np.random.default_rng(3).normal(size=(IMAGES, IMAGES * EACH))
    captions_of = {
        int(name): CAPTION_IDS[np.argsort(-row)].tolist() for name, row in zip(IMAGE_IDS, scores, strict=True)
    }
    images_of = {
        int(name): IMAGE_IDS[np.argsort(-row)].tolist() for name, row in zip(CAPTION_IDS, scores.T, strict=True)
    }
    metrics, _ = matrix_positives(scores, IMAGE_IDS, CAPTION_IDS, known.protocol)
    assert list_positives(captions_of, images_of, known.protocol)[0] == pytest.approx(metrics)
    short = {name: ranked[:12] for name, ranked in captions_of.items()}
    longest = max(len(fitting) for fitting in known.captions_of.values())
    with pytest.raises(CapbenchError, match=rf"list of image \d+ ranks 12 captions, .* needs {longest}; write longer"):
        list_positives({**short}, images_of, known.protocol) if longest > 12 else pytest.fail("nothing is short")


@pytest.mark.parametrize("crowded", [0, 10**9], ids=["once", "each"])
def test_equal_embeddings_tie_and_a_constant_similarity_finds_nothing(known, crowded, monkeypatch):
    monkeypatch.setattr(places, "CROWDED", crowded)
    one = np.random.default_rng(5).normal(size=(1, 33)).astype(np.float32)
    one /= np.linalg.norm(one)
    images, captions = np.repeat(one, IMAGES, 0), np.repeat(one, IMAGES * EACH, 0)
    metrics, _ = evaluate_positives(images, captions, IMAGE_IDS, CAPTION_IDS, known.protocol)
    assert {value for key, value in metrics.items() if not key.endswith("r10")} == {0.0}


def test_more_candidates_than_the_protocol_s_are_left_out(known):
    images, captions = drawn(1)
    plain = evaluate_positives(images, captions, IMAGE_IDS, CAPTION_IDS, known.protocol, "dot")[0]
    more = np.concatenate([captions, 9 * np.ones((10, 4), np.float32)])
    ids = np.concatenate([CAPTION_IDS, np.arange(10)])
    assert evaluate_positives(images, more, IMAGE_IDS, ids, known.protocol, "dot")[0] == plain


def test_the_array_of_each_metric_is_what_the_registry_resamples(known):
    images, captions = drawn(2)
    metrics, arrays = evaluate_positives(images, captions, IMAGE_IDS, CAPTION_IDS, known.protocol, "dot")
    assert metrics.keys() == {key for key in METRICS if key.startswith(f"{known.protocol}_")}
    for key, value in metrics.items():
        assert metric(key).per_query(arrays).mean() == pytest.approx(value)
        if of := metric(key).image_of_query:
            assert arrays[of].shape == arrays[key].shape
            assert arrays[of].tolist() == [int(c - 7000) // 2 // EACH for c in CAPTION_IDS if c in known.images_of]


def test_ids_that_are_missing_or_twice_and_bad_values_are_refused(known):
    images, captions = drawn(4)
    with pytest.raises(
        CapbenchError, match=r"12 captions of COCO's test set are missing: 7000, .*7018 and 2 more; the pro"
    ):
        evaluate_positives(images, captions[12:], IMAGE_IDS, CAPTION_IDS[12:], known.protocol, "dot")
    with pytest.raises(CapbenchError, match=r"1 image ids are given twice: 103"):
        evaluate_positives(
            images, captions, np.where(IMAGE_IDS == 106, 103, IMAGE_IDS), CAPTION_IDS, known.protocol, "dot"
        )
    with pytest.raises(CapbenchError, match="the cosine is of vectors of length 1"):
        evaluate_positives(images, captions, IMAGE_IDS, CAPTION_IDS, known.protocol)
    with pytest.raises(CapbenchError, match="hold NaN"):
        evaluate_positives(images * np.float32("nan"), captions, IMAGE_IDS, CAPTION_IDS, known.protocol, "dot")
    with pytest.raises(CapbenchError, match=r"\d+ images have no ranked list: \d+"):
        list_positives({}, {}, known.protocol)
    twice = {name: [int(CAPTION_IDS[0])] * 30 for name in known.captions_of}
    with pytest.raises(CapbenchError, match=r"list of image \d+ has caption 7000 twice; rank each once"):
        list_positives(twice, {}, known.protocol)


def test_without_the_package_the_extra_is_named(monkeypatch):
    load_positives.cache_clear()
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(CapbenchError, match=r"ECCV Caption needs its positives: pip install 'capbench\[eccv\]'"):
        load_positives("eccv")
    with pytest.raises(CapbenchError, match="unknown protocol 'pmrp' of positives; choose one of eccv, cxc"):
        load_positives("pmrp")


@installed
@pytest.mark.parametrize(("protocol", "images", "captions", "pairs"), [
    ("eccv", 1261, 1332, (22550, 11279)), ("cxc", 5000, 24972, (35585, 35585)),
])  # fmt: skip
def test_the_positives_have_the_published_counts(protocol, images, captions, pairs):
    known = load_positives(protocol)
    assert (len(known.captions_of), len(known.images_of)) == (images, captions)
    assert tuple(sum(map(len, lists.values())) for lists in (known.captions_of, known.images_of)) == pairs
    assert (len(known.images), len(known.image_of_caption)) == (5000, 25000)


def clip_like(seed):
    known, draw = load_positives("eccv"), np.random.default_rng(seed)
    image_ids, caption_ids = np.array(known.images), np.array(list(known.image_of_caption))
    of = {name: row for row, name in enumerate(known.images)}
    images = draw.normal(size=(5000, 64)).astype(np.float32)
    own = np.array([of[known.image_of_caption[name]] for name in caption_ids.tolist()])
    captions = images[own] + 2 * draw.normal(size=(25000, 64)).astype(np.float32)
    return image_ids, caption_ids, *(v / np.linalg.norm(v, axis=1, keepdims=True) for v in (images, captions))


@installed
def test_the_package_s_own_evaluation_agrees():
    with warnings.catch_warnings(action="ignore"):  # it asks for ujson
        from eccv_caption import Metrics

    image_ids, caption_ids, images, captions = clip_like(0)
    similarity = torch.from_numpy(images) @ torch.from_numpy(captions).T
    by_image = similarity.topk(50).indices.numpy()
    by_caption = similarity.T.topk(50).indices.numpy()
    lists = (
        dict(zip(image_ids.tolist(), caption_ids[by_image].tolist(), strict=True)),
        dict(zip(caption_ids.tolist(), image_ids[by_caption].tolist(), strict=True)),
    )
    asked = ("eccv_r1", "eccv_map_at_r", "eccv_rprecision", "cxc_recalls")
    theirs = Metrics().compute_all_metrics(*lists, target_metrics=asked, Ks=(1, 5, 10))
    ours = {**evaluate_positives(images, captions, image_ids, caption_ids, "eccv")[0]}
    ours |= evaluate_positives(images, captions, image_ids, caption_ids, "cxc")[0]
    names = {"eccv_r1": "eccv_{}_r1", "eccv_rprecision": "eccv_{}_r_precision", "eccv_map_at_r": "eccv_{}_map_at_r"}
    names |= {f"cxc_r{k}": f"cxc_{{}}_r{k}" for k in (1, 5, 10)}
    for key, name in names.items():
        for theirs_way, way in (("i2t", "image_to_caption"), ("t2i", "caption_to_image")):
            assert ours[name.format(way)] == pytest.approx(100 * theirs[key][theirs_way], abs=1e-6), (key, way)
    for protocol in ("eccv", "cxc"):
        from_lists = list_positives(*lists, protocol)[0]
        assert from_lists == pytest.approx({key: ours[key] for key in from_lists}, abs=1e-9)
