"""Captions for pictures, by a trained captioner, and where it looked for each word."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from capbench.base.errors import CapbenchError
from capbench.captioners.experiment import Captioner, caption_images
from capbench.data.images import decode, one_crop
from capbench.data.vocabulary import END
from capbench.runs.loaded import BATCH, Trained, find_run
from capbench.tools.drawing import literal, save_figure
from capbench.vision.features import Crop

COLUMNS = 5  # panels in a row of a picture of attention
ON_A_SHEET = 200


@dataclass(frozen=True)
class Captioned:
    """A picture's captions, best first, with their log-probabilities.

    `seen` says what of the picture the model saw; `attention`, where it looked for each word of the best caption,
    [word, location], END included, None for a model without attention.
    """

    picture: Path
    seen: Crop
    captions: tuple[str, ...]
    log_probs: tuple[float, ...]
    attention: Float[np.ndarray, "word location"] | None


def captioner(run: Path | None, runs: Path) -> Trained:
    """The finished run in `run`, or the newest one under `runs` that writes captions; see `find_run`."""
    return find_run(run, runs, Captioner, "captioner", "capbench run show-attend-tell --dataset flickr8k")


@torch.no_grad()
def captions_of(trained: Trained, pictures: Sequence[Path], beam_size: int, n_best: int) -> list[Captioned]:
    """The `n_best` captions of each picture. Raises CapbenchError naming a picture that cannot be decoded."""
    parts = (pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH))
    return [one for part in parts for one in _captioned(trained, part, beam_size, n_best)]


def _captioned(trained: Trained, pictures: Sequence[Path], beam_size: int, n_best: int) -> Iterator[Captioned]:
    images = trained.features(pictures)
    model: Captioner = trained.model  # type: ignore[assignment]
    trace = [name for name in model.start(images) if name.endswith("attention_weights")]
    found = caption_images(model, images, beam_size, n_best, trace)
    for place, picture in enumerate(pictures):
        words = [" ".join(trained.vocabulary.decode(best)) for best in found.words[place].tolist()]
        first = found.words[place, 0].tolist()
        length = first.index(END) + 1 if END in first else len(first)
        weights = [found.traces[name][place, 0, :length].float().cpu().numpy() for name in trace]
        attention = np.mean(weights, axis=0) if weights else None
        yield Captioned(
            picture, trained.recipe.stored_view, tuple(words), tuple(found.log_probs[place].tolist()), attention
        )


def draw_attention(captioned: Captioned, out: Path) -> None:
    """Draw what the model saw once for each word of its best caption, bright where it looked, into a PNG file."""
    from matplotlib.figure import Figure

    pixels = decode(captioned.picture)
    if captioned.seen == "1C":
        pixels = one_crop(pixels, 224).permute(1, 2, 0).numpy()
    words = [*captioned.captions[0].split(), "(end)"]
    maps = captioned.attention if captioned.attention is not None else np.zeros((0, 1))
    panels = min(len(words), len(maps)) + 1
    rows = math.ceil(panels / COLUMNS)
    figure = Figure(figsize=(2.4 * COLUMNS, 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    axes[0].imshow(pixels)
    axes[0].set_title(f"log p = {captioned.log_probs[0]:.1f}", fontsize=10)
    for axis, word, weights in zip(axes[1:], words, maps, strict=False):
        side = math.isqrt(len(weights))
        axis.imshow(pixels)
        extent = (-0.5, pixels.shape[1] - 0.5, pixels.shape[0] - 0.5, -0.5)
        grid = weights.reshape(side, -1)
        axis.imshow(grid, extent=extent, cmap="gray", alpha=0.65, interpolation="bicubic", vmin=0, vmax=grid.max())
        axis.set_title(literal(word), fontsize=10)
    save_figure(figure, out)


def draw_sheet(captioned: Sequence[Captioned], out: Path) -> None:
    """Draw pictures with their best captions under them into a PNG file.

    Raises CapbenchError for more than `ON_A_SHEET` pictures.
    """
    from textwrap import fill

    from matplotlib.figure import Figure

    if len(captioned) > ON_A_SHEET:
        raise CapbenchError(f"a sheet holds {ON_A_SHEET} pictures, and there are {len(captioned):,}; give fewer")
    columns = min(4, len(captioned))
    rows = math.ceil(len(captioned) / columns)
    figure = Figure(figsize=(3.2 * columns, 3.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, one in zip(axes, captioned, strict=False):
        picture = Image.fromarray(decode(one.picture))
        picture.thumbnail((400, 400))
        axis.imshow(picture)
        axis.set_title(fill(literal(one.captions[0]), 38), fontsize=9, y=-0.02, va="top")
    save_figure(figure, out)
