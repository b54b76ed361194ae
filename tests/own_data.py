"""A data set of one's own, drawn for a test: twelve pictures with captions in a language of choice."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

SPLITS = ("train",) * 8 + ("val",) * 2 + ("test",) * 2
COLOURS = ("red", "green", "blue", "white")
ENGLISH = {colour: (f"A {colour} square.", f"This square, it's {colour}!") for colour in COLOURS}
RUSSIAN = {
    "red": ("Красный квадрат.", "Квадрат красный!"),
    "green": ("Зелёный квадрат.", "Квадрат зелёный!"),
    "blue": ("Синий квадрат.", "Квадрат синий!"),
    "white": ("Белый квадрат.", "Квадрат белый!"),
}


def draw(folder: Path, captions: Mapping[str, Sequence[str]] = ENGLISH, splits: Sequence[str] = SPLITS) -> Path:
    """Write the pictures and `captions.csv` into a folder."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number, split in enumerate(splits):
        colour = COLOURS[number % len(COLOURS)]
        Image.new("RGB", (64, 64), colour).save(folder / "images" / f"{number}.png")
        rows += [(f"{number}.png", caption, split) for caption in captions[colour]]
    write_table(folder / "captions.csv", rows)
    return folder


def write_table(path: Path, rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("image", "caption", "split"), *rows])
