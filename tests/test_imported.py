"""Features of others: each layout is written here as its own code writes it, read back, and damaged."""

from __future__ import annotations

import base64
import csv
import itertools
import json
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from capbench.base.errors import CapbenchError
from capbench.cli.app import app
from capbench.data.captions import CaptionDataset
from capbench.data.datasets import load_captions, load_dataset
from capbench.data.images import ImageFolder
from capbench.data.scenes import scenes
from capbench.runs import harness
from capbench.runs.harness import Places
from capbench.runs.job import Job
from capbench.runs.loaded import find_run
from capbench.runs.materials import Materials
from capbench.runs.paper import paper
from capbench.vision.encoders import Encoder
from capbench.vision.imported import import_features, imported_features
from capbench.vision.regions import WHOLE

SPLITS = ("train",) * 5 + ("val",) * 3 + ("test",) * 4
IMAGES, DIM, BOXES = len(SPLITS), 6, 3
COCOIDS = [391895 + 7 * image for image in range(IMAGES)]


def dataset_of(names=None, ids=None, each=5) -> CaptionDataset:
    """Images that lie nowhere, with `each` captions."""
    names = tuple(names or (f"COCO_val2014_{number:012d}.jpg" for number in COCOIDS))
    captions = tuple(f"Image {i}, caption {n}: it's a dog." for i in range(IMAGES) for n in range(each))
    return CaptionDataset(
        name="little",
        images=ImageFolder(Path("nowhere"), names),
        image_names=names,
        image_ids=tuple(ids or COCOIDS),
        split_of_image=SPLITS,
        captions=captions,
        tokens=tuple(tuple("".join(c for c in text.lower() if c.isalnum() or c == " ").split()) for text in captions),
        caption_ids=tuple(range(len(captions))),
        image_of_caption=np.repeat(np.arange(IMAGES), each),
    )


@pytest.fixture
def dataset():
    return dataset_of()


@pytest.fixture(scope="module")
def regions():
    return np.random.default_rng(0).normal(size=(IMAGES, BOXES, DIM)).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "given").mkdir()
    return tmp_path / "given"


def write_scan(folder, dataset, features, repeat=1, ids=True, lines=None, splits=("train", "dev", "test")):
    """As the released archives are laid out: five lines an image, the words cut by another tokeniser."""
    for name in splits:
        rows = [i for i, split in enumerate(SPLITS) if split == {"dev": "val"}.get(name, name)]
        np.save(folder / f"{name}_ims.npy", np.repeat(features[rows], repeat, 0))
        own = [text for text, image in zip(dataset.captions, dataset.image_of_caption, strict=True) if image in rows]
        text = [(lines or {}).get(caption, caption.lower().replace("'s", " 's").replace(".", " .")) for caption in own]
        (folder / f"{name}_caps.txt").write_text("".join(f"{line}\n" for line in text))
        if ids:
            names = np.repeat([dataset.image_ids[row] for row in rows], repeat)
            (folder / f"{name}_ids.txt").write_text("".join(f"{name}\n" for name in names))


def write_tsv(path, ids, regions, boxes=None):
    boxes = boxes or [np.tile(np.array([10, 20, 30, 40], np.float32), (len(rows), 1)) for rows in regions]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        for name, rows, own in zip(ids, regions, boxes, strict=True):
            encoded = [base64.b64encode(values.astype("<f4").tobytes()).decode() for values in (own, rows)]
            writer.writerow([name, 100, 80, len(rows), *encoded])


def check_regions(dataset, store, regions, name="given", tolerance=0.0):
    grid = imported_features(dataset, f"file/{name}", "grid", store)
    vector = imported_features(dataset, f"file/{name}", "vector", store)
    placed = imported_features(dataset, f"file/{name}", "regions", store)
    assert np.abs(grid.array - regions).max() <= tolerance
    assert np.allclose(vector.array, regions.mean(1), atol=1e-6)
    assert np.array_equal(placed.array[:, 0], vector.array)
    assert np.array_equal(placed.array[:, 1:], grid.array)
    assert len({grid.fingerprint, vector.fingerprint, placed.fingerprint}) == 3
    return placed


@pytest.mark.parametrize("ids", [True, False], ids=["ids", "captions"])
@pytest.mark.parametrize("repeat", [1, 5], ids=["once", "five times"])
def test_rows_of_scan_are_the_regions_of_the_images_of_their_captions(dataset, folder, tmp_path, regions, ids, repeat):
    write_scan(folder, dataset, regions, repeat, ids)
    made = import_features(dataset, folder, "scan", store=tmp_path)
    assert made.shape == (IMAGES, 1 + BOXES, DIM)
    assert any("folded" in line for line in made.said) == (repeat == 5)
    check_regions(dataset, tmp_path, regions)


