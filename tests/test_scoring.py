"""Outputs of any system: read from files, joined by id, scored. Retrieval is checked against counts made here."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

from capbench.base.errors import CapbenchError
from capbench.data.captions import CaptionDataset, Split
from capbench.evidence.records import signature_of
from capbench.metrics import captioning, jars
from capbench.metrics.captioning import CaptionScorer
from capbench.scoring import joining
from capbench.scoring import score as scoring
from capbench.scoring.files import read_captions, read_embeddings, read_ranking, read_similarity
from capbench.scoring.outputs import Captions, Embeddings, Outputs, Similarity
from capbench.scoring.ranking import Lists, _check_queries
from capbench.scoring.score import score
from capbench.scoring.words import decoded, encoded


class NoPictures:
    fingerprint = "none"

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> np.ndarray:
        raise AssertionError("no picture is looked at")

    def check(self) -> None:
        pass


def photographs(each, val=0, folder="val2014") -> CaptionDataset:
    """Images with `each[i]` captions in the test split, and `val` with one; ids are COCO's, not places."""
    counts = [*each, *[1] * val]
    ids = [1000 + 7 * number for number in range(len(counts))]
    owners = np.repeat(np.arange(len(counts)), counts)
    captions = [f"a {'big' * (number % 2)} dog number {number} by image {owner}" for number, owner in enumerate(owners)]
    return CaptionDataset(
        name="coco",
        images=NoPictures(len(counts)),
        image_names=tuple(f"{folder}/COCO_val2014_{number:012d}.jpg" for number in ids),
        image_ids=tuple(ids),
        split_of_image=("test",) * len(each) + ("val",) * val,
        captions=tuple(captions),
        tokens=tuple(tuple(caption.split()) for caption in captions),
        caption_ids=tuple(50_000 + 3 * number for number in range(len(captions))),
        image_of_caption=owners.astype(np.int64),
    )


def unit(rows) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def embedded(split, noise=0.6, dim=16, seed=0):
    random = np.random.default_rng(seed)
    images = unit(random.standard_normal((len(split.image_index), dim)))
    return images, unit(
        images[split.image_of_caption] + noise * random.standard_normal((len(split.caption_index), dim))
    )


def recalls(similarity, image_of_caption, depth=1):
    """R@depth both ways, counted a query at a time; ties count against."""
    wrong = image_of_caption[None] != np.arange(len(similarity))[:, None]
    of_image = [np.sum(row[w] >= row[~w].max()) < depth for row, w in zip(similarity.astype(float), wrong, strict=True)]
    of_caption = [
        np.sum(column[w] >= column[~w].max()) < depth
        for column, w in zip(similarity.T.astype(float), wrong.T, strict=True)
    ]
    return tuple(100.0 * int(sum(hits)) / len(hits) for hits in (of_image, of_caption))


SPLIT = photographs([5, 6, 5, 7, 5, 5, 5, 5, 5, 5, 5, 5], val=3).split("test")
IMAGES, CAPTIONS = embedded(SPLIT)
IMAGE_IDS = [SPLIT.dataset.image_ids[i] for i in SPLIT.image_index]
CAPTION_IDS = [SPLIT.dataset.caption_ids[i] for i in SPLIT.caption_index]
NAMES = [SPLIT.dataset.image_names[i] for i in SPLIT.image_index]


def files(folder, **arrays):
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return [folder / f"{name}.npy" for name in arrays]


@pytest.fixture
def no_java(monkeypatch):
    for module in (jars, captioning):
        monkeypatch.setattr(module, "find_java", lambda: None)
    jars.java_version.cache_clear()
    scoring._scorers.clear()
    yield
    jars.java_version.cache_clear()
    scoring._scorers.clear()


# Embeddings


def test_embeddings_are_joined_by_id_whatever_their_order(tmp_path):
    rows, columns = np.random.default_rng(1).permutation(12), np.random.default_rng(2).permutation(len(CAPTIONS))
    images, captions = files(tmp_path, images=IMAGES[rows], captions=CAPTIONS[columns])
    (tmp_path / "images.txt").write_text("".join(f"{NAMES[row]}\n" for row in rows))
    (tmp_path / "captions.json").write_text(json.dumps([CAPTION_IDS[column] for column in columns]))
    shuffled = read_embeddings(images, captions, tmp_path / "images.txt", tmp_path / "captions.json")
    evaluation = score(shuffled, SPLIT)
    wanted = recalls(IMAGES @ CAPTIONS.T, SPLIT.image_of_caption)
    assert (evaluation.metrics["image_to_caption_r1"], evaluation.metrics["caption_to_image_r1"]) == wanted
    assert 0 < wanted[1] < 100
    assert not [note for note in evaluation.notes if note.startswith(("order", "folded"))]
    assert evaluation.arrays["image_of_caption"].tolist() == SPLIT.image_of_caption.tolist()


