"""One picture that shows three galleries of scenes: attention, search and alignment."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from capbench.base.errors import CapbenchError
from capbench.runs.paper import paper
from capbench.site.gallery.finding import ALIGNMENT, CAPTIONS, SEARCH, Gallery, Kind
from capbench.site.gallery.shown import Entry, Found, Joined, Written
from capbench.tools.align import GREY, WHOLE, Aligned, region_colours
from capbench.tools.caption import DIMMED
from capbench.tools.drawing import fitted, font, save_drawing, wrapped

# Twice the width of a small screen, so that the letters have half their size there.
WIDTH, COLUMNS, GAP, FRAME = 780, 5, 10, 5
PANEL = (WIDTH - (COLUMNS + 1) * GAP) // COLUMNS
HEADING, WORDS, LARGE, SMALL = (font(size, bold) for size, bold in ((25, True), (23, False), (27, True), (20, False)))
PASSED_OVER = frozenset(["a", "an", "the", "of", "and", "on", "in", "at", "is", "there", "to", "with", "also"])
RIGHT, WRONG = (21, 128, 61), (185, 28, 28)
MADE_BY = {
    CAPTIONS.name: "capbench run show-attend-tell --preset soft-ours --seed 0",
    SEARCH.name: "capbench run vsepp --preset vsepp-ours --seed 0",
    ALIGNMENT.name: "capbench run karpathy --preset brnn-ours --seed 0",
}


def draw_strip(galleries: Sequence[Gallery], out: Path) -> None:
    """Draw the best captioner with attention, the best embedding and the best alignment into `out`.

    Raises CapbenchError where there is no run of one of them, and for a file that cannot be written.
    """
    captioner = _best(galleries, CAPTIONS, "cider", lambda entry: isinstance(entry, Written) and bool(entry.maps))
    search, aligner = _best(galleries, SEARCH, "rsum"), _best(galleries, ALIGNMENT, "rsum")
    bands = [_attention(captioner), _search(search), _alignment(aligner)]
    strip = Image.new("RGB", (WIDTH, sum(band.height for band in bands)), "white")
    top = 0
    for band in bands:
        strip.paste(band, (0, top))
        top += band.height
    save_drawing(strip, out)


def _best(
    galleries: Sequence[Gallery], kind: Kind, metric: str, shows: Callable[[Entry], bool] = lambda entry: True
) -> Gallery:  # fmt: skip
    """The gallery of the run with the highest metric in its record."""
    known = [each for each in galleries if each.kind is kind and any(map(shows, each.shown.common))]
    if not known:
        raise CapbenchError(f"no finished run on scenes for {kind.title.lower()}; make one with: {MADE_BY[kind.name]}")
    return max(known, key=lambda each: each.record.metrics.get(metric, 0.0) if each.record else 0.0)


def _picture(gallery: Gallery, image: int, side: int) -> Image.Image:
    return fitted(gallery.test.part.images[image], side)


def _short(gallery: Gallery) -> str:
    """The name that a paper goes by."""
    return paper(gallery.job.paper).title.partition(": ")[0].partition(" for ")[0]


def _band(height: int, gallery: Gallery, does: str) -> tuple[Image.Image, ImageDraw.ImageDraw, int]:
    """A band with its heading, and where it goes on below."""
    top = GAP + sum(HEADING.getmetrics()) + GAP
    band = Image.new("RGB", (WIDTH, top + height + 2 * GAP), "white")
    draw = ImageDraw.Draw(band)
    draw.text((GAP, GAP), f"{_short(gallery)}: {does}", "black", HEADING)
    return band, draw, top


def _attention(gallery: Gallery) -> Image.Image:
    """The picture of the best caption, lit at each word that tells of something."""
    written = [e for each in gallery.shown.sections for e in each.entries if isinstance(e, Written) and e.maps]
    entry = max(written, key=lambda entry: entry.cider or 0.0)
    picture = _picture(gallery, entry.image, PANEL)
    lit = [
        (word, url) for word, url in zip(entry.captions[0].split(), entry.maps, strict=False) if word not in PASSED_OVER
    ]
    panels = [("the picture", picture), *((word, _lit(picture, url)) for word, url in lit[: 2 * COLUMNS - 1])]
    lines = wrapped(f"“{entry.captions[0]}”", WIDTH - 2 * GAP, WORDS)
    line, height = sum(WORDS.getmetrics()), sum(WORDS.getmetrics()) + PANEL + GAP
    rows = -(-len(panels) // COLUMNS)
    start = len(lines) * line + GAP
    band, draw, top = _band(start + rows * height + sum(SMALL.getmetrics()), gallery, "where it looks")
    for n, words in enumerate(lines):
        draw.text((GAP, top + n * line), words, "black", WORDS)
    top += start
    for n, (word, panel) in enumerate(panels):
        x, y = GAP + (n % COLUMNS) * (PANEL + GAP), top + (n // COLUMNS) * height
        draw.text((x + PANEL / 2, y), word, "black", WORDS, anchor="ma")
        band.paste(panel, (x, y + line))
    scale = f"attention weight: black 0, white {max(entry.weights):.3f}, one scale for all words"
    draw.text((GAP, top + rows * height), scale, "black", SMALL)
    return band


def _lit(picture: Image.Image, address: str) -> Image.Image:
    """The picture under a map of attention."""
    content = io.BytesIO(base64.b64decode(address.partition(",")[2]))
    with Image.open(content) as light:
        grey = light.convert("RGB").resize(picture.size, Image.Resampling.BICUBIC)
    return Image.blend(picture, grey, DIMMED)


def _search(gallery: Gallery) -> Image.Image:
    """A sentence whose picture is found, but not first, where there is one."""
    asked = [e for e in gallery.shown.common if isinstance(e, Found) and e.caption is not None]
    among = [entry for entry in asked if entry.image in entry.hits]
    entry = next((entry for entry in among if entry.rank > 1), (among or asked)[0])
    assert entry.caption is not None
    lines = wrapped(f"“{gallery.test.part.captions[entry.caption]}”", WIDTH - 2 * GAP, WORDS)
    line, small = sum(WORDS.getmetrics()), sum(SMALL.getmetrics())
    band, draw, top = _band(len(lines) * line + GAP + PANEL + small, gallery, "what a sentence finds")
    for n, words in enumerate(lines):
        draw.text((GAP, top + n * line), words, "black", WORDS)
    y = top + len(lines) * line + GAP
    for n, hit in enumerate(entry.hits[:COLUMNS]):
        x, right = GAP + n * (PANEL + GAP), hit == entry.image
        band.paste(_picture(gallery, hit, PANEL), (x, y))
        if right:
            draw.rectangle((x, y, x + PANEL - 1, y + PANEL - 1), outline=RIGHT, width=FRAME)
        colour = RIGHT if right else WRONG
        draw.text((x + PANEL / 2, y + PANEL), "✓ its picture" if right else "✗", colour, SMALL, anchor="ma")
    return band


def _alignment(gallery: Gallery) -> Image.Image:
    """The caption of the most regions of those whose phrases all lie on what they name."""
    joined = [entry for entry in gallery.shown.common if isinstance(entry, Joined)]
    entry = max(joined, key=lambda e: ((e.right or 0) / max(e.of, 1), len(set(e.labels) - {WHOLE}), -len(e.words)))
    picture = _picture(gallery, entry.image, 2 * PANEL)
    band, draw, top = _band(picture.height, gallery, "words and boxes")
    band.paste(picture, (GAP, top))
    arrays = np.array(entry.boxes), np.array(entry.scores), np.array(entry.labels)
    colours = region_colours(Aligned(Path(), entry.words, *arrays, entry.beta))
    numbers = {region: n for n, region in enumerate(sorted(set(colours) - {WHOLE}), 1)}
    for region, number in numbers.items():
        sides = np.array(entry.boxes[region]) * np.array(picture.size * 2)
        x0, y0, x1, y1 = (sides + np.array([GAP, top] * 2)).round().astype(int).tolist()
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=colours[region], width=FRAME)
        draw.rectangle((x0, y0, x0 + 26, y0 + 30), fill=colours[region])
        draw.text((x0 + 13, y0 + 2), f"{number}", "white", WORDS, anchor="ma")
    left = 3 * GAP + picture.width
    x, y, line = float(left), top, sum(LARGE.getmetrics()) + GAP
    for word, region in zip(entry.words, entry.labels, strict=True):
        width = LARGE.getlength(word) + (SMALL.getlength(f"{numbers[region]}") if region in numbers else 0)
        if x > left and x + width > WIDTH - GAP:
            x, y = left, y + line
        colour = colours.get(region, GREY)
        draw.text((x, y), word, colour, LARGE)
        if region in numbers:
            draw.text((x + LARGE.getlength(word) + 1, y - 4), f"{numbers[region]}", colour, SMALL)
        x += width + 12
    for n, words in enumerate(
        wrapped("A word has the colour and the number of its region.", WIDTH - left - GAP, SMALL)
    ):
        draw.text((left, y + 2 * line + n * sum(SMALL.getmetrics())), words, "black", SMALL)
    return band
