"""Outputs joined with the images and captions of a split: by id, or in the split file's order where there are no ids.

Outputs may be of the whole split or, under the protocol "1K", of its first 1,000 images; of all captions, or of the
first five of each image, as the field scores COCO (25,000 of 25,010).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
from jaxtyping import Int
from torch import Tensor

from capbench.base.errors import CapbenchError
from capbench.data.captions import Split
from capbench.metrics import positives
from capbench.metrics.retrieval import FOLD, check_protocol, scored
from capbench.scoring.ids import UNKNOWN, Key, Side
from capbench.scoring.outputs import Captions

CAPTIONS = 5  # of an image that the field scores
_ROWS_AT_ONCE = 4096  # that are compared


@dataclass(frozen=True, eq=False)
class Scope:
    """The images and captions that some outputs are of."""

    split: Split = field(repr=False)  # its first images, or all of them
    kept: Int[np.ndarray, " caption"] = field(repr=False)  # numbers of the captions within the split
    images: Side
    captions: Side

    @property
    def image_of_caption(self) -> Int[np.ndarray, " caption"]:
        return self.split.image_of_caption[self.kept]

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the captions is left out."""
        of = len(self.split.caption_index)
        words = f"scored: the first {CAPTIONS} captions of each image, {len(self.kept):,} of {of:,}"
        return (words,) * (len(self.kept) < of)

    def __str__(self) -> str:
        return f"{len(self.split.image_index):,} images with {len(self.kept):,} captions"


@dataclass(frozen=True, eq=False)
class Given:
    """Whose the rows, or columns, of an output are."""

    count: int
    ids: tuple[Key, ...] | None
    source: str  # a file, for messages

    @property
    def name(self) -> str:
        """The file without its folders, which are nobody's business in a record."""
        return Path(self.source).name


def scopes(split: Split, protocol: str) -> Iterator[Scope]:
    """What outputs under a protocol may be of, smallest first. Raises CapbenchError for a split that does not fit."""
    check_protocol(protocol, len(split.image_index))
    sides = Side("image", split), Side("caption", split)
    for part in [split.first(FOLD), split] if protocol == "1K" else [split]:
        each = [part.first_captions(CAPTIONS), np.arange(len(part.caption_index))]
        yield from (Scope(part, kept, *sides) for kept in each)


def retrieval_scope(split: Split, protocol: str, images: Given, captions: Given) -> Scope:
    """The smallest scope that two sides of outputs can be of. Raises CapbenchError where their numbers fit none."""
    possible = list(scopes(split, protocol))
    for scope in possible:
        rows, count = len(scope.split.image_index), len(scope.kept)
        repeated = images.count % rows == 0 or images.count == count
        if _fits(images, scope.images, np.arange(rows), repeated) and _fits(
            captions, scope.captions, scope.kept, captions.count == count
        ):
            return scope
    known = " or ".join(dict.fromkeys(map(str, possible)))
    one = images.source == captions.source
    swapped = "it seems to be [caption, image]: transpose it" if one else "give the file of the images first"
    turned = f"; {swapped}" if _turned(possible, images, captions) else ""
    raise CapbenchError(
        f"{_sources(images, captions)} {images.count:,} images and {captions.count:,} captions, and the {split.name} "
        f"split of {split.dataset.name} has {known}{turned}; give rows in that order, or files of ids"
    )


def image_rows(scope: Scope, given: Given, rows: Tensor) -> tuple[Int[np.ndarray, " image"], tuple[str, ...]]:
    """The row of each image of a scope, and what is to be said of it.

    Images that are repeated, with equal rows, are folded. Raises CapbenchError listing ids that are wrong, and naming
    two rows of one image that differ.
    """
    count = len(scope.split.image_index)
    notes: list[str] = []
    if given.ids is not None:
        scope.images.refuse_ambiguous(given.source, given.ids)
        owner = scope.images.places(given.ids)
        each = np.bincount(owner[(owner >= 0) & (owner < count)], minlength=count)
        if not ((owner >= 0) & (owner < count)).all() or each.min() < 2:
            scope.images.check(given.source, given.ids, owner, np.arange(count))
    else:
        times = given.count // count
        as_captions = given.count == len(scope.kept)
        owner = scope.image_of_caption if as_captions and given.count != count else np.arange(given.count) // times
        notes.append(_in_order(given, count, "images"))
    _, first = np.unique(owner, return_index=True)
    if given.count > count:
        _refuse_unequal(given, rows, first[owner], scope)
        notes.append(f"folded: {given.name} has {given.count:,} rows for {count:,} images, equal for each image")
    return first, tuple(notes)