@pytest.mark.parametrize("ids", [True, False], ids=["ids", "captions"])
def test_rows_of_scan_in_another_order_than_the_split_file_s_are_joined_all_the_same(folder, tmp_path, regions, ids):
    given, own = dataset_of(), dataset_of()
    order = np.array([4, 2, 0, 3, 1, 7, 5, 6, 8, 11, 10, 9])
    by_image = [[5 * i + n for n in range(5)] for i in order]
    captions = tuple(own.captions[i] for five in by_image for i in five)
    given = replace(given, captions=captions, image_ids=tuple(own.image_ids[i] for i in order))
    write_scan(folder, given, regions[order], ids=ids)
    import_features(own, folder, "scan", store=tmp_path)
    check_regions(own, tmp_path, regions)


def test_vectors_of_vsepp_are_one_an_image(dataset, folder, tmp_path, regions):
    write_scan(folder, dataset, regions[:, 0].astype(np.float16), repeat=5, ids=False)
    made = import_features(dataset, folder, "scan", "vgg", store=tmp_path)
    assert made.shape == (IMAGES, DIM)
    found = imported_features(dataset, "file/vgg", "vector", tmp_path)
    assert np.array_equal(found.array, regions[:, 0].astype(np.float16).astype(np.float32))
    assert isinstance(found.array, np.memmap)
    assert not found.array.flags.writeable
    with pytest.raises(CapbenchError, match=r"file/vgg has one vector an image .*sees a grid of several.*such as 36"):
        imported_features(dataset, "file/vgg", "grid", tmp_path)


def test_captions_beyond_the_fifth_are_in_no_scan_file_and_not_asked_for(folder, tmp_path, regions):
    own = dataset_of(each=7)
    first = np.arange(7 * IMAGES) % 7 < 5
    five = replace(
        own,
        captions=tuple(itertools.compress(own.captions, first)),
        tokens=tuple(itertools.compress(own.tokens, first)),
        caption_ids=tuple(range(5 * IMAGES)),
        image_of_caption=own.image_of_caption[first],
    )
    write_scan(folder, five, regions, repeat=5, ids=False)
    import_features(own, folder, "scan", store=tmp_path)
    check_regions(own, tmp_path, regions)


def test_the_five_thousand_of_coco_supersede_the_thousand(dataset, folder, tmp_path, regions):
    write_scan(folder, dataset, regions)
    for kind in ("ims.npy", "caps.txt", "ids.txt"):
        (folder / f"test_{kind}").rename(folder / f"testall_{kind}")
    write_scan(folder, dataset, regions, splits=("test",))
    np.save(folder / "test_ims.npy", np.zeros((2, BOXES, DIM), np.float32))
    made = import_features(dataset, folder, "scan", store=tmp_path)
    assert "test_ims.npy is left out" in made.said[0]
    check_regions(dataset, tmp_path, regions)


@pytest.mark.parametrize("layout", ["tsv", "two tsv", "att", "fc", "h5 table", "h5 keys", "h5 suffixed", "h5 groups"])
def test_each_layout_gives_the_features_that_were_written(dataset, folder, tmp_path, regions, layout):
    order = np.random.default_rng(1).permutation(IMAGES)
    ids, shuffled = [COCOIDS[i] for i in order], regions[order]
    if layout == "tsv":
        write_tsv(folder / "trainval_36.tsv", ids, shuffled)
    elif layout == "two tsv":
        write_tsv(folder / "karpathy_train.tsv.0", ids[:5], shuffled[:5])
        write_tsv(folder / "karpathy_train.tsv.1", ids[5:], shuffled[5:])
    elif layout in ("att", "fc"):
        (folder / f"cocobu_{layout}").mkdir()
        for name, rows in zip(ids, shuffled, strict=True):
            if layout == "att":
                np.savez_compressed(folder / "cocobu_att" / str(name), feat=rows)
            else:
                np.save(folder / "cocobu_fc" / str(name), rows.mean(0))
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(folder / "features.hdf5", "w") as file:
            if layout == "h5 table":
                boxes = np.tile(np.array([10, 20, 30, 40], np.float32), (IMAGES, BOXES, 1))
                sizes = {"image_w": np.full(IMAGES, 100), "image_h": np.full(IMAGES, 80)}
                for key, values in {"image_id": ids, "features": shuffled, "boxes": boxes, **sizes}.items():
                    file[key] = values
            else:
                for name, rows in zip(ids, shuffled, strict=True):
                    file[
                        {"h5 keys": "{}", "h5 suffixed": "{}_features", "h5 groups": "{}/features"}[layout].format(name)
                    ] = rows
                    if layout == "h5 suffixed":
                        file[f"{name}_boxes"] = np.zeros((BOXES, 4))
    made = import_features(dataset, folder, layout.split()[0] if layout.startswith("h5") else "butd", store=tmp_path)
    if layout == "fc":
        assert np.array_equal(imported_features(dataset, "file/given", "vector", tmp_path).array, regions.mean(1))
        return
    assert made.shape == (IMAGES, 1 + BOXES, DIM)
    assert "3 regions of 6 numbers an image" in made.said[-1]
    placed = check_regions(dataset, tmp_path, regions)
    if layout in ("tsv", "two tsv", "h5 table"):
        assert placed.boxes is not None
        assert np.array_equal(placed.boxes.array[:, 0], np.tile(np.array(WHOLE, np.float32), (IMAGES, 1)))
        assert np.allclose(placed.boxes.array[:, 1:], [0.1, 0.25, 0.3, 0.5])
        assert (placed.boxes.count == 1 + BOXES).all()
    else:
        assert placed.boxes is None


