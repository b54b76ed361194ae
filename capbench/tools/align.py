"""Which region of a picture each word of a caption speaks of, by a trained alignment model."""

from __future__ import annotations

from colorsys import hls_to_rgb
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill, wrap
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from capbench.base.errors import CapbenchError
from capbench.data.batches import padded
from capbench.data.images import decode
from capbench.data.vocabulary import UNKNOWN, tokenize
from capbench.kernels.chain import viterbi_decode
from capbench.metrics.alignment import runs
from capbench.runs.loaded import Trained, find_run
from capbench.tools.drawing import save_figure

WHOLE = 0  # the region that is the whole image
WIDTH = 7.0  # of a drawing, in inches
LINE = 0.26  # height of a line of words, in inches
IN_A_LINE = 72  # letters
ADVANCE = 0.0919  # width of a letter of matplotlib's fixed-width font at 11 points, in inches
GREY = (0.45, 0.45, 0.45)

Colour = tuple[float, float, float]


@runtime_checkable
class Aligner(Protocol):
    """A model that puts regions and words into one space, where v_i . s_t says how well word t fits region i.

    `captions` hold the words alone, without START and END, padded with PAD.
    """

    def embed_regions(self, regions: Float[Tensor, "image region feature"]) -> Float[Tensor, "image region dim"]: ...

    def embed_words(
        self, captions: Int[Tensor, "caption length"], lengths: Int[Tensor, " caption"]
    ) -> Float[Tensor, "caption length dim"]: ...


class Snippet(NamedTuple):
    """The words `start` to `end` (exclusive), all of one region, and the mean of their v_i . s_t."""

    region: int
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Aligned:
    """The words of a caption and the region that each speaks of.

    `boxes` are x0, y0, x1, y1 as fractions of the picture's width and height, the first the whole picture; `scores`,
    v_i . s_t; `labels`, the region of each word, best for the chain with affinity `beta`; `unknown`, the words that
    the model has not learnt.
    """

    picture: Path
    words: tuple[str, ...]
    boxes: Float[np.ndarray, "region 4"]
    scores: Float[np.ndarray, "word region"]
    labels: Int[np.ndarray, " word"]
    beta: float
    unknown: tuple[str, ...] = ()

    @property
    def snippets(self) -> tuple[Snippet, ...]:
        """The longest runs of words with one region, in the order of the caption."""
        return tuple(
            Snippet(region, start, end, float(self.scores[start:end, region].mean()))
            for region, start, end in runs(self.labels.tolist())
        )

    def text(self, snippet: Snippet) -> str:
        """The words of a snippet."""
        return " ".join(self.words[snippet.start : snippet.end])


def aligner(run: Path | None, folder: Path) -> Trained:
    """The finished run in `run`, or the newest one under `folder` that aligns words with regions; see `find_run`."""
    return find_run(run, folder, Aligner, "alignment model", "capbench run karpathy --dataset flickr8k")


@torch.no_grad()
def align(trained: Trained, picture: Path, caption: str, beta: float | None = None) -> Aligned:
    """The region of each word of a caption: the best labels of a chain whose neighbours agree for `beta`.

    `beta` is the recipe's own where none is given. With 0 each word has its own best region; a large one gives all
    words the same. Deterministic on a CPU. Raises CapbenchError for a caption without a word, or without one that the
    model knows, for a negative `beta`, and for a picture that cannot be decoded. Source: Karpathy & Fei-Fei, CVPR 2015,
    equations 10 to 12.
    """
    words = tokenize(caption)
    if not words:
        raise CapbenchError(f"the caption {caption!r} has no word with a letter or digit")
    numbers = trained.vocabulary.encode(words)[1:-1]
    unknown = dict.fromkeys(word for word, number in zip(words, numbers, strict=True) if number == UNKNOWN)
    if len(unknown) == len(set(words)):
        raise CapbenchError(f"{trained.job} knows no word of the caption {caption!r}; say it in words of its data set")
    model = cast(Aligner, trained.model)
    ids, lengths = padded([numbers])
    v = model.embed_regions(trained.features([picture]))[0]
    scores = (model.embed_words(ids, lengths)[0] @ v.T).float()
    beta = trained.recipe.beta if beta is None else beta
    labels, _ = viterbi_decode(scores[None], lengths, beta)
    boxes = trained.boxes([picture])[0].numpy()
    return Aligned(picture, tuple(words), boxes, scores.numpy(), labels[0].numpy(), beta, tuple(unknown))


