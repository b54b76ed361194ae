"""Which region of a picture each word of a caption describes, by a trained alignment model."""

from __future__ import annotations

from colorsys import hls_to_rgb
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageDraw
from torch import Tensor

from capbench.base.files import printable
from capbench.data.batches import padded
from capbench.data.images import decode
from capbench.kernels.chain import viterbi_decode
from capbench.metrics.alignment import label_spans
from capbench.runs.loaded import Sentence, Trained, find_run
from capbench.tools.drawing import GAP, MARGIN, font, resampling, save_drawing, wrapped

WHOLE = 0  # the region that is the whole image
WIDTH = 770  # of a drawing, in pixels
FRAME, PADDING = 4, 4  # pixels
LUMINANCE = 0.18  # of a colour at most: contrast 4.5 with white
GREY = (107, 107, 107)

Colour = tuple[int, int, int]
Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels


@runtime_checkable
class Aligner(Protocol):
    """A model that puts regions and words into one space, where v_i . s_t says how well word t fits region i.

    `captions` hold words without START and END, padded with PAD.
    """

    def embed_regions(self, regions: Float[Tensor, "image region feature"]) -> Float[Tensor, "image region dim"]: ...

    def embed_words(
        self, captions: Int[Tensor, "caption length"], lengths: Int[Tensor, " caption"]
    ) -> Float[Tensor, "caption length dim"]: ...


class Snippet(NamedTuple):
    """A run of words with one region."""

    region: int
    start: int
    end: int  # exclusive
    score: float  # mean v_i . s_t of the words


@dataclass(frozen=True)
class Aligned:
    """The words of a caption and the region of each."""

    picture: Path
    words: tuple[str, ...]
    boxes: Float[np.ndarray, "region 4"]  # x0, y0, x1, y1 as fractions of width and height; first the whole picture
    scores: Float[np.ndarray, "word region"]  # v_i . s_t
    labels: Int[np.ndarray, " word"]  # the region of each word, best for the chain
    beta: float  # the chain's affinity
    unknown: tuple[str, ...] = ()  # words outside the vocabulary

    @property
    def snippets(self) -> tuple[Snippet, ...]:
        """The longest runs of words with one region, in the order of the caption."""
        return tuple(
            Snippet(region, start, end, float(self.scores[start:end, region].mean()))
            for region, start, end in label_spans(self.labels.tolist())
        )

    def text(self, snippet: Snippet) -> str:
        """The words of a snippet."""
        return " ".join(self.words[snippet.start : snippet.end])


def aligner(run: Path | None, folder: Path) -> Trained:
    """The finished run in `run`, or the newest alignment model under `folder`; see `find_run`."""
    return find_run(run, folder, Aligner, "alignment model", "capbench run karpathy")


def align(
    trained: Trained, picture: Path, caption: str, beta: float | None = None, store: Path | None = None
) -> Aligned:
    """The region of each word: the best labels of a chain that rewards neighbours for agreeing by `beta`.

    `beta` defaults to the recipe's, and `store`, which keeps the features, to the cache folder. With a `beta` of 0 each
    word has its own best region; a large one gives all words the same. Raises CapbenchError for a caption without a
    known word, a negative `beta`, and an undecodable picture. Source: Karpathy & Fei-Fei, CVPR 2015, equations 10-12.
    """
    sentence = trained.read(caption)
    regions = torch.from_numpy(np.array(trained.features([picture], store=store)))
    boxes = trained.boxes([picture], store=store)[0].numpy()
    return align_words(trained, picture, sentence, regions, boxes, beta)


@torch.no_grad()
def align_words(
    trained: Trained,
    picture: Path,
    sentence: Sentence,
    regions: Float[Tensor, "1 region feature"],
    boxes: Float[np.ndarray, "region 4"],
    beta: float | None = None,
) -> Aligned:
    """As `align`, for a picture whose regions are known already."""
    model = cast(Aligner, trained.model)
    ids, lengths = padded([sentence.numbers[1:-1]])
    scores = (model.embed_words(ids, lengths)[0] @ model.embed_regions(regions)[0].T).float()
    beta = trained.recipe.beta if beta is None else beta
    labels, _ = viterbi_decode(scores[None], lengths, beta)
    return Aligned(picture, sentence.words, boxes, scores.numpy(), labels[0].numpy(), beta, sentence.unknown)


def as_text(aligned: Aligned) -> list[str]:
    """A line for each snippet: score, words, and the region's box in percent of the picture."""
    texts = {snippet: aligned.text(snippet) for snippet in aligned.snippets}
    width = max(map(len, texts.values()))
    lines = []
    for snippet, text in texts.items():
        x0, y0, x1, y1 = (round(100 * side) for side in aligned.boxes[snippet.region].tolist())
        where = f"region {snippet.region:2d}: {x0}-{x1} % across, {y0}-{y1} % down"
        lines.append(f"{snippet.score:8.3f}  {text:{width}}  {'whole picture' if snippet.region == WHOLE else where}")
    if aligned.unknown:
        lines.append(f"not in the vocabulary: {', '.join(aligned.unknown)}")
    return lines