def test_a_grid_of_cells_is_a_region_a_cell(dataset, folder, tmp_path):
    cells = np.random.default_rng(2).normal(size=(IMAGES, 2, 3, DIM)).astype(np.float32)
    for name, grid in zip(COCOIDS, cells, strict=True):
        np.savez(folder / str(name), feat=grid)
    import_features(dataset, folder, "butd", store=tmp_path)
    assert np.array_equal(
        imported_features(dataset, "file/given", "grid", tmp_path).array, cells.reshape(IMAGES, 6, DIM)
    )


def test_of_different_numbers_of_boxes_the_mean_is_kept_and_a_model_of_regions_refused(
    dataset, folder, tmp_path, regions
):
    adaptive = [rows[: 1 + image % BOXES] for image, rows in enumerate(regions)]
    write_tsv(folder / "trainval.tsv", COCOIDS, adaptive)
    made = import_features(dataset, folder, "butd", store=tmp_path)
    assert "1 to 3 regions an image: their mean" in made.said[-1]
    found = imported_features(dataset, "file/given", "vector", tmp_path).array
    assert np.allclose(found, [rows.mean(0) for rows in adaptive], atol=1e-6)
    with pytest.raises(CapbenchError, match=r"1 to 3 regions.*sees a region of several; import features with a fixed"):
        imported_features(dataset, "file/given", "regions", tmp_path)


FLICKR = [f"{10**9 + i}.jpg" for i in range(IMAGES)]
NAMES = {
    "COCO's ids": (None, None, COCOIDS, "ids of the split file"),
    "Karpathy's ids": (FLICKR, range(50, 50 + IMAGES), range(50, 50 + IMAGES), "ids of the split file"),
    "numbers of Flickr30K's names": (FLICKR, range(IMAGES), range(10**9, 10**9 + IMAGES), "file names"),
    "numbers of COCO's names": (None, range(IMAGES), COCOIDS, "numbers of the file names"),
    "running indices": (None, None, range(IMAGES), "running indices"),
    "names that are numbers, to the letter": (
        [f"{i:04d}.jpg" for i in reversed(range(IMAGES))],
        range(IMAGES),
        [f"{i:04d}" for i in reversed(range(IMAGES))],
        "file names",
    ),
    "numbers with their endings": (
        [f"{i}.jpg" for i in reversed(range(IMAGES))],
        range(IMAGES),
        [f"{i}.jpg" for i in reversed(range(IMAGES))],
        "file names",
    ),
    "names": ([f"a_{i}.jpg" for i in range(IMAGES)], None, [f"a_{i}.jpg" for i in range(IMAGES)], "file names"),
}


@pytest.mark.parametrize(("names", "own", "given", "way"), NAMES.values(), ids=NAMES)
def test_the_numbering_of_ids_is_told_apart_and_said(folder, tmp_path, regions, names, own, given, way):
    dataset = dataset_of(names, own)
    write_tsv(folder / "a.tsv", list(given), regions)
    made = import_features(dataset, folder, "butd", store=tmp_path)
    assert way in made.said[0]
    check_regions(dataset, tmp_path, regions)


def test_ids_that_two_numberings_know_and_read_as_other_images_are_refused(folder, tmp_path, regions):
    dataset = dataset_of([f"{i}.jpg" for i in reversed(range(IMAGES))], range(IMAGES))
    write_tsv(folder / "a.tsv", range(IMAGES), regions)
    with pytest.raises(CapbenchError, match=r"read as ids of the split file or as file names, which are other images"):
        import_features(dataset, folder, "butd", store=tmp_path)


