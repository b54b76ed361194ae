"""The parsers of files from outside, each with a small valid file: what `tests.fuzzing` breaks."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file

from capbench.base.json_records import JsonRecord, read_record
from capbench.data.coco_captions import read_coco_captions
from capbench.data.images import decode
from capbench.data.karpathy_split import read_karpathy_split
from capbench.data.scenes import scenes
from capbench.data.tables import COLUMNS, read_table
from capbench.data.vocabulary import Vocabulary
from capbench.data.word_vectors import word_vectors
from capbench.evidence.bundles import pack, unpack
from capbench.evidence.records import Result, save_result
from capbench.runs.job import description
from capbench.runs.plan import Session
from capbench.scoring.arrays import read_ids
from capbench.scoring.files import read_captions, read_embeddings, read_ranking, read_similarity
from capbench.timing.records import TimingRecord
from capbench.training import checkpoint
from capbench.vision.imported.butd import open_butd
from capbench.vision.imported.scan import open_scan
from capbench.vision.imported.source import Source
from capbench.vision.regions import read_regions
from capbench.vision.weights import load_weights
from reproductions.vsepp.released import read_released, read_vocabulary
from tests import test_coco_captions, test_imported, test_karpathy_split, test_released
from tests.made_up import made_up_record

ROOT = Path(__file__).parents[1]
DATASET = test_imported.dataset_of()
DRAWN = scenes(train=2, val=0, test=0)
REGIONS = (
    np.random.default_rng(0).normal(size=(test_imported.IMAGES, test_imported.BOXES, test_imported.DIM)).astype("f4")
)
VOCABULARY = Vocabulary(("dog", "cat", "man"), (9, 8, 7))
ARRAY = np.linspace(-1, 1, 12).reshape(3, 4).astype(np.float32)
_IDS = np.array([1, 2, 3])


@dataclass(frozen=True)
class Parser:
    """A reader of files from outside."""

    name: str
    make: Callable[[Path], Path]  # writes a valid file, and what it needs beside it, into a folder
    read: Callable[[Path], object]  # of the file


def text(name: str, content: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(content, encoding="utf-8")
        return folder / name

    return make


def written(name: str, write: Callable[[Path], object]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write(folder / name)
        return folder / name

    return make


def of_record(model: type[JsonRecord]) -> Callable[[Path], object]:
    return lambda path: read_record(model, path)


def timings(path: Path) -> None:
    path.write_bytes(
        min((ROOT / "leaderboards" / "timings").glob("*.json"), key=lambda p: p.stat().st_size).read_bytes()
    )


def record(folder: Path) -> Path:
    epoch = {"epoch": 0, "loss": 1.0, "learning_rate": 0.1, "seconds": 1.0, "validation": {"rsum": 1.0}}
    made = made_up_record(metrics={"rsum": 90.0}, recipe={"margin": 0.05}, curve=[epoch], notes=["a note"])
    return save_result(made, {}, folder)


def run_folder(path: Path) -> None:
    job = {"paper": "vsepp", "preset": "vsepp", "dataset": "scenes", "encoder": "scenes", "seed": 0, "overrides": {}}
    known = {"job": job, "recipe": {"margin": 0.2}, "dataset": "d", "features": "f", "vocabulary": "v", "init": []}
    document = {"schema_version": 2, "identity": known, "feature_dim": 4, "records": ["a.json"], "finished": "2024"}
    path.write_text(json.dumps(document))


def table(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = [(f"{n}.jpg", f'A "dog" runs, {n}.', split) for n, split in enumerate(("train", "val", "test"))]
        csv.writer(file).writerows([COLUMNS, *rows])


def lines(path: Path) -> None:
    rows = [{"image": f"{n}.jpg", "caption": ["A dog.", "Ein Hund."], "split": "train"} for n in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def scan(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        test_imported.write_scan(folder, DATASET, REGIONS)
        return folder / name

    return make


def all_rows(source: Source) -> int:
    return sum(1 for _ in source.rows())


def released(folder: Path, **options: Any) -> Path:
    words = len(test_released.vse_words())
    torch.manual_seed(0)
    text = {"embed.weight": torch.randn(words, 2)}
    text |= {f"rnn.{name}": value.detach() for name, value in torch.nn.GRU(2, 3).named_parameters()}
    states = [{"fc.weight": torch.randn(3, 4), "fc.bias": torch.randn(3)}, text]
    return test_released.write_vse(
        folder, states, test_released.options(embed_size=3, word_dim=2, img_dim=4), **options
    )


def words(folder: Path) -> Path:
    test_released.write_words(folder)
    return folder / "vocab.json"


def picture(**options: Any) -> Callable[[Path], object]:
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    return lambda path: Image.fromarray(pixels).save(path, **options)


def vectors(path: Path) -> None:
    path.write_text("".join(f"{word} 0.25 -1.5 3e-2\n" for word in VOCABULARY.words))


def binary_vectors(path: Path) -> None:
    rows = (word.encode() + b" " + np.array([1, 2, 3], np.float32).tobytes() + b"\n" for word in VOCABULARY.words)
    path.write_bytes(b"3 3\n" + b"".join(rows))


def embeddings(path: Path) -> None:
    images, captions, image_ids, caption_ids = ARRAYS.values()
    np.savez(path, images=images, captions=captions, image_ids=image_ids, caption_ids=caption_ids)


def regions(path: Path) -> None:
    path.write_text(
        json.dumps({name: [[1, 2, 20, 30], {"x": 1, "y": 2, "w": 5, "h": 6}] for name in DRAWN.image_names})
    )


ARRAYS = {"images": ARRAY, "captions": np.repeat(ARRAY, 5, 0), "image_ids": _IDS, "caption_ids": np.arange(15)}
RESULTS = json.dumps([{"image_id": n, "caption": f"a dog runs {n}"} for n in range(4)])
TREC = "".join(f"q{q} Q0 d{d} {d} {9.5 - d} tag\n" for q in range(2) for d in range(1, 5))
PTH = {"w": torch.ones(2, 3), "b": torch.zeros(3)}

PARSERS = (
    Parser(
        "split file",
        text("split.json", json.dumps(test_karpathy_split.coco())),
        lambda path: read_karpathy_split(path, path.parent, "small", "train"),
    ),
    Parser("table (CSV)", written("captions.csv", table), lambda path: read_table(path, path.parent, "own")),
    Parser("table (JSON lines)", written("captions.jsonl", lines), lambda path: read_table(path, path.parent, "own")),
    Parser(
        "COCO annotations",
        text("captions_val2014.json", json.dumps(test_coco_captions.val2014())),
        lambda path: read_coco_captions(path, path.parent, "val"),
    ),
    Parser("COCO results", text("results.json", RESULTS), read_captions),
    Parser("record", record, of_record(Result)),
    Parser(
        "arrays of a record",
        written("a.npz", lambda p: p.write_bytes(pack({"ranks": _IDS.astype(np.int32)}))),
        lambda path: unpack(path.read_bytes()),
    ),
    Parser("timings", written("timings.json", timings), of_record(TimingRecord)),
    Parser("run.json", written("run.json", run_folder), lambda path: description(path.parent)),
    Parser(
        "session.json",
        text("session.json", json.dumps({"jobs": ["a"], "done": ["a"], "records": ["b.json"]})),
        lambda path: Session(path, [], fresh=True),
    ),
    Parser(
        "checkpoint",
        written("best.safetensors", lambda p: checkpoint.save(p, {"w": torch.ones(3)}, {"step": 1})),
        checkpoint.load,
    ),
    Parser("similarity (.npy)", written("s.npy", lambda path: np.save(path, ARRAY)), read_similarity),
    Parser("embeddings (.npz)", written("e.npz", embeddings), read_embeddings),
    Parser(
        "embeddings (.safetensors)", written("e.safetensors", lambda path: save_file(ARRAYS, path)), read_embeddings
    ),
    Parser("ids (.npy)", written("ids.npy", lambda path: np.save(path, np.array(["a.jpg", "b.jpg"]))), read_ids),
    Parser("ids (.json)", text("ids.json", '[1, 2, "a.jpg"]'), read_ids),
    Parser("ids (.txt)", text("ids.txt", "1\n2\na.jpg\n"), read_ids),
    Parser("TREC run", text("lists.trec", TREC), read_ranking),
    Parser("word vectors (GloVe)", written("v.txt", vectors), lambda path: word_vectors(VOCABULARY, 3, path)),
    Parser("word vectors (binary)", written("v.bin", binary_vectors), lambda path: word_vectors(VOCABULARY, 3, path)),
    Parser("picture (JPEG)", written("p.jpg", picture(quality=60)), decode),
    Parser("picture (PNG)", written("p.png", picture()), decode),
    Parser("picture (GIF)", written("p.gif", picture()), decode),
    Parser("picture (WebP)", written("p.webp", picture()), decode),
    Parser("vocabulary", written("vocabulary.json", VOCABULARY.save), Vocabulary.load),
    Parser("released vocabulary", words, read_vocabulary),
    Parser("released checkpoint", released, lambda path: read_released(path, path.parent / "vocab.json")),
    Parser(
        "released checkpoint (before archives)",
        lambda folder: released(folder, _use_new_zipfile_serialization=False),
        lambda path: read_released(path, path.parent / "vocab.json"),
    ),
    Parser("weights (.pth)", written("w.pth", lambda path: torch.save(PTH, path)), load_weights),
    Parser(
        "weights (.safetensors)", written("w.safetensors", lambda path: save_file({"w": ARRAY}, path)), load_weights
    ),
    Parser(
        "bottom-up attention (.tsv)",
        written("a.tsv", lambda path: test_imported.write_tsv(path, test_imported.COCOIDS, REGIONS)),
        lambda path: all_rows(open_butd(DATASET, path.parent)),
    ),
    Parser("SCAN (arrays)", scan("dev_ims.npy"), lambda path: all_rows(open_scan(DATASET, path.parent))),
    Parser("SCAN (captions)", scan("dev_caps.txt"), lambda path: all_rows(open_scan(DATASET, path.parent))),
    Parser("SCAN (ids)", scan("dev_ids.txt"), lambda path: all_rows(open_scan(DATASET, path.parent))),
    Parser("regions", written("regions.json", regions), lambda path: list(read_regions(path, DRAWN))),
)
