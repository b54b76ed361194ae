"""The data-set type: images, captions, and which image each caption describes."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from capbench.base.errors import CapbenchError
from capbench.base.files import fingerprint

SPLITS = ("train", "val", "test")
_SURROGATE = re.compile("[\ud800-\udfff]")
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Phrase:
    """A noun phrase: the tokens `start` to `end` (exclusive) of a caption, and the boxes it speaks of.

    A box is x0, y0, x1, y1 in pixels of the image, x1 and y1 exclusive.
    """

    start: int
    end: int
    boxes: tuple[Box, ...]


@runtime_checkable
class Images(Protocol):
    """A numbered sequence of pictures, decoded when asked for."""

    if TYPE_CHECKING:  # Python 3.11's isinstance would compute it, and so look at every file

        @property
        def fingerprint(self) -> str:
            """Changes when a picture, or the order of the pictures, changes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """RGB pixels, uint8 [height, width, 3]."""

    def check(self) -> None:
        """Raises CapbenchError that lists every missing picture."""


@dataclass(frozen=True, eq=False)
class CaptionDataset:
    """Images with captions, each image in one split and with one caption or more.

    `images`, `image_names` (relative paths), `image_ids` and `split_of_image` have one entry an image;
    `captions` (raw text, one line), `tokens` (no white space inside one), `caption_ids`, `image_of_caption`
    (int64, an index into `images`) and `phrases` (only where boxes are known) have one entry a caption.
    `notes` are policies that a protocol must state, such as where the restval images went.
    Raises CapbenchError when these disagree with one another.
    """

    name: str
    images: Images = field(repr=False)
    image_names: tuple[str, ...] = field(repr=False)
    image_ids: tuple[int, ...] = field(repr=False)
    split_of_image: tuple[str, ...] = field(repr=False)
    captions: tuple[str, ...] = field(repr=False)
    tokens: tuple[tuple[str, ...], ...] = field(repr=False)
    caption_ids: tuple[int, ...] = field(repr=False)
    image_of_caption: NDArray[np.int64] = field(repr=False)
    phrases: tuple[tuple[Phrase, ...], ...] | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check_lengths()
        self._check_images()
        self._check_captions()

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits that have images."""
        return tuple(name for name in SPLITS if name in self.split_of_image)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the names, ids, splits, captions, tokens and `image_of_caption`, without the pixels."""
        parts = (
            self.image_names,
            self.image_ids,
            self.split_of_image,
            self.captions,
            self.tokens,
            self.caption_ids,
            self.image_of_caption.tolist(),
        )
        return hashlib.sha256("".join(fingerprint(part) for part in parts).encode()).hexdigest()

    def split(self, name: str) -> Split:
        """One split, in the order of the data set. Raises CapbenchError for an unknown name."""
        if name not in self.splits:
            known = ", ".join(self.splits)
            raise CapbenchError(f"{self.name} has no split {name!r}; it has {known}")
        inside = np.array([split == name for split in self.split_of_image])
        position = np.cumsum(inside) - 1
        captions = np.flatnonzero(inside[self.image_of_caption])
        return Split(
            dataset=self,
            name=name,
            image_index=np.flatnonzero(inside).astype(np.int64),
            caption_index=captions.astype(np.int64),
            image_of_caption=position[self.image_of_caption[captions]].astype(np.int64),
        )

    def _check_lengths(self) -> None:
        images, captions = len(self.image_names), len(self.captions)
        if images == 0:
            raise CapbenchError(f"{self.name} has no images")
        lengths: dict[str, tuple[int, int]] = {
            "images": (len(self.images), images),
            "image_ids": (len(self.image_ids), images),
            "split_of_image": (len(self.split_of_image), images),
            "tokens": (len(self.tokens), captions),
            "caption_ids": (len(self.caption_ids), captions),
            "image_of_caption": (len(self.image_of_caption), captions),
        }
        if self.phrases is not None:
            lengths["phrases"] = (len(self.phrases), captions)
        for what, (length, expected) in lengths.items():
            if length != expected:
                raise CapbenchError(
                    f"{self.name}: {what} has {length} entries, expected {expected} "
                    f"({images} images, {captions} captions)"
                )

    def _check_images(self) -> None:
        _refuse(self.name, "outside the image folder", (n for n in self.image_names if not stays_inside(n)))
        unknown = sorted(set(self.split_of_image) - set(SPLITS))
        _refuse(self.name, f"split names other than {', '.join(SPLITS)}", unknown)
        splits: dict[str, str] = {}
        for name, split in zip(self.image_names, self.split_of_image, strict=True):
            if splits.setdefault(name, split) != split:
                raise CapbenchError(f"{self.name}: the image {name!r} is in two splits, {splits[name]} and {split}")
        _refuse(self.name, "images listed twice", duplicates(self.image_names))
        _refuse(self.name, "image ids given twice", duplicates(self.image_ids))

    def _check_captions(self) -> None:
        _refuse(self.name, "caption ids given twice", duplicates(self.caption_ids))
        owner = self.image_of_caption
        if owner.dtype != np.int64 or owner.ndim != 1:
            raise CapbenchError(f"{self.name}: image_of_caption is {owner.dtype} {owner.shape}, not int64 [caption]")
        wrong = np.flatnonzero((owner < 0) | (owner >= len(self.image_names)))
        _refuse(self.name, "captions of an image that is not there", (self.caption_ids[i] for i in wrong))
        broken = (c for c in self.captions if one_line(c) != c)
        _refuse(self.name, "captions with a line break or a lone surrogate (apply one_line)", broken)
        loose = (words for words in self.tokens if one_line(" ".join(words)).split() != list(words))
        _refuse(self.name, "tokens that are empty or have white space or a lone surrogate inside", loose)
        bare = np.flatnonzero(np.bincount(owner, minlength=len(self.image_names)) == 0)
        _refuse(self.name, "images without a caption", (self.image_names[i] for i in bare))