def change(line, column, value):
    def damage(folder):
        rows = [row.split("\t") for row in (folder / "a.tsv").read_text().splitlines()]
        rows[line - 1][column] = value(rows[line - 1][column])
        (folder / "a.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))

    return damage


def nan(encoded):
    values = np.frombuffer(base64.b64decode(encoded), "<f4").copy()
    values[4] = np.nan
    return base64.b64encode(values.tobytes()).decode()


BAD_TABLES = {
    r"a\.tsv, line 2 \(image 391902\): features is damaged base64": change(2, 5, lambda text: "*" + text[1:]),
    r"a\.tsv, line 3 \(image 391909\): 3 boxes of 6 numbers are 72 bytes, and features holds 69": change(
        3, 5, lambda t: t[:-4]
    ),
    r"a\.tsv, line 3 \(image 391909\): 3 boxes of 4 numbers are 48 bytes, and boxes holds 45": change(
        3, 4, lambda t: t[:-4]
    ),
    r"line 4 \(image 391916\): 2 boxes of 4 numbers are 32 bytes, and boxes holds 48": change(4, 3, lambda text: "2"),
    r"line 4 \(image 391916\): num_boxes is no positive whole number": change(4, 3, lambda text: "-2"),
    r"line 5 \(image 391923\) holds NaN": change(5, 5, nan),
    r"line 6 \(image 391930\): a box is reversed, or outside the image of 15 x 80": change(6, 1, lambda text: "15"),
    r"line 2 has 7 columns, not 6: image_id, image_w, image_h, num_boxes": change(2, 5, lambda text: text + "\tmore"),
    r"1 of 12 ids are no images of little: 7 \(read as ids of the split file\)": change(1, 0, lambda text: "7"),
    r"1 ids are given twice: 391895": change(2, 0, lambda text: "391895"),
}


@pytest.mark.parametrize("message", BAD_TABLES)
def test_a_damaged_table_is_refused_by_line_and_image_and_nothing_is_kept(dataset, folder, tmp_path, regions, message):
    write_tsv(folder / "a.tsv", COCOIDS, regions)
    BAD_TABLES[message](folder)
    with pytest.raises(CapbenchError, match=message):
        import_features(dataset, folder, "butd", store=tmp_path)
    assert not [path for path in tmp_path.rglob("imported/*/*") if path.suffix != ".lock"]


def test_images_without_features_are_listed_ten_at_most(dataset, folder, tmp_path, regions):
    write_tsv(folder / "a.tsv", COCOIDS[11:], regions[11:])
    with pytest.raises(CapbenchError, match=r"no features of 11 of 12 images of little: COCO_.*and 1 more; add them"):
        import_features(dataset, folder, "butd", store=tmp_path)


def rewrite(name, text):
    return lambda folder: (folder / name).write_text(text((folder / name).read_text()))


def save(name, change):
    return lambda folder: np.save(folder / name, change(np.load(folder / name)))


def with_nan(array):
    array[1, 2, 3] = np.inf
    return array


BAD_FOLDERS = {
    r"dev_caps\.txt: 1 of 15 lines are no captions .*: line 7 is 'a cat', expected one like .Image 6, caption": rewrite(
        "dev_caps.txt", lambda text: "\n".join(["a cat" if n == 6 else s for n, s in enumerate(text.split("\n"))])
    ),
    r"dev_ims\.npy has 3 rows and dev_caps\.txt 14 lines: neither as many nor 5 a row": rewrite(
        "dev_caps.txt", lambda text: text.split("\n", 1)[1]
    ),
    r"dev_ids\.txt has 2 lines for 3 rows and 15 captions": rewrite("dev_ids.txt", lambda text: text.split("\n", 1)[1]),
    r"dev_ids\.txt: 1 of 3 ids are no images of little: 17": rewrite("dev_ids.txt", lambda t: "17" + t[6:]),
    r"dev_ims\.npy holds int64; features are floats": save("dev_ims.npy", lambda a: a.astype(int)),
    r"dev_ims\.npy holds object": save("dev_ims.npy", lambda a: np.array([{}] * 3)),
    r"dev_ims\.npy is stored column by column": save("dev_ims.npy", np.asfortranarray),
    r"dev_ims\.npy, row 1 holds NaN or infinite": save("dev_ims.npy", with_nan),
    r"the arrays have rows of \(2, 6\) and \(3, 6\)": save("dev_ims.npy", lambda a: a[:, :2]),
    r"no features of 3 of 12 images": lambda folder: (folder / "dev_ims.npy").unlink(),
    r"cannot read .*dev_caps\.txt": lambda folder: (folder / "dev_caps.txt").unlink(),
    r"dev_caps\.txt, line 2: not UTF-8": lambda folder: (folder / "dev_caps.txt").write_bytes(b"a\n\xff\n"),
    r"dev_ims\.npy has 355 bytes, and its header \[3, 3, 6\] of float32 announces 344": lambda folder: (
        (folder / "dev_ims.npy").write_bytes((folder / "dev_ims.npy").read_bytes() + b"more numbers"[:11])
    ),
    r"dev_ims\.npy is no array in numpy's format": lambda folder: (folder / "dev_ims.npy").write_bytes(b"<html>"),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD_FOLDERS)
def test_a_folder_of_scan_that_does_not_fit_is_refused_and_nothing_is_kept(dataset, folder, tmp_path, regions, message):
    write_scan(folder, dataset, regions)
    BAD_FOLDERS[message](folder)
    with pytest.raises(CapbenchError, match=message):
        import_features(dataset, folder, "scan", store=tmp_path)
    assert not [path for path in tmp_path.rglob("imported/*/*") if path.suffix != ".lock"]


def test_rows_of_another_split_are_refused(dataset, folder, tmp_path, regions):
    write_scan(folder, dataset, regions)
    for kind in ("ims.npy", "caps.txt", "ids.txt"):
        (folder / f"dev_{kind}").write_bytes((folder / f"test_{kind}").read_bytes())
    with pytest.raises(CapbenchError, match=r"dev_ims\.npy: 4 rows are images outside the val split.*row 0 \(COCO_"):
        import_features(dataset, folder, "scan", store=tmp_path)


def test_rows_of_one_image_that_differ_are_refused(dataset, folder, tmp_path, regions):
    write_scan(folder, dataset, regions, repeat=5)
    save("test_ims.npy", with_nan)(folder)
    array = np.load(folder / "test_ims.npy")
    array[1] = 7
    np.save(folder / "test_ims.npy", array)
    with pytest.raises(CapbenchError, match=r"test_ims\.npy, row 1: another row of COCO_\S+ differs"):
        import_features(dataset, folder, "scan", store=tmp_path)


def test_one_caption_of_several_images_out_of_order_asks_for_ids(dataset, folder, tmp_path, regions):
    same = replace(dataset, captions=tuple("a dog" for _ in dataset.captions), tokens=(("a", "dog"),) * 5 * IMAGES)
    write_scan(folder, same, regions, ids=False)
    import_features(same, folder, "scan", store=tmp_path)  # in the order of the split
    check_regions(same, tmp_path, regions)
    mixed = replace(dataset, captions=tuple("a dog" if i // 5 in (1, 2) else c for i, c in enumerate(dataset.captions)))
    (folder / "train_caps.txt").write_text(
        "a dog\n" * 10 + "".join(f"{c}\n" for i in (0, 3, 4) for c in dataset.captions[5 * i : 5 * i + 5])
    )
    with pytest.raises(CapbenchError, match=r"train_caps\.txt, line 1: 2 images have this caption.*train_ids\.txt"):
        import_features(mixed, folder, "scan", store=tmp_path / "other")


def spoil(path, values):
    """An archive whose compressed bytes no longer make sense."""
    np.savez_compressed(path, feat=np.tile(values, 99))
    content = bytearray(path.read_bytes())
    content[90:120] = b"\xff" * 30
    path.write_bytes(content)


BAD_ARRAYS = {
    r"391895\.npz has no array feat, features, x, z; it has other\.npy": lambda p: np.savez(p, other=np.ones(3)),
    r"391895\.npz, feat holds object": lambda p: np.savez(p, feat=np.array([None, {}])),
    r"391895\.npz is damaged": lambda p: p.write_bytes(p.read_bytes()[:100]),
    r"391895\.npz is damaged \(Error -3": lambda p: spoil(p, np.zeros((3, 6))),
    r"391895\.npz has the shape \[0, 6\], no vector": lambda p: np.savez(p, feat=np.ones((0, 6))),
    r"vectors of 5, 6 numbers": lambda p: np.savez(p, feat=np.ones((3, 5))),
    r"mixes single vectors and sets of regions": lambda p: np.savez(p, feat=np.ones(6)),
    r"391895\.npz, feat: 80,000,\d+ bytes, more than 67,108,864": lambda p: np.savez_compressed(p, feat=np.ones(10**7)),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD_ARRAYS)
def test_a_bad_array_of_a_folder_is_refused_by_its_file(dataset, folder, tmp_path, regions, message):
    for name, rows in zip(COCOIDS, regions, strict=True):
        np.savez(folder / str(name), feat=rows)
    BAD_ARRAYS[message](folder / "391895.npz")
    with pytest.raises(CapbenchError, match=message):
        import_features(dataset, folder, "butd", store=tmp_path)


def test_a_table_with_a_byte_order_mark_is_read(dataset, folder, tmp_path, regions):
    write_tsv(folder / "a.tsv", COCOIDS, regions)
    (folder / "a.tsv").write_bytes(b"\xef\xbb\xbf" + (folder / "a.tsv").read_bytes())
    import_features(dataset, folder, "butd", store=tmp_path)
    check_regions(dataset, tmp_path, regions)


@pytest.mark.parametrize("name", ["features", "image_id"])
def test_a_link_in_an_hdf5_file_is_not_followed(name, dataset, folder, tmp_path, regions):
    h5py = pytest.importorskip("h5py")
    columns = {"image_id": COCOIDS, "features": regions}
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file[name] = columns.pop(name)
    with h5py.File(folder / "a.h5", "w") as file:
        for each, values in columns.items():
            file[each] = values
        file[name] = h5py.ExternalLink(str(tmp_path / "other.h5"), name)
    with pytest.raises(CapbenchError, match=rf"a\.h5, {name} is a link to elsewhere; copy"):
        import_features(dataset, folder, "h5", store=tmp_path)


def test_an_hdf5_file_without_ids_or_cut_short_is_refused(dataset, folder, tmp_path, regions):
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "a.h5", "w") as file:
        file["image_features"] = regions
    with pytest.raises(CapbenchError, match=r"a\.h5 has image_features and no ids; add a data set image_id"):
        import_features(dataset, folder, "h5", store=tmp_path)
    (folder / "a.h5").write_bytes((folder / "a.h5").read_bytes()[:-200])
    with pytest.raises(CapbenchError, match=r"a\.h5 is no whole HDF5 file"):
        import_features(dataset, folder, "h5", store=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image_id": COCOIDS[:-1]},
            r"a\.h5: the features have 12 rows, and image_id is \[11\]; give one for each",
        ),
        ({"image_w": [100] * 11}, r"a\.h5: the features have 12 rows, and image_w is \[11\]; give one for each"),
        ({"image_w": 100}, r"a\.h5: the features have 12 rows, and image_w is \[\]; give one for each"),
        ({"image_w": [np.nan] * 12}, r"a\.h5, features\[0\] .*: the image has nan x 80 pixels; correct its size"),
        ({"image_h": [0] * 12}, r"a\.h5, features\[0\] .*: the image has 100 x 0 pixels; correct its size"),
        ({"image_id": None}, r"a\.h5, image_id is no array"),
    ],
)
def test_columns_of_an_hdf5_file_that_do_not_fit_its_features_are_refused(
    dataset, folder, tmp_path, regions, changes, message
):
    h5py = pytest.importorskip("h5py")
    columns = {"features": regions, "image_id": COCOIDS, "image_w": [100] * 12, "image_h": [80] * 12}
    columns["boxes"] = np.tile(np.array([10, 20, 30, 40], np.float32), (12, BOXES, 1))
    with h5py.File(folder / "a.h5", "w") as file:
        for name, values in (columns | changes).items():
            if values is None:
                file.create_group(name)
            else:
                file[name] = values
    with pytest.raises(CapbenchError, match=message):
        import_features(dataset, folder, "h5", store=tmp_path)
    assert not list(tmp_path.rglob("features.npy"))


