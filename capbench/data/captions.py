"""The data-set type: images, captions, and which image each caption describes."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from capbench.base.errors import CapbenchError
from capbench.base.files import fingerprint
from capbench.data.tokenizers import KARPATHY, TOKENIZERS

SPLITS = ("train", "val", "test")
LONGEST_NAME = 255  # bytes of a part of a path on all usual file systems
_SURROGATE = re.compile("[\ud800-\udfff]")
ENGLISH = 0.99  # of the letters of English captions, and more, are a to z
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Phrase:
    """A noun phrase of a caption, and where in the image the things are that it names."""

    start: int  # its first token
    end: int  # exclusive
    boxes: tuple[Box, ...]  # x0, y0, x1, y1 in pixels, x1 and y1 exclusive


@runtime_checkable
class Images(Protocol):
    """A sequence of pictures, each decoded when it is indexed."""

    if TYPE_CHECKING:  # Python 3.11's isinstance would compute it, which reads every file

        @property
        def fingerprint(self) -> str:
            """A hash of the pictures in their order."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """RGB pixels, uint8 [height, width, 3]."""

    def check(self) -> None:
        """Raise CapbenchError with a list of the missing pictures."""


@dataclass(frozen=True, eq=False)
class CaptionDataset:
    """Images with captions. Each image is in one split and has one caption or more.

    Raises CapbenchError when the fields disagree with one another.
    """

    name: str
    # one entry an image
    images: Images = field(repr=False)
    image_names: tuple[str, ...] = field(repr=False)  # relative paths
    image_ids: tuple[int, ...] = field(repr=False)
    split_of_image: tuple[str, ...] = field(repr=False)
    # one entry a caption
    captions: tuple[str, ...] = field(repr=False)  # raw text, each on one line
    tokens: tuple[tuple[str, ...], ...] = field(repr=False)  # without white space inside
    caption_ids: tuple[int, ...] = field(repr=False)
    image_of_caption: NDArray[np.int64] = field(repr=False)  # index into `images`
    phrases: tuple[tuple[Phrase, ...], ...] | None = field(default=None, repr=False)  # None where boxes are unknown
    notes: tuple[str, ...] = ()  # what a protocol must state, such as the split of the restval images
    tokenizer: str = KARPATHY  # made the tokens, and reads queries
    place: str = ""  # how a command names a data set that is known by its folder alone; empty for one with a name

    def __post_init__(self) -> None:
        self._check_lengths()
        self._check_values()

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits that have images."""
        return tuple(name for name in SPLITS if name in self.split_of_image)

    @cached_property
    def objects(self) -> tuple[tuple[Box, ...], ...] | None:
        """The distinct boxes of an image's phrases, the largest first, in pixels; None where boxes are unknown."""
        if self.phrases is None:
            return None
        known: list[set[Box]] = [set() for _ in self.image_names]
        for image, phrases in zip(self.image_of_caption, self.phrases, strict=True):
            known[image].update(box for phrase in phrases for box in phrase.boxes)
        return tuple(tuple(sorted(boxes, key=lambda b: ((b[0] - b[2]) * (b[3] - b[1]), b))) for boxes in known)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all fields that have one entry an image or a caption, without pixels and phrases.

        A tokeniser other than Karpathy's is a part of it.
        """
        images = (self.image_names, self.image_ids, self.split_of_image)
        captions = (self.captions, self.tokens, self.caption_ids, self.image_of_caption.tolist())
        fields = (*images, *captions, *([] if self.tokenizer == KARPATHY else [self.tokenizer]))
        return hashlib.sha256("".join(fingerprint(value) for value in fields).encode()).hexdigest()

    @cached_property
    def metric_tokenizer(self) -> str:
        """The tokeniser that caption metrics take; empty for coco-caption's, which is made for English.

        That is for captions that may be English: Karpathy's tokeniser reads them, or nearly all letters are a to z.
        Others are scored by the words of the data set.
        """
        if self.tokenizer == KARPATHY:
            return ""
        letters = Counter(filter(str.isalpha, "".join(self.captions)))
        plain = sum(count for letter, count in letters.items() if letter.isascii())
        return "" if plain >= ENGLISH * letters.total() else self.tokenizer

    def split(self, name: str) -> Split:
        """One split, in the order of the data set. Raises CapbenchError for an unknown name."""
        if name not in self.splits:
            known = ", ".join(self.splits)
            raise CapbenchError(f"{self.name} has no split {name!r}; it has {known}")
        inside = np.array([split == name for split in self.split_of_image])
        position = np.cumsum(inside) - 1
        captions = np.flatnonzero(inside[self.image_of_caption])
        return Split(self, name, np.flatnonzero(inside), captions, position[self.image_of_caption[captions]])

    def _check_lengths(self) -> None:
        images, captions = len(self.image_names), len(self.captions)
        if images == 0:
            raise CapbenchError(f"{self.name} has no images")
        an_image = dict.fromkeys(("images", "image_ids", "split_of_image"), images)
        a_caption = dict.fromkeys(("tokens", "caption_ids", "image_of_caption", "phrases"), captions)
        for what, expected in (an_image | a_caption).items():
            values = getattr(self, what)
            if values is not None and len(values) != expected:
                raise CapbenchError(
                    f"{self.name}: {what} has {len(values)} entries, expected {expected} "
                    f"({images} images, {captions} captions)"
                )

    def _check_values(self) -> None:
        _refuse(self.name, f"tokenisers other than {', '.join(TOKENIZERS)}", {self.tokenizer} - set(TOKENIZERS))
        for fault in sorted({path_fault(name) for name in self.image_names} - {""}):
            _refuse(self.name, f"an image name that {fault}", (n for n in self.image_names if path_fault(n) == fault))
        unknown = sorted(set(self.split_of_image) - set(SPLITS))
        _refuse(self.name, f"split names other than {', '.join(SPLITS)}", unknown)
        splits: dict[str, str] = {}
        for name, split in zip(self.image_names, self.split_of_image, strict=True):
            if splits.setdefault(name, split) != split:
                raise CapbenchError(f"{self.name}: the image {name!r} is in two splits, {splits[name]} and {split}")
        _refuse(self.name, "images listed twice", duplicates(self.image_names))
        _refuse(self.name, "image ids given twice", duplicates(self.image_ids))
        _refuse(self.name, "caption ids given twice", duplicates(self.caption_ids))
        images, count = self.image_of_caption, len(self.image_names)
        if images.dtype != np.int64 or images.ndim != 1:
            raise CapbenchError(f"{self.name}: image_of_caption is {images.dtype} {images.shape}, not int64 [caption]")
        wrong = np.flatnonzero((images < 0) | (images >= count))
        _refuse(self.name, "captions of an unknown image", (self.caption_ids[i] for i in wrong))
        broken = (c for c in self.captions if one_line(c) != c)
        _refuse(self.name, "captions with a line break or a lone surrogate (apply one_line)", broken)
        loose = (words for words in self.tokens if one_line(" ".join(words)).split() != list(words))
        _refuse(self.name, "tokens that are empty or have white space or a lone surrogate inside", loose)
        bare = np.flatnonzero(np.bincount(images, minlength=count) == 0)
        _refuse(self.name, "images without a caption", (self.image_names[i] for i in bare))


@dataclass(frozen=True, eq=False)
class Split:
    """The images and captions of one split, as indices into the data set."""

    dataset: CaptionDataset
    name: str
    image_index: NDArray[np.int64] = field(repr=False)  # [image], into `dataset.images`, ascending
    caption_index: NDArray[np.int64] = field(repr=False)  # [caption], into `dataset.captions`, ascending
    image_of_caption: NDArray[np.int64] = field(repr=False)  # [caption], into `image_index`

    @property
    def captions(self) -> tuple[str, ...]:
        return tuple(self.dataset.captions[i] for i in self.caption_index)

    @property
    def tokens(self) -> tuple[tuple[str, ...], ...]:
        return tuple(self.dataset.tokens[i] for i in self.caption_index)

    def of_images(self, values: Sequence[str]) -> list[list[str]]:
        """What each caption has, by image: `of_images(split.captions)` are the references of each."""
        own: list[list[str]] = [[] for _ in self.image_index]
        for value, image in zip(values, self.image_of_caption, strict=True):
            own[image].append(value)
        return own

    def images_of(self, captions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The image of each of some captions, given by their numbers in the split: an index into `dataset.images`."""
        return self.image_index[self.image_of_caption[captions]]

    def first(self, images: int) -> Split:
        """The first images of the split with their captions, which keep their numbers.

        Raises CapbenchError when there are fewer images, or when captions of other images lie between theirs.
        """
        if len(self.image_index) < images:
            raise CapbenchError(f"the {self.name} split has {len(self.image_index):,} images, not {images:,}")
        inside = self.image_of_caption < images
        count = int(inside.sum())
        if not inside[:count].all():
            raise CapbenchError(f"the captions of {self.dataset.name} are not in the order of its images; sort them")
        kept = (self.image_index[:images], self.caption_index[:count], self.image_of_caption[:count])
        return Split(self.dataset, self.name, *kept)

    def first_captions(self, each: int) -> NDArray[np.int64]:
        """The first captions of each image, at most `each`: their numbers in the split, ascending."""
        by_image = np.argsort(self.image_of_caption, kind="stable")
        images = self.image_of_caption[by_image]
        place = np.arange(len(images)) - np.searchsorted(images, images)
        return np.sort(by_image[place < each])