def as_text(aligned: Aligned) -> list[str]:
    """A line for each snippet: its score, its words, and the box of its region in percent of the picture."""
    texts = [aligned.text(snippet) for snippet in aligned.snippets]
    width = max(map(len, texts))
    lines = []
    for snippet, text in zip(aligned.snippets, texts, strict=True):
        x0, y0, x1, y1 = (round(100 * side) for side in aligned.boxes[snippet.region].tolist())
        where = f"region {snippet.region:2d}: {x0}-{x1} % across, {y0}-{y1} % down"
        lines.append(f"{snippet.score:8.3f}  {text:{width}}  {'whole picture' if snippet.region == WHOLE else where}")
    if aligned.unknown:
        lines.append(f"not in the vocabulary: {', '.join(aligned.unknown)}")
    return lines


def as_json(aligned: Aligned) -> dict[str, Any]:
    """The same for machines; boxes are fractions of the picture's width and height."""
    own = aligned.scores[np.arange(len(aligned.words)), aligned.labels].tolist()
    words = zip(aligned.words, aligned.labels.tolist(), own, strict=True)
    return {
        "picture": str(aligned.picture),
        "beta": aligned.beta,
        "words": [{"word": word, "region": region, "score": score} for word, region, score in words],
        "snippets": [
            {"text": aligned.text(one), "box": aligned.boxes[one.region].tolist(), **one._asdict()}
            for one in aligned.snippets
        ],
        "unknown": list(aligned.unknown),
    }


def draw_alignment(aligned: Aligned, out: Path) -> None:
    """Draw the regions that have a snippet, and the caption below in their colours, into a PNG file.

    Words of the whole picture are grey, and it has no frame. Raises CapbenchError for a picture that cannot be
    decoded and a file that cannot be written.
    """
    pixels = decode(aligned.picture)
    lines = wrap(" ".join(aligned.words), IN_A_LINE, break_long_words=False, break_on_hyphens=False)
    upper = WIDTH * min(max(pixels.shape[0] / pixels.shape[1], 0.4), 1.6)
    lower = LINE * (len(lines) + 0.5)
    figure = Figure(figsize=(WIDTH, upper + lower))
    axis = figure.add_axes((0.0, lower / (upper + lower), 1.0, upper / (upper + lower)))
    axis.imshow(pixels)
    axis.axis("off")
    colours = region_colours(aligned)
    _draw_regions(axis, aligned, colours)
    colour = (colours[region] for region in aligned.labels.tolist())
    left = (WIDTH - ADVANCE * max(map(len, lines))) / 2
    for row, line in enumerate(lines):
        column = 0
        for word in line.split():
            x, y = (left + ADVANCE * column) / WIDTH, (lower - LINE * (row + 1)) / (upper + lower)
            figure.text(x, y, word, color=next(colour), fontsize=11, family="monospace", weight="bold")
            column += len(word) + 1
    save_figure(figure, out)


def region_colours(aligned: Aligned) -> dict[int, Colour]:
    """A colour for every region that has a word: grey for the whole picture, hues far apart for the others."""
    used = sorted(set(aligned.labels.tolist()) - {WHOLE})
    return {WHOLE: GREY, **{region: hls_to_rgb(place / len(used), 0.4, 0.8) for place, region in enumerate(used)}}


def _draw_regions(axis: Axes, aligned: Aligned, colours: dict[int, Colour]) -> None:
    """A frame for each region, and a label with its snippets and scores that covers no other label."""
    height, width = axis.images[0].get_size()
    placed: list[Any] = []
    for region, colour in colours.items():
        if region == WHOLE:
            continue
        x0, y0, x1, y1 = aligned.boxes[region] * (width, height, width, height) - 0.5
        axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=2.5))
        snippets = (one for one in aligned.snippets if one.region == region)
        text = "\n".join(fill(f"{aligned.text(one)}  {one.score:.2f}", 28) for one in snippets)
        right, low = x0 + x1 > width, y0 + y1 > height
        label = axis.annotate(
            text,
            (x1 if right else x0, y1 if low else y0),
            xytext=(0, 0),
            textcoords="offset points",
            horizontalalignment="right" if right else "left",
            verticalalignment="bottom" if low else "top",
            fontsize=9,
            color="white",
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 2.0},
        )
        for offset in range(4, 200, 4):  # points, towards the middle
            label.xyann = (-4.0 if right else 4.0, float(offset if low else -offset))
            extent = label.get_window_extent().padded(4)
            if not any(extent.overlaps(other) for other in placed):
                break
        placed.append(extent)