def test_without_h5py_the_extra_is_named(dataset, folder, tmp_path, monkeypatch):
    (folder / "a.h5").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(CapbenchError, match=r"pip install 'capbench\[h5\]'"):
        import_features(dataset, folder, "h5", store=tmp_path)


def test_a_name_is_taken_once_and_an_unknown_one_refused_with_those_there_are(dataset, folder, tmp_path, regions):
    write_tsv(folder / "a.tsv", COCOIDS, regions)
    import_features(dataset, folder, "butd", "mine", store=tmp_path)
    with pytest.raises(CapbenchError, match=r"file/mine of little exists; choose another --name, or delete"):
        import_features(dataset, folder, "butd", "mine", store=tmp_path)
    with pytest.raises(CapbenchError, match=r"no name for features"):
        import_features(dataset, folder, "butd", "../mine", store=tmp_path)
    with pytest.raises(
        CapbenchError, match=r"no imported features file/yours of this little; there are file/mine\. Import"
    ):
        imported_features(dataset, "file/yours", "vector", tmp_path)
    other = replace(dataset, caption_ids=tuple(range(100, 100 + 5 * IMAGES)))
    with pytest.raises(CapbenchError, match=r"there are none\. Import with: capbench features little --from"):
        imported_features(other, "file/mine", "vector", tmp_path)
    with pytest.raises(CapbenchError, match=r"Import with: capbench features '\./my little' --from"):
        imported_features(replace(other, place="./my little"), "file/mine", "vector", tmp_path)