def as_json(aligned: Aligned) -> dict[str, Any]:
    """The alignment as JSON values; boxes are fractions of the picture's width and height."""
    words = zip(aligned.words, aligned.labels.tolist(), aligned.scores.tolist(), strict=True)
    return {
        "picture": printable(aligned.picture),
        "beta": aligned.beta,
        "words": [{"word": word, "region": region, "score": scores[region]} for word, region, scores in words],
        "snippets": [
            {"text": aligned.text(snippet), "box": aligned.boxes[snippet.region].tolist(), **snippet._asdict()}
            for snippet in aligned.snippets
        ],
        "unknown": list(aligned.unknown),
    }


def draw_alignment(aligned: Aligned, out: Path) -> None:
    """Draw the regions that have words, and the caption below in their colours, and write it to `out`.

    Words of the whole picture are grey and have no frame. Raises CapbenchError for an undecodable picture and a file
    that cannot be written.
    """
    picture = Image.fromarray(decode(aligned.picture))
    height = round(WIDTH * min(max(picture.height / picture.width, 0.4), 1.6))
    picture = picture.resize((WIDTH, height), resampling(WIDTH / picture.width))
    face = font(18, bold=True)
    lines = wrapped(" ".join(aligned.words), WIDTH - 2 * MARGIN, face)
    line_height = sum(face.getmetrics())
    drawing = Image.new("RGB", (WIDTH, height + 2 * MARGIN + len(lines) * line_height), "white")
    drawing.paste(picture)
    draw = ImageDraw.Draw(drawing)
    colours = region_colours(aligned)
    _draw_regions(draw, aligned, colours, height)
    labels = zip(aligned.words, aligned.labels.tolist(), strict=True)
    colour_of_letter = iter([colours[region] for word, region in labels for _ in word])  # a long word is broken
    for row, line in enumerate(lines):
        x, y = (WIDTH - face.getlength(line)) / 2, height + MARGIN + row * line_height
        for word in line.split():
            first, *_ = [next(colour_of_letter) for _ in word]
            draw.text((x, y), word, first, face)
            x += face.getlength(f"{word} ")
    save_drawing(drawing, out)


def region_colours(aligned: Aligned) -> dict[int, Colour]:
    """A colour for every region that has a word: grey for the whole picture, else hues far apart, legible on white."""
    used = sorted(set(aligned.labels.tolist()) - {WHOLE})
    return {WHOLE: GREY, **dict(zip(used, distinct_colours(len(used)), strict=True))}


def distinct_colours(count: int) -> list[Colour]:
    """Colours whose hues are far apart, legible on white and under white."""
    return [_colour(place / count) for place in range(count)]


def _colour(hue: float) -> Colour:
    linear = np.array(hls_to_rgb(hue, 0.4, 0.8)) ** 2.2
    linear *= min(1.0, LUMINANCE / float(linear @ (0.2126, 0.7152, 0.0722)))
    red, green, blue = (round(255 * value) for value in (linear ** (1 / 2.2)).tolist())
    return red, green, blue


def _draw_regions(draw: ImageDraw.ImageDraw, aligned: Aligned, colours: dict[int, Colour], height: int) -> None:
    """A frame for each region, and a label with its snippets and scores that covers no other label."""
    pixels = (aligned.boxes * (WIDTH, height, WIDTH, height)).round().astype(int).tolist()
    boxes: dict[int, Box] = {region: tuple(pixels[region]) for region in colours if region != WHOLE}
    for region, (x0, y0, x1, y1) in boxes.items():
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=colours[region], width=FRAME)
    labels: list[Box] = []
    face = font(15)
    for region, box in boxes.items():
        snippets = [snippet for snippet in aligned.snippets if snippet.region == region]
        texts = [f"{aligned.text(snippet)}  {snippet.score:.2f}" for snippet in snippets]
        text = "\n".join(line for entry in texts for line in wrapped(entry, WIDTH // 3, face))
        left, top, right, bottom = (round(side) for side in draw.multiline_textbbox((0, 0), text, face))
        size = (right - left + 2 * PADDING, bottom - top + 2 * PADDING)
        labels.append(_free_place(box, size, labels, height))
        x0, y0, _, _ = labels[-1]
        draw.rectangle(labels[-1], fill=colours[region])
        draw.multiline_text((x0 + PADDING - left, y0 + PADDING - top), text, "white", face)


def _free_place(box: Box, size: tuple[int, int], taken: list[Box], height: int) -> Box:
    """A place for a label inside the picture: in a corner of its box, moved up or down until it covers no other."""
    x0, y0, x1, y1 = box
    x = x1 - FRAME - size[0] if x0 + x1 > WIDTH else x0 + FRAME
    x = min(max(x, 0), max(WIDTH - size[0], 0))
    low = y0 + y1 > height
    first = y1 - FRAME - size[1] if low else y0 + FRAME
    places = [first + step * (-GAP if low else GAP) for step in range(height // GAP)]
    tops = [min(max(y, 0), max(height - size[1], 0)) for y in places]
    labels = [(x, y, x + size[0], y + size[1]) for y in tops]
    return next((label for label in labels if not any(_overlap(label, other) for other in taken)), labels[0])


def _overlap(a: Box, b: Box) -> bool:
    """Whether there are less than two pixels between the boxes."""
    return a[0] < b[2] + 2 and b[0] < a[2] + 2 and a[1] < b[3] + 2 and b[1] < a[3] + 2
