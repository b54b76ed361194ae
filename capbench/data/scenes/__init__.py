"""The embedded data set: drawn scenes whose captions come with the true box of every phrase.

A scene is a canvas of 64 x 64 pixels in one of six settings (snow, sand, night, water, grass, stone: its background),
with two to four things that never overlap: a shape, a colour, a size and a place each. Later things often share colour
or shape with an earlier one, so colour has to be bound to shape. The five captions of a scene follow a small grammar
with synonyms. They differ in length (5 to 16 words), leave things out (large ones are named more often), and all are
true. A phrase names just the things that fit its words: "a star" is said only where there is one star, and "two red
circles" has two boxes. "A picture of", "in the top left corner" and "on snow" name nothing drawn and are no phrases.

A caption seldom fits another image, for else the hardest negative of a batch is a match in truth: of the 15,000
training captions of seed 0, in batches of 128 of nearly one length, 4.8 % describe another image of their batch. Of the
500 test images, a reader who understands every word (and guesses among the images that fit) puts the right one first
for 88 % of the captions; for 77 % when relations and places are ignored, for 64 % when settings are ignored too.

The same seed gives the same bytes everywhere: all geometry is in integers, and of Python's generator only
`Random(int).random()` is used, whose sequence the language guarantees.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from capbench.base.errors import CapbenchError
from capbench.base.files import fingerprint
from capbench.data.captions import Box, CaptionDataset, Phrase

CANVAS = 64
CAPTIONS = 5
SHORTEST, LONGEST = 5, 16
RENDER_VERSION = 2  # raise it when `render` draws other pixels: it is part of the fingerprint

# The words for each meaning, the most usual first.
SHAPES: Mapping[str, tuple[str, ...]] = {
    "circle": ("circle", "disc", "ball"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "wedge"),
    "star": ("star",),
    "cross": ("cross", "plus"),
    "heart": ("heart",),
    "diamond": ("diamond", "rhombus"),
    "ring": ("ring", "hoop"),
    "arrow": ("arrow",),
    "moon": ("moon", "crescent"),
    "bar": ("bar", "plank"),
    "cup": ("cup", "bowl"),
}
COLOURS: Mapping[str, tuple[str, ...]] = {
    "red": ("red", "crimson", "scarlet"),
    "blue": ("blue", "azure"),
    "green": ("green", "emerald"),
    "yellow": ("yellow", "golden"),
    "purple": ("purple", "violet"),
    "orange": ("orange",),
    "pink": ("pink", "rosy"),
    "brown": ("brown",),
    "turquoise": ("turquoise", "teal"),
}
SIZES: Mapping[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "medium": (),
    "large": ("large", "big", "huge"),
}
THINGS = ("shape", "thing", "object")
RELATIONS: Mapping[str, tuple[str, ...]] = {
    "left": ("left of", "to the left of", "on the left side of"),
    "right": ("right of", "to the right of", "on the right side of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "beneath"),
    "near": ("next to", "beside", "close to"),
    "far": ("far from", "far away from"),
}
PLACES: Mapping[str, tuple[str, ...]] = {
    "top left": ("in the top left corner", "at the upper left"),
    "top right": ("in the top right corner", "at the upper right"),
    "bottom left": ("in the bottom left corner", "at the lower left"),
    "bottom right": ("in the bottom right corner", "at the lower right"),
    "top": ("at the top", "near the upper edge"),
    "bottom": ("at the bottom", "near the lower edge"),
    "left": ("on the left", "at the left edge"),
    "right": ("on the right", "at the right edge"),
    "middle": ("in the middle", "in the centre"),
}
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "snow": ("on snow", "in the snow"),
    "sand": ("on sand", "on the beach"),
    "night": ("at night", "in the dark"),
    "water": ("on water", "in the water"),
    "grass": ("on grass", "in a meadow"),
    "stone": ("on stone", "on the pavement"),
}

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
_WORD_ODDS = (6, 3, 2)
_NUMBERS = ("no", "one", "two", "three", "four")
_OPENERS = ("", "there is", "a picture of", "an image of", "you can see", "here we see", "this scene shows")
_OPENER_ODDS = (8, 4, 3, 1, 2, 1, 2)
_VERBS = (("is", "are"), ("sits", "sit"), ("lies", "lie"), ("is placed", "are placed"), ("", ""))
_VERB_ODDS = (6, 2, 2, 1, 4)
# Which of size, colour and shape a phrase says, and how often.
_DETAILS = ((0, 1, 1, 16), (0, 0, 1, 4), (1, 1, 1, 8), (1, 0, 1, 3), (0, 1, 0, 2), (1, 0, 0, 1))

Option = TypeVar("Option")


@dataclass(frozen=True)
class Thing:
    """One drawn shape: centre (x, y) and radius (half the side of its cell) in pixels, and its RGB."""

    shape: str
    colour: str
    size: str
    x: int
    y: int
    radius: int
    rgb: tuple[int, int, int]

    @property
    def box(self) -> Box:
        """The smallest box x0, y0, x1, y1 (x1, y1 outside) around the pixels that the thing touches."""
        left, top, right, bottom = _extent(self.shape, self.radius)
        x, y = self.x - self.radius, self.y - self.radius
        return (float(x + left), float(y + top), float(x + right), float(y + bottom))


@dataclass(frozen=True)
class Scene:
    """The setting, the RGB that it has here, and the things on it."""

    setting: str
    background: tuple[int, int, int]
    things: tuple[Thing, ...]


class Dice:
    """Draws that are the same on every platform, from a seed and a label such as ("scenes", "train", 7)."""

    def __init__(self, seed: int, *label: str | int) -> None:
        digest = hashlib.sha256("/".join(map(str, (seed, *label))).encode()).digest()
        self._random = random.Random(int.from_bytes(digest[:16], "big")).random

    def below(self, count: int) -> int:
        """An integer in [0, count)."""
        return int(self._random() * count)

    def pick(self, options: Sequence[Option], odds: Sequence[int] | None = None) -> Option:
        """One of `options`; `odds` are integer weights, of which as many are read as there are options."""
        if odds is None:
            return options[self.below(len(options))]
        mark = self.below(sum(odds[: len(options)]))
        for option, weight in zip(options, odds, strict=False):
            mark -= weight
            if mark < 0:
                return option
        raise AssertionError("the odds are all zero")


# ---- drawing -----------------------------------------------------------------


@lru_cache(maxsize=256)
def _coverage(shape: str, radius: int) -> NDArray[np.int64]:
    """Of the 8 x 8 parts of each pixel of its cell, how many a shape covers: int64 [2 radius, 2 radius]."""
    side = 16 * radius
    u = (2 * np.arange(side) + 1 - side)[None, :] * 1000 // side  # -1000..1000 rightwards over the cell
    v = u.T  # downwards
    if shape == "circle":
        inside = u * u + v * v <= 1000 * 1000
    elif shape == "square":
        edge = (7 * radius + 4) // 8 * 1000 // radius  # whole pixels: a sharp edge
        inside = (abs(u) <= edge) & (abs(v) <= edge)
    elif shape == "triangle":
        inside = (abs(u) * 1850 <= 1000 * (v + 1000)) & (v <= 850)
    elif shape == "cross":
        inside = (abs(u) <= 340) | (abs(v) <= 340)
    elif shape == "heart":
        lobes = (abs(u) - 480) ** 2 + (v + 380) ** 2 <= 510 * 510
        point = (abs(u) * 1150 <= 930 * (960 - v)) & (v >= -190)
        inside = lobes | point
    elif shape == "diamond":
        inside = abs(u) * 1350 + abs(v) * 1000 <= 1000 * 1000
    elif shape == "ring":
        distance = u * u + v * v
        inside = (distance <= 1000 * 1000) & (distance >= 560 * 560)
    elif shape == "arrow":
        head = (abs(u) <= v + 1000) & (v <= -100)
        inside = head | ((abs(u) <= 300) & (v >= -100))
    elif shape == "moon":
        inside = (u * u + v * v <= 1000 * 1000) & (u * u + (v + 620) ** 2 > 900 * 900)
    elif shape == "bar":
        inside = (abs(u) <= 1000) & (abs(v) <= 330)
    elif shape == "cup":
        inside = (abs(u) * 1000 <= 1000 * 1000 - 450 * (v + 500)) & (abs(v) <= 500)
    elif shape == "star":
        # The sides of a regular pentagon, made longer: a point of the star is outside one of them only.
        sides = ((0, 1000), (951, 309), (588, -809), (-588, -809), (-951, 309))
        inside = np.sum([a * u + b * (v - 50) > 1000 * 325 for a, b in sides], axis=0) <= 1
    else:
        raise AssertionError(f"no such shape: {shape}")
    covered: NDArray[np.int64] = inside.reshape(2 * radius, 8, 2 * radius, 8).sum((1, 3), dtype=np.int64)
    return covered


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


# ---- describing --------------------------------------------------------------


class Group(NamedTuple):
    """A description and the things that fit it; None where size, colour or shape is left unsaid."""

    size: str | None
    colour: str | None
    shape: str | None
    members: tuple[Thing, ...]
    odds: int


def _groups(things: Sequence[Thing]) -> list[Group]:
    """Every description that the things allow; large things have the better odds."""
    found: dict[tuple[str | None, str | None, str | None], Group] = {}
    for thing in things:
        for says_size, says_colour, says_shape, odds in _DETAILS:
            size = thing.size if says_size and SIZES[thing.size] else None
            colour = thing.colour if says_colour else None
            shape = thing.shape if says_shape else None
            if not (size or colour or shape):
                continue
            members = tuple(
                t for t in things if size in (None, t.size) and colour in (None, t.colour) and shape in (None, t.shape)
            )
            before = found[size, colour, shape].odds if (size, colour, shape) in found else 0
            weight = before + odds * thing.radius // len(members)
            found[size, colour, shape] = Group(size, colour, shape, members, weight)
    return list(found.values())


def relations(subject: Sequence[Thing], other: Sequence[Thing]) -> list[str]:
    """The relations of RELATIONS that hold between every thing of `subject` and every thing of `other`.

    A direction needs a free line between the two cells and the larger share of the distance of the centres;
    near is at most 6 pixels between the cells, far at least 36 pixels between the centres.
    """
    holding = set(RELATIONS)
    for a in subject:
        for b in other:
            dx, dy, reach = b.x - a.x, b.y - a.y, a.radius + b.radius
            across, down = abs(dx) >= max(reach, abs(dy) + 1), abs(dy) >= max(reach, abs(dx) + 1)
            holding &= {
                *(["left"] if across and dx > 0 else []),
                *(["right"] if across and dx < 0 else []),
                *(["above"] if down and dy > 0 else []),
                *(["below"] if down and dy < 0 else []),
                *(["near"] if max(abs(dx), abs(dy)) - reach <= 6 else []),
                *(["far"] if dx * dx + dy * dy >= 36 * 36 else []),
            }
    return [name for name in RELATIONS if name in holding]


def places(things: Sequence[Thing]) -> list[str]:
    """The place of PLACES that all the things share (their centres, in thirds of the canvas), or none."""
    spots = {
        (("top", "", "bottom")[3 * t.y // CANVAS] + " " + ("left", "", "right")[3 * t.x // CANVAS]).strip() or "middle"
        for t in things
    }
    return list(spots) if len(spots) == 1 else []


class _Sentence:
    """A caption under construction: words, some with a comma behind them, and the phrases among them."""

    def __init__(self, dice: Dice) -> None:
        self.dice = dice
        self.words: list[str] = []
        self.phrases: list[Phrase] = []
        self.placed = False  # whether it says where something is

    def say(self, text: str) -> None:
        self.words += text.split()

    def name(self, group: Group) -> None:
        """Say the noun phrase of a group and note its span and boxes."""
        count = len(group.members)
        noun = self.dice.pick(SHAPES[group.shape] if group.shape else THINGS, _WORD_ODDS)
        if count > 1:
            noun += "es" if noun[-1] in "sx" else "s"
        words = [self.dice.pick(SIZES[group.size], _WORD_ODDS)] if group.size else []
        words += [self.dice.pick(COLOURS[group.colour], _WORD_ODDS)] if group.colour else []
        article = "an" if [*words, noun][0][0] in "aeiou" else "a"
        articles = (article, "one") if self.words[-2:] == ["there", "is"] else (article, "one", "the")
        first = _NUMBERS[count] if count > 1 else self.dice.pick(articles, (16, 1, 3))
        start = len(self.words)
        self.words += [first, *words, noun]
        self.phrases.append(Phrase(start, len(self.words), tuple(t.box for t in group.members)))

    def open(self, first: Group) -> bool:
        """Say an opener, or nothing; tells which, since a verb follows only where nothing opened."""
        opener = self.dice.pick(_OPENERS, _OPENER_ODDS)
        self.say("there are" if opener == "there is" and len(first.members) > 1 else opener)
        return bool(opener)

    def verb(self, subject: Group) -> None:
        self.say(self.dice.pick(_VERBS, _VERB_ODDS)[len(subject.members) > 1])

    def relate(self, subject: Group, other: Group) -> bool:
        """Say a relation that holds and name the other group; False where none holds."""
        names = relations(subject.members, other.members)
        if not names:
            return False
        odds = [1 if name == "far" else 2 if name == "near" else 5 for name in names]
        self.say(self.dice.pick(RELATIONS[self.dice.pick(names, odds)], _WORD_ODDS))
        self.placed = True
        self.name(other)
        return True

    def setting(self, name: str) -> None:
        """Say where the scene is; a caption that says little else always does."""
        if len(self.phrases) == 1 or not self.placed or self.dice.below(2):
            self.say(self.dice.pick(SETTINGS[name], _WORD_ODDS))

    def place(self, group: Group) -> bool:
        """Say where the group is; False where its things are in different places."""
        names = places(group.members)
        if names:
            self.say(self.dice.pick(PLACES[names[0]], _WORD_ODDS))
            self.placed = True
        return bool(names)


def _choose(dice: Dice, groups: Sequence[Group], count: int) -> list[Group]:
    """Up to `count` groups that share no thing, drawn by their odds."""
    chosen: list[Group] = []
    left = list(groups)
    while left and len(chosen) < count:
        chosen.append(dice.pick(left, [group.odds for group in left]))
        left = [group for group in left if not any(t in chosen[-1].members for t in group.members)]
    return chosen


def _relation(line: _Sentence, things: Sequence[Thing], groups: Sequence[Group]) -> bool:
    """ "A star sits left of two boxes", perhaps "and above a disc" or "which is above a disc"."""
    wanted = line.dice.pick((2, 3), (3, 2))
    chosen = _choose(line.dice, groups, wanted)
    if len(chosen) < wanted:
        return False
    subject, other = chosen[:2]
    opened = line.open(subject)
    line.name(subject)
    if not opened:
        line.verb(subject)
    if not line.relate(subject, other):
        return False
    if wanted == 2:
        return True
    if line.dice.below(3):
        line.say("and")
        return line.relate(subject, chosen[2])
    line.say("which are" if len(other.members) > 1 else "which is")
    return line.relate(other, chosen[2])


def _list(line: _Sentence, things: Sequence[Thing], groups: Sequence[Group]) -> bool:
    """ "A star, two boxes and a disc", or "a star with a disc"."""
    chosen = _choose(line.dice, groups, line.dice.pick((2, 3, 4), (5, 3, 1)))
    if len(chosen) < 2:
        return False
    line.open(chosen[0])
    joint = line.dice.pick(("and", "with", "and also"), (6, 2, 1)) if len(chosen) == 2 else "and"
    for position, group in enumerate(chosen):
        if position == len(chosen) - 1:
            line.say(joint)
        elif position:
            line.words[-1] += ","
        line.name(group)
    return True


def _place(line: _Sentence, things: Sequence[Thing], groups: Sequence[Group]) -> bool:
    """ "A star lies in the middle", perhaps "and a disc at the top"; now and then just "a small red star"."""
    chosen = _choose(line.dice, groups, line.dice.pick((1, 2), (3, 2)))
    opened = line.open(chosen[0])
    if line.dice.below(12) == 0 and chosen[0].colour and chosen[0].shape:
        line.name(chosen[0])
        return True
    for position, group in enumerate(chosen):
        line.say("and" if position else "")
        line.name(group)
        if not opened:
            line.verb(group)
        if not line.place(group):
            return False
    return True


def _count(line: _Sentence, things: Sequence[Thing], groups: Sequence[Group]) -> bool:
    """ "There are three shapes", with "including a star" or "with a star above a disc" behind."""
    everything = Group(None, None, None, tuple(things), 0)
    line.open(everything)
    line.name(everything)
    chosen = _choose(line.dice, groups, 2)
    if len(chosen[0].members) == len(things):
        return False
    related = len(chosen) == 2 and line.dice.below(5) < 4
    line.say("with" if related else "including")
    line.name(chosen[0])
    return line.relate(*chosen) if related else True


_TEMPLATES = (_relation, _list, _place, _count)
_TEMPLATE_ODDS = (10, 5, 4, 2)


class Description(NamedTuple):
    """One caption: its raw line, its tokens, and the phrases over the tokens."""

    text: str
    tokens: tuple[str, ...]
    phrases: tuple[Phrase, ...]


def describe(scene: Scene, dice: Dice, captions: int = CAPTIONS) -> list[Description]:
    """Different true captions of a scene, each of 4 to 16 words."""
    groups = _groups(scene.things)
    said: dict[tuple[str, ...], Description] = {}
    while len(said) < captions:
        line = _Sentence(dice)
        if dice.pick(_TEMPLATES, _TEMPLATE_ODDS)(line, scene.things, groups):
            line.setting(scene.setting)
            tokens = tuple(word.strip(",") for word in line.words)
            if SHORTEST <= len(tokens) <= LONGEST:
                text = " ".join(line.words)
                said.setdefault(tokens, Description(text[0].upper() + text[1:] + ".", tokens, tuple(line.phrases)))
    return list(said.values())


# ---- the data set ------------------------------------------------------------


class SceneImages:
    """The images of a scenes data set, drawn when they are asked for. `scenes` holds what is on each."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        self.scenes = tuple(scenes)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as uint8 [64, 64, 3] RGB."""
        return render(self.scenes[index])

    @cached_property
    def fingerprint(self) -> str:
        """A hash of every scene and of the version of the drawing code."""
        return fingerprint(["scenes", RENDER_VERSION, [astuple(scene) for scene in self.scenes]])

    def check(self) -> None:
        """Nothing can be missing."""