@pytest.mark.parametrize("file", ["features.npy", "boxes.npy", "meta.json"])
def test_damaged_imported_features_are_refused(dataset, folder, tmp_path, regions, file):
    write_tsv(folder / "a.tsv", COCOIDS, regions)
    path = import_features(dataset, folder, "butd", store=tmp_path).path / file
    content = path.read_bytes()
    path.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    with pytest.raises(CapbenchError, match=r"are damaged .*delete the folder and import them again"):
        imported_features(dataset, "file/given", "regions", tmp_path)


def test_a_full_disk_is_refused_before_anything_is_read(dataset, folder, tmp_path, regions, monkeypatch):
    write_tsv(folder / "a.tsv", COCOIDS, regions)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(CapbenchError, match=r"has 100 bytes free, and the features need 1,152; make room"):
        import_features(dataset, folder, "butd", store=tmp_path)


@pytest.mark.parametrize("format", ["scan", "butd"])
def test_memory_does_not_grow_with_the_files(dataset, folder, tmp_path, format, monkeypatch):
    wide = np.random.default_rng(3).normal(size=(IMAGES, 50, 20_000)).astype(np.float32)  # 48 MB
    monkeypatch.setattr("capbench.vision.imported.scan.MOST_BYTES", 2**24)
    if format == "scan":
        write_scan(folder, dataset, wide)
    else:
        write_tsv(folder / "a.tsv", COCOIDS, wide)
    tracemalloc.start()
    import_features(dataset, folder, format, store=tmp_path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < wide.nbytes


def test_progress_counts_the_rows(dataset, folder, tmp_path, regions):
    write_scan(folder, dataset, regions, repeat=5)
    seen = []
    import_features(dataset, folder, "scan", store=tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 5 * IMAGES) for n in range(1, 5 * IMAGES + 1)]