def test_without_ids_the_order_of_the_split_file_is_taken_and_said(tmp_path):
    evaluation = score(read_embeddings(*files(tmp_path, images=IMAGES, captions=CAPTIONS)), SPLIT)
    assert evaluation.metrics["caption_to_image_r1"] == recalls(IMAGES @ CAPTIONS.T, SPLIT.image_of_caption)[1]
    (of_images, of_captions) = [note for note in evaluation.notes if note.startswith("order")]
    assert "images.npy gives no ids; its rows were taken for the 12 images" in of_images
    assert "the 63 captions in the split file's order" in of_captions


@pytest.mark.parametrize("ids", [False, True])
def test_the_first_five_captions_of_each_image_are_understood_and_named(tmp_path, ids):
    """COCO's test split has 25,010 captions, and the field scores 25,000."""
    kept = SPLIT.first_captions(5)
    of_ids = {"image_ids": np.array(IMAGE_IDS), "caption_ids": np.array(CAPTION_IDS)[kept]} if ids else {}
    arrays: dict[str, Any] = {"images": IMAGES, "captions": CAPTIONS[kept], **of_ids}
    np.savez(tmp_path / "both.npz", **arrays)
    evaluation = score(read_embeddings(tmp_path / "both.npz"), SPLIT)
    assert "scored: the first 5 captions of each image, 60 of 63" in evaluation.notes
    wanted = recalls(IMAGES @ CAPTIONS[kept].T, SPLIT.image_of_caption[kept])
    assert (evaluation.metrics["image_to_caption_r1"], evaluation.metrics["caption_to_image_r1"]) == wanted
    assert "|images:12|captions:60|" in signature_of(evaluation.notes)


@pytest.mark.parametrize("times", [5, "as the captions"])
@pytest.mark.parametrize("ids", [False, True])
def test_images_that_are_repeated_are_folded_and_it_is_said(tmp_path, times, ids):
    owner = SPLIT.image_of_caption if times != 5 else np.repeat(np.arange(12), 5)
    arrays = {"images": IMAGES[owner], "captions": CAPTIONS}
    given = files(tmp_path, **arrays, **({"i": np.array(IMAGE_IDS)[owner], "c": CAPTION_IDS} if ids else {}))
    evaluation = score(read_embeddings(*given), SPLIT)
    assert evaluation.metrics == score(read_embeddings(*files(tmp_path, a=IMAGES, b=CAPTIONS)), SPLIT).metrics
    assert any(f"has {len(owner)} rows for 12 images, equal for each image" in note for note in evaluation.notes)
    spoilt = IMAGES[owner].copy()
    spoilt[7, 0] += 1e-4
    given[0] = files(tmp_path, images=spoilt)[0]
    with pytest.raises(CapbenchError, match=r"images\.npy has \d+ rows for 12 images, and rows 5 and 7, of one image"):
        score(read_embeddings(*given), SPLIT)


def test_wrong_ids_are_refused_with_a_list_of_ten_and_the_count(tmp_path):
    images, captions = files(tmp_path, images=IMAGES, captions=CAPTIONS)
    wrong = [IMAGE_IDS[0], *IMAGE_IDS[:10], 5]
    given = files(tmp_path, i=np.array(wrong), c=np.array(CAPTION_IDS))
    with pytest.raises(CapbenchError) as refused:
        score(read_embeddings(images, captions, *given), SPLIT)
    assert "images.npy should have each image of the test split of coco once" in str(refused.value)
    assert "1 twice (1000); 1 unknown (5); 2 missing (1070, 1077)" in str(refused.value)
    strange = files(tmp_path, i=np.array(IMAGE_IDS), c=np.arange(len(CAPTIONS)))
    with pytest.raises(CapbenchError, match=r"63 unknown \(0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 53 more\); 6.*sentid"):
        score(read_embeddings(images, captions, *strange), SPLIT)


def test_outputs_of_another_split_are_told_apart(tmp_path):
    val = SPLIT.dataset.split("val")
    names = [SPLIT.dataset.image_names[i] for i in val.image_index]
    outputs = Captions(("a dog",) * 3, tuple((name,) for name in names), "r.json")
    with pytest.raises(CapbenchError, match="the split val has them all: give --split val"):
        score(outputs, SPLIT)


def test_numbers_of_rows_that_fit_nothing_are_refused_with_those_that_do(tmp_path):
    with pytest.raises(CapbenchError) as refused:
        score(read_embeddings(*files(tmp_path, images=IMAGES[:11], captions=CAPTIONS)), SPLIT)
    assert "have 11 images and 63 captions" in str(refused.value)
    assert "12 images with 60 captions or 12 images with 63 captions; give rows in that order, or files of ids" in str(
        refused.value
    )