def caption_rows(scope: Scope, given: Given) -> tuple[Int[np.ndarray, " caption"], tuple[str, ...]]:
    """The row of each caption of a scope, and what is to be said. Raises CapbenchError listing ids that are wrong."""
    if given.ids is None:
        return np.arange(given.count), (_in_order(given, given.count, "captions"),)
    places = scope.captions.places(given.ids)
    scope.captions.check(given.source, given.ids, places, scope.kept)
    return np.argsort(places), ()


def captions_in_order(split: Split, protocol: str, outputs: Captions) -> tuple[Split, list[str]]:
    """The images that are scored, and the caption of each.

    Raises CapbenchError listing ids that are wrong, and for an entry whose id and file name are of two images.
    """
    if protocol == "5-fold 1K" or protocol in positives.PROTOCOLS:
        raise CapbenchError(f"the protocol {protocol} is of rankings; score captions under whole, 1K or 5K")
    check_protocol(protocol, len(split.image_index))
    side, part = Side("image", split), scored(split, protocol)
    side.refuse_ambiguous(outputs.source, chain.from_iterable(outputs.images))
    places = np.array([_place(side, names, outputs.source) for names in outputs.images])
    of_whole = bool((places >= len(part.image_index)).any())
    keys = [names[0] for names in outputs.images]
    side.check(outputs.source, keys, places, np.arange(len((split if of_whole else part).image_index)))
    order = np.argsort(places)[: len(part.image_index)]
    return part, [outputs.captions[entry] for entry in order]


def in_order(order: Int[np.ndarray, " item"], rows: Tensor) -> Tensor:
    """Rows in an order; the rows themselves where they are in it already."""
    return rows if len(order) == len(rows) and (np.diff(order) == 1).all() else rows[order]


def _place(side: Side, names: Sequence[Key], source: str) -> int:
    """The image that the names of an entry agree on; a name that is no image's decides nothing beside one that is."""
    places = {place for place in map(side.place, names) if place != UNKNOWN}
    if len(places) > 1:
        several = " and ".join(map(repr, names))
        raise CapbenchError(f"{source}: {several} name one entry and are two images; keep the right one")
    return places.pop() if places else UNKNOWN


def _fits(given: Given, side: Side, wanted: Int[np.ndarray, " item"], count: bool) -> bool:
    """Whether what is given can be of these; ids that are nobody's are refused later, with the list."""
    if given.ids is None:
        return count
    places = side.places(given.ids)
    return bool(np.isin(places[places >= 0], wanted).all())


def _turned(possible: Sequence[Scope], images: Given, captions: Given) -> bool:
    sizes = ((len(scope.split.image_index), len(scope.kept)) for scope in possible)
    return (captions.count, images.count) in sizes


def _sources(images: Given, captions: Given) -> str:
    sources = dict.fromkeys((images.source, captions.source))
    return " and ".join(sources) + (" has" if len(sources) == 1 else " have")


def _in_order(given: Given, count: int, noun: str) -> str:
    return f"order: {given.name} gives no ids; its rows were taken for the {count:,} {noun} in the split file's order"


def _refuse_unequal(given: Given, rows: Tensor, same: Int[np.ndarray, " row"], scope: Scope) -> None:
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        some = slice(start, start + _ROWS_AT_ONCE)
        differing = (rows[some] != rows[same[some]]).any(1).nonzero()
        if len(differing):
            row = start + int(differing[0])
            raise CapbenchError(
                f"{given.source} has {given.count:,} rows for {len(scope.split.image_index):,} images, and rows "
                f"{same[row]} and {row}, of one image, differ; give one row an image, or equal ones"
            )