@pytest.fixture
def few(monkeypatch, tmp_path):
    """A few scenes whose pictures are gone, and three regions of each imported as file/three."""
    drawn = scenes(seed=5, train=40, val=8, test=8)
    features = np.random.default_rng(4).normal(size=(len(drawn.images), 4, DIM)).astype(np.float32)
    drawn = replace(drawn, images=ImageFolder(Path("nowhere"), drawn.image_names))
    monkeypatch.setattr("capbench.runs.materials.load_captions", lambda name: drawn)
    (tmp_path / "four").mkdir()
    write_tsv(tmp_path / "four" / "a.tsv", drawn.image_ids, features)
    import_features(drawn, tmp_path / "four", "butd", store=tmp_path)
    return drawn


def shortened(monkeypatch, name, preset, **changes):
    """A paper with one preset, trained for an epoch."""
    recipe = paper(name).recipe(preset, "scenes")
    short = replace(recipe, training=replace(recipe.training, epochs=1, batch_size=16), warmup=0, **changes)
    owner = replace(paper(name), presets=lambda dataset: {preset: short})
    for module in ("harness", "loaded"):
        monkeypatch.setattr(f"capbench.runs.{module}.paper", lambda _: owner)
    return Job(name, preset, "scenes", "file/four", 0), short


def trained(job, tmp_path):
    return harness.run(job, Places(tmp_path / "runs"), Materials(tmp_path), lambda *_: None)


@pytest.mark.parametrize(
    ("name", "preset"),
    [("vsepp", "vsepp-ours"), ("show_and_tell", "nic"), ("show_attend_tell", "soft-ours"), ("karpathy", "rnn-ours")],
)
def test_models_are_trained_on_imported_features_without_the_photographs(few, tmp_path, monkeypatch, name, preset):
    job, recipe = shortened(monkeypatch, name, preset)
    record = json.loads(trained(job, tmp_path).records[0].read_text())
    assert (record["encoder"], record["view"], record["region_provider"]) == ("file/four", "file", None)
    assert any("4 regions of 6 numbers" in note for note in record["notes"])
    assert record["features_fingerprint"] == imported_features(few, "file/four", recipe.output, tmp_path).fingerprint


def test_regions_with_boxes_are_pointed_at_and_regions_without_are_not(few, tmp_path, monkeypatch):
    job, _ = shortened(monkeypatch, "karpathy", "brnn-ours")
    monkeypatch.setattr("capbench.vision.regions.Boxes.pixels", lambda boxes, dataset, images: 64 * boxes.array[images])
    record = json.loads(trained(job, tmp_path).records[0].read_text())
    assert {"pointing", "image_to_caption_r1"} <= set(record["metrics"])
    boxless, _ = shortened(monkeypatch, "show_attend_tell", "soft-ours")
    assert "pointing" not in json.loads(trained(boxless, tmp_path).records[0].read_text())["metrics"]