def scenes(seed: int = 0, train: int = 3000, val: int = 250, test: int = 500) -> CaptionDataset:
    """The scenes data set: `train + val + test` images, five captions each, with the phrases and their boxes.

    Image `i` of a split depends on the seed, the split and `i` alone, so a smaller set is the beginning of a
    larger one. `images` is a SceneImages. Raises CapbenchError for a negative or empty size.
    """
    sizes = {"train": train, "val": val, "test": test}
    for split, size in sizes.items():
        if size < 0 or not any(sizes.values()):
            raise CapbenchError(f"scenes: {split} has {size} images; give sizes of 0 or more, not all 0")
    names: list[str] = []
    splits: list[str] = []
    drawn: list[Scene] = []
    described: list[Description] = []
    for split, size in sizes.items():
        for index in range(size):
            drawn.append(draw_scene(Dice(seed, "scenes", split, index)))
            described += describe(drawn[-1], Dice(seed, "captions", split, index))
            names.append(f"{split}/{index:05d}")
            splits.append(split)
    return CaptionDataset(
        name="scenes",
        images=SceneImages(drawn),
        image_names=tuple(names),
        image_ids=tuple(range(len(names))),
        split_of_image=tuple(splits),
        captions=tuple(caption.text for caption in described),
        tokens=tuple(caption.tokens for caption in described),
        caption_ids=tuple(range(len(described))),
        image_of_caption=np.arange(len(described), dtype=np.int64) // CAPTIONS,
        phrases=tuple(caption.phrases for caption in described),
    )
