"""Search with a trained joint embedding, against scores worked out one pair at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from capbench.base.errors import CapbenchError
from capbench.data.images import whole_image
from capbench.data.scenes import scenes
from capbench.runs import harness, loaded
from capbench.runs.harness import Materials, Places
from capbench.runs.job import Job
from capbench.runs.paper import paper
from capbench.tools import search
from capbench.vision.encoders import Encoder


@pytest.fixture(scope="module")
def small():
    return scenes(seed=5, train=60, val=15, test=20)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, small):
    """The folder of one finished run on a few scenes."""
    original, folder = paper("vsepp"), tmp_path_factory.mktemp("search")

    def tiny(dataset):
        recipe = original.presets("scenes")["vsepp-ours"]
        return {
            "vsepp-ours": replace(recipe, embedding_dim=16, word_dim=8, training=replace(recipe.training, epochs=2))
        }

    with pytest.MonkeyPatch.context() as patch:
        for module in (harness, loaded):
            patch.setattr(module, "paper", lambda name: replace(original, presets=tiny))
        patch.setattr(harness, "load_dataset", lambda name: small)
        patch.setenv("CAPBENCH_CACHE", str(folder / "cache"))
        job = Job("vsepp", "vsepp-ours", "scenes", "scenes", 0)
        harness.run(job, Places(folder / "runs"), Materials(), lambda *_: None)
        yield folder / "runs"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, small):
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "below").mkdir()
    for i in range(4):
        Image.fromarray(small.images[i]).save(folder / ("below" if i == 3 else "") / f"{i}.png")
    (folder / "notes.txt").write_text("not a picture")
    return folder


def score(run, pixels, sentence):
    phi = Encoder("scenes")(whole_image(pixels, 64)[None])
    ids = torch.tensor([run.vocabulary.encode(sentence.split())])
    image, caption = run.model.embed_images(phi), run.model.embed_captions(ids, torch.tensor([ids.shape[1]]))
    return float(run.model.similarity(image, caption).detach())


def test_images_come_in_the_order_of_their_similarity_to_the_sentence(runs, pictures, small):
    run = search.retriever(None, runs)
    found = search.images_of_sentence(run, "A red circle!", pictures, 3)
    paths = sorted(pictures.rglob("*.png"))
    expected = sorted(((score(run, np.array(Image.open(p)), "a red circle"), p) for p in paths), reverse=True)
    assert [path for path, _ in found] == [path for _, path in expected[:3]]
    assert [value for _, value in found] == pytest.approx([value for value, _ in expected[:3]], abs=1e-5)


def test_captions_come_in_the_order_of_their_similarity_to_the_image(runs, pictures, tmp_path):
    run = search.retriever(None, runs)
    lines = ["a red circle", "two blue squares", "a small star above a heart"]
    (tmp_path / "captions.txt").write_text("\ufeff" + "\n\n".join(lines) + "\n...\n")
    found = search.captions_of_image(run, pictures / "0.png", tmp_path / "captions.txt", 10)
    scores = {line: score(run, np.array(Image.open(pictures / "0.png")), line) for line in lines}
    assert [line for line, _ in found] == sorted(lines, key=lambda line: -scores[line])


def test_a_contact_sheet_shows_the_images(pictures, tmp_path):
    search.contact_sheet(sorted(pictures.glob("*.png")), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (3 * search.TILE, search.TILE)


def test_without_a_trained_run_it_says_how_to_make_one(tmp_path):
    with pytest.raises(CapbenchError, match="capbench run vsepp"):
        search.retriever(None, tmp_path)


def test_a_folder_without_images_a_sentence_without_words_and_an_empty_file_are_refused(runs, pictures, tmp_path):
    run = search.retriever(None, runs)
    with pytest.raises(CapbenchError, match="no image"):
        search.images_of_sentence(run, "a dog", tmp_path, 3)
    with pytest.raises(CapbenchError, match="no word"):
        search.images_of_sentence(run, "...", pictures, 3)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(CapbenchError, match=r"empty\.txt"):
        search.captions_of_image(run, pictures / "0.png", tmp_path / "empty.txt", 3)