@pytest.mark.parametrize(
    ("change", "does"), [({"finetune": True}, "trains the encoder"), ({"view": "RC"}, "random crops")]
)
def test_a_recipe_that_needs_the_network_is_refused_before_anything_is_written(
    few, tmp_path, monkeypatch, change, does
):
    job, _ = shortened(monkeypatch, "vsepp", "vsepp", **change)
    with pytest.raises(CapbenchError, match=rf"vsepp .*{does}.*file/four are imported features; choose another preset"):
        trained(job, tmp_path)
    assert not (tmp_path / "runs").exists()


def test_a_model_of_imported_features_is_no_tool_for_new_pictures(few, tmp_path, monkeypatch):
    job, _ = shortened(monkeypatch, "vsepp", "vsepp-ours")
    trained(job, tmp_path)
    runs = tmp_path / "runs"
    refusal = "file/four, seed 0 sees imported features: nothing encodes a new picture; take another run"
    with pytest.raises(CapbenchError, match=refusal):
        find_run(Places(runs).folder(job), runs, nn.Module, "embedding", "capbench run vsepp")
    with pytest.raises(CapbenchError, match=rf"no trained embedding under .*\n.*{refusal}"):
        find_run(None, runs, nn.Module, "embedding", "capbench run vsepp")
    with pytest.raises(CapbenchError, match="file/four names imported features: no network is behind them"):
        Encoder("file/four")


def test_features_of_all_of_coco_serve_the_data_set_without_its_restval(folder, tmp_path, regions, monkeypatch):
    whole = dataset_of()
    kept = np.array([i for i in range(IMAGES) if i not in (1, 3)])
    of_kept = np.isin(whole.image_of_caption, kept)
    less = replace(
        whole,
        name="coco-norestval",
        images=ImageFolder(Path("nowhere"), [whole.image_names[i] for i in kept]),
        image_names=tuple(whole.image_names[i] for i in kept),
        image_ids=tuple(COCOIDS[i] for i in kept),
        split_of_image=tuple(SPLITS[i] for i in kept),
        captions=tuple(itertools.compress(whole.captions, of_kept)),
        tokens=tuple(itertools.compress(whole.tokens, of_kept)),
        caption_ids=tuple(itertools.compress(whole.caption_ids, of_kept)),
        image_of_caption=np.repeat(np.arange(len(kept)), 5),
    )
    monkeypatch.setattr("capbench.vision.imported.store.load_captions", lambda name: whole)
    write_scan(folder, whole, regions)
    import_features(less, folder, "scan", "scan", store=tmp_path)
    check_regions(less, tmp_path, regions[kept], "scan")
    for path in folder.iterdir():
        path.unlink()
    write_tsv(folder / "a.tsv", COCOIDS, regions)
    import_features(less, folder, "butd", "butd", store=tmp_path)
    check_regions(less, tmp_path, regions[kept], "butd")


def test_the_command_imports_and_says_how_to_train(few, folder, tmp_path, monkeypatch, capsys):
    write_tsv(folder / "b.tsv", few.image_ids, np.ones((len(few.image_ids), 1, DIM), np.float32))
    monkeypatch.setattr("capbench.data.datasets.load_captions", lambda name: few)
    monkeypatch.setenv("CAPBENCH_CACHE", str(tmp_path / "cache"))
    words = ["features", "scenes", "--from", str(folder), "--format", "butd", "--name", "ones"]
    app(words, exit_on_error=False, print_error=False, result_action="return_value")
    said = capsys.readouterr().out
    assert f"[{len(few.image_ids)}, 2, {DIM}] float32 in" in said
    assert "capbench run PAPER --dataset scenes --encoder file/ones" in said
    assert len(imported_features(few, "file/ones", "grid", tmp_path / "cache").array) == len(few.image_ids)


def test_a_data_set_of_one_s_own_takes_features_without_its_photographs(folder, tmp_path, monkeypatch):
    (tmp_path / "birds").mkdir()
    rows = [f"{i}.jpg,bird number {i},{split}" for i, split in enumerate(SPLITS)]
    (tmp_path / "birds" / "captions.csv").write_text("\n".join(["image,caption,split", *rows]))
    monkeypatch.setenv("CAPBENCH_CACHE", str(tmp_path / "cache"))
    vectors = np.random.default_rng(6).normal(size=(IMAGES, DIM)).astype(np.float32)
    for name, vector in enumerate(vectors):
        np.save(folder / f"{name}.npy", vector)
    words = ["features", str(tmp_path / "birds"), "--from", str(folder), "--format", "butd"]
    app(words, exit_on_error=False, print_error=False, result_action="return_value")
    dataset = load_captions(str(tmp_path / "birds"))
    assert np.array_equal(imported_features(dataset, "file/given", "vector").array, vectors)
    with pytest.raises(CapbenchError, match="images are missing"):
        load_dataset(str(tmp_path / "birds"))