@pytest.mark.parametrize("kind", [np.float16, np.float64, ">f4"])
def test_numbers_of_any_width_score_as_they_are(tmp_path, kind):
    images, captions = IMAGES.astype(kind), CAPTIONS.astype(kind)
    evaluation = score(read_embeddings(*files(tmp_path, images=images, captions=captions)), SPLIT)
    similarity = images.astype(np.float64) @ captions.astype(np.float64).T
    wanted = recalls(similarity, SPLIT.image_of_caption)
    assert (evaluation.metrics["image_to_caption_r1"], evaluation.metrics["caption_to_image_r1"]) == wanted


def test_integers_score_under_the_dot_product_and_ties_count_against(tmp_path):
    random = np.random.default_rng(3)
    images, captions = random.integers(-2, 3, (12, 4)).astype(np.int8), random.integers(-2, 3, (63, 4))
    outputs = read_embeddings(*files(tmp_path, images=images, captions=captions))
    evaluation = score(outputs, SPLIT, similarity="dot")
    wanted = recalls(images.astype(int) @ captions.T, SPLIT.image_of_caption, 5)
    assert (evaluation.metrics["image_to_caption_r5"], evaluation.metrics["caption_to_image_r5"]) == wanted
    assert "similarity:dot" in signature_of(evaluation.notes)
    same = read_embeddings(*files(tmp_path, images=np.ones((12, 4)), captions=np.ones((63, 4))))
    assert score(same, SPLIT, similarity="dot").metrics["image_to_caption_r1"] == 0


def test_bfloat16_of_a_safetensors_file_is_read(tmp_path):
    from safetensors.torch import save_file as save_tensors

    tensors = {"images": torch.from_numpy(IMAGES).bfloat16(), "captions": torch.from_numpy(CAPTIONS).bfloat16()}
    save_tensors(tensors, tmp_path / "e.safetensors")
    outputs = read_embeddings(tmp_path / "e.safetensors")
    assert outputs.images.rows.equal(tensors["images"].float())


def test_vectors_of_other_lengths_are_refused_under_the_cosine(tmp_path):
    longer = IMAGES.copy()
    longer[4] *= 1.01
    given = files(tmp_path, images=longer, captions=CAPTIONS, i=np.array(IMAGE_IDS))
    outputs = read_embeddings(*given)
    with pytest.raises(
        CapbenchError,
        match=r"images\.npy, row 4 \(id 1028\).*length 1\.01.*normalise them, or score them with --similarity dot",
    ):
        score(outputs, SPLIT)
    assert score(outputs, SPLIT, similarity="dot").metrics["rsum"] > 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_refused_by_row_and_id(tmp_path, value):
    spoilt = CAPTIONS.copy()
    spoilt[17, 3] = value
    given = files(tmp_path, images=IMAGES, captions=spoilt, i=np.array(IMAGE_IDS), c=np.array(CAPTION_IDS))
    with pytest.raises(CapbenchError, match=r"captions\.npy, row 17 \(id 50051\): a value that is not finite; compute"):
        read_embeddings(*given)


def test_floats_of_eight_bits_are_read_and_are_no_ids(tmp_path):
    short = {"images": torch.from_numpy(IMAGES).to(torch.float8_e4m3fn), "captions": torch.from_numpy(CAPTIONS)}
    save_tensors(short, tmp_path / "a.safetensors")
    read = read_embeddings(tmp_path / "a.safetensors").images.rows
    assert read.dtype == torch.float32
    assert np.allclose(read, IMAGES, atol=0.04)
    save_tensors({**short, "image_ids": torch.zeros(12, dtype=torch.bfloat16)}, tmp_path / "b.safetensors")
    with pytest.raises(CapbenchError, match=r"b\.safetensors, image_ids: the ids are float32 \[12\]; give one whole"):
        read_embeddings(tmp_path / "b.safetensors")


def test_images_and_captions_in_the_wrong_order_are_told(tmp_path):
    outputs = read_embeddings(*files(tmp_path, captions=CAPTIONS, images=IMAGES))
    with pytest.raises(CapbenchError, match=r"63 images and 12 captions, .*give the file of the images first"):
        score(outputs, SPLIT)


def numbered(names) -> Split:
    """A test split whose files are named by numbers; ids are places."""
    images = tuple(f"{name}.jpg" for name in names)
    plain = photographs([2] * len(images))
    return replace(plain, image_names=images, image_ids=tuple(range(len(images)))).split("test")