def protocol_line(split: Split) -> str:
    """The size of a split in words, such as "1,000 images, 5,000 captions (5 each)", and the notes of its data set.

    Uneven counts are a range with the mean. Captions without a word are counted.
    """

    def counted(count: int, noun: str) -> str:
        return f"{count:,} {noun}{'s' * (count != 1)}"

    images, captions = len(split.image_index), len(split.caption_index)
    each = np.bincount(split.image_of_caption, minlength=images)
    low, high = each.min(), each.max()
    spread = f"{low} each" if low == high else f"{low} to {high} each, mean {captions / images:.1f}"
    empty = sum(not any(map(str.isalnum, "".join(tokens))) for tokens in split.tokens)
    line = f"{counted(images, 'image')}, {counted(captions, 'caption')} ({spread})"
    if empty:
        line += f", {empty:,} {'of them' if captions > 1 else 'caption'} without a word"
    return "; ".join([line, *split.dataset.notes])


def one_line(text: str) -> str:
    """`text` with a space for each line break of any kind, and U+FFFD for each lone surrogate.

    A line break would shift later captions in tools that work line by line, and UTF-8 has no lone surrogates.

    >>> one_line("a dog\\nruns")
    'a dog runs'
    """
    if text.isprintable():  # nearly always, and fast
        return text
    return _SURROGATE.sub("\ufffd", " ".join(text.splitlines()))


