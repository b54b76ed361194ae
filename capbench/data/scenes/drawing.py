"""The things on a scene, and its pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from capbench.data.captions import Box
from capbench.data.scenes.dice import Dice
from capbench.data.scenes.words import COLOURS, SETTINGS, SHAPES, SIZES

CANVAS = 64  # pixels a side
RENDER_VERSION = 2  # part of the fingerprint: raise it when `render` draws other pixels

_RGB = {
    "red": (212, 45, 48),
    "blue": (52, 108, 214),
    "green": (52, 158, 78),
    "yellow": (236, 200, 44),
    "purple": (142, 72, 178),
    "orange": (238, 132, 36),
    "pink": (240, 140, 190),
    "brown": (122, 76, 44),
    "turquoise": (40, 178, 176),
}
_BACKGROUNDS = {
    "snow": (242, 244, 246),
    "sand": (228, 212, 176),
    "night": (40, 44, 58),
    "water": (178, 208, 236),
    "grass": (196, 222, 172),
    "stone": (168, 168, 172),
}
_RADII = {"small": (5, 6), "medium": (8, 9), "large": (12, 13)}
_SHAPE_ODDS, _COLOUR_ODDS = (5, 5, 4, 4, 4, 4, 3, 3, 3, 3, 3, 3), (6, 5, 5, 4, 4, 4, 3, 3, 3)
_SIZE_ODDS = (3, 4, 3)
_COUNT_ODDS = (4, 4, 2)  # two, three or four things
_ALIKE_ODDS = (11, 4, 4, 1)  # a new kind; the shape, the colour, or both of an earlier thing


@dataclass(frozen=True)
class Thing:
    """One drawn shape."""

    shape: str
    colour: str
    size: str
    x: int  # centre, in pixels
    y: int
    radius: int  # half the side of its cell, in pixels
    rgb: tuple[int, int, int]

    @property
    def box(self) -> Box:
        """The smallest box x0, y0, x1, y1 (x1, y1 exclusive) around the pixels that the thing touches."""
        left, top, right, bottom = _extent(self.shape, self.radius)
        x, y = self.x - self.radius, self.y - self.radius
        return (float(x + left), float(y + top), float(x + right), float(y + bottom))


@dataclass(frozen=True)
class Scene:
    """A setting and the things on it."""

    setting: str
    background: tuple[int, int, int]  # RGB
    things: tuple[Thing, ...]


# The sides of a regular pentagon, extended: a point of the star is outside one of them at most.
_PENTAGON = ((0, 1000), (951, 309), (588, -809), (-588, -809), (-951, 309))
# Whether a point is inside a shape: u is its distance from the vertical axis, v goes down, the cell is 2000 x 2000.
_INSIDE: dict[str, Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]]] = {
    "circle": lambda u, v: u * u + v * v <= 1000 * 1000,
    "triangle": lambda u, v: (u * 1850 <= 1000 * (v + 1000)) & (v <= 850),
    "star": lambda u, v: np.sum([a * u + b * (v - 50) > 1000 * 325 for a, b in _PENTAGON], axis=0) <= 1,
    "cross": lambda u, v: (u <= 340) | (abs(v) <= 340),
    "heart": lambda u, v: (
        ((u - 480) ** 2 + (v + 380) ** 2 <= 510 * 510) | ((u * 1150 <= 930 * (960 - v)) & (v >= -190))
    ),
    "diamond": lambda u, v: u * 1350 + abs(v) * 1000 <= 1000 * 1000,
    "ring": lambda u, v: (u * u + v * v <= 1000 * 1000) & (u * u + v * v >= 560 * 560),
    "arrow": lambda u, v: ((u <= v + 1000) & (v <= -100)) | ((u <= 300) & (v >= -100)),
    "moon": lambda u, v: (u * u + v * v <= 1000 * 1000) & (u * u + (v + 620) ** 2 > 900 * 900),
    "bar": lambda u, v: (u <= 1000) & (abs(v) <= 330),
    "cup": lambda u, v: (u * 1000 <= 1000 * 1000 - 450 * (v + 500)) & (abs(v) <= 500),
}


@lru_cache(maxsize=256)
def _coverage(shape: str, radius: int) -> NDArray[np.int64]:
    """How many of the 8 x 8 parts of each pixel of its cell a shape covers: int64 [2 radius, 2 radius]."""
    side = 16 * radius
    across = (2 * np.arange(side) + 1 - side) * 1000 // side  # -1000..1000
    if shape == "square":
        edge = (7 * radius + 4) // 8 * 1000 // radius  # whole pixels: a sharp edge
        inside = (abs(across) <= edge) & (abs(across[:, None]) <= edge)
    else:
        inside = _INSIDE[shape](abs(across)[None, :], across[:, None])
    return inside.reshape(2 * radius, 8, 2 * radius, 8).sum((1, 3), dtype=np.int64)


@lru_cache(maxsize=256)
def _extent(shape: str, radius: int) -> tuple[int, int, int, int]:
    rows, columns = _coverage(shape, radius).nonzero()
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def render(scene: Scene) -> NDArray[np.uint8]:
    """The scene as uint8 [64, 64, 3] RGB, edges smoothed by exact integer coverage."""
    canvas = np.empty((CANVAS, CANVAS, 3), np.int64)
    canvas[:] = scene.background
    for thing in scene.things:
        cover = _coverage(thing.shape, thing.radius)[:, :, None]
        top, left, side = thing.y - thing.radius, thing.x - thing.radius, 2 * thing.radius
        cell = canvas[top : top + side, left : left + side]
        cell[:] = (cell * (64 - cover) + np.array(thing.rgb) * cover + 32) // 64
    return canvas.astype(np.uint8)


def draw_scene(dice: Dice) -> Scene:
    """A scene of two to four things with at least two pixels between their cells."""
    setting = dice.pick(list(SETTINGS))
    background = _tint(dice, _BACKGROUNDS[setting], 6)
    while True:
        kinds = _draw_kinds(dice)
        things: list[Thing] = []
        for shape, colour, size in kinds:
            rgb = _tint(dice, _RGB[colour], 14)
            for _ in range(60):
                radius = dice.pick(_RADII[size])
                x, y = (radius + 1 + dice.below(CANVAS - 2 * radius - 1) for _ in range(2))
                if all(max(abs(x - t.x), abs(y - t.y)) >= radius + t.radius + 2 for t in things):
                    things.append(Thing(shape, colour, size, x, y, radius, rgb))
                    break
        if len(things) == len(kinds):
            return Scene(setting, background, tuple(things))


def _draw_kinds(dice: Dice) -> list[tuple[str, str, str]]:
    """Shape, colour and size of two to four things, not all of one shape and colour."""
    kinds: list[tuple[str, str, str]] = []
    count = dice.pick((2, 3, 4), _COUNT_ODDS)
    while len(kinds) < count:
        shape, colour = dice.pick(list(SHAPES), _SHAPE_ODDS), dice.pick(list(COLOURS), _COLOUR_ODDS)
        if kinds:
            before = dice.pick(kinds)
            alike = ((shape, colour), (before[0], colour), (shape, before[1]), before[:2])
            shape, colour = dice.pick(alike, _ALIKE_ODDS)
        kinds.append((shape, colour, dice.pick(list(SIZES), _SIZE_ODDS)))
        if len(kinds) == count and len({kind[:2] for kind in kinds}) == 1:
            kinds.pop()
    return kinds


def _tint(dice: Dice, rgb: tuple[int, int, int], spread: int) -> tuple[int, int, int]:
    red, green, blue = (value + dice.below(2 * spread + 1) - spread for value in rgb)
    return red, green, blue