def test_a_number_in_text_that_is_one_image_s_id_and_another_s_file_is_refused(tmp_path):
    split = numbered([1, 0, "0002"])
    images, captions = embedded(split)
    given = files(tmp_path, images=images, captions=captions)
    for number, ids in enumerate((["0", "1", "2"], ["0.jpg", "1.jpg", "0002.jpg"], ["1", "0", "0002"])):
        (tmp_path / f"{number}.txt").write_text("\n".join(ids))
    for number in (0, 2):
        with pytest.raises(
            CapbenchError, match=r"'[01]' may be the id of .*jpg or the file .*jpg; write file names wi"
        ):
            score(read_embeddings(given[0], given[1], tmp_path / f"{number}.txt"), split)
    named = score(read_embeddings(given[0], given[1], tmp_path / "1.txt"), split)
    np.save(tmp_path / "i.npy", [1, 0, 2])
    assert named.metrics == score(read_embeddings(given[0], given[1], tmp_path / "i.npy"), split).metrics


def test_numbers_in_text_are_ids_where_no_file_has_them_and_files_where_no_id_has(tmp_path):
    split = numbered([10, 2, 30])  # "2" is the id and the file of different images, but is not asked for
    images, captions = embedded(split)
    given = files(tmp_path, images=images, captions=captions)
    (tmp_path / "i.txt").write_text("10\n1\n30")
    found = score(read_embeddings(given[0], given[1], tmp_path / "i.txt"), split)
    assert found.metrics == score(read_embeddings(*given), split).metrics


def test_a_run_whose_images_may_be_ids_or_files_is_refused(tmp_path):
    split = numbered([1, 0, 7])
    images, captions = embedded(split)
    path = run(tmp_path, split, images @ captions.T, ways="i")
    score(read_ranking(path), split)
    path.write_text(path.read_text().replace(".jpg", ""))
    with pytest.raises(CapbenchError, match=r"run\.trec: '[01]' may be the id of .* or the file"):
        score(read_ranking(path), split)


def test_unequal_widths_are_refused(tmp_path):
    with pytest.raises(CapbenchError, match=r"images\.npy has image vectors of 16 numbers, .*captions\.npy cap.* 9;"):
        read_embeddings(*files(tmp_path, images=IMAGES, captions=CAPTIONS[:, :9]))


def refusals(folder):
    """A file, and what is said of it."""
    np.save(folder / "object.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    np.save(folder / "text.npy", np.array([["a", "b"]]))
    np.save(folder / "flat.npy", IMAGES[0])
    np.save(folder / "cut.npy", IMAGES)
    (folder / "cut.npy").write_bytes((folder / "cut.npy").read_bytes()[:-9])
    np.savez(folder / "other.npz", vectors=IMAGES)
    (folder / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (folder / "bad.npz").write_bytes(b"PK")
    np.savez_compressed(folder / "spoilt.npz", images=np.tile(IMAGES, 9))
    content = bytearray((folder / "spoilt.npz").read_bytes())
    content[120:160] = b"\xff" * 40  # of the compressed numbers
    (folder / "spoilt.npz").write_bytes(content)
    np.savez(folder / "locked.npz", images=IMAGES)
    shutil.copy(folder / "locked.npz", folder / "zipped.npy")
    content = bytearray((folder / "locked.npz").read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # says that a password is needed
    (folder / "locked.npz").write_bytes(content)
    save_file({"a": IMAGES}, folder / "other.safetensors")
    (folder / "rows.csv").write_text("1,2")
    with zipfile.ZipFile(folder / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999, 4096), }"
        header = header.ljust(117) + b"\n"
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    yield "object.npy", "it is pickled; save plain numbers"
    yield "text.npy", "of type <U1; give floating-point numbers or integers"
    yield "flat.npy", r"has shape \[16\]; give a matrix"
    yield "cut.npy", "cannot read .*; save or fetch it again"
    yield "zipped.npy", r"is an archive of arrays; rename it to end in \.npz"
    yield "spoilt.npz", "cannot read .*; save or fetch it again"
    yield "locked.npz", "cannot read .*password.*; save or fetch it again"
    yield "other.npz", "has no array 'images', but 'vectors'; save it under that name"
    yield "other.safetensors", "has no array 'images', but 'a'; save it under that name"
    yield "cut.safetensors", "cannot read"
    yield "bad.npz", "cannot read"
    yield "rows.csv", r"is no array file; give one that ends in \.npy, \.npz, \.safetensors"
    yield "bomb.npz", r"images\.npy claims 1,638,[\d,]+ bytes in \d+; save"
    yield "none.npy", "there is no file"


def test_files_that_hold_no_embeddings_are_refused_by_name(tmp_path):
    (captions,) = files(tmp_path, captions=CAPTIONS)
    for name, message in refusals(tmp_path):
        with pytest.raises(CapbenchError, match=message) as refused:
            read_embeddings(tmp_path / name, captions)
        assert name in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("i.txt", "1\n\n3\n", r"i\.txt, line 2: it is empty"),
        ("i.json", '{"a": 1}', r"i\.json: ids"),
        ("i.csv", "1", r"i\.csv is no file of ids"),
        ("i.txt", "1\n2\n", r"images\.npy has 12 rows and .*i\.txt 2 ids; give one id for each"),
    ],
)
def test_files_that_hold_no_ids_are_refused_by_name(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    images, captions = files(tmp_path, images=IMAGES, captions=CAPTIONS)
    with pytest.raises(CapbenchError, match=message):
        read_embeddings(images, captions, tmp_path / name)


def test_ids_that_are_no_whole_numbers_are_refused(tmp_path):
    given = files(tmp_path, images=IMAGES, captions=CAPTIONS, i=np.array(IMAGE_IDS, float))
    with pytest.raises(CapbenchError, match=r"i\.npy: the ids are float64 \[12\]; give one whole number or file name"):
        read_embeddings(*given)


# Similarities


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.int64])
def test_a_similarity_matrix_scores_as_it_stands(tmp_path, kind):
    matrix = (100 * IMAGES @ CAPTIONS.T).astype(kind)
    evaluation = score(read_similarity(*files(tmp_path, s=matrix)), SPLIT)
    wanted = recalls(matrix, SPLIT.image_of_caption, 5)
    assert (evaluation.metrics["image_to_caption_r5"], evaluation.metrics["caption_to_image_r5"]) == wanted
    rows, columns = np.random.default_rng(1).permutation(12), np.random.default_rng(2).permutation(63)
    ids = {"image_ids": np.array(IMAGE_IDS)[rows], "caption_ids": np.array(CAPTION_IDS)[columns]}
    save_file({"similarity": np.ascontiguousarray(matrix[rows][:, columns]), **ids}, tmp_path / "s.safetensors")
    assert score(read_similarity(tmp_path / "s.safetensors"), SPLIT).metrics == evaluation.metrics