def path_fault(name: str) -> str:
    """What is wrong with the path of an image in its folder, `/` between its parts; empty if nothing is.

    A picture has one such path: "./a.jpg" would be a second one of "a.jpg".

    >>> path_fault("a/b.jpg"), path_fault("../b.jpg"), path_fault("./b.jpg")
    ('', 'is no relative path inside the folder', "has an empty part or '.' in its path")
    """
    parts = name.split("/")
    if not name or set(name) & set("\\:\0") or name.startswith("/") or ".." in parts:
        return "is no relative path inside the folder"
    if "" in parts or "." in parts:
        return "has an empty part or '.' in its path"
    longest = max(len(part.encode("utf-8", "surrogatepass")) for part in parts)
    return f"has a part of {longest:,} bytes, and {LONGEST_NAME} is the most" if longest > LONGEST_NAME else ""


def duplicates(values: Sequence[Any]) -> list[Any]:
    """The values that occur more than once, in the order of their first occurrence.

    >>> duplicates([3, 1, 3])
    [3]
    """
    return [value for value, count in Counter(values).items() if count > 1]


def _refuse(dataset: str, fault: str, faulty: Iterable[Any]) -> None:
    """Raise CapbenchError with the first faulty values, if there are any."""
    first = list(islice(faulty, 6))
    if first:
        shown = ", ".join(repr(value) for value in first[:5]) + (", ..." if len(first) > 5 else "")
        raise CapbenchError(f"{dataset}: {fault}: {shown}")
