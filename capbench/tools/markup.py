"""What a model saw in a picture, as HTML for the demo and the galleries.

`assets/look.js` and `assets/look.css` bring it alive. All text from outside is escaped. Pictures are addresses, of
files or as data URLs.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from capbench.data.captions import Box
from capbench.leaderboard.markdown import plain
from capbench.tools.align import WHOLE, Aligned, Colour, region_colours
from capbench.tools.caption import light

ASSETS = Path(__file__).parent / "assets"
OUTSIDE = 5  # pixels of a true box around its thing
MAP = 48  # pixels of a map of attention, which a browser stretches over the picture


def text(value: object) -> str:
    """Text that shows as itself, whatever is in it, and leaves the direction of its surroundings alone."""
    return f"<bdi>{quoted(value)}</bdi>"


def quoted(value: object) -> str:
    """Text as an attribute's value."""
    return escape(plain(value, 2000))


def data_url(picture: Image.Image) -> str:
    """A picture as its own address."""
    content = io.BytesIO()
    picture.save(content, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"


def light_map(weights: Float[np.ndarray, " location"], highest: float) -> str:
    """The map of a word's attention, white at `highest`, as a data URL."""
    return data_url(Image.fromarray((light(weights / highest, (MAP, MAP)) * 255).astype(np.uint8)))


def spoken(words: Sequence[str], maps: Sequence[str], highest: Sequence[float], caption: int, hidden: bool) -> str:
    """A caption whose words are buttons, each with its map and the highest weight of it."""
    buttons = " ".join(
        f'<button type="button" data-light="{address}" data-highest="{weight:.3f}" aria-pressed="false">'
        f"{text(word)}</button>"
        for word, address, weight in zip(words, maps, highest, strict=True)
    )
    return f'<p class="spoken" data-caption="{caption}"{" hidden" * hidden}>{buttons}</p>'


def attended(image: str, captions: Sequence[str], highest: float) -> str:
    """A picture that lights up word by word; `captions` are those of `spoken`, all on the scale from 0 to `highest`."""
    return (
        f'<figure class="looked"><div class="stage">{image}<img class="light" alt="" hidden></div>{"".join(captions)}'
        '<p><button type="button" class="play" aria-pressed="false">Play</button> or choose a word.</p>'
        '<figcaption>Attention weight of a location: <span class="ramp"><span>0</span><i></i>'
        f"<span>{highest:.3f}</span></span> One scale for all words; the weights of a word sum to 1.</figcaption>"
        "</figure>"
    )


def aligned_words(made: Aligned) -> str:
    """The words of a caption in the colours and with the numbers of their regions."""
    colours, numbers = region_colours(made), _numbers(made)
    words = " ".join(
        f'<button type="button" data-region="{region}" style="background: {_css(colours[region])}">'
        f"{text(word)}<sup>{numbers[region]}</sup></button>"
        for word, region in zip(made.words, made.labels.tolist(), strict=True)
    )
    return f'<p class="spoken">{words}</p>'


def aligned_picture(made: Aligned, image: str, size: tuple[int, int], truth: Sequence[Box] = ()) -> str:
    """A picture with the regions that have words; the true boxes, in the pixels of its `size`, are dashed."""
    colours, numbers = region_colours(made), _numbers(made)
    said = ", ".join(f"{made.text(snippet)}: {where(made.boxes[snippet.region])}" for snippet in made.snippets)
    frames = [frame(made.boxes[region], size, region, numbers[region], colours[region]) for region in numbers if region]
    return framed(image, size, said, frames, truth)


def framed(
    image: str, size: tuple[int, int], said: str, frames: Sequence[str], truth: Sequence[Box] = ()
) -> str:  # fmt: skip
    """A picture under frames; `said` tells what they show to those who do not see them."""
    width, height = size
    dashed = "".join(_dashed(box) for box in truth)
    drawn = (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{quoted(said)}">{dashed}{"".join(frames)}</svg>'
    )
    return f'<div class="stage">{image}{drawn}</div>'


def aligned_table(made: Aligned) -> str:
    """A row for each snippet: its words, where its region is, and its score."""
    colours, numbers = region_colours(made), _numbers(made)
    rows = "".join(
        row(
            snippet.region,
            f"{chip(numbers[snippet.region], colours[snippet.region])} {text(made.text(snippet))}",
            where(made.boxes[snippet.region]),
            f"{snippet.score:.2f}",
        )
        for snippet in made.snippets
    )
    return table(("words", "region", "score"), rows)


def table(headings: Sequence[str], rows: str) -> str:
    """A table of rows that are HTML already."""
    heads = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    return f'<table class="snippets"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'


def row(region: int, *cells: str) -> str:
    """A row of a table, of cells that are HTML already; it lights up with its region."""
    return f'<tr data-region="{region}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def chip(number: str, colour: Colour) -> str:
    """A region's number on its colour."""
    return f'<i style="background: {_css(colour)}">{number}</i>'


def frame(box: Float[np.ndarray, " 4"], size: tuple[int, int], region: int, number: str, colour: Colour) -> str:
    """A region's frame with its number in a corner: who sees no colours goes by the numbers."""
    width, height = size
    x0, y0, x1, y1 = (box * (width, height, width, height)).tolist()
    tag = round(0.045 * (width + height) / 2)
    outline = f'<rect class="frame" x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}" />'
    corner = f'<rect class="tag" x="{x0:.1f}" y="{y0:.1f}" width="{tag}" height="{tag}" />'
    label = f'<text x="{x0 + tag / 2:.1f}" y="{y0 + 0.74 * tag:.1f}" font-size="{0.68 * tag:.1f}">{number}</text>'
    return f'<g data-region="{region}" style="--colour: {_css(colour)}">{outline}{corner}{label}</g>'


def where(box: Float[np.ndarray, " 4"]) -> str:
    """The place of a region, in percent of the picture."""
    x0, y0, x1, y1 = (round(100 * side) for side in box.tolist())
    return "the whole picture" if (x0, y0, x1, y1) == (0, 0, 100, 100) else f"{x0}–{x1} % across, {y0}–{y1} % down"


def _dashed(box: Box) -> str:
    """A true box, drawn a little outside, where the frame of a region that is right does not hide it."""
    x0, y0, x1, y1 = (side + gap for side, gap in zip(box, (-OUTSIDE, -OUTSIDE, OUTSIDE, OUTSIDE), strict=True))
    sides = f'x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}"'
    return f'<rect class="under" {sides} /><rect class="true" {sides} />'


def _numbers(made: Aligned) -> dict[int, str]:
    """How the regions that have words are called; the whole picture has no number."""
    used = sorted(set(made.labels.tolist()) - {WHOLE})
    return {WHOLE: "", **{region: f"{n}" for n, region in enumerate(used, 1)}}


def _css(colour: Colour) -> str:
    red, green, blue = colour
    return f"rgb({red} {green} {blue})"