def test_a_transposed_matrix_and_nan_are_refused(tmp_path):
    matrix = IMAGES @ CAPTIONS.T
    with pytest.raises(CapbenchError, match=r"t\.npy has 63 images and 12 captions.*transpose it"):
        score(read_similarity(*files(tmp_path, t=matrix.T)), SPLIT)
    matrix[3, 8] = np.nan
    with pytest.raises(CapbenchError, match=r"s\.npy, row 3: NaN; compute"):
        read_similarity(*files(tmp_path, s=matrix))


# Protocols: thousands of images, made small


@pytest.fixture
def tens(monkeypatch):
    """A thousand is ten."""
    from capbench.metrics import retrieval
    from capbench.scoring import ranking

    for module in (retrieval, joining, ranking):
        monkeypatch.setattr(module, "FOLD", 10)
    split = photographs([2] * 50).split("test")
    return split, *embedded(split, noise=1.0)


def by_tens(similarity, image_of_caption, starts, depth=1):
    each = []
    for start in starts:
        columns = (image_of_caption >= start) & (image_of_caption < start + 10)
        each.append(recalls(similarity[start : start + 10, columns], image_of_caption[columns] - start, depth))
    return [pytest.approx(value) for value in np.mean(each, axis=0)]


@pytest.mark.parametrize(("protocol", "starts"), [("1K", [0]), ("5-fold 1K", [0, 10, 20, 30, 40])])
def test_every_kind_of_output_knows_the_protocols(tmp_path, tens, protocol, starts):
    split, images, captions = tens
    similarity = images @ captions.T
    wanted = by_tens(similarity, split.image_of_caption, starts)
    given = files(tmp_path, images=images, captions=captions, s=similarity)
    whole: list[Outputs] = [
        read_embeddings(*given[:2]),
        read_similarity(given[2]),
        read_ranking(run(tmp_path, split, similarity)),
    ]
    for outputs in whole:
        evaluation = score(outputs, split, protocol)
        found = [evaluation.metrics[f"{way}_r1"] for way in ("image_to_caption", "caption_to_image")]
        assert found == wanted
        assert len(evaluation.arrays["caption_to_image"]) == len(evaluation.arrays["image_of_caption"])
        assert f"images:{10 * len(starts)}|captions:{20 * len(starts)}" in signature_of(evaluation.notes)


def test_the_first_thousand_may_be_given_alone(tmp_path, tens):
    split, images, captions = tens
    part = read_embeddings(*files(tmp_path, images=images[:10], captions=captions[:20]))
    whole = read_embeddings(*files(tmp_path, a=images, b=captions))
    assert score(part, split, "1K").metrics == score(whole, split, "1K").metrics
    with pytest.raises(CapbenchError, match=r"10 images and 20 captions.*50 images with 100 captions"):
        score(part, split, "5K")