@dataclass(frozen=True, eq=False)
class Split:
    """A view of one split.

    `image_index` int64 [image] points into `dataset.images` and `caption_index` int64 [caption] into
    `dataset.captions`, both ascending; `image_of_caption` int64 [caption] is a position in `image_index`.
    """

    dataset: CaptionDataset
    name: str
    image_index: NDArray[np.int64] = field(repr=False)
    caption_index: NDArray[np.int64] = field(repr=False)
    image_of_caption: NDArray[np.int64] = field(repr=False)

    @property
    def captions(self) -> tuple[str, ...]:
        return tuple(self.dataset.captions[i] for i in self.caption_index)

    @property
    def tokens(self) -> tuple[tuple[str, ...], ...]:
        return tuple(self.dataset.tokens[i] for i in self.caption_index)

    def first(self, images: int) -> Split:
        """The first images of the split, with their captions, which keep their numbers.

        Raises CapbenchError where there are fewer, or where captions of other images lie between theirs.
        """
        if len(self.image_index) < images:
            raise CapbenchError(f"the {self.name} split has {len(self.image_index):,} images, not {images:,}")
        chosen = np.flatnonzero(self.image_of_caption < images)
        if not np.array_equal(chosen, np.arange(len(chosen))):
            raise CapbenchError(f"the captions of {self.dataset.name} are not in the order of its images; sort them")
        part = slice(len(chosen))
        return replace(
            self,
            image_index=self.image_index[:images],
            caption_index=self.caption_index[part],
            image_of_caption=self.image_of_caption[part],
        )


def protocol_line(split: Split) -> str:
    """What a number on this split rests on: "1,000 images, 5,000 captions (5 each)".

    Uneven counts become a range with the mean; captions without a word are counted; then come the notes.
    """
    images, captions = len(split.image_index), len(split.caption_index)
    each = np.bincount(split.image_of_caption, minlength=images)
    low, high = each.min(), each.max()
    spread = f"{low} each" if low == high else f"{low} to {high} each, mean {captions / images:.1f}"
    empty = sum(not any(map(str.isalnum, "".join(tokens))) for tokens in split.tokens)
    line = f"{images:,} {_plural('image', images)}, {captions:,} {_plural('caption', captions)} ({spread})"
    if empty:
        line += f", {empty:,} {'of them' if captions > 1 else 'caption'} without a word"
    return "; ".join([line, *split.dataset.notes])


def one_line(text: str) -> str:
    """`text` on one line: each line break of any kind becomes a space, a lone surrogate becomes U+FFFD.

    Tools that work line by line would otherwise move later captions to other images, and UTF-8 cannot hold
    half of a surrogate pair.
    """
    if text.isprintable():  # nearly always, and quick
        return text
    return _SURROGATE.sub("\ufffd", " ".join(text.splitlines()))


def stays_inside(name: str) -> bool:
    """Whether `name` is a relative path, parts separated by `/`, that does not climb out of its folder."""
    parts = set(name.split("/"))
    plain = not set(name) & set("\\:\0") and not name.startswith("/")
    return plain and ".." not in parts and bool(parts - {"", "."})


def duplicates(values: Sequence[Any]) -> list[Any]:
    """The values that occur more than once, in the order of their first occurrence."""
    return [value for value, count in Counter(values).items() if count > 1]


def _refuse(dataset: str, fault: str, found: Any) -> None:
    first = list(islice(found, 6))
    if first:
        shown = ", ".join(repr(value) for value in first[:5]) + (", ..." if len(first) > 5 else "")
        raise CapbenchError(f"{dataset}: {fault}: {shown}")


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else noun + "s"
