"""Captions for pictures, by a trained captioner, and where it looked for each word."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from capbench.base.errors import CapbenchError
from capbench.captioners.decoding import Captions as Decoded
from capbench.captioners.experiment import Captioner, caption_images, sample_images
from capbench.data.images import decode, one_crop
from capbench.data.vocabulary import END, PAD
from capbench.runs.loaded import Trained, find_run
from capbench.scoring.coco_results import result, write_results
from capbench.tools.drawing import GAP, MARGIN, fitted, font, save_drawing, stacked_rows, wrapped
from capbench.tools.pictures import Seen

BATCH = 32
COLUMNS, PANEL = 5, 230  # of a drawing of attention; a panel's side in pixels
DIMMED = 0.65  # how much of the picture the map of attention covers


@dataclass(frozen=True)
class Captioned:
    """A picture and its captions: best first, or in the order drawn."""

    picture: Path
    view: str  # what the model saw of it
    captions: tuple[str, ...]
    log_probs: tuple[float, ...]
    # For each caption, where the model looked for each word and for END; empty without attention.
    attention: tuple[Float[np.ndarray, "_ location"], ...] = ()


def captioner(run: Path | None, runs: Path) -> Trained:
    """The finished run in `run`, or the newest captioner under `runs`; see `find_run`."""
    return find_run(run, runs, Captioner, "captioner", "capbench run show-attend-tell")


def beam_of(trained: Trained) -> int:
    """The width of the beam that the run's own captions were scored with; the recipe's where its record is gone."""
    return int(trained.metrics.get("beam", trained.recipe.beam_size))


def captions_of(trained: Trained, pictures: Seen, beam_size: int, n_best: int) -> list[Captioned]:
    """The `n_best` captions of each picture, by beam search. Raises CapbenchError for more captions than beams."""
    return _captioned(
        trained, pictures, lambda images, trace: caption_images(trained.model, images, beam_size, n_best, trace)
    )


def samples_of(trained: Trained, pictures: Seen, temperature: float, draws: int, seed: int) -> list[Captioned]:
    """`draws` captions of each picture, drawn at a temperature. Raises CapbenchError for one that is not positive."""
    return _captioned(
        trained, pictures, lambda images, trace: sample_images(trained.model, images, temperature, draws, seed, trace)
    )


@torch.no_grad()
def _captioned(trained: Trained, pictures: Seen, write: Callable[[Tensor, Sequence[str]], Decoded]) -> list[Captioned]:
    """The captions that `write` makes of features; it returns the entries of the decoding state that it is given."""
    model, captioned = cast(Captioner, trained.model), []
    for start in range(0, len(pictures.paths), BATCH):
        images = pictures.features(start, start + BATCH)
        trace = [name for name in model.start(images) if name.endswith("attention_weights")]
        decoded = write(images, trace)
        for place, picture in enumerate(pictures.paths[start : start + BATCH]):
            words, log_probs = decoded.words[place].tolist(), tuple(decoded.log_probs[place].tolist())
            texts = tuple(" ".join(trained.vocabulary.decode(numbers)) for numbers in words)
            lengths = [_length(numbers) for numbers in words] if trace else []
            attention = tuple(
                np.mean([decoded.traces[name][place, n, :length].float().cpu().numpy() for name in trace], axis=0)
                for n, length in enumerate(lengths)
            )
            captioned.append(Captioned(picture, trained.recipe.view, texts, log_probs, attention))
    return captioned


def _length(numbers: Sequence[int]) -> int:
    """The words of a caption that END or padding closes; END is one of them."""
    return next((place + (number == END) for place, number in enumerate(numbers) if number in (END, PAD)), len(numbers))


def save_captions(captioned: Sequence[Captioned], out: Path) -> None:
    """Write the best captions in COCO's results format, which `capbench score captions` reads.

    `image_id` is COCO's own number where all names end in one (COCO_val2014_000000391895.jpg), else the file's name.
    Further fields: all `captions` with their `log_probs`. Raises CapbenchError when the file cannot be written.
    """
    ends = [re.search(r"(?:^|_)(\d{12})$", entry.picture.stem) for entry in captioned]
    numbers = [int(end[1]) for end in ends if end]
    names = [str(entry.picture) for entry in captioned]
    ids: Sequence[int | str] = numbers if len(set(numbers)) == len(captioned) else names
    rows = [
        result(image_id, name, entry.captions[0], captions=entry.captions, log_probs=entry.log_probs)
        for image_id, name, entry in zip(ids, names, captioned, strict=True)
    ]
    write_results(out, rows)


def draw_attention(captioned: Captioned, out: Path) -> None:
    """Draw what the model saw once for each word of its best caption, bright where it looked, on one scale.

    Raises CapbenchError for a model without attention, an undecodable picture, and a file that cannot be written.
    """
    if not captioned.attention:
        raise CapbenchError(f"there is no attention to draw for {captioned.picture}; choose a run of show-attend-tell")
    picture = as_seen(decode(captioned.picture), captioned.view, PANEL)
    attention = captioned.attention[0]
    highest = float(attention.max())
    panels = [(f"log p = {captioned.log_probs[0]:.1f}", picture)]
    for word, weights in zip([*captioned.captions[0].split(), "(end)"], attention, strict=False):
        panels.append((word, _lit(picture, weights / highest)))
    rows = [_row(panels[start : start + COLUMNS]) for start in range(0, len(panels), COLUMNS)]
    save_drawing(stacked_rows([*rows, _scale(rows[0].width, highest)]), out)


def as_seen(pixels: UInt8[np.ndarray, "height width 3"], view: str, side: int) -> Image.Image:
    """What a model of this view sees of a picture, with a longer side of `side` pixels."""
    if view in ("1C", "RC"):
        pixels = one_crop(pixels, 224).permute(1, 2, 0).numpy()
    return fitted(pixels, side)


def light(weights: Float[np.ndarray, " location"], size: tuple[int, int]) -> Float[np.ndarray, "height width"]:
    """A smooth map of weights in 0..1 over a picture of this width and height."""
    grid = Image.fromarray(weights.reshape(math.isqrt(len(weights)), -1).astype(np.float32))
    return np.asarray(grid.resize(size, Image.Resampling.BICUBIC)).clip(0, 1)


def _lit(picture: Image.Image, weights: Float[np.ndarray, " location"]) -> Image.Image:
    """The picture under a grey map of the weights, in 0..1."""
    grey = light(weights, picture.size)[..., None] * 255
    return Image.fromarray(((1 - DIMMED) * np.asarray(picture) + DIMMED * grey).astype(np.uint8))


def _row(panels: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    face = font(17)
    top = MARGIN + sum(face.getmetrics()) + GAP
    row = Image.new("RGB", (COLUMNS * (PANEL + MARGIN) + MARGIN, top + panels[0][1].height), "white")
    draw = ImageDraw.Draw(row)
    for column, (title, panel) in enumerate(panels):
        middle = MARGIN + column * (PANEL + MARGIN) + PANEL // 2
        draw.text((middle, MARGIN), wrapped(title, PANEL, face)[0], "black", face, anchor="ma")
        row.paste(panel, (middle - panel.width // 2, top))
    return row


def _scale(width: int, highest: float) -> Image.Image:
    """What black and white mean, for every word alike."""
    face = font(17)
    row = Image.new("RGB", (width, 2 * MARGIN + sum(face.getmetrics())), "white")
    draw = ImageDraw.Draw(row)
    left, right = "attention weight of a location: 0", f"{highest:.3f} (the weights of a word sum to 1)"
    middle, x = row.height // 2, 2 * MARGIN + face.getlength(left)
    draw.text((MARGIN, middle), left, "black", face, anchor="lm")
    row.paste(Image.linear_gradient("L").rotate(90).resize((PANEL, 18)), (round(x), middle - 9))
    draw.rectangle((x, middle - 9, x + PANEL, middle + 9), outline="grey")
    draw.text((x + PANEL + MARGIN, middle), right, "black", face, anchor="lm")
    return row