def test_captions_are_scored_on_the_first_thousand(tens, no_java):
    split, *_ = tens
    written = [split.captions[2 * image] for image in range(50)]
    outputs = Captions.of(split, tuple(written))
    assert score(outputs, split, "1K").metrics["bleu4"] == pytest.approx(100)
    assert "|images:10|" in signature_of(score(outputs, split, "1K").notes)
    part = Captions(outputs.captions[:10], outputs.images[:10])
    assert score(part, split, "1K").metrics == score(outputs, split, "1K").metrics
    with pytest.raises(CapbenchError, match=r"40 missing \(1070"):
        score(part, split, "whole")
    with pytest.raises(CapbenchError, match="is of rankings; score captions under whole, 1K or 5K"):
        score(outputs, split, "5-fold 1K")


@pytest.mark.parametrize("protocol", ["1K", "5K", "2K"])
def test_a_protocol_that_does_not_fit_the_split_is_refused(protocol):
    outputs = Embeddings.of(SPLIT, np.arange(63), torch.from_numpy(IMAGES), torch.from_numpy(CAPTIONS))
    with pytest.raises(CapbenchError, match=r"protocol.*(1,000|5,000|'2K')"):
        score(outputs, SPLIT, protocol)


# Ranked lists


def run(folder, split, similarity, depth=None, ways=("i", "c"), name="run.trec"):
    """A TREC run of both directions, queries and candidates by file name and id."""
    names = [split.dataset.image_names[i] for i in split.image_index]
    captions = [str(split.dataset.caption_ids[i]) for i in split.caption_index]
    lines = []
    for way, queries, candidates, scores in (("i", names, captions, similarity), ("c", captions, names, similarity.T)):
        for query, row in zip(queries, scores, strict=True):
            for rank, place in enumerate(np.argsort(-row, kind="stable")[:depth] if way in ways else []):
                lines.append(f"{query} Q0 {candidates[place]} {rank + 1} {row[place]:.9f} test\n")
    (folder / name).write_text("".join(np.random.default_rng(0).permutation(lines)))
    return folder / name


def test_whole_lists_score_as_their_similarities_do(tmp_path):
    similarity = IMAGES @ CAPTIONS.T
    ranked = score(read_ranking(run(tmp_path, SPLIT, similarity)), SPLIT)
    assert ranked.metrics == score(Similarity(torch.from_numpy(similarity)), SPLIT).metrics
    assert "depth:12" in signature_of(ranked.notes)
    both = [run(tmp_path, SPLIT, similarity, ways=way, name=f"{way}.trec") for way in "ic"]
    assert score(read_ranking(*both), SPLIT).metrics == ranked.metrics


def test_lists_that_are_cut_off_give_what_is_certain_and_say_the_rest(tmp_path):
    similarity = embedded(SPLIT, noise=1.0)[0] @ embedded(SPLIT, noise=1.0)[1].T
    whole = score(Similarity(torch.from_numpy(similarity)), SPLIT)
    cut = score(read_ranking(run(tmp_path, SPLIT, similarity, depth=5)), SPLIT)
    assert whole.arrays["caption_to_image"].max() >= 5, "some matches lie outside their lists"
    for way in ("image_to_caption", "caption_to_image"):
        for depth in (1, 5):
            assert cut.metrics[f"{way}_r{depth}"] == whole.metrics[f"{way}_r{depth}"]
    assert cut.metrics["caption_to_image_median_rank"] == whole.metrics["caption_to_image_median_rank"] <= 5
    for name in ("caption_to_image_r10", "caption_to_image_mean_rank", "rsum"):
        assert name not in cut.metrics
        assert any(note.startswith(f"{name}: not certain") and "ends at 5" in note for note in cut.notes)
    assert (cut.arrays["caption_to_image"] >= whole.arrays["caption_to_image"]).all()


def test_lists_of_one_direction_score_that_one(tmp_path):
    similarity = IMAGES @ CAPTIONS.T
    whole = score(Similarity(torch.from_numpy(similarity)), SPLIT)
    one = score(read_ranking(run(tmp_path, SPLIT, similarity, ways="c")), SPLIT)
    assert one.metrics == {name: value for name, value in whole.metrics.items() if name.startswith("caption_to_image")}
    assert set(one.arrays) == {"caption_to_image", "image_of_caption"}
    assert "rsum: the file has no lists image to caption" in one.notes


def test_ties_in_a_list_count_against(tmp_path):
    evaluation = score(read_ranking(run(tmp_path, SPLIT, np.zeros((12, 63)))), SPLIT)
    assert evaluation.metrics["image_to_caption_r10"] == evaluation.metrics["caption_to_image_r10"] == 0


