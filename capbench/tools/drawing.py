"""Drawings of pictures with text, written in the format that the file's name asks for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, partial
from importlib.resources import files
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from capbench.base.errors import CapbenchError
from capbench.base.files import atomic_write
from capbench.data.images import decode

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
TILE, GAP, MARGIN = 280, 6, 12  # pixels: side of a picture on a sheet, to its label, around each
COLUMNS = 8  # on a sheet, at most
ON_A_SHEET = 200  # pictures


def check_drawable(out: Path | None) -> None:
    """Raises CapbenchError, before the work, for a file whose suffix names no format that can be drawn."""
    if out is not None and out.suffix.lower() not in FORMATS:
        raise CapbenchError(f"cannot draw {out}: name a file that ends in {', '.join(FORMATS)}")


def save_drawing(drawing: Image.Image, out: Path) -> None:
    """Write a drawing in the format of the file's suffix. Raises CapbenchError when it cannot be written."""
    check_drawable(out)
    atomic_write(out, partial(drawing.save, format=FORMATS[out.suffix.lower()], quality=92))


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font of all drawings, DejaVu Sans, which comes with matplotlib; `size` in pixels."""
    fonts = files("matplotlib") / "mpl-data" / "fonts" / "ttf"
    return ImageFont.truetype(str(fonts / f"DejaVuSans{'-Bold' * bold}.ttf"), size)


def wrapped(text: str, width: int, face: ImageFont.FreeTypeFont) -> list[str]:
    """The lines of a text that is `width` pixels wide at most; a longer word is broken."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if face.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and face.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def draw_sheet(pictures: Sequence[Path], labels: Sequence[str], out: Path) -> None:
    """Draw pictures in a grid, each with its label below, and write it to `out`.

    Raises CapbenchError for more than `ON_A_SHEET` pictures, an undecodable one, and a file that cannot be written.
    """
    if not 0 < len(pictures) <= ON_A_SHEET:
        raise CapbenchError(f"a sheet holds 1 to {ON_A_SHEET} pictures, not {len(pictures):,}; give fewer")
    columns = min(max(4, math.ceil(math.sqrt(len(pictures)))), COLUMNS, len(pictures))
    face = font(16)
    height = sum(face.getmetrics())
    rows = []
    for start in range(0, len(pictures), columns):
        thumbnails = [fitted(decode(path), TILE) for path in pictures[start : start + columns]]
        texts = [wrapped(label, TILE, face) for label in labels[start : start + columns]]
        upper, lower = max(tile.height for tile in thumbnails), height * max(map(len, texts))
        row = Image.new("RGB", (columns * (TILE + MARGIN) + MARGIN, MARGIN + upper + GAP + lower), "white")
        draw = ImageDraw.Draw(row)
        for column, (tile, lines) in enumerate(zip(thumbnails, texts, strict=True)):
            left = MARGIN + column * (TILE + MARGIN)
            row.paste(tile, (left + (TILE - tile.width) // 2, MARGIN + upper - tile.height))
            for number, line in enumerate(lines):
                x = left + (TILE - face.getlength(line)) / 2
                draw.text((x, MARGIN + upper + GAP + number * height), line, "black", face)
        rows.append(row)
    save_drawing(stacked_rows(rows), out)


def stacked_rows(rows: Sequence[Image.Image]) -> Image.Image:
    """Images of one width, one below the other, with a margin at the end."""
    sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows) + MARGIN), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def fitted(pixels: UInt8[np.ndarray, "height width 3"], side: int) -> Image.Image:
    """A picture whose longer side has `side` pixels."""
    height, width, _ = pixels.shape
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return Image.fromarray(pixels).resize(size, resampling(scale))


def resampling(scale: float) -> Image.Resampling:
    """Photographs stay smooth; the pixels of small drawings stay sharp."""
    return Image.Resampling.NEAREST if scale >= 3 else Image.Resampling.LANCZOS
