"""Outputs scored with all positives: joined by id, they have the metrics of the arrays themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from capbench.base.errors import CapbenchError
from capbench.evidence.records import signature_of
from capbench.metrics import positives as module
from capbench.metrics.positives import Positives, evaluate_positives, matrix_positives
from capbench.scoring.files import read_embeddings, read_ranking
from capbench.scoring.outputs import Captions, Embeddings, Similarity, Table
from capbench.scoring.score import score
from tests.test_scoring import CAPTION_IDS, CAPTIONS, IMAGE_IDS, IMAGES, SPLIT, files, photographs

FIRST = SPLIT.first_captions(5)
OWN = {CAPTION_IDS[number]: IMAGE_IDS[SPLIT.image_of_caption[number]] for number in FIRST}


@pytest.fixture(params=["eccv", "cxc"])
def known(request, monkeypatch):
    """Positives that are drawn, of the first five captions of each image; not each image and caption is a query."""
    draw = np.random.default_rng(3)
    captions = np.array(list(OWN))
    fits = draw.random((len(IMAGE_IDS), len(captions))) < 0.1
    fits |= np.array(IMAGE_IDS)[:, None] == np.array(list(OWN.values()))[None]
    captions_of = {IMAGE_IDS[i]: captions[fits[i]].tolist() for i in draw.permutation(len(IMAGE_IDS))[:9]}
    images_of = {int(captions[c]): np.array(IMAGE_IDS)[fits[:, c]].tolist() for c in draw.permutation(60)[:50]}
    found = Positives(request.param, captions_of, images_of, OWN)
    monkeypatch.setattr(module, "load_positives", lambda protocol: found)
    return found


def expected(known):
    return evaluate_positives(IMAGES, CAPTIONS, np.array(IMAGE_IDS), np.array(CAPTION_IDS), known.protocol)[0]


def test_embeddings_in_any_order_are_joined_by_their_ids(known, tmp_path):
    draw = np.random.default_rng(0)
    rows, columns = draw.permutation(len(IMAGES)), draw.permutation(len(CAPTIONS))
    ids = {"image_ids": np.array(IMAGE_IDS)[rows], "caption_ids": np.array(CAPTION_IDS)[columns]}
    paths = files(tmp_path, images=IMAGES[rows], captions=CAPTIONS[columns], **ids)
    found = score(read_embeddings(*paths), SPLIT, known.protocol)
    assert found.metrics == expected(known)
    assert f"protocol:{known.protocol}|images:12" in signature_of(found.notes)


@pytest.mark.parametrize("which", ["all captions", "the first five"])
def test_rows_without_ids_are_of_all_captions_or_of_the_first_five(known, which):
    captions = CAPTIONS if which == "all captions" else CAPTIONS[FIRST]
    outputs = Embeddings(Table(torch.from_numpy(IMAGES)), Table(torch.from_numpy(captions)))
    assert score(outputs, SPLIT, known.protocol).metrics == expected(known)


def test_a_matrix_has_the_metrics_of_its_similarities(known):
    matrix = torch.from_numpy(IMAGES @ CAPTIONS.T)
    found = score(Similarity(matrix), SPLIT, known.protocol)
    assert found.metrics == matrix_positives(matrix, np.array(IMAGE_IDS), np.array(CAPTION_IDS), known.protocol)[0]


def lists(folder, similarity, depth=None):
    """TREC runs of both directions, `depth` candidates a list."""
    lines = []
    for table, asking, asked in ((similarity, IMAGE_IDS, CAPTION_IDS), (similarity.T, CAPTION_IDS, IMAGE_IDS)):
        for query, row in zip(asking, table, strict=True):
            for rank, other in enumerate(np.argsort(-row, kind="stable")[:depth]):
                lines.append(f"{query} Q0 {asked[other]} {rank} {float(row[other])!r} mine")
    (folder / "run.trec").write_text("\n".join(lines))
    return read_ranking(folder / "run.trec")


def test_whole_lists_have_the_metrics_of_the_matrix_with_its_ties(known, tmp_path):
    similarity = np.round(IMAGES.astype(np.float64) @ CAPTIONS.T.astype(np.float64), 1)  # few values
    from_lists = score(lists(tmp_path, similarity), SPLIT, known.protocol).metrics
    matrix = matrix_positives(similarity, np.array(IMAGE_IDS), np.array(CAPTION_IDS), known.protocol)[0]
    assert from_lists == pytest.approx(matrix, abs=1e-9)


def test_lists_that_are_too_short_are_refused(known, tmp_path):
    outputs = lists(tmp_path, IMAGES.astype(np.float64) @ CAPTIONS.T.astype(np.float64), depth=2)
    with pytest.raises(CapbenchError, match="write longer lists"):
        score(outputs, SPLIT, known.protocol)


def test_captions_are_refused_under_a_protocol_of_rankings(known):
    outputs = Captions(("a dog",), ((1000,),))
    with pytest.raises(
        CapbenchError, match=f"the protocol {known.protocol} is of rankings; score captions under whole"
    ):
        score(outputs, SPLIT, known.protocol)


def test_another_data_set_lacks_the_images_of_the_protocol(known):
    other = photographs([5] * 11).split("test")
    outputs = Similarity(torch.zeros(11, 55))
    with pytest.raises(CapbenchError, match="1 images of COCO's test set are missing: 1077; the protocol needs all"):
        score(outputs, other, known.protocol)


def test_without_the_package_of_the_positives_the_mend_is_said(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    module.load_positives.cache_clear()
    with pytest.raises(CapbenchError, match=r"ECCV Caption needs its positives: pip install 'capbench\[eccv\]'"):
        score(Similarity(torch.zeros(1, 1)), SPLIT, "eccv")