def test_a_match_that_ties_at_the_end_of_a_list_that_is_cut_off_is_not_certain(tmp_path):
    cut = score(read_ranking(run(tmp_path, SPLIT, np.zeros((12, 63)), depth=5)), SPLIT)
    assert cut.metrics["caption_to_image_r1"] == 0
    for name in ("image_to_caption_r1", "image_to_caption_r5", "caption_to_image_r5", "caption_to_image_r10"):
        assert name not in cut.metrics
        assert any(note.startswith(f"{name}: not certain") for note in cut.notes)


def test_lists_of_images_that_are_not_scored_are_refused():
    none = Lists(*(np.array([], kind) for kind in (np.int64, np.int64, np.float64)))
    scope = next(joining.scopes(SPLIT, "whole"))
    with pytest.raises(CapbenchError, match=r"run\.trec: none of the 12 images that are scored has a list"):
        _check_queries(none, "image_to_caption", 12, scope, "run.trec")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q Q0 d 1 0.5", r"run\.trec, line 2: 'q Q0 d 1 0.5.* is not `qid Q0 docid rank score tag`"),
        ("q Q0 d 1 0.5 tag more", r"run\.trec, line 2: "),
        ("q Q0 d one 0.5 tag", r"run\.trec, line 2: "),
        ("q Q0 d 1 nan tag", r"run\.trec, line 2: "),
        ("1000 Q0 50000 2 0.9 tag", r"run\.trec, line 2: query 1000 has a higher score at a later rank"),
        ("1000 Q0 777 2 0.1 tag", r"1 unknown \(777\)"),
        ("1000 Q0 50003 2 0.5 tag", "the list of image 1000 has a candidate twice"),
        ("1000 Q0 50000 2 0.1 tag", r"11 images have no list \(1007, 1014,.* and 1 more\); give one for each"),
    ],
)
def test_a_run_that_is_wrong_is_refused_by_line_or_id(tmp_path, line, message):
    (tmp_path / "run.trec").write_text(f"1000 Q0 50003 1 0.5 tag\n{line}\n")
    with pytest.raises(CapbenchError, match=message):
        score(read_ranking(tmp_path / "run.trec"), SPLIT)


def test_blank_lines_of_a_run_count_in_messages_and_nowhere_else(tmp_path):
    path = run(tmp_path, SPLIT, IMAGES @ CAPTIONS.T)
    plain = score(read_ranking(path), SPLIT)
    path.write_text("\n\n" + path.read_text() + "\n \n")
    assert score(read_ranking(path), SPLIT).metrics == plain.metrics
    path.write_text("\n\nq Q0 d one 0.5 tag\n")
    with pytest.raises(CapbenchError, match=r"run\.trec, line 3: 'q Q0 d one 0\.5 tag' is not"):
        read_ranking(path)


def test_a_missing_or_empty_run_is_refused(tmp_path):
    (tmp_path / "empty.trec").write_text("")
    for name in ("none.trec", "empty.trec"):
        with pytest.raises(CapbenchError, match=rf"{name}"):
            read_ranking(tmp_path / name)


# Captions


def results(folder, *entries):
    (folder / "results.json").write_text(json.dumps(entries))
    return folder / "results.json"


NAMED = {
    "id": lambda number: {"image_id": IMAGE_IDS[number]},
    "id as text": lambda number: {"image_id": str(IMAGE_IDS[number])},
    "number of COCO": lambda number: {"image_id": f"{IMAGE_IDS[number]:012d}"},
    "file": lambda number: {"file_name": NAMES[number]},
    "file without folder": lambda number: {"image": NAMES[number].split("/")[1]},
    "file without ending": lambda number: {"image_id": NAMES[number].split("/")[1].removesuffix(".jpg")},
    "file in more folders": lambda number: {"image": f"data/coco/images/{NAMES[number]}"},
    "both": lambda number: {"image_id": IMAGE_IDS[number], "file_name": NAMES[number]},
    "a number of its own beside the file": lambda number: {"image_id": int(number), "file_name": NAMES[number]},
}


@pytest.mark.parametrize("named", NAMED.values(), ids=NAMED)
def test_an_image_is_named_by_id_or_by_file(tmp_path, no_java, named):
    first = [SPLIT.captions[int(np.argmax(SPLIT.image_of_caption == image))] for image in range(12)]
    entries = [{**named(number), "caption": first[number]} for number in np.random.default_rng(5).permutation(12)]
    metrics = score(read_captions(results(tmp_path, *entries)), SPLIT).metrics
    references = [[SPLIT.captions[c] for c in np.flatnonzero(SPLIT.image_of_caption == image)] for image in range(12)]
    assert metrics["cider"] == CaptionScorer(references).score(first).metrics["cider"]


def test_captions_in_a_file_lose_line_breaks_and_lone_surrogates(tmp_path):
    outputs = read_captions(
        results(tmp_path, {"image_id": 9, "caption": "a\ncat \ud800"}, {"image": "b", "caption": ""})
    )
    assert outputs.captions == ("a cat \ufffd", "")


def test_an_entry_whose_names_are_two_images_is_refused(tmp_path):
    entries = [{"image_id": IMAGE_IDS[1], "file_name": NAMES[0], "caption": "a"}]
    with pytest.raises(CapbenchError, match=r"results\.json: 1007 and 'val2014.*are two images; keep the right one"):
        score(read_captions(results(tmp_path, *entries)), SPLIT)


@pytest.mark.fault("duplicate, unknown or missing ids in a results file")
def test_images_twice_unknown_or_missing_are_listed(tmp_path):
    path = results(tmp_path, *({"image_id": i, "caption": "a"} for i in (1000, 1007, 1007, 1014, 77, 77)))
    with pytest.raises(CapbenchError, match=r"results\.json.*2 twice \(1007, 77\); 1 unknown \(77\); 9 missing"):
        score(read_captions(path), SPLIT)


@pytest.mark.fault("empty or malformed results file")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "has no result; it should be a list"),
        ('{"annotations": []}', r"results are a list: \[\{\"image_id\""),
        ('[{"image_id": 1}]', r"results\[0\]\.caption: Field required"),
        ('[{"caption": "a"}]', r"results\[0\]: it names no image; give image_id, file_name or image"),
        ('[{"image_id": 1.5, "caption": "a"}]', r"results\[0\]\.image_id"),
        ('[{"image_id": 1, "capt', "ends too early"),
    ],
)
def test_a_file_that_holds_no_results_is_refused_by_name(tmp_path, content, message):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(CapbenchError, match=rf"r\.json.*{message}"):
        read_captions(tmp_path / "r.json")


def test_the_signature_says_how_captions_were_scored(no_java):
    outputs = Captions.of(SPLIT, ("a dog",) * 12)
    evaluation = score(outputs, SPLIT, rule="as-written")
    data = f"data:coco:{SPLIT.dataset.fingerprint[:8]}|split:test|protocol:whole|images:12"
    wanted = f"captions|{data}|refs:5-7|tok:simple|java:none|rule:as-written|version:0.1.0"
    assert signature_of(evaluation.notes) == wanted
    assert evaluation.metrics == score(outputs, SPLIT).metrics, "a rule chooses what is shown first"
    with pytest.raises(CapbenchError, match=r"no rule 'coco'; .*coco-caption"):
        score(outputs, SPLIT, rule="coco")


@pytest.mark.skipif(not jars.find_java(), reason="needs Java")
def test_the_signature_names_java_and_its_tokeniser():
    jars.java_version.cache_clear()
    evaluation = score(Captions.of(SPLIT, ("a dog",) * 12), SPLIT)
    assert f"|tok:ptb|java:{jars.java_version()}|" in signature_of(evaluation.notes)
    assert jars.java_version()[0].isdigit()


def test_captions_keep_their_words_as_numbers():
    captions = ["a dog", "", "ein Hündchen läuft 🐕", "犬"]
    assert decoded(encoded(captions)) == captions
    assert decoded(encoded(["", ""])) == ["", ""]


# What runs leave


def test_what_runs_leave_is_read_again(tmp_path, no_java):
    kept = SPLIT.first_captions(5)
    images, captions = torch.from_numpy(IMAGES), torch.from_numpy(CAPTIONS[kept])
    similarity = images @ captions.T
    embeddings = Embeddings.of(SPLIT, kept, images, captions)
    wanted = score(embeddings, SPLIT)
    saved = embeddings.save(tmp_path, "test")
    assert saved.name == "test-embeddings.safetensors"
    again = score(read_embeddings(saved), SPLIT)
    assert again.metrics == wanted.metrics
    assert all((again.arrays[name] == array).all() for name, array in wanted.arrays.items())
    matrix = Similarity.of(SPLIT, kept, similarity).save(tmp_path, "test")
    assert score(read_similarity(matrix), SPLIT).metrics["rsum"] == pytest.approx(wanted.metrics["rsum"])
    words = Captions.of(SPLIT, tuple(SPLIT.captions[:12])).save(tmp_path, "test")
    rows = json.loads(words.read_text())
    assert rows[0] == {"image_id": 1000, "caption": SPLIT.captions[0], "file_name": NAMES[0]}
    assert read_captions(words).captions == SPLIT.captions[:12]
